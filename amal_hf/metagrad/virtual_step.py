r"""The virtual step θ → θ′, and how sensitive it is to the training gradient.

Every optimizer here acts elementwise, so one diagonal is all the meta-gradient needs:

$$\theta' = \theta - s(g), \qquad P = \partial s/\partial g \quad\text{(elementwise)}$$
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from amal_hf._types import Tensors


class VirtualStep(ABC):
    """One virtual optimizer step on `params`, differentiable in the gradient."""

    needs_gradient: ClassVar[bool] = True
    """False where θ′ does not depend on the training gradient."""

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
    r"""$\theta' = \theta - \eta \odot g$, with a number or one tensor per parameter for η.

    Args:
        lr: η; a dict like `params` makes it a preconditioned step.
    """

    lr: float | Mapping[str, Tensor]

    def _lr(self, name: str, like: Tensor) -> Tensor:
        lr = self.lr[name] if isinstance(self.lr, Mapping) else self.lr
        return torch.as_tensor(lr, dtype=like.dtype, device=like.device)

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        return {name: p - self._lr(name, p) * grads[name] for name, p in params.items()}

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        return {name: self._lr(name, p).expand_as(p) for name, p in params.items()}


@dataclass(frozen=True)
class NoStep(VirtualStep):
    r"""The limit of a vanishing step: θ′ = θ, while P keeps the direction's metric (P = 1).

    The form of learning-to-reweight (Ren et al., 2018, equation 12), and of any lookahead whose
    step is small against the curvature of V. It needs no training gradient, so it is the same for
    every split of a batch into micro-batches.
    """

    needs_gradient: ClassVar[bool] = False

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        return dict(params)

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        return {name: torch.ones_like(p) for name, p in params.items()}

    def scaled(self, steepest: Tensors, params: Tensors, grads: Tensors) -> Tensors:
        return steepest


@dataclass(frozen=True)
class AdamStep(VirtualStep):
    r"""One step of Adam or AdamW from the optimizer's present state.

    With $m, v$ the moments *before* the step, $t$ the step's number, $m_+ = \beta_1 m + (1-\beta_1) g$,
    $v_+ = \beta_2 v + (1-\beta_2) g^2$, $c_j = 1-\beta_j^t$ and $s = \sqrt{v_+/c_2}$:

    $$\theta' = (1-\eta w)\,\theta - \eta\,\frac{m_+/c_1}{s+\epsilon}$$

    $$P_\text{frozen} = \frac{\eta(1-\beta_1)/c_1}{s+\epsilon}, \qquad
      P_\text{exact} = P_\text{frozen} - \eta\,\frac{m_+}{c_1}\,\frac{(1-\beta_2)\,g}{c_2\, s\,(s+\epsilon)^2}$$

    Args:
        lr: η, the present learning rate; a dict gives one per parameter (parameter groups).
        state: name -> {"exp_avg", "exp_avg_sq", "step"}; a parameter without state is at t = 1.
        betas, eps, weight_decay: as the optimizer's; `weight_decay` w (decoupled) may be a dict.
        exact: differentiate $s$ as well. Exact is ≈ 0 at t = 1 and partly negative at t = 2; the
            frozen form is always positive. Warm up before the first meta step either way. P is 0 where
            no gradient has ever been seen (s = 0).

    References:
        Kingma & Ba (2015), algorithm 1; Loshchilov & Hutter (2019), algorithm 2.
    """

    lr: float | Mapping[str, float]
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Mapping[str, float] = 0.0
    exact: bool = False

    def _moments(self, name: str, grad: Tensor) -> tuple[float, Tensor, Tensor, float, float]:
        (beta1, beta2), state = self.betas, self.state.get(name, {})
        lr = self.lr[name] if isinstance(self.lr, Mapping) else self.lr
        time = float(state.get("step", 0)) + 1
        first = beta1 * torch.as_tensor(state.get("exp_avg", 0.0)).to(grad) + (1 - beta1) * grad
        second = beta2 * torch.as_tensor(state.get("exp_avg_sq", 0.0)).to(grad) + (1 - beta2) * grad.square()
        correction1, correction2 = 1 - beta1**time, 1 - beta2**time
        # a token never seen: 1/ε would outweigh all the rest of v by 1e5, and the root's derivative is NaN
        seen = second > 0
        scale = torch.where(seen, (torch.where(seen, second, 1.0) / correction2).sqrt(), torch.inf)
        return lr, first / correction1, scale, correction1, correction2

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        moved = {}
        for name, p in params.items():
            lr, mean, scale, _, _ = self._moments(name, grads[name])
            scale = scale if self.exact else scale.detach()
            decay = self.weight_decay[name] if isinstance(self.weight_decay, Mapping) else self.weight_decay
            moved[name] = (1 - lr * decay) * p - lr * mean / (scale + self.eps)
        return moved

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        (beta1, beta2), diagonal = self.betas, {}
        for name in params:
            lr, mean, scale, correction1, correction2 = self._moments(name, grads[name])
            frozen = lr * (1 - beta1) / correction1 / (scale + self.eps)
            if self.exact:
                curved = (1 - beta2) * grads[name] / (correction2 * scale)
                frozen = frozen - lr * mean * curved / (scale + self.eps).square()
            diagonal[name] = frozen
        return diagonal
