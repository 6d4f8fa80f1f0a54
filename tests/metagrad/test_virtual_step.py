"""The virtual step is the optimizer's own: every group at its rate, nothing else moved, and P its derivative."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import LENGTHS, build, network_problem, relative_error, token_batch
from torch.func import functional_call
from torch.nn import functional as F

from amal_hf.build import make_virtual_step
from amal_hf.metagrad import DoubleBackward, FiniteDifference, ForwardMode, NoStep, SGDStep, trainable

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "sgd": (SGD, {}),
    "sgd, decay": (SGD, {"weight_decay": 0.3}),
    "sgd, momentum": (SGD, {"momentum": 0.8, "weight_decay": 0.3}),
    "sgd, dampened": (SGD, {"momentum": 0.8, "dampening": 0.4}),
    "sgd, nesterov": (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.3}),
    "sgd, ascending": (SGD, {"momentum": 0.8, "maximize": True}),
    "adam": (ADAM, {"betas": (0.7, 0.9), "eps": 1e-3}),
    "adam, decay": (ADAM, {"weight_decay": 0.3}),
    "adam, ascending": (ADAM, {"maximize": True, "weight_decay": 0.3}),
    "adamw": (ADAMW, {"weight_decay": 0.3, "betas": (0.7, 0.9)}),
    "adamw, amsgrad": (ADAMW, {"amsgrad": True, "betas": (0.7, 0.9), "weight_decay": 0.3}),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def grouped(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Two of three parts of the model, each with settings of its own; the embedding is not the optimizer's."""
    kind, settings = OPTIMIZERS[name]
    other = {k: (0.6, 0.8) if k == "betas" else v / 2 for k, v in settings.items() if not isinstance(v, bool)}
    other = {k: v for k, v in other.items() if k != "dampening"}
    if kind is not SGD:
        other |= {"eps": 1e-2}
    groups = [{"params": [*model.classifier.parameters()], "lr": 0.3},
              {"params": [*model.hidden.parameters()], "lr": 0.02, **other}]  # fmt: skip
    return kind(groups, **{"lr": 0.1, **settings})


def trained(name: str, steps: int):
    """A model, its optimizer after `steps` steps, and inputs."""
    model = build("mlp")
    optimizer, inputs = grouped(name, model), token_batch(model, LENGTHS)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(**inputs).logits, torch.tensor([0, 1, 2, 3]).roll(step)).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, inputs


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_moves_as_torch_does(name, steps):
    model, optimizer, inputs = trained(name, steps)
    F.cross_entropy(model(**inputs).logits, torch.tensor([3, 2, 1, 0])).backward()
    params = trainable(model)
    before, grads = (
        {k: t.detach().clone() for k, t in s.items()} for s in (params, {k: p.grad for k, p in params.items()})
    )
    moved = make_virtual_step("optimizer", optimizer, model, lr=7.0).move(before, grads)
    optimizer.step()
    for parameter, p in params.items():
        torch.testing.assert_close(moved[parameter], p.detach(), rtol=0, atol=1e-14)
        assert torch.equal(moved[parameter], before[parameter]) is parameter.startswith("embed"), parameter


@pytest.mark.parametrize("how", ["optimizer", "optimizer-exact"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sensitivity_is_the_derivative_of_the_step(name, steps, how):
    model, optimizer, inputs = trained(name, steps)
    step = make_virtual_step(how, optimizer, model, lr=7.0)
    params = {k: p.detach() for k, p in trainable(model).items()}
    loss = F.cross_entropy(functional_call(model, params, (), inputs).logits, torch.tensor([3, 2, 1, 0]))
    assert loss.isfinite()
    grads = {k: torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3)).requires_grad_()
             for k, p in params.items()}  # fmt: skip
    moved = step.move(params, grads)
    derivative = torch.autograd.grad([-t.sum() for t in moved.values()], [*grads.values()], materialize_grads=True)
    found = step.sensitivity(params, {k: g.detach() for k, g in grads.items()})
    for (parameter, diagonal), expected in zip(found.items(), derivative, strict=True):
        torch.testing.assert_close(diagonal, expected, rtol=1e-10, atol=1e-14)
        assert bool(diagonal.any()) is not parameter.startswith("embed")


@pytest.mark.parametrize("how", ["sgd", "optimizer", "optimizer-exact"])
@pytest.mark.parametrize("name", ["sgd, nesterov", "adam, decay", "adamw", "adamw, amsgrad"])
def test_every_estimator_is_the_oracle_through_that_step(name, how):
    model, optimizer, _ = trained(name, 2)
    problem = network_problem(model, lr=make_virtual_step(how, optimizer, model, lr=7.0))
    v, oracle = problem.direction(), DoubleBackward()(problem)
    assert not v["embed.weight"].any() and v["hidden.weight"].any()
    assert relative_error(ForwardMode()(problem), oracle) <= 1e-10
    assert relative_error(FiniteDifference()(problem), oracle) <= 1e-6


def test_a_plain_step_takes_every_group_s_rate():
    model, optimizer, _ = trained("adamw", 1)
    step = make_virtual_step("sgd", optimizer, model, lr=7.0)
    assert step == SGDStep(
        {n: 0.3 if n.startswith("cl") else 0.02 if n.startswith("h") else 0.0 for n in trainable(model)}
    )
    assert make_virtual_step("sgd", None, model, lr=7.0).lr["embed.weight"] == 7.0


def test_without_a_step_the_direction_is_that_of_a_very_small_one():
    """θ′ = θ; the rates' ratio and what stays are those of the plain step."""
    model, optimizer, _ = trained("sgd", 0)
    small = make_virtual_step("sgd", optimizer, model, lr=7.0)
    small = SGDStep({name: 1e-9 * rate for name, rate in small.lr.items()})
    directions = [network_problem(model, lr=s).direction()
                  for s in (small, make_virtual_step("none", optimizer, model, lr=7.0))]  # fmt: skip
    for name, tiny in directions[0].items():
        torch.testing.assert_close(tiny / 0.3e-9, directions[1][name], rtol=1e-6, atol=1e-12)


def test_without_a_step_and_with_one_rate_nothing_is_scaled():
    model = build("mlp")
    one = SGD([{"params": [*part.parameters()]} for part in (model.classifier, model.embed, model.hidden)], lr=0.1)
    assert make_virtual_step("none", one, model, 0.1) == NoStep() == make_virtual_step("none", None, model, 0.1)
    for group in one.param_groups:
        group["lr"] = 0.0  # as at the start of a warm-up
    assert make_virtual_step("none", one, model, 0.1) == NoStep()


def test_the_optimizer_that_accelerate_wraps():
    from accelerate import Accelerator

    model, optimizer, _ = trained("adamw", 2)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    params = {k: p.detach() for k, p in trainable(model).items()}
    grads = {k: torch.ones_like(p) for k, p in params.items()}
    moved = [make_virtual_step("optimizer", o, model, lr=7.0).move(params, grads) for o in (optimizer, wrapped)]
    assert all(torch.equal(moved[0][k], moved[1][k]) for k in params)


def test_an_unknown_optimizer_is_refused():
    model = build("mlp")
    with pytest.raises(ValueError, match=r"`lookahead`: 'optimizer' knows Adam, AdamW and SGD, found RMSprop"):
        make_virtual_step("optimizer", torch.optim.RMSprop(model.parameters()), model, lr=0.1)


def test_a_preconditioned_step_takes_tensors():
    model = build("mlp")
    draw = torch.Generator().manual_seed(5)
    rates = {k: torch.rand(p.shape, generator=draw, dtype=p.dtype) for k, p in trainable(model).items()}
    problem = network_problem(model, lr=SGDStep(rates, momentum=0.5, weight_decay=0.1))
    assert relative_error(ForwardMode()(problem), DoubleBackward()(problem)) <= 1e-10
    twice = replace(problem, lr=SGDStep({k: 2 * rate for k, rate in rates.items()}, momentum=0.5, weight_decay=0.1))
    assert relative_error(ForwardMode()(twice), ForwardMode()(problem)) > 1e-3
