"""The virtual step of Adam, AdamW and AMSGrad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.metagrad.virtual_step import Each, VirtualStep, own


@dataclass(frozen=True)
class AdamStep(VirtualStep):
    r"""One step of Adam or AdamW from the optimizer's present state.

    With $m, v$ the moments *before* the step, $t$ the step's number, $m_+ = \beta_1 m + (1-\beta_1) g$,
    $v_+ = \beta_2 v + (1-\beta_2) g^2$, $c_j = 1-\beta_j^t$ and $s = \sqrt{v_+/c_2}$:

    $$\theta' = (1-\eta w)\,\theta - \eta\,\frac{m_+/c_1}{s+\epsilon}$$

    $$P_\text{frozen} = \frac{\eta(1-\beta_1)/c_1}{s+\epsilon}, \qquad
      P_\text{exact} = P_\text{frozen} - \eta\,\frac{m_+}{c_1}\,\frac{(1-\beta_2)\,g}{c_2\, s\,(s+\epsilon)^2}$$

    With `coupled` weight decay (Adam as it was first) $g + w\theta$ stands for g, and θ is not shrunk. With AMSGrad (a
    `max_exp_avg_sq` in the state) the largest $v_+$ so far stands for $v_+$.

    Args:
        lr: η, the present learning rate; a dict gives one per parameter (0: the parameter stays).
        state: name -> {"exp_avg", "exp_avg_sq", "step"}; a parameter without state is at t = 1.
        betas, eps, weight_decay: as the optimizer's; a dict gives one per parameter.
        exact: differentiate $s$ as well. Exact is ≈ 0 at t = 1 and partly negative at t = 2; the
            frozen form is always positive. Warm up before the first meta step either way. P is 0 where
            no gradient has ever been seen (s = 0).
        coupled: the decay goes through the moments (`torch.optim.Adam`); else AdamW's.
        maximize: the optimizer ascends.

    References:
        Kingma & Ba (2015), algorithm 1; Loshchilov & Hutter (2019), algorithm 2; Reddi et al. (2018), algorithm 2.
    """

    lr: Each[float]
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    betas: Each[tuple[float, float]] = (0.9, 0.999)
    eps: Each[float] = 1e-8
    weight_decay: Each[float] = 0.0
    exact: bool = False
    coupled: Each[bool] = False
    maximize: Each[bool] = False

    def move(self, params: Tensors, grads: Tensors) -> Tensors:
        moved = {}
        for name, p in params.items():
            lr, eps, decay = (float(own(name, value)) for value in (self.lr, self.eps, self.weight_decay))
            mean, scale, _ = self._moments(name, p, grads[name])
            scale = scale if self.exact else scale.detach()
            shrunk = p if own(name, self.coupled) else (1 - lr * decay) * p
            moved[name] = shrunk - lr * mean / (scale + eps)
        return moved

    def sensitivity(self, params: Tensors, grads: Tensors) -> Tensors:
        diagonal = {}
        for name, p in params.items():
            lr, eps, (beta1, beta2) = float(own(name, self.lr)), own(name, self.eps), own(name, self.betas)
            (correction1, correction2), sign = self._corrections(name), -1.0 if own(name, self.maximize) else 1.0
            mean, scale, rising = self._moments(name, p, grads[name])
            frozen = lr * (1 - beta1) / correction1 / (scale + eps)
            if self.exact:
                curved = rising * (1 - beta2) * self._gradient(name, p, grads[name]) / (correction2 * scale)
                frozen = frozen - lr * mean * curved / (scale + eps).square()
            diagonal[name] = sign * frozen
        return diagonal

    def _gradient(self, name: str, param: Tensor, grad: Tensor) -> Tensor:
        grad = -grad if own(name, self.maximize) else grad
        return grad + own(name, self.weight_decay) * param if own(name, self.coupled) else grad

    def _corrections(self, name: str) -> tuple[float, float]:
        """c_1 and c_2 of this step."""
        time = float(self.state.get(name, {}).get("step", 0)) + 1
        beta1, beta2 = own(name, self.betas)
        return 1 - beta1**time, 1 - beta2**time

    def _moments(self, name: str, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m₊/c₁ and s, and 1 where s depends on g, else 0 (under AMSGrad it may be an earlier one)."""
        (beta1, beta2), (correction1, correction2) = own(name, self.betas), self._corrections(name)
        state, grad = self.state.get(name, {}), self._gradient(name, param, grad)
        first = beta1 * torch.as_tensor(state.get("exp_avg", 0.0)).to(grad) + (1 - beta1) * grad
        second = beta2 * torch.as_tensor(state.get("exp_avg_sq", 0.0)).to(grad) + (1 - beta2) * grad.square()
        largest = torch.as_tensor(state.get("max_exp_avg_sq", 0.0)).to(grad)
        rising, second = second > largest, torch.maximum(second, largest)
        # a token never seen: 1/ε would outweigh all the rest of v by 1e5, and the root's derivative is NaN
        seen = second > 0
        scale = torch.where(seen, (torch.where(seen, second, 1.0) / correction2).sqrt(), torch.inf)
        return first / correction1, scale, rising.to(grad)
