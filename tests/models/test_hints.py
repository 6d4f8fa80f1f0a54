"""Hints and relations against their formulas, and the student that shows its layers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import CLASSES, HIDDEN, build, token_batch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from amal_hf._types import Outputs
from amal_hf.losses.hints import Hint, Relation
from amal_hf.metagrad import ForwardMode, OutputsProblem, PureModel, trainable
from amal_hf.models import add_hint_head, mean_pooled, pooled_layers, remove_hint_head

N, L, M, H = 4, 2, 3, 5
NAN = float("nan")
DRAW = torch.Generator().manual_seed(0)
STUDENT = torch.randn(N, L, H, generator=DRAW, dtype=torch.float64)
TEACHER = torch.randn(N, M, H, generator=DRAW, dtype=torch.float64)
TEACHER[2] = NAN
SPOKEN = torch.tensor([True, True, False, True])


def dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a, b) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def outputs(features: Tensor) -> Outputs:
    return Outputs(logits=torch.zeros(len(features), CLASSES), hints=features)


def check(
    loss: Any, features: Tensor, batch: dict[str, Tensor], expected: list[float], spoken: Tensor = SPOKEN
) -> None:
    features = features.clone().requires_grad_()
    found = loss(outputs(features), batch)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert torch.equal(loss.mask(batch), spoken) and not found[~spoken].any()
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert gradient.isfinite().all() and not gradient[~spoken].any() and gradient[spoken].flatten(1).any(1).all()


@pytest.mark.parametrize("layer_map", [(0, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hint_is_its_formula(kind, layer_map):
    expected = []
    for s, h, spoken in zip(STUDENT, TEACHER, SPOKEN, strict=True):
        pairs = [(s[i], h[m]) for i, m in enumerate(layer_map)]
        if kind == "mse":
            each = [sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / H for a, b in pairs]
        else:
            each = [1 - cosine(a, b) for a, b in pairs]
        expected.append(sum(each) / L if spoken else 0.0)
    check(Hint(layer_map=layer_map, kind=kind), STUDENT, {"teacher_hidden": TEACHER}, expected)


def test_hint_of_one_layer_needs_no_map():
    """`[N, H]` on both sides, and a mask column."""
    batch = {"teacher_pooled": TEACHER[:, 0], "speaks": torch.tensor([True, False, True, True])}
    expected = [float((a - b).square().mean()) for a, b in zip(STUDENT[:, 0], TEACHER[:, 0], strict=True)]
    expected[1] = expected[2] = 0.0
    loss = Hint("teacher_pooled", mask_column="speaks")
    assert loss.columns == ("teacher_pooled", "speaks")
    check(loss, STUDENT[:, 0], batch, expected, torch.tensor([True, False, False, True]))


def test_relation_is_its_formula():
    """The last layer of each side; of other rows only those on which the teacher speaks."""
    rows = [i for i in range(N) if SPOKEN[i]]
    expected = [0.0] * N
    for i in rows:
        others = [j for j in rows if j != i]
        gaps = [cosine(STUDENT[i, -1], STUDENT[j, -1]) - cosine(TEACHER[i, -1, :4], TEACHER[j, -1, :4]) for j in others]
        expected[i] = sum(g * g for g in gaps) / len(others)
    check(Relation("hidden"), STUDENT, {"hidden": TEACHER[..., :4]}, expected)


def test_relation_depends_on_the_batch_and_not_on_widths_or_rotations():
    batch = {"teacher_pooled": STUDENT[:, 0]}
    turn, _ = torch.linalg.qr(torch.randn(H, H, generator=DRAW, dtype=torch.float64))
    assert Relation()(outputs(STUDENT[:, 0] @ turn), batch).abs().max() <= 1e-12
    assert Relation()(outputs(TEACHER.nan_to_num()[:, 0, :3]), batch).min() > 1e-3
    alone = Relation()(outputs(STUDENT[:1, 1]), {"teacher_pooled": STUDENT[:1, 0]})
    assert alone.tolist() == [0.0]


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"`layer_map`: expected places 0 to 2 of column 'teacher_hidden', found \[3\]"
    ):
        Hint(layer_map=(3,))(outputs(STUDENT[:, :1]), {"teacher_hidden": TEACHER})
    with pytest.raises(ValueError, match=r"`layer_map`: .*\(4, 3, 5\) .*found \(4, 2, 5\)"):
        Hint()(outputs(STUDENT), {"teacher_hidden": TEACHER})
    with pytest.raises(ValueError, match=r"`output`: expected a student that returns 'hints', found only \['logits'\]"):
        Hint()(Outputs(logits=torch.zeros(N, 2)), {"teacher_hidden": TEACHER})
    with pytest.raises(ValueError, match="`kind`: expected one of"):
        Hint(kind="l1")  # type: ignore[arg-type]


# ---- the student that shows its layers ----

INPUTS = (7, 3, 5)


def test_pooling_skips_the_padding():
    hidden = torch.randn(2, 3, H, generator=DRAW)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(mean_pooled(hidden, mask), expected)
    torch.testing.assert_close(mean_pooled(hidden), hidden.mean(1))
    assert pooled_layers([hidden, 2 * hidden], mask, [1, 0, -1]).shape == (2, 3, H)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "deberta-v2", "modernbert"])
def test_student_shows_projected_layers_in_training_and_nothing_in_evaluation(kind):
    student = build(kind)
    batch = token_batch(student, INPUTS)
    plain = student.eval()(**batch)
    add_hint_head(student, [0, 2], to=7)
    shown = student.eval()(**batch)
    assert torch.equal(shown.logits, plain.logits) and "hints" not in shown and "hidden_states" not in shown
    raw = student.train()(**batch)
    assert set(raw) == {"logits", "hints"} and raw["hints"].shape == (3, 2, 7)
    assert torch.equal(raw.logits, plain.logits)  # no dropout here
    hidden = student.base_model.eval()(**batch, output_hidden_states=True).hidden_states
    for row, length in enumerate(INPUTS):
        for place, layer in enumerate((0, 2)):
            projection = student.hint_head.projections[place]
            expected = hidden[layer][row, :length].mean(0) @ projection.weight.T + projection.bias
            torch.testing.assert_close(raw["hints"][row, place], expected)


def test_projection_is_the_student_s():
    """Trained with it, moved by the lookahead, copied with it, and gone when taken off."""
    student = add_hint_head(build("bert"), [1, 2], to=7).train()
    batch = token_batch(student, INPUTS)
    teacher = torch.randn(3, 2, 7, generator=DRAW, dtype=torch.float64)
    loss = Hint()
    loss(student(**batch), {"teacher_hidden": teacher}).mean().backward()
    assert student.hint_head.projections[0].weight.grad.norm() > 0
    assert student.bert.encoder.layer[0].output.dense.weight.grad.norm() > 0

    twin = copy.deepcopy(student)
    with torch.no_grad():
        twin.hint_head.projections[0].weight.zero_()
        twin.hint_head.projections[0].bias.zero_()
    assert not twin(**batch)["hints"][:, 0].any() and student(**batch)["hints"][:, 0].any()

    pure = PureModel(student, batch, training=True)
    moved = {name: p.detach() for name, p in trainable(student).items()}
    moved |= {name: torch.zeros_like(p) for name, p in moved.items() if name.startswith("hint_head")}
    assert not pure(moved)["hints"].any()

    remove_hint_head(student)
    assert set(student.train()(**batch)) == {"logits"} and not [n for n, _ in student.named_parameters() if "hint" in n]
    add_hint_head(student, [-1])
    assert student(**batch)["hints"].shape == (3, 1, HIDDEN) and not list(student.hint_head.parameters())


def test_meta_gradient_of_a_hint_is_its_derivative():
    """Forward mode through the shown layers against ⟨∇ℓ, v⟩, one gradient a row."""
    student = add_hint_head(build("bert", "eager"), [1], to=7).train()
    batch, clean = token_batch(student, INPUTS), token_batch(student, (4, 6), seed=3)
    column = {"teacher_hidden": torch.randn(3, 1, 7, generator=DRAW, dtype=torch.float64)}
    judge = PureModel(student, clean, training=False)
    params = {name: p.detach().clone() for name, p in trainable(student).items()}
    problem = OutputsProblem.through(
        PureModel(student, batch, training=True),
        lambda out: Hint()(out, column)[:, None],
        params=params,
        weights=torch.ones(3, 1, dtype=torch.float64),
        val_loss=lambda p: torch.nn.functional.cross_entropy(judge(p).logits, torch.tensor([0, 1])),
        lr=0.1,
    )
    direction = problem.direction()
    found = ForwardMode().directional(problem, direction)
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    losses = problem.losses(leaves)[:, 0]
    for i in range(3):
        grads = torch.autograd.grad(losses[i], list(leaves.values()), retain_graph=True, allow_unused=True)
        slow = sum((g * direction[n]).sum() for n, g in zip(leaves, grads, strict=True) if g is not None)
        torch.testing.assert_close(found[i, 0], slow, rtol=1e-8, atol=1e-12)
    assert found.abs().min() > 0


def test_a_saved_student_loads_without_its_hint_head(tmp_path):
    student = add_hint_head(build("bert").float(), [1], to=7)
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = token_batch(student, INPUTS)
    assert torch.equal(again(**batch).logits, student.eval()(**batch).logits)


def test_layers_that_are_not_there_are_refused():
    for layers in ([3], [-2]):
        with pytest.raises(ValueError, match=r"`layers`: expected numbers from 0 \(embeddings\) to 2"):
            add_hint_head(build("bert"), layers)
    with pytest.raises(ValueError, match="`student`: expected one without a hint head"):
        add_hint_head(add_hint_head(build("bert"), [1]), [1])
