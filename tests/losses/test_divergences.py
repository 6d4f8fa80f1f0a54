"""Divergences and losses of other tasks against their formulas, written out a row and a class at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Outputs
from amal_hf.losses.base import Loss
from amal_hf.losses.distillation import Distillation
from amal_hf.losses.divergences import DIVERGENCES
from amal_hf.losses.tasks import BinaryCrossEntropy, SquaredError

N, C = 5, 3
NAN = float("nan")
Z = torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
TEACHER = torch.tensor(
    [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [NAN] * 3, [-4.0, 1.0, 1.0], [0.0, 0.0, 0.1]], dtype=torch.float64
)
SPOKEN = torch.tensor([True, True, False, True, True])


def softmax(row, t: float) -> list[float]:
    exps = [math.exp(float(z) / t) for z in row]
    return [e / sum(exps) for e in exps]


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reverse_kl(teacher, student, t: float) -> float:
    return t * t * kl(softmax(student, t), softmax(teacher, t))


def js(teacher, student, t: float) -> float:
    p, q = softmax(teacher, t), softmax(student, t)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return t * t * (kl(p, middle) + kl(q, middle)) / 2


def bernoulli(teacher, student, t: float) -> float:
    each = []
    for a, b in zip(teacher, student, strict=True):
        p, q = sigmoid(float(a) / t), sigmoid(float(b) / t)
        each.append(kl([p, 1 - p], [q, 1 - q]))
    return t * t * sum(each) / len(each)


ORACLES = {"reverse_kl": reverse_kl, "js": js, "sigmoid": bernoulli}


def check(loss: Loss, batch: dict[str, Tensor], expected: list[float], spoken: Tensor = SPOKEN) -> None:
    """Value, mask, zero where masked, and a gradient that is finite everywhere and zero on masked rows."""
    logits = Z[:, : 1 if isinstance(loss, SquaredError) and batch["labels"].dim() == 1 else C].clone().requires_grad_()
    found = loss(Outputs(logits=logits), batch)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert torch.equal(loss.mask(batch), spoken)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all() and not gradient[~spoken].any() and gradient[spoken].any(1).all()


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", list(ORACLES))
def test_divergence_is_its_formula(kind, t):
    expected = [ORACLES[kind](a, z, t) if s else 0.0 for a, z, s in zip(TEACHER, Z, SPOKEN, strict=True)]
    check(Distillation(kind=kind, temperature=t), {"teacher_logits": TEACHER}, expected)


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_divergence_vanishes_at_the_teacher_alone(kind):
    loss = Distillation(kind=kind, temperature=2.0)
    assert loss(Outputs(logits=Z), {"teacher_logits": Z}).abs().max() <= 1e-12
    assert loss(Outputs(logits=Z), {"teacher_logits": Z.flip(0)})[:2].min() > 1e-3


def test_jensen_shannon_is_symmetric_and_bounded():
    loss = Distillation(kind="js", temperature=1.0)
    there = loss(Outputs(logits=Z), {"teacher_logits": TEACHER.nan_to_num()})
    back = loss(Outputs(logits=TEACHER.nan_to_num()), {"teacher_logits": Z})
    torch.testing.assert_close(there, back, rtol=1e-12, atol=1e-14)
    apart = loss(Outputs(logits=torch.tensor([[50.0, -50.0]])), {"teacher_logits": torch.tensor([[-50.0, 50.0]])})
    assert apart.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", list(DIVERGENCES)[:-1])
def test_a_class_ruled_out_is_finite(kind, t):
    """A logit of −∞, in float32 as columns are: finite value and gradient, and none of it on the ruled-out class' p."""
    teacher = TEACHER.nan_to_num(0.0).float()
    teacher[:, 1] = -torch.inf
    logits = Z.float().requires_grad_()
    found = Distillation(kind=kind, temperature=t)(Outputs(logits=logits), {"teacher_logits": teacher})
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found.isfinite().all() and (found > 0).all() and gradient.isfinite().all()


def test_a_class_the_student_rules_out_is_finite():
    logits = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    for kind in DIVERGENCES:
        found = Distillation(kind=kind)(
            Outputs(logits=logits), {"teacher_logits": torch.tensor([[-300.0, 300.0, 0.0]])}
        )
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert found.isfinite().all() and gradient.isfinite().all(), kind


def test_sigmoid_from_probabilities():
    from_logits = Distillation(kind="sigmoid", temperature=2.0)
    from_p = Distillation(kind="sigmoid", temperature=2.0, probabilities=True)
    torch.testing.assert_close(
        from_p(Outputs(logits=Z), {"teacher_logits": TEACHER.sigmoid()}),
        from_logits(Outputs(logits=Z), {"teacher_logits": TEACHER}),
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_a_mask_column_silences_the_teacher(kind):
    loss = Distillation(kind=kind, mask_column="speaks")
    batch = {"teacher_logits": TEACHER, "speaks": torch.tensor([True, False, True, True, False])}
    heard = torch.tensor([True, False, False, True, False])
    assert loss.columns == ("teacher_logits", "speaks")
    assert torch.equal(loss.mask(batch), heard)
    everywhere = Distillation(kind=kind)(Outputs(logits=Z), batch)
    assert torch.equal(loss(Outputs(logits=Z), batch), torch.where(heard, everywhere, 0.0))


def test_what_asserts_no_class_has_no_target():
    assert Distillation(kind="sigmoid").target({"teacher_logits": TEACHER}, C) is None
    assert Distillation(kind="mse").target({"teacher_logits": TEACHER[:, :1]}, 1) is None
    assert Distillation(kind="js").target({"teacher_logits": TEACHER}, C).sum(1).tolist() == pytest.approx(
        SPOKEN.double().tolist()
    )


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"`kind`: expected one of \['js', 'kl', 'mse', 'reverse_kl', 'sigmoid'\], f"):
        Distillation(kind="l1")  # type: ignore[arg-type]


# ---- other tasks ----


def test_squared_error():
    y = torch.tensor([1.0, 2.0, NAN, -3.0, -100.0], dtype=torch.float64)
    spoken = torch.tensor([True, True, False, True, False])
    expected = [(float(z[0]) - float(a)) ** 2 if s else 0.0 for z, a, s in zip(Z, y, spoken, strict=True)]
    check(SquaredError(), {"labels": y}, expected, spoken)
    expected = [
        sum((float(z) - float(a)) ** 2 for z, a in zip(*row, strict=True)) / C for row in zip(Z, -Z, strict=True)
    ]
    check(SquaredError(), {"labels": -Z}, expected, torch.ones(N, dtype=torch.bool))


def test_binary_cross_entropy():
    y = [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [1, -1, 0], [-1, 1, -1]]
    expected = []
    for z, answers in zip(Z, y, strict=True):
        known = [(sigmoid(float(a)), b) for a, b in zip(z, answers, strict=True) if b >= 0]
        expected.append(-sum(math.log(p if b else 1 - p) for p, b in known) / max(len(known), 1))
    check(BinaryCrossEntropy(), {"labels": torch.tensor(y)}, expected)
    nan = torch.tensor(y, dtype=torch.float64)
    check(BinaryCrossEntropy(), {"labels": torch.where(nan < 0, NAN, nan)}, expected)


def test_binary_cross_entropy_is_that_of_transformers_where_all_is_known():
    y = torch.randint(0, 2, (N, C), generator=torch.Generator().manual_seed(1)).double()
    mean = BinaryCrossEntropy()(Outputs(logits=Z), {"labels": y}).mean()
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(Z, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [SquaredError(), BinaryCrossEntropy()])
def test_labels_of_another_width_are_refused(loss):
    with pytest.raises(ValueError, match=r"`column`: expected 'labels' to hold 3 number\(s\) a row.*found 2"):
        loss(Outputs(logits=Z), {"labels": torch.zeros(N, 2)})


def test_the_sharper_divergence_grows_with_distance():
    """Every divergence is monotone along a ray away from the teacher."""
    for kind in DIVERGENCES:
        loss = Distillation(kind=kind)
        far = [
            loss(Outputs(logits=s * Z), {"teacher_logits": torch.zeros_like(Z)}).sum().item() for s in (0.5, 1, 2, 4)
        ]
        assert all(a < b for a, b in pairwise(far)), kind
