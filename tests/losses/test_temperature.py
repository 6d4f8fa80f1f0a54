"""A learned temperature: its derivative is the lookahead's own, and it moves to where the pull is best aimed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf import CrossEntropy, Distillation, Outputs
from amal_hf.losses import LossStack
from amal_hf.losses.temperature import HIGHEST, LOWEST, STEP
from amal_hf.metagrad import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HeadClosedForm,
    HeadProblem,
    MetaGradient,
)

ROWS, WIDTH, CLASSES = 7, 5, 4
KINDS = ("kl", "reverse_kl", "js", "sigmoid")


class Planted:
    """A head, its rows, and V on rows of its own; in float64."""

    def __init__(self, **options: object) -> None:
        gen = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=gen)  # noqa: E731
        self.features, clean, truth = draw(ROWS, WIDTH), draw(9, WIDTH), torch.arange(9) % CLASSES
        self.params = {"weight": draw(CLASSES, WIDTH), "bias": draw(CLASSES)}
        self.batch = {"labels": torch.arange(ROWS) % CLASSES, "teacher_logits": 3 * draw(ROWS, CLASSES)}
        self.batch["teacher_logits"][2] = float("nan")  # abstains
        self.weights = torch.rand(ROWS, 2, dtype=torch.float64, generator=gen)
        losses = {"label": CrossEntropy(), "teacher": Distillation(temperature="learned", **options)}
        self.stack = LossStack(losses, {"labels": 0, "teacher_logits": [0.0] * CLASSES})
        self.stack.temperatures.log = self.stack.temperatures.log.double()
        self.value = lambda p: F.cross_entropy(clean @ p["weight"].T + p["bias"], truth)

    def problem(self) -> HeadProblem:
        return HeadProblem.on(
            self.features,
            lambda logits: self.stack.with_classes(Outputs(logits=logits), self.batch),
            params=self.params,
            weights=F.pad(self.weights, (0, CLASSES + 1)),
            val_loss=self.value,
            lr=0.1,
        )

    def at(self, log_t: float, found) -> Tensor:
        """What `found()` is at another temperature."""
        kept = self.stack.temperatures.log.clone()
        self.stack.temperatures.log.fill_(log_t)
        value = found()
        self.stack.temperatures.log.copy_(kept)
        return value

    def slope(self, found, eps: float = 1e-5) -> Tensor:
        """d found / d log T, by differences."""
        here = float(self.stack.temperatures.log)
        return (self.at(here + eps, found) - self.at(here - eps, found)) / (2 * eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "estimator", [HeadClosedForm(), ForwardMode(), FiniteDifference(1e-4), DoubleBackward()], ids=lambda e: str(e)[:6]
)
def test_the_lookaheads_derivative_by_temperature(kind: str, estimator: MetaGradient):
    """Σ λ of the last column is dV(θ')/d log T, θ' the student after a step at that temperature."""
    planted = Planted(kind=kind)

    def value() -> Tensor:
        problem = planted.problem()
        return planted.value(problem.lookahead.move(planted.params, problem.gradient()))

    expected = planted.slope(value)
    found = (planted.weights[:, 1] * estimator(planted.problem())[:, -1]).sum()
    assert expected.abs() > 1e-4
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_follows_the_slope_of_progress_per_length(kind: str):
    planted = Planted(kind=kind)
    temperatures, logits = planted.stack.temperatures, planted.features @ planted.params["weight"].T
    direction = planted.problem().direction()

    def along() -> Tensor:
        return HeadClosedForm().directional(planted.problem(), direction)

    def progress() -> Tensor:
        z = logits.clone().requires_grad_()
        (pull,) = torch.autograd.grad(planted.stack(Outputs(logits=z), planted.batch)[:, 1].sum(), z)
        return (planted.weights[:, 1] * along()[:, 1]).sum() / (planted.weights[:, 1] * pull.norm(dim=1)).sum()

    expected, start = planted.slope(progress), temperatures.log.clone()
    for rows in (slice(0, 3), slice(3, ROWS)):  # two micro-batches are one
        part = {name: column[rows] for name, column in planted.batch.items()}
        temperatures.accumulate(planted.weights[rows], along()[rows], logits[rows], part)
    temperatures.commit(lambda sums: sums)
    assert temperatures.square.sqrt().item() == pytest.approx(abs(expected.item()), rel=1e-4)
    assert torch.allclose(temperatures.log - start, STEP * expected.sign())


def test_the_bounds_hold_and_a_step_without_lookahead_moves_nothing():
    temperatures = Planted().stack.temperatures
    before = temperatures.log.clone()
    temperatures.commit(lambda sums: sums)
    assert torch.equal(temperatures.log, before) and temperatures.square == 0
    for sign, bound in ((1.0, HIGHEST), (-1.0, LOWEST)):
        for _ in range(200):
            temperatures.sums = torch.tensor([[0.0], [sign], [1.0], [0.0]])
            temperatures.commit(lambda sums: sums)
        assert temperatures.values()["temperature/teacher"] == pytest.approx(bound)


@pytest.mark.slow
def test_the_temperature_rises_for_a_helpful_second_choice_only():
    """One teacher is wrong on half of the rows and names the truth second; the other's second choice is never right."""
    rows = torch.arange(400)
    truth = rows % CLASSES
    wrong = (truth + 1 + rows // CLASSES % (CLASSES - 1)) % CLASSES
    said = {"hears": (torch.where(rows % 2 == 0, truth, wrong), truth), "ignores": (truth, wrong)}
    wanted = 1 / CLASSES - F.one_hot(truth, CLASSES).T.contiguous()  # ∇V of a head that knows each row by heart
    ends = {}
    for name, (first, second) in said.items():
        batch = {"teacher_logits": 8.0 * F.one_hot(first, CLASSES) + 4.0 * F.one_hot(second, CLASSES)}
        stack = LossStack({"teacher": Distillation(temperature="learned")}, {"teacher_logits": [0.0] * CLASSES})
        problem = HeadProblem.on(
            torch.eye(len(rows)),
            lambda logits, stack=stack, batch=batch: stack.with_classes(Outputs(logits=logits), batch),
            names=("weight", None),
            params={"weight": torch.zeros(CLASSES, len(rows))},
            weights=torch.ones(len(rows), CLASSES + 2),
            val_loss=lambda p: p["weight"].sum(),
            lr=0.1,
        )
        for _ in range(150):
            along = HeadClosedForm().directional(problem, {"weight": wanted})
            stack.temperatures.accumulate(torch.ones(len(rows), 1), along, torch.zeros(len(rows), CLASSES), batch)
            stack.temperatures.commit(lambda sums: sums)
        ends[name] = stack.temperatures.values()["temperature/teacher"]
    assert ends["hears"] > 4 and ends["ignores"] < 1


def test_what_cannot_learn_it_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        Distillation(kind="mse", temperature="learned")
    with pytest.raises(ValueError, match=r"`temperature`: expected a positive number, found 'hot'"):
        Distillation(temperature="hot")
    twice = {name: Distillation(kind=name, temperature="learned") for name in ("kl", "js")}
    with pytest.raises(ValueError, match="one source a teacher"):
        LossStack(twice, {"teacher_logits": [0.0, 0.0]})


def test_a_checkpoint_without_it_is_refused():
    with pytest.raises(ValueError, match="`resume_from_checkpoint`: expected 1 learned temperature"):
        Planted().stack.temperatures.load_state({})


def test_it_starts_at_two():
    stack = Planted().stack
    fixed = LossStack({"label": CrossEntropy(), "teacher": Distillation(temperature=2.0)}, {})
    outputs = Outputs(logits=torch.randn(ROWS, CLASSES, dtype=torch.float64))
    batch = Planted().batch
    assert torch.allclose(stack(outputs, batch), fixed(outputs, batch))
    assert stack.temperatures.values() == pytest.approx({"temperature/teacher": 2.0})
