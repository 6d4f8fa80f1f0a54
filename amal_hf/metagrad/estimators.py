r"""Four ways to the same `[N, K]`: $D_{ik} = \langle \nabla\ell_{ik}(\theta), v\rangle$, then (E1).

=====================  =======================================  =====  ==========================
estimator              beside a training step (3 forwards)      exact  works with
=====================  =======================================  =====  ==========================
`ForwardMode`          +3 forwards without gradient             yes    eager or SDPA (MATH kernel)
`FiniteDifference`     +2 to 4 forwards without gradient        ≤ 5e-4 every kernel, in fp32
`HeadClosedForm`       ≈ 0                                      yes    every model with a linear head
`DoubleBackward`       ≈ 6 forwards                             yes    the oracle
=====================  =======================================  =====  ==========================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from amal_hf._types import Tensors
from amal_hf.metagrad.problem import HeadProblem, MetaProblem, gradients_of


class MetaGradient(ABC):
    """A function `MetaProblem -> [N, K]`. Leaves parameters, `.grad`, buffers and mode untouched."""

    def __call__(self, problem: MetaProblem) -> Tensor:
        """∂V(θ′)/∂λ, shape `[N, K]` (nats per unit of weight); 0 where a source is masked."""
        return -self.directional(problem, problem.direction()) / problem.n

    @abstractmethod
    def directional(self, problem: MetaProblem, direction: Tensors) -> Tensor:
        """D = ⟨∇ℓ(θ), v⟩, shape `[N, K]`, for a given v (shapes as `params`). Linear in v."""


@dataclass(frozen=True)
class ForwardMode(MetaGradient):
    """One Jacobian-vector product of the losses (`torch.func.jvp`): exact, K costs nothing.

    Attention runs on PyTorch's MATH kernel meanwhile: the fused kernels have no forward-mode rule.

    Raises:
        RuntimeError: from PyTorch, where an operation has no forward-mode rule (gradient
            checkpointing, custom attention kernels). Use `FiniteDifference` there.

    References:
        Baydin et al. (2022), "Gradients without backpropagation", section 3; docs/method.md (E1).
    """

    def directional(self, problem: MetaProblem, direction: Tensors) -> Tensor:
        params = {name: p.detach() for name, p in problem.params.items()}
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return jvp(problem.losses, (params,), (direction,))[1].detach()


@dataclass(frozen=True)
class FiniteDifference(MetaGradient):
    r"""Central difference of the *outputs* along ±εv, then the losses' exact derivative.

    $$\dot z = \frac{z(\theta+\epsilon v) - z(\theta-\epsilon v)}{2\epsilon}, \qquad
      D_{ik} = \langle \partial\ell_{ik}/\partial z_i,\, \dot z_i\rangle$$

    ε is such that the outputs change by about $u^{1/3}$ of their size, u the rounding of the number format they are
    computed in (float32 or coarser): there what is rounded off ($\propto u/\epsilon$) and what is curved away
    ($\propto \epsilon^2$) are about equal, whatever the scale of the model. A first guess is tried; where the outputs
    then change by less than a quarter or more than four times of that, a second pair of forwards follows.

    Departure from forward mode, ‖difference − D‖/‖D‖, in float32: below 3e-4 on BERT, RoBERTa, ELECTRA, ALBERT,
    DeBERTa-v2, ModernBERT, XLNet, GPT-2 and Llama (hidden 64, 4 layers, as they are initialised). Where activations
    have kinks (ReLU: all of OPT, DistilBERT's head) a unit that changes sides between the two points costs up to 6e-2,
    and with `kinks` up to 3e-2: forward mode, which they have, is exact there.

    Args:
        radius: R = ε‖v‖, the length of the perturbation in parameter space; None, chosen as above.
        kinks: the network has activations that are not smooth: outputs change by $u^{1/2}$ instead, where fewer units
            change sides and more is rounded off.

    References:
        Liu et al. (2019), DARTS, equation 8 (there on the losses; on the outputs here, so that the
        curvature of the losses adds no error); Press et al. (2007), Numerical Recipes, section 5.7 (the choice of ε).
    """

    radius: float | None = None
    kinks: bool = False

    def directional(self, problem: MetaProblem, direction: Tensors) -> Tensor:
        with torch.no_grad():
            names = list(problem.params)
            params, v = [p.detach() for p in problem.params.values()], [direction[name] for name in names]
            length = get_total_norm(v).item() or 1.0  # along v = 0 nothing changes, at any ε

            def pair(eps: float) -> list[Any]:
                moved = (torch._foreach_add(params, v, alpha=by) for by in (eps, -eps))
                return [problem.outputs(dict(zip(names, there, strict=True))) for there in moved]

            wanted = _rounding(params) ** (1 / 2 if self.kinks else 1 / 3)
            eps = (wanted * GUESS if self.radius is None else self.radius) / length
            ahead, behind = pair(eps)
            if self.radius is None and (factor := _factor(wanted, ahead, behind)) != 1:
                eps *= factor
                ahead, behind = pair(eps)
            middle = tree_map(lambda a, b: (a + b) / 2, ahead, behind)
            tangent = tree_map(lambda a, b: (a - b) / (2 * eps), ahead, behind)
            return _along(problem, middle, tangent)


GUESS = 0.2
"""Length of a step in parameter space, per share by which it changes the outputs."""


def _rounding(params: list[Tensor]) -> float:
    """u of the number format in which outputs of these parameters are computed."""
    kind = params[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else params[0].dtype
    # many models take their norms in float32, whatever their weights are
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _factor(wanted: float, ahead: Any, behind: Any) -> float:
    """By what ε is to be multiplied so that the outputs change by the share `wanted`; 1 where that is about so."""
    named = isinstance(ahead, Mapping) and "logits" in ahead
    leaves = [[o["logits"]] if named else tree_flatten(o)[0] for o in (ahead, behind)]
    parts = [(a.double() - b.double(), a.double() + b.double()) for a, b in zip(*leaves, strict=True)]
    apart, size = (get_total_norm([part[i].flatten() for part in parts]).item() for i in (0, 1))
    # of outputs that are nearly zero, as a head's are that begins with zeros, the share tells nothing
    least = 2 * LEAST * sum(part[0].numel() for part in parts) ** 0.5
    found = apart / max(size, least)
    if not 0 < found < math.inf or wanted / 4 <= found <= 4 * wanted:
        return 1
    return min(max(wanted / found, 1e-3), 1e3)


LEAST = 0.1  # root mean square of outputs, in nats


@dataclass(frozen=True)
class HeadClosedForm(MetaGradient):
    r"""The lookahead moves the head alone: $\dot z_i = v_W h_i + v_b$ needs no forward at all.

    $$D_{ik} = \langle r_{ik},\, v_W h_i + v_b\rangle, \qquad r_{ik} = \partial\ell_{ik}/\partial z_i$$

    Raises:
        TypeError: if the problem is not a `HeadProblem`.

    References:
        The last-layer approximation of AMAL's released code (Sivasubramanian et al., 2023), without
        materialising its `[N, C·H]` gradients.
    """

    def directional(self, problem: MetaProblem, direction: Tensors) -> Tensor:
        if not isinstance(problem, HeadProblem):
            raise TypeError(
                f"`problem`: HeadClosedForm expects a HeadProblem (cached features), found {type(problem).__name__}. "
                "Build one with HeadProblem.on(...), or use ForwardMode or FiniteDifference."
            )
        weight, bias = problem.names
        with torch.no_grad():
            tangent = F.linear(problem.features, direction[weight], direction[bias] if bias is not None else None)
            logits = problem.outputs(problem.params)
            found = problem.along_of(logits, tangent) if problem.along_of else None
            return _along(problem, logits, tangent) if found is None else found


@dataclass(frozen=True)
class DoubleBackward(MetaGradient):
    """The oracle: autograd through the lookahead itself. Slow and obvious.

    Attention needs a kernel with a second derivative: the MATH kernel is chosen here.
    """

    def __call__(self, problem: MetaProblem) -> Tensor:
        weights = problem.weights.detach().clone().requires_grad_()
        leaves = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            loss = (weights * problem.losses(leaves)).sum() / problem.n
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), create_graph=True,
                                                         materialize_grads=True), strict=True))  # fmt: skip
            value = problem.val_loss(problem.lookahead.move(leaves, grads))
            return gradients_of(value, {"weights": weights})["weights"]

    def directional(self, problem: MetaProblem, direction: Tensors) -> Tensor:
        leaves = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            losses = problem.losses(leaves)
            weights = torch.ones_like(losses).requires_grad_()
            loss = (weights * losses).sum()
            grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
            inner = torch.stack([(g * v).sum() for g, v in zip(grads, direction.values(), strict=True)]).sum()
            return gradients_of(inner, {"weights": weights})["weights"]


def _along(problem: MetaProblem, outputs: Any, tangent: Any) -> Tensor:
    r"""The losses' derivative `[N, K]` at `outputs` along `tangent`, for all K at once.

    $$D = \frac{\partial}{\partial u}
      \Big\langle \nabla_z \textstyle\sum_{ik} u_{ik}\,\ell_{ik}(z),\, \dot z \Big\rangle$$

    Two backward passes over a few small operations. Forward mode would do as well, but PyTorch makes a tangent for
    every operand that has none, which takes longer than the operation.
    """
    leaves, tree = tree_flatten(outputs)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        losses = problem.losses_of(tree_unflatten(leaves, tree))
        if not losses.requires_grad:
            return torch.zeros_like(losses)
        ones = torch.ones_like(losses).requires_grad_()
        try:
            pulls = torch.autograd.grad(losses, leaves, ones, create_graph=True, materialize_grads=True)
            moved = [(pull, t) for pull, t in zip(pulls, tree_flatten(tangent)[0], strict=True) if pull.requires_grad]
            return torch.autograd.grad([pull for pull, _ in moved], ones, [t.to(pull) for pull, t in moved])[0]
        except RuntimeError:  # a loss whose backward has none of its own, e.g. multi_margin_loss
            return _along_by_column(problem, outputs, tangent)


def _along_by_column(problem: MetaProblem, outputs: Any, tangent: Any) -> Tensor:
    """The same by one backward pass per source: exact, because a row's loss sees only its own outputs."""
    leaves, tree = tree_flatten(outputs)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        losses = problem.losses_of(tree_unflatten(leaves, tree))
        columns = []
        for column in losses.unbind(1):
            grads = torch.autograd.grad(column.sum(), leaves, retain_graph=True, materialize_grads=True)
            pairs = zip(grads, tree_flatten(tangent)[0], strict=True)
            columns.append(torch.stack([(g * t).flatten(1).sum(1) for g, t in pairs]).sum(0))
    return torch.stack(columns, 1).detach()
