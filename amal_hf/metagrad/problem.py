r"""The bilevel problem of one meta step, as data.

$$L(\theta,\lambda) = \frac1N \sum_{ik} \lambda_{ik}\,\ell_{ik}(\theta), \qquad
  \theta' = \theta - s(\nabla_\theta L), \qquad V(\theta')$$

Because λ enters L linearly, with $v = P \odot \nabla V(\theta')$ and $P = \partial s/\partial g$,

$$\frac{\partial V(\theta')}{\partial \lambda_{ik}} = -\frac1N \langle \nabla \ell_{ik}(\theta),\, v\rangle
  = -\frac1N D_{ik} \tag{E1}$$

is exact for the one-step lookahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Tensors
from amal_hf.metagrad.virtual_step import SGDStep, VirtualStep


@dataclass(frozen=True)
class MetaProblem:
    """One lookahead: what moves, what is weighted, what judges.

    Args:
        params: name -> tensor, what the lookahead moves.
        weights: λ, `[N, K]`.
        losses: params -> `[N, K]`, unreduced, in nats. Deterministic: a loss with dropout must
            replay the same masks at every call.
        val_loss: params -> scalar, the mean loss on clean rows.
        lr: the lookahead's step: a number, a dict like `params` (preconditioned), or a `VirtualStep`.
        num_rows: N of (E1) where `weights` holds only this process' or micro-batch's share.

    Example:
        >>> import torch
        >>> from amal_hf.metagrad import DoubleBackward, ForwardMode
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]])
        >>> problem = MetaProblem(
        ...     params={"w": torch.tensor([[0.5]])},
        ...     weights=torch.ones(2, 1),
        ...     losses=lambda p: (x @ p["w"] - y).square(),  # [N, K]
        ...     val_loss=lambda p: (p["w"] - 1).square().sum(),
        ...     lr=0.1,
        ... )
        >>> ForwardMode()(problem)  # shape: [2, 1]; row 0 pulls w towards 1: trust it more
        tensor([[-0.0650],
                [ 0.2600]])
        >>> torch.allclose(ForwardMode()(problem), DoubleBackward()(problem))
        True
    """

    params: Tensors
    weights: Tensor
    losses: Callable[[Tensors], Tensor]
    val_loss: Callable[[Tensors], Tensor]
    lr: float | Tensors | VirtualStep
    num_rows: int | None = None

    @property
    def n(self) -> int:
        """N of (E1)."""
        return self.weights.shape[0] if self.num_rows is None else self.num_rows

    @property
    def lookahead(self) -> VirtualStep:
        return self.lr if isinstance(self.lr, VirtualStep) else SGDStep(self.lr)

    def outputs(self, params: Tensors) -> Any:
        """First stage of `losses`: what the parameters produce (a tensor or a dict of tensors)."""
        return self.losses(params)

    def losses_of(self, outputs: Any) -> Tensor:
        """Second stage: `losses(params) == losses_of(outputs(params))`. Shape `[N, K]`."""
        return outputs

    def gradient(self) -> Tensors:
        """∇_θ L(θ, λ), the gradient the lookahead follows; shapes as `params`."""
        leaves = {name: p.detach().requires_grad_() for name, p in self.params.items()}
        with torch.enable_grad():
            loss = (self.weights.detach() * self.losses(leaves)).sum() / self.n
            return gradients_of(loss, leaves)

    def direction(self) -> Tensors:
        """v = P ⊙ ∇V(θ′); shapes as `params`."""
        params = {name: p.detach() for name, p in self.params.items()}
        grads = self.gradient() if self.lookahead.needs_gradient else {}
        with torch.no_grad():
            moved = self.lookahead.move(params, grads)
        leaves = {name: p.detach().requires_grad_() for name, p in moved.items()}
        with torch.enable_grad():
            steepest = gradients_of(self.val_loss(leaves), leaves)
        with torch.no_grad():
            return self.lookahead.scaled(steepest, params, grads)


@dataclass(frozen=True)
class OutputsProblem(MetaProblem):
    """A problem whose losses see the parameters only through the model's outputs.

    The derivative of all K sources then costs one derivative of the outputs.

    Args:
        outputs_of: params -> outputs (a tensor, or a dict of tensors).
        losses_from: outputs -> `[N, K]`.
        known_gradient: ∇L where the caller has it already (the shared training forward).
    """

    outputs_of: Callable[[Tensors], Any] = None  # type: ignore[assignment]
    losses_from: Callable[[Any], Tensor] = None  # type: ignore[assignment]
    known_gradient: Tensors | None = None

    def outputs(self, params: Tensors) -> Any:
        return self.outputs_of(params)

    def losses_of(self, outputs: Any) -> Tensor:
        return self.losses_from(outputs)

    def gradient(self) -> Tensors:
        return super().gradient() if self.known_gradient is None else self.known_gradient

    @classmethod
    def through(
        cls, outputs_of: Callable[[Tensors], Any], losses_from: Callable[[Any], Tensor], **rest: Any
    ) -> OutputsProblem:
        """Build the problem from its two stages."""
        losses = lambda params: losses_from(outputs_of(params))  # noqa: E731
        return cls(losses=losses, outputs_of=outputs_of, losses_from=losses_from, **rest)


@dataclass(frozen=True)
class HeadProblem(OutputsProblem):
    """Only the final linear layer moves: logits are `features @ weight.T + bias`.

    Args:
        features: input of the layer, h, `[N, H]`, detached.
        names: the keys of `weight` `[C, H]` and, where there is one, `bias` `[C]` in `params`.
        along_of: logits and their tangent, both `[N, C]` -> the losses' derivative `[N, K]`, in closed form; None, or
            None in answer: it is derived from `losses_from`.
    """

    features: Tensor = None  # type: ignore[assignment]
    names: tuple[str, str | None] = ("weight", "bias")
    along_of: Callable[[Tensor, Tensor], Tensor | None] | None = None

    @classmethod
    def on(
        cls,
        features: Tensor,
        losses_from: Callable[[Tensor], Tensor],
        names: tuple[str, str | None] = ("weight", "bias"),
        **rest: Any,
    ) -> HeadProblem:
        """Build the problem from cached features `[N, H]` and `losses_from(logits) -> [N, K]`."""

        def logits(params: Tensors) -> Tensor:
            return F.linear(features, params[names[0]], params[names[1]] if names[1] else None)

        losses = lambda params: losses_from(logits(params))  # noqa: E731
        return cls(losses=losses, outputs_of=logits, losses_from=losses_from, features=features, names=names, **rest)


def gradients_of(scalar: Tensor, leaves: Tensors) -> Tensors:
    """∂scalar/∂leaf of each, shapes as `leaves`; 0 where it has no part."""
    grads = torch.autograd.grad(scalar, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(leaves.items(), grads, strict=True)}
