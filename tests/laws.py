"""What every meta-gradient obeys, by name. Each law takes an estimator and raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import relative_error
from torch import Tensor, nn

from amal_hf._types import Tensors
from amal_hf.metagrad import MetaGradient, MetaProblem, OutputsProblem


def _random_direction(params: Tensors, seed: int) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=draw, dtype=p.dtype) for name, p in params.items()}


def assert_linear_in_v(estimator: MetaGradient, problem: MetaProblem, tolerance: float) -> None:
    """D(a u + b w) = a D(u) + b D(w), and D(0) = 0."""
    u, w = _random_direction(problem.params, 1), _random_direction(problem.params, 2)
    mixed = {name: 2.0 * u[name] - 0.5 * w[name] for name in u}
    parts = 2.0 * estimator.directional(problem, u) - 0.5 * estimator.directional(problem, w)
    assert relative_error(estimator.directional(problem, mixed), parts) <= tolerance
    nothing = {name: torch.zeros_like(p) for name, p in u.items()}
    assert not estimator.directional(problem, nothing).any()


def assert_row_equivariant(
    estimator: MetaGradient, make: Callable[[Tensor | None], MetaProblem], order: Tensor, tolerance: float
) -> None:
    """Rows in another order: the same rows of ∂V/∂λ in that order. `make(order)` builds the problem."""
    straight = estimator(make(None))
    assert relative_error(straight[order], straight) > 0.1, "the rows are alike: their order cannot show"
    assert relative_error(estimator(make(order)), straight[order]) <= tolerance


def assert_column_equivariant(
    estimator: MetaGradient, problem: OutputsProblem, order: Tensor, tolerance: float
) -> None:
    """Sources in another order: the same columns of ∂V/∂λ in that order."""
    losses, losses_from, straight = problem.losses, problem.losses_from, estimator(problem)
    assert relative_error(straight[:, order], straight) > 0.1, "the columns are alike: their order cannot show"
    shuffled = replace(
        problem,
        weights=problem.weights[:, order],
        losses=lambda params: losses(params)[:, order],
        losses_from=lambda outputs: losses_from(outputs)[:, order],
    )
    assert relative_error(estimator(shuffled), straight[:, order]) <= tolerance


def assert_zero_loss_gives_zero(estimator: MetaGradient, problem: OutputsProblem, tolerance: float) -> None:
    """A source whose loss is 0 everywhere has ∂V/∂λ = 0, exactly, and takes nothing from the others."""
    losses, losses_from = problem.losses, problem.losses_from
    beside = lambda rows: torch.cat([rows, 0.0 * rows[:, :1]], dim=1)  # noqa: E731
    wider = replace(
        problem,
        weights=torch.cat([problem.weights, torch.ones_like(problem.weights[:, :1])], dim=1),
        losses=lambda params: beside(losses(params)),
        losses_from=lambda outputs: beside(losses_from(outputs)),
    )
    found = estimator(wider)
    assert not found[:, -1].any()
    assert relative_error(found[:, :-1], estimator(problem)) <= tolerance


def assert_copy_of_v_is_trusted(estimator: MetaGradient, problem: MetaProblem, column: int, tolerance: float) -> None:
    """Where V is the mean of source `column`, more of that source lowers V, as fast as η‖∇V‖² while η → 0."""
    rate = problem.lr
    assert isinstance(rate, float)
    small = replace(problem, lr=rate * 1e-6)
    leaves = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
    slope = torch.stack(
        [g.square().sum() for g in torch.autograd.grad(problem.val_loss(leaves), list(leaves.values()))]
    ).sum()
    assert estimator(problem)[:, column].sum() < 0
    assert relative_error(estimator(small)[:, column].sum(), -small.lr * slope) <= tolerance


def _everything(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {f"parameter {k}": p.detach().clone() for k, p in model.named_parameters()}
    state |= {f"grad {k}": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    state |= {f"buffer {k}": b.clone() for k, b in model.named_buffers()}
    state |= {f"identity {k}": id(p) for k, p in model.named_parameters()}
    state |= {f"requires_grad {k}": p.requires_grad for k, p in model.named_parameters()}
    state |= {f"training {k}": m.training for k, m in model.named_modules()}
    state |= {f"hooks {k}": (len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in model.named_modules()}
    return state | {"random state": torch.get_rng_state(), "grad mode": torch.is_grad_enabled()}


def assert_leaves_no_trace(model: nn.Module, call: Callable[[], object]) -> None:
    """Parameters, `.grad`, buffers, random state, flags and hooks are bit-identical after `call()`."""
    before = _everything(model)
    call()
    after = _everything(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same, f"{name} changed"
