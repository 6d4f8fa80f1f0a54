"""Every source against its formula written out a row and a class at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from amal_hf._types import Outputs
from amal_hf.losses import (
    ABSTAIN,
    Agreement,
    CrossEntropy,
    Distillation,
    Entropy,
    FunctionLoss,
    LabelingFunctions,
    Loss,
    LossStack,
    MajorityVote,
)

N, C = 5, 3
NAN = float("nan")
Z = torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def softmax(row, t: float = 1.0) -> list[float]:
    exps = [math.exp(float(z) / t) for z in row]
    return [e / sum(exps) for e in exps]


def cross_entropy(q, row, weights=(1.0,) * C) -> float:
    return -sum(w * float(qc) * math.log(p) for w, qc, p in zip(weights, q, softmax(row), strict=True))


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def one_hot(label: int) -> list[float]:
    return [float(c == label) for c in range(C)]


def rows(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check(loss: Loss, batch: dict[str, Tensor], expected: Tensor, mask: Tensor) -> None:
    """Value, mask, zero where masked, and a gradient that is finite everywhere and zero on masked rows."""
    logits = Z.clone().requires_grad_()
    found = loss(Outputs(logits=logits), batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert loss.mask(batch).dtype == torch.bool
    assert torch.equal(loss.mask(batch), mask)
    assert not found[~mask].any()
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()
    spoken = mask if mask.dim() == 1 else mask.any(1)
    assert not gradient[~spoken].any() and gradient[spoken].any(1).all()


# ---- cross-entropy ----

HARD = {"labels": torch.tensor([0, 2, -100, 1, 2])}
SOFT = {"labels": rows([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [NAN] * 3, [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])}
SPOKEN = torch.tensor([True, True, False, True, True])


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0), (0.0, 1.0, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("batch", [HARD, SOFT], ids=["hard", "soft"])
def test_cross_entropy(batch, smoothing, weights):
    soft = batch["labels"].is_floating_point()
    expected = []
    for label, row, spoken in zip(batch["labels"], Z, SPOKEN, strict=True):
        q = label.tolist() if soft else one_hot(int(label))
        q = [(1 - smoothing) * x + smoothing / C for x in q]
        expected.append(cross_entropy(q, row, weights or (1.0,) * C) if spoken else 0.0)
    loss = CrossEntropy(label_smoothing=smoothing, class_weights=weights)
    if weights and not weights[0] and not smoothing:  # a class of weight 0 has no gradient either
        found = loss(Outputs(logits=Z), batch)
        torch.testing.assert_close(found, rows(expected), rtol=1e-10, atol=1e-12)
        assert found[0] == 0 if not soft else found[1] == 0
    else:
        check(loss, batch, rows(expected), SPOKEN)


def test_cross_entropy_of_a_row_does_not_depend_on_the_batch():
    loss = CrossEntropy(class_weights=(0.5, 1.0, 3.0), label_smoothing=0.1)
    alone = torch.cat([loss(Outputs(logits=Z[i : i + 1]), {"labels": HARD["labels"][i : i + 1]}) for i in range(N)])
    torch.testing.assert_close(alone, loss(Outputs(logits=Z), HARD), rtol=0, atol=0)


def test_cross_entropy_reads_its_column_and_ignore_index():
    batch = {"crowd": torch.tensor([1, 7, 0, 1, 2]), **HARD}
    loss = CrossEntropy("crowd", ignore_index=7)
    mask = torch.tensor([True, False, True, True, True])
    expected = [
        cross_entropy(one_hot(int(y)), z) if m else 0.0 for y, z, m in zip(batch["crowd"], Z, mask, strict=True)
    ]
    assert loss.columns == ("crowd",)
    check(loss, batch, rows(expected), mask)


def test_cross_entropy_takes_soft_labels_of_another_precision():
    batch = {"labels": SOFT["labels"].float()}
    torch.testing.assert_close(
        CrossEntropy()(Outputs(logits=Z), batch), CrossEntropy()(Outputs(logits=Z), SOFT), rtol=1e-6, atol=1e-6
    )


def test_cross_entropy_targets():
    assert CrossEntropy().target(HARD, C).tolist() == [one_hot(0), one_hot(2), [0.0] * C, one_hot(1), one_hot(2)]
    assert torch.equal(CrossEntropy().target(SOFT, C), torch.where(SPOKEN[:, None], SOFT["labels"], 0.0))
    partly = {"labels": rows([[NAN, 0.5, 0.5]])}
    assert not CrossEntropy().mask(partly).any() and not CrossEntropy().target(partly, C).any()


def test_cross_entropy_refuses():
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"`label_smoothing`: expected a number in \[0, 1\), found"):
            CrossEntropy(label_smoothing=smoothing)
    with pytest.raises(ValueError, match=r"`class_weights`: expected non-negative numbers, found \(1.0, -1.0\)"):
        CrossEntropy(class_weights=(1.0, -1.0))


# ---- distillation ----

TEACHER = rows([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [NAN] * 3, [-4.0, 1.0, 1.0], [0.0, 0.0, 0.1]])


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_distillation_kl(t):
    expected = [
        t * t * kl(softmax(a, t), softmax(z, t)) if s else 0.0 for a, z, s in zip(TEACHER, Z, SPOKEN, strict=True)
    ]
    check(Distillation(temperature=t), {"teacher_logits": TEACHER}, rows(expected), SPOKEN)


def test_distillation_mse():
    expected = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) / C if s else 0.0
        for x, y, s in zip(TEACHER, Z, SPOKEN, strict=True)
    ]
    check(Distillation(kind="mse"), {"teacher_logits": TEACHER}, rows(expected), SPOKEN)


def test_distillation_from_probabilities():
    """Probabilities p are the logits log p: temperature and all. A probability of 0 is finite."""
    p = TEACHER.softmax(-1)
    from_logits = Distillation(temperature=2.0)(Outputs(logits=Z), {"teacher_logits": TEACHER})
    from_p = Distillation(temperature=2.0, probabilities=True)(Outputs(logits=Z), {"teacher_logits": p})
    torch.testing.assert_close(from_p, from_logits, rtol=1e-10, atol=1e-12)
    certain = rows([[1.0, 0.0, 0.0]] * N)
    expected = rows([cross_entropy(one_hot(0), z) for z in Z])
    found = Distillation(temperature=1.0, probabilities=True)(Outputs(logits=Z), {"teacher_logits": certain})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_distillation_from_a_teacher_that_rules_a_class_out(t):
    """A logit of −∞ is a probability of 0."""
    teacher = TEACHER.nan_to_num(0.0)
    teacher[:, 1] = -torch.inf
    expected = [t * t * kl(softmax(a, t), softmax(z, t)) for a, z in zip(teacher, Z, strict=True)]
    check(Distillation(temperature=t), {"teacher_logits": teacher}, rows(expected), torch.ones(N, dtype=torch.bool))


def test_distillation_vanishes_at_the_teacher():
    for loss in (Distillation(), Distillation(kind="mse"), Distillation(temperature=1.0)):
        assert loss(Outputs(logits=Z), {"teacher_logits": Z}).abs().max() <= 1e-12


def test_high_temperature_is_mse():
    """Hinton et al. (2015), section 2.1: T² KL → Σ_c (z_c − t_c)² / 2C on centred logits, up to O(1/T)."""
    centre = lambda z: z - z.mean(-1, keepdim=True)  # noqa: E731
    teacher = Z.flip(0)
    hot = Distillation(temperature=1e4)(Outputs(logits=Z), {"teacher_logits": teacher})
    torch.testing.assert_close(hot, (centre(Z) - centre(teacher)).square().sum(-1) / (2 * C), rtol=1e-3, atol=1e-4)


def test_distillation_targets():
    target = Distillation(temperature=4.0).target({"teacher_logits": TEACHER}, C)
    for found, teacher, spoken in zip(target, TEACHER, SPOKEN, strict=True):
        assert found.tolist() == pytest.approx(softmax(teacher) if spoken else [0.0] * C)


def test_distillation_refuses():
    with pytest.raises(ValueError, match=r"`temperature`: expected a positive number, found 0.0"):
        Distillation(temperature=0.0)
    with pytest.raises(ValueError, match=r"`kind`: expected one of .*'kl', 'mse'.*, found 'l1'"):
        Distillation(kind="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`kind`: 'mse' compares logits, but `probabilities=True`"):
        Distillation(kind="mse", probabilities=True)


# ---- votes ----

VOTES = {"weak_labels": torch.tensor([[0, 0, 1, -1], [2, 1, -1, -1], [-1, -1, -1, -1], [0, 1, 2, -1], [1, 1, 1, 1]])}
MAJORITY = rows([[1, 0, 0], [0, 0.5, 0.5], [0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]])


def test_labeling_functions():
    expected = [
        [-math.log(softmax(z)[v]) if v != ABSTAIN else 0.0 for v in votes]
        for z, votes in zip(Z, VOTES["weak_labels"].tolist(), strict=True)
    ]
    check(LabelingFunctions(), VOTES, rows(expected), VOTES["weak_labels"] != -1)


def test_labeling_functions_targets():
    target = LabelingFunctions().target(VOTES, C)
    assert target.shape == (N, 4, C)
    expected = [[one_hot(v) if v != ABSTAIN else [0.0] * C for v in votes] for votes in VOTES["weak_labels"].tolist()]
    assert target.tolist() == expected


def test_labeling_functions_names():
    assert LabelingFunctions().sources("rules", {"weak_labels": [0, -1]}) == ("rules/0", "rules/1")
    named = LabelingFunctions(names=("short", "shouts"))
    assert named.sources("rules", {"weak_labels": [0, -1]}) == ("rules/short", "rules/shouts")
    with pytest.raises(ValueError, match=r"`names`: expected 3 names, one per vote in 'weak_labels'; found 2"):
        named.sources("rules", {"weak_labels": [0, -1, 1]})


def test_majority_vote_shares_ties():
    torch.testing.assert_close(MajorityVote().target(VOTES, C).double(), MAJORITY, rtol=1e-6, atol=0)
    expected = rows([cross_entropy(q, z) for q, z in zip(MAJORITY, Z, strict=True)])
    loss, mask = MajorityVote(), torch.tensor([True, True, False, True, True])
    found = loss(Outputs(logits=Z), VOTES)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # a third is stored in float32
    assert torch.equal(loss.mask(VOTES), mask) and found[2] == 0
    untied = {"weak_labels": VOTES["weak_labels"][[0, 1, 2, 1, 4]]}
    rest = rows([cross_entropy(MAJORITY[j], Z[i]) for i, j in enumerate([0, 1, 2, 1, 4])])
    check(MajorityVote(), untied, rest, mask)


# ---- regularizers ----


def test_entropy():
    expected = rows([-sum(p * math.log(p) for p in softmax(z)) for z in Z])
    check(Entropy(), VOTES, expected, torch.ones(N, dtype=torch.bool))
    uncovered = torch.tensor([False, False, True, False, False])
    check(Entropy("weak_labels"), VOTES, torch.where(uncovered, expected, 0.0), uncovered)
    assert Entropy().columns == () and Entropy("weak_labels").columns == ("weak_labels",)
    assert Entropy().target(VOTES, C) is None


def test_entropy_of_a_certain_student_is_zero_with_a_finite_gradient():
    logits = rows([[1000.0, 0.0, 0.0]]).requires_grad_()
    found = Entropy()(Outputs(logits=logits), {"labels": torch.zeros(1)})
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found.item() == 0 and gradient.isfinite().all()


def test_agreement():
    expected = rows(
        [kl(softmax(z), p.tolist()) if s else 0.0 for z, p, s in zip(Z, TEACHER.softmax(-1), SPOKEN, strict=True)]
    )
    batch = {"posterior": TEACHER.softmax(-1)}
    check(Agreement(), batch, expected, SPOKEN)
    assert torch.equal(Agreement().target(batch, C), torch.where(SPOKEN[:, None], batch["posterior"], 0.0))
    partly = {"posterior": rows([[NAN, 0.5, 0.5]])}
    assert not Agreement().mask(partly).any() and not Agreement().target(partly, C).any()


def test_agreement_with_an_impossible_class_is_finite():
    logits = Z.clone().requires_grad_()
    found = Agreement()(Outputs(logits=logits), {"posterior": rows([[1.0, 0.0, 0.0]] * N)})
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    expected = rows([kl(softmax(z), [1.0, 1e-12, 1e-12]) for z in Z])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert gradient.isfinite().all()


# ---- functions and the stack ----


def confidence(outputs: Outputs, batch) -> Tensor:
    return outputs.logits.softmax(-1).amax(-1)


def test_function_loss():
    loss = FunctionLoss(confidence, columns=("hint",))
    check(loss, HARD, rows([max(softmax(z)) for z in Z]), torch.ones(N, dtype=torch.bool))
    assert loss.columns == ("hint",) and loss.target(HARD, C) is None


@pytest.mark.parametrize(
    "function, found",
    [
        (lambda outputs, batch: confidence(outputs, batch).mean(), r"\(\)"),
        (lambda outputs, batch: confidence(outputs, batch)[:, None], r"\(5, 1\)"),
        (lambda outputs, batch: confidence(outputs, batch)[1:], r"\(4,\)"),
        (lambda outputs, batch: 0.5, "float"),
    ],
    ids=["mean", "column", "short", "number"],
)
def test_function_loss_refuses_what_is_not_one_number_a_row(function, found):
    pattern = (
        rf"`losses`: the function '<lambda>' must return one loss per row, shape \(5,\); found {found}. Return the"
    )
    with pytest.raises(ValueError, match=pattern):
        FunctionLoss(function)(Outputs(logits=Z), HARD)


BATCH = {**HARD, "teacher_logits": TEACHER, **VOTES}
LOSSES = {
    "label": CrossEntropy(),
    "teacher": Distillation(),
    "rules": LabelingFunctions(),
    "vote": MajorityVote(),
    "sure": confidence,
}


def test_stack_sets_every_source_in_its_columns():
    stack = LossStack(LOSSES, {"weak_labels": [0] * 4})
    assert stack.names == ("label", "teacher", "rules/0", "rules/1", "rules/2", "rules/3", "vote", "sure")
    assert len(stack) == 8
    assert stack.columns == ("labels", "teacher_logits", "weak_labels")
    found, mask = stack(Outputs(logits=Z), BATCH), stack.mask(BATCH)
    targets = stack.targets(BATCH, C)
    assert found.shape == mask.shape == (N, 8) and targets.shape == (N, 8, C)
    for name, loss in stack.losses.items():
        columns = stack.slices[name]
        alone = loss(Outputs(logits=Z), BATCH).reshape(N, -1)
        assert torch.equal(found[:, columns], alone), name
        assert torch.equal(mask[:, columns], loss.mask(BATCH).reshape(N, -1)), name
        says = loss.target(BATCH, C)
        expected = torch.zeros(N, 1, C) if says is None else says.float().reshape(N, -1, C)
        assert torch.equal(targets[:, columns], expected), name
    assert not found[~mask].any() and not targets[~mask].any()


def test_stack_with_classes():
    stack = LossStack(LOSSES, {"weak_labels": [0] * 4})
    wide = stack.with_classes(Outputs(logits=Z), BATCH)
    assert torch.equal(wide[:, :8], stack(Outputs(logits=Z), BATCH))
    expected = rows([[-math.log(p) for p in softmax(z)] for z in Z])
    torch.testing.assert_close(wide[:, 8:], expected, rtol=1e-10, atol=1e-12)


def test_stack_keeps_the_given_order():
    turned = LossStack({"b": MajorityVote(), "a": CrossEntropy()}, {})
    assert turned.names == ("b", "a") and turned.columns == ("weak_labels", "labels")
    assert torch.equal(turned(Outputs(logits=Z), BATCH)[:, 1], CrossEntropy()(Outputs(logits=Z), BATCH))


def test_stack_refuses_nothing():
    with pytest.raises(ValueError, match="`losses`: expected at least one source, found none"):
        LossStack({}, {})


def test_outputs_name_what_is_there():
    with pytest.raises(AttributeError, match=r"the model returned \['logits'\], not 'hidden_states'"):
        _ = Outputs(logits=Z).hidden_states


# ---- along a tangent: closed forms beside forward mode ----

SOFT = {"labels": rows([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [NAN] * 3, [0.1, 0.1, 0.1], [0.0, 0.0, 1.0]])}
ALONG = {
    "labels": (CrossEntropy(), HARD),
    "smoothed labels": (CrossEntropy(label_smoothing=0.1), HARD),
    "distributions": (CrossEntropy(), SOFT),
    "smoothed distributions": (CrossEntropy(label_smoothing=0.1), SOFT),
    "teacher": (Distillation(), {"teacher_logits": TEACHER}),
    "sharp teacher": (Distillation(temperature=0.5), {"teacher_logits": TEACHER}),
    "probabilities": (Distillation(probabilities=True), {"teacher_logits": TEACHER.softmax(-1)}),
    "votes": (LabelingFunctions(), VOTES),
    "majority": (MajorityVote(), VOTES),
}
TANGENT = torch.randn(N, C, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("which", ALONG)
def test_closed_form_along_a_tangent(which):
    loss, batch = ALONG[which]
    expected = jvp(lambda z: loss(Outputs(logits=z), batch), (Z,), (TANGENT,))[1]
    found = loss.along(Outputs(logits=Z), TANGENT, batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not found[~loss.mask(batch)].any() and found.any()


def test_stack_along_a_tangent():
    stack = LossStack({name: LOSSES[name] for name in ("label", "teacher", "rules", "vote")}, {"weak_labels": [0] * 4})
    expected = jvp(lambda z: stack.with_classes(Outputs(logits=z), BATCH), (Z,), (TANGENT,))[1]
    torch.testing.assert_close(stack.along(Outputs(logits=Z), TANGENT, BATCH), expected, rtol=1e-10, atol=1e-12)


class Focal(CrossEntropy):
    def __call__(self, outputs, batch):
        found = super().__call__(outputs, batch)
        return found * (1 - (-found).exp()) ** 2


@pytest.mark.parametrize(
    "loss",
    [
        Focal(),
        CrossEntropy(class_weights=(1.0, 2.0, 1.0)),
        Distillation(kind="js"),
        Distillation(temperature="learned"),
        confidence,
    ],
    ids=["a loss of one's own", "class weights", "another divergence", "a learned temperature", "a function"],
)
def test_no_closed_form_is_claimed_for_what_has_none(loss):
    stack = LossStack({"label": CrossEntropy(), "other": loss}, {})
    assert stack.along(Outputs(logits=Z), TANGENT, BATCH) is None


def test_what_a_subclass_computes_is_not_what_its_parent_promised():
    assert LossStack({"label": CrossEntropy()}, {}).folds
    assert not LossStack({"label": Focal()}, {}).folds
