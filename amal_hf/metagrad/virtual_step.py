r"""The virtual step θ → θ′, and how sensitive it is to the training gradient.

Every optimizer here acts elementwise, so one diagonal is all the meta-gradient needs:

$$\theta' = \theta - s(g), \qquad P = \partial s/\partial g \quad\text{(elementwise)}$$
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from amal_hf._types import Tensors

T = TypeVar("T")
Each: TypeAlias = T | Mapping[str, T]
"""One value for all parameters, or name -> a parameter's own."""


def own(name: str, value: Any) -> Any:
    """A parameter's own value, where there is one per parameter."""
    return value[name] if isinstance(value, Mapping) else value


class VirtualStep(ABC):
    """One virtual optimizer step on `params`, differentiable in the gradient."""

    @property
    def needs_gradient(self) -> bool:
        """False where θ′ does not depend on the training gradient."""
        return True

    def ready(self) -> None:
        """Before the training forward of a step that looks ahead: what is read of the optimizer is read now."""

    @abstractmethod
    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        """Parameters after the virtual step, θ′. Differentiable in `grads`."""

    @abstractmethod
    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        """The diagonal P = −∂θ′/∂g, learning rate included; shapes as `params`."""

    def scaled(self, steepest: Tensors, params: Tensors, grads: Tensors) -> Tensors:
        """v = P ⊙ ∇V(θ′); shapes as `params`."""
        diagonal = self.sensitivity(params, grads)
        return {name: diagonal[name] * slope for name, slope in steepest.items()}


@dataclass(frozen=True)
class SGDStep(VirtualStep):
    r"""One step of `torch.optim.SGD` from the optimizer's present state.

    With b the momentum buffer *before* the step (none before the first), μ, d, w momentum, dampening, weight decay:

    $$\tilde g = g + w\,\theta, \qquad b_+ = \mu b + (1-d)\,\tilde g \ \ (\tilde g \text{ where there is no } b),
      \qquad \theta' = \theta - \eta\,b_+, \qquad P = \eta\,\partial b_+/\partial g$$

    and with Nesterov's momentum $\tilde g + \mu b_+$ in place of $b_+$. Weight decay is coupled: it goes through the
    momentum. Without momentum and decay this is $\theta' = \theta - \eta\odot g$, P = η.

    Args:
        lr: η: a number, or a dict like `params` with one number or tensor each (0: the parameter stays); tensors
            make it a preconditioned step.
        momentum, dampening, weight_decay, nesterov: as the optimizer's; a dict gives one per parameter.
        buffers: name -> b, shape as the parameter; a parameter without has not been moved yet.
        maximize: the optimizer ascends.

    References:
        Sutskever et al. (2013), equations 1-4.
    """

    lr: Each[float | Tensor]
    momentum: Each[float] = 0.0
    dampening: Each[float] = 0.0
    weight_decay: Each[float] = 0.0
    nesterov: Each[bool] = False
    buffers: Mapping[str, Tensor | None] = field(default_factory=dict)
    maximize: Each[bool] = False

    def _lr(self, name: str, like: Tensor) -> Tensor:
        return torch.as_tensor(own(name, self.lr), dtype=like.dtype, device=like.device)

    def _step(self, name: str, param: Tensor, grad: Tensor) -> Tensor:
        momentum, buffer = own(name, self.momentum), self.buffers.get(name)
        grad = (-grad if own(name, self.maximize) else grad) + own(name, self.weight_decay) * param
        if not momentum:
            return grad
        moved = grad if buffer is None else momentum * buffer.to(grad) + (1 - own(name, self.dampening)) * grad
        return grad + momentum * moved if own(name, self.nesterov) else moved

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        return {name: p - self._lr(name, p) * self._step(name, p, grads[name]) for name, p in params.items()}

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        return {name: (self._lr(name, p) * self._gain(name)).expand_as(p) for name, p in params.items()}

    def _gain(self, name: str) -> float:
        """∂(what is subtracted, over η)/∂g."""
        momentum, sign = own(name, self.momentum), -1.0 if own(name, self.maximize) else 1.0
        if not momentum:
            return sign
        kept = 1.0 if self.buffers.get(name) is None else 1 - own(name, self.dampening)
        return sign * (1 + momentum * kept if own(name, self.nesterov) else kept)


@dataclass(frozen=True)
class NoStep(VirtualStep):
    r"""The limit of a vanishing step: θ′ = θ, while P keeps the direction's metric (P = 1, or the rates' ratio).

    The form of learning-to-reweight (Ren et al., 2018, equation 12), and of any lookahead whose
    step is small against the curvature of V. It needs no training gradient, so it is the same for
    every split of a batch into micro-batches.

    Args:
        rates: name -> P, for parameter groups with rates of their own and parameters that the optimizer does not move
            (0); None, 1 for all.
    """

    rates: Mapping[str, float] | None = None

    @property
    def needs_gradient(self) -> bool:
        return False

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        return dict(params)

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        rates = self.rates or dict.fromkeys(params, 1.0)
        return {name: torch.full_like(p, rates[name]) for name, p in params.items()}

    def scaled(self, steepest: Tensors, params: Tensors, grads: Tensors) -> Tensors:
        return steepest if self.rates is None else super().scaled(steepest, params, grads)


class LazyStep(VirtualStep):
    """A step that is made when it is to be ready, or something is asked of it; never, where nobody looks ahead.

    Args:
        make: the step.
        needs_gradient: of the step that `make` makes.
    """

    def __init__(self, make: Callable[[], VirtualStep], needs_gradient: bool) -> None:
        self._make, self._needs_gradient = make, needs_gradient

    @property
    def needs_gradient(self) -> bool:
        return self._needs_gradient

    @cached_property
    def made(self) -> VirtualStep:
        """The step itself."""
        return self._make()

    def ready(self) -> None:
        self.made.ready()

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        return self.made.move(params, grads)

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        return self.made.sensitivity(params, grads)

    def scaled(self, steepest: Tensors, params: Tensors, grads: Tensors) -> Tensors:
        return self.made.scaled(steepest, params, grads)
