"""The temperature of distillation, learned in the same meta step as the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jvp

from amal_hf._types import Batch, Outputs, Tensors
from amal_hf.losses.base import Loss
from amal_hf.losses.distillation import LEARNED, TEMPERATURE, Distillation

START, LOWEST, HIGHEST = 2.0, 0.5, 10.0
STEP, MEMORY = 0.02, 0.99
"""The step on log T, and how much of the gradients' mean square is kept per optimizer step."""


class Temperatures:
    r"""One temperature for each teacher that is to learn it; each moves to where its lookahead is steepest.

    With $D_{ik}$ the derivative of source k's loss on row i along v, the direction that the clean rows ask for,

    $$J_k(T) = \frac{\sum_i \lambda_{ik}\, D_{ik}(T)}{\sum_i \lambda_{ik}\, \lVert\partial\ell_{ik}/\partial z_i\rVert},
      \qquad g = \frac{\partial J_k}{\partial\log T}, \qquad
      \log T_k \leftarrow \log T_k + \rho\, g \big/ \overline{g^2}^{\,1/2}$$

    The numerator is -N times the part of V(θ') that T has a hand in (docs/method.md (E1)): ∂V/∂T alone favours the T
    with the longest gradients, whatever they teach, so J counts per unit of length. ∂D/∂log T is the D of one more
    virtual source, ∂ℓ/∂log T, behind the sources and the classes: no forward is paid for it.

    Args:
        losses: all sources of a run; those with `temperature="learned"` are meant.
        positions: name -> column of `[N, K]`.

    Raises:
        ValueError: two of them read the same teacher.

    Example:
        >>> losses = {"teacher": Distillation(temperature="learned")}
        >>> temperatures = Temperatures(losses, {"teacher": 0})
        >>> temperatures.into({})
        {'temperature/teacher_logits': tensor(2.)}
    """

    def __init__(self, losses: Mapping[str, Loss], positions: Mapping[str, int]) -> None:
        found = {n: x for n, x in losses.items() if isinstance(x, Distillation) and x.temperature == LEARNED}
        self.losses = found
        self.columns = [positions[name] for name in found]
        if len({loss.column for loss in found.values()}) < len(found):
            raise ValueError(
                f"`temperature`: expected one source a teacher to learn it, found {list(found)} on the same one. "
                "Set a number for all but one."
            )
        self.restart()

    def restart(self) -> None:
        """As before training."""
        self.log = torch.full((len(self),), START).log()
        self.square = torch.zeros(len(self))  # running mean of g²
        self.sums = torch.zeros(4, len(self))  # Σ λD, Σ λ ∂D/∂log T, Σ λ‖r‖, Σ λ ∂‖r‖/∂log T of an optimizer step

    def __len__(self) -> int:
        return len(self.losses)

    def values(self) -> dict[str, float]:
        """T under "temperature/" and the name of its source, for `log()`."""
        return {TEMPERATURE + name: t for name, t in zip(self.losses, self.log.exp().tolist(), strict=True)}

    def into(self, batch: Batch) -> Batch:
        """The batch, and in it the temperatures that its losses read."""
        if not len(self):
            return batch
        device = next((t.device for t in batch.values() if isinstance(t, Tensor)), None)
        keys = (TEMPERATURE + loss.column for loss in self.losses.values())
        return {**batch, **dict(zip(keys, self.log.exp().to(device), strict=True))}

    def slopes(self, outputs: Outputs, batch: Batch) -> Tensor:
        """∂ℓ/∂log T of each, `[N, J]`."""
        batch = self.into(batch)
        columns = [_along_log(partial(loss, outputs), loss, batch)[1] for loss in self.losses.values()]
        return torch.stack(columns, 1) if columns else outputs.logits.new_zeros(len(outputs.logits), 0)

    def accumulate(self, weights: Tensor, along: Tensor, logits: Tensor, batch: Batch) -> None:
        """Adds a batch's sums, until the optimizer steps.

        Args:
            weights: λ, `[N, K]`.
            along: D, `[N, K + C + J]`; its last columns are those of the virtual sources ∂ℓ/∂log T.
            logits: the student's, `[N, C]`.
            batch: the rows.
        """
        batch = self.into(batch)
        for j, (k, loss) in enumerate(zip(self.columns, self.losses.values(), strict=True)):
            pull, change = _along_log(partial(_length, loss, logits.detach()), loss, batch)
            parts = torch.stack([along[:, k], along[:, j - len(self)], pull, change])
            self.sums[:, j] += (parts.float() @ weights[:, k].detach().float()).cpu()

    def commit(self, summed: Callable[[Tensor], Tensor]) -> None:
        """One step, from the sums of all micro-batches (and, `summed`, of all processes) since the last."""
        if not len(self):
            return
        sums = summed(self.sums).cpu()
        self.sums = torch.zeros_like(self.sums)
        if not sums.any():
            return  # no lookahead in this step
        d, d_slope, length, length_slope = sums
        g = (d_slope * length - d * length_slope) / length.square().clamp_min(1e-30)
        g = g.nan_to_num(0.0, 0.0, 0.0)
        new = self.square == 0
        self.square.copy_(torch.where(new, g.square(), MEMORY * self.square + (1 - MEMORY) * g.square()))
        moved = self.log + STEP * g / self.square.sqrt().clamp_min(1e-30)
        self.log.copy_(moved.clamp(torch.tensor(LOWEST).log(), torch.tensor(HIGHEST).log()))

    def state(self) -> Tensors:
        """What must survive a checkpoint."""
        return {"temperature/log": self.log, "temperature/square": self.square} if len(self) else {}

    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: the checkpoint's run learned fewer or more of them.
        """
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(
                    f"`resume_from_checkpoint`: expected {len(self)} learned temperature(s), found others or none. Go "
                    "on with the losses of the run that wrote the checkpoint."
                )
            tensor.copy_(state[name])


def _along_log(function: Callable[[Batch], Tensor], loss: Distillation, batch: Batch) -> tuple[Tensor, Tensor]:
    """`function` of the batch, and its derivative by log T."""
    key = TEMPERATURE + loss.column
    t = batch[key]
    value, slope, *_ = jvp(lambda log_t: function({**batch, key: log_t.exp()}), (t.log(),), (torch.ones_like(t),))
    return value, slope


def _length(loss: Distillation, logits: Tensor, batch: Batch) -> Tensor:
    """‖∂ℓ/∂z‖ of each row, `[N]`; 0 where the teacher abstains."""
    pull = grad(lambda z: loss(Outputs(logits=z), batch).sum())(logits)
    square = pull.square().sum(1)
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
