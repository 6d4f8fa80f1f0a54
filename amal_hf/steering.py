"""How a configuration becomes a mixing, a lookahead and a meta-gradient (floor 3).

A `Steering` answers one question for a batch: how fast does each loss of each row change along the
direction v that the clean rows ask for? `D` is `[N, K + C + J]`: the K sources, then one virtual source
per class (−log p_c), whose D is the meta-gradient of the row's soft label (METHODS E2), then one for each of the J
temperatures that are learned. For a head that does not name one class a row (regression, multi-label) nobody is
advised by the classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

from amal_hf._types import Outputs, Tensors
from amal_hf.config import AMALConfig
from amal_hf.metagrad import (
    FiniteDifference,
    Head,
    HeadClosedForm,
    HeadProblem,
    HeadTap,
    Lookahead,
    MetaGradient,
    Noise,
    OutputsProblem,
    PureModel,
    Still,
    in_float32,
    trainable,
)
from amal_hf.metagrad.memory import CleanMemory, centred_unit
from amal_hf.metagrad.tasks import SINGLE_LABEL, clean_loss
from amal_hf.mixing import Rows

logger = logging.get_logger(__name__)

Encode = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Positions of clean rows -> the model's inputs, on its device."""

FORWARD_MODE_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Step:
    """What a steering sees of one training batch.

    Args:
        outputs: the training forward's outputs, with their graph.
        inputs: the model's inputs.
        noise: random state at the start of that forward.
        weights: λ as it is, `[N, K]`.
        losses_of: outputs -> `[N, K + C + J]`, the sources and then the virtual ones.
        lookahead: the virtual step.
        num_rows: N of (E1), the effective batch over processes and accumulation.
        temperatures: J.
        summed: gradients of this process -> their sum over all processes.
    """

    outputs: Outputs
    inputs: Mapping[str, Tensor]
    noise: Noise
    weights: Tensor
    losses_of: Callable[[Outputs], Tensor]
    lookahead: Lookahead
    num_rows: int
    temperatures: int = 0
    summed: Callable[[Tensors], Tensors] = dict

    @property
    def padded_weights(self) -> Tensor:
        """λ `[N, K + C + J]`: virtual sources weigh nothing."""
        return F.pad(self.weights, (0, self.outputs.logits.shape[-1] + self.temperatures))


class Steering(ABC):
    """From a training batch to D `[N, K + C + J]` and the length of v."""

    sharpness: Tensor = torch.tensor(4.0)
    """τ, how far the advice is believed, in nats; fitted on the clean rows where their features are at hand, and 0
    where no class is to be advised."""

    def tap(self) -> AbstractContextManager[Any]:
        """Context in which the training forward runs."""
        return nullcontext()

    @abstractmethod
    def look(self, step: Step, due: bool, new: bool) -> tuple[Tensor, Tensor] | None:
        """D along v, `[N, K + C + J]`, and ‖v‖; None where there is no direction for this step.

        Args:
            due: a lookahead is due at this optimizer step.
            new: this is the first micro-batch of the optimizer step.
        """

    @abstractmethod
    def state(self) -> Tensors:
        """What must survive a checkpoint."""

    @abstractmethod
    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned."""


class MetaSampler:
    """Which clean rows the j-th lookahead encodes: shuffled passes, a function of (seed, j)."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, min(batch_size, num_rows), seed

    def __call__(self, lookahead: int) -> list[int]:
        start = lookahead * self.batch_size
        picked: list[int] = []
        while len(picked) < self.batch_size:
            lap, offset = divmod(start + len(picked), self.num_rows)
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed * 100_003 + lap))
            picked += order[offset : offset + self.batch_size - len(picked)].tolist()
        return picked


class HeadSteering(Steering):
    """The lookahead moves the final linear layer; V is the loss of all clean rows, from memory.

    A lookahead encodes `meta_batch_size` clean rows without gradient; v is reused until the next one,
    so every row is judged at every visit at no further forward.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        labels: Tensor,
        encode: Encode,
        sampler: MetaSampler,
        args: AMALConfig,
        task: str = SINGLE_LABEL,
    ) -> None:
        self.model, self.head, self.encode, self.sampler, self.args = model, head, encode, sampler, args
        self._tap = HeadTap(head)
        self.memory = CleanMemory(labels, head.module.out_features, head.module.in_features, task)
        self.lookaheads = torch.zeros((), dtype=torch.long)
        self.sharpness = torch.zeros(())
        self._direction: Tensors | None = None

    def tap(self) -> AbstractContextManager[Any]:
        return self._tap

    def remember(self, rows: Sequence[int]) -> None:
        """Encode clean `rows` as the student sees them now."""
        inputs = self.encode(rows)
        pure = PureModel(self.model, inputs, training=False)
        with torch.no_grad(), HeadTap(self.head) as tap:
            features = tap.features(pure({}).logits)
        self.memory.remember(torch.as_tensor(rows, device=features.device), features)

    def fill(self) -> None:
        """Encode every clean row once, before the first lookahead."""
        size = self.args.meta_batch_size
        for start in range(0, self.sampler.num_rows, size):
            self.remember(range(start, min(start + size, self.sampler.num_rows)))

    def problem(self, features: Tensor, step: Step, rows: Tensor | None = None) -> HeadProblem:
        """The head's bilevel problem for this batch, V on all clean rows or on `rows`."""
        params = {name: p.detach().float() for name, p in self.head.params().items()}
        return HeadProblem.on(
            features.float(),
            lambda logits: step.losses_of(Outputs({**step.outputs, "logits": logits})),
            names=self.head.names,
            params=params,
            weights=step.padded_weights.detach(),
            val_loss=lambda moved: self.memory.loss(self.head, moved, rows),
            lr=step.lookahead,
            num_rows=step.num_rows,
        )

    def look(self, step: Step, due: bool, new: bool) -> tuple[Tensor, Tensor] | None:
        features = self._tap.features(step.outputs.logits)
        problem = self.problem(features, step)
        if (due and new) or self._direction is None:
            if step.lookahead.needs_gradient:
                problem = replace(problem, known_gradient=step.summed(problem.gradient()))
            if self._direction is None:
                self.fill()
            else:
                self.remember(self.sampler(int(self.lookaheads)))
            self.lookaheads += 1
            direction, sharpness = problem.direction(), 0.0
            if self.memory.task == SINGLE_LABEL:
                direction, sharpness = self.memory.advise(self.head, direction, self.args.probe_weight)
            # laid out as a checkpoint restores it: a transposed view rounds differently in the product with h
            self._direction = {name: v.contiguous() for name, v in direction.items()}
            self.sharpness.fill_(sharpness)
        return HeadClosedForm().directional(problem, self._direction), _length(self._direction)

    def state(self) -> Tensors:
        if self._direction is None:
            return {}
        held = {f"direction/{name}": v for name, v in self._direction.items()}
        kept = {"memory": self.memory.features, "lookaheads": self.lookaheads, "sharpness": self.sharpness}
        return kept | held

    def load_state(self, state: Tensors) -> None:
        if "memory" in state:
            self.memory.features.copy_(state["memory"])
            self.lookaheads.copy_(state["lookaheads"])
            self.sharpness.copy_(state["sharpness"])
            params = self.head.params()
            self._direction = {name: state[f"direction/{name}"].to(p.device) for name, p in params.items()}


class NetworkSteering(Steering):
    """The lookahead moves every trainable parameter; only steps with a lookahead have a D."""

    def __init__(
        self,
        model: nn.Module,
        estimator: MetaGradient,
        labels: Tensor,
        encode: Encode,
        sampler: MetaSampler,
        task: str = SINGLE_LABEL,
    ) -> None:
        self.model, self.estimator, self.labels, self.task = model, estimator, labels, task
        self.encode, self.sampler = encode, sampler
        if task != SINGLE_LABEL:
            self.sharpness = torch.zeros(())
        self.lookaheads = torch.zeros((), dtype=torch.long)

    def tap(self) -> AbstractContextManager[Any]:
        # dropout inside a fused kernel draws other masks than the MATH kernel does: where the derivative
        # runs on MATH and there is dropout, the training forward of that step must run on MATH as well
        return nullcontext() if isinstance(self.estimator, FiniteDifference) else sdpa_kernel(SDPBackend.MATH)

    def look(self, step: Step, due: bool, new: bool) -> tuple[Tensor, Tensor] | None:
        if not due:
            return None
        self.lookaheads += int(new)
        rows = self.sampler(int(self.lookaheads))
        labels = self.labels[torch.as_tensor(rows, device=self.labels.device)]
        judge = PureModel(self.model, self.encode(rows), training=False)
        student = PureModel(self.model, step.inputs, training=True, noise=step.noise)
        problem = OutputsProblem.through(
            student,
            lambda outputs: step.losses_of(Outputs(outputs)),
            params={name: p.detach() for name, p in trainable(self.model).items()},
            weights=step.padded_weights.detach(),
            val_loss=lambda params: clean_loss(self.task, judge(params).logits.float(), labels),
            lr=step.lookahead,
            num_rows=step.num_rows,
            known_gradient=self._shared_gradient(step),
        )
        direction = problem.direction()
        with self._precision():
            return self.estimator.directional(problem, direction), _length(direction)

    def _precision(self) -> AbstractContextManager[Any]:
        """Differences run in float32, unless the attention kernel knows only half precision."""
        kernel = getattr(self.model.config, "_attn_implementation", "eager")
        in_full = isinstance(self.estimator, FiniteDifference) and kernel in FORWARD_MODE_ATTENTION
        return in_float32(self.model) if in_full else nullcontext()

    def _shared_gradient(self, step: Step) -> Tensors | None:
        """∇L from the graph the real update will use: no second training forward."""
        if isinstance(step.lookahead, Still):
            return None
        params = trainable(self.model)
        loss = (step.padded_weights * step.losses_of(step.outputs)).sum() / step.num_rows
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True)
        return step.summed(dict(zip(params, grads, strict=True)))

    def state(self) -> Tensors:
        return {"lookaheads": self.lookaheads}

    def load_state(self, state: Tensors) -> None:
        if "lookaheads" in state:
            self.lookaheads.copy_(state["lookaheads"])


def _length(direction: Tensors) -> Tensor:
    return torch.stack([v.float().square().sum() for v in direction.values()]).sum().sqrt()


def split_along(along: Tensor, length: Tensor, step: Step, scale: str) -> tuple[Tensor, Tensor]:
    """D `[N, K + C + J]` -> ∂V/∂λ `[N, K]` (raw: as in E1; unit: per unit of ‖v‖), and the advice `[N, C]`."""
    widths, num_rows = (step.weights.shape[1], step.outputs.logits.shape[1], step.temperatures), step.num_rows
    sources, classes, _ = along.split(widths, dim=1)
    gradient = -sources / num_rows if scale == "raw" else -sources / length.clamp_min(1e-30)
    advice = centred_unit(classes)
    # a direction that overflowed tells nothing: no weight moves
    return gradient.nan_to_num(0.0, 0.0, 0.0), advice.nan_to_num(0.0, 0.0, 0.0)


def summed(accelerator: Accelerator, gradients: Tensors) -> Tensors:
    """The sum of every process's gradients, in one message."""
    if accelerator.num_processes == 1:
        return gradients
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients.values()]), "sum")
    parts = flat.split([g.numel() for g in gradients.values()])
    return {name: part.view_as(g) for part, (name, g) in zip(parts, gradients.items(), strict=True)}


def of_all_processes(accelerator: Accelerator, rows: Rows, gradient: Tensor) -> tuple[Rows, Tensor]:
    """Rows and gradient `[N, K]` of every process, each row once, the same on every process."""
    columns = {name: t for name, t in vars(rows).items() if t.dim() > 0 and name != "index"}
    index, *every = everyones(accelerator, rows.index, *columns.values(), gradient)
    return replace(rows, index=index, **dict(zip(columns, every[:-1], strict=True))), every[-1]


def everyones(accelerator: Accelerator, index: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """What every process knows of its rows, each row once: accelerate repeats rows to even out the last batch.

    Args:
        index: position of each row in the training set, `[N]`; -1 for rows of a stream, which all count.
        columns: tensors `[N, ...]`.

    Returns:
        `index` and `columns`, longer: one message holds them all.
    """
    if accelerator.num_processes > 1:
        index, *gathered = _gathered(accelerator, index, columns)
        columns = tuple(gathered)
    order = torch.arange(len(index))
    _, inverse = index.unique(return_inverse=True)
    first = torch.full_like(order, len(order)).scatter_reduce(0, inverse, order, "amin")[inverse]
    kept = (index < 0) | (first == order)
    return (index, *columns) if kept.all() else (index[kept], *(c[kept.to(c.device)] for c in columns))


def _gathered(accelerator: Accelerator, index: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    dtype, device = torch.float32, columns[0].device
    for column in columns:
        dtype = torch.promote_types(dtype, column.dtype)
    # a position is whole in two float32 numbers, and a row that only pads has no 1 behind them
    place = torch.stack([index.div(2**20, rounding_mode="floor"), index.remainder(2**20), torch.ones_like(index)], 1)
    mine = torch.cat([t.to(device, dtype).flatten(1) for t in (place, *(c[:, None] for c in columns))], 1)
    every = accelerator.gather(accelerator.pad_across_processes(mine))
    place, *parts = every[every[:, 2] == 1].split([3, *(c[0].numel() for c in columns)], dim=1)
    index = (place[:, 0].double() * 2**20 + place[:, 1].double()).long().cpu()
    return [index, *(p.reshape(-1, *c.shape[1:]).to(c.dtype) for p, c in zip(parts, columns, strict=True))]
