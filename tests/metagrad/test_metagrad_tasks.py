"""Heads that name no single class: V, its meta-gradients against the oracle, and what is inferred and refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import (
    HIDDEN,
    LENGTHS,
    META_LENGTHS,
    as_lookahead,
    build,
    captured,
    relative_error,
    row_weights,
    slow_directional,
    token_batch,
)
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction

from amal_hf import CrossEntropy, Distillation, Outputs, multi_label_metrics, regression_metrics
from amal_hf.lookahead import Batch, FullModelLookahead, HeadLookahead, MetaSampler, Step
from amal_hf.losses import BinaryCrossEntropy, LossStack, SquaredError
from amal_hf.metagrad import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HeadClosedForm,
    HeadProblem,
    NoStep,
    OutputsProblem,
    PureModel,
    RNGState,
    SGDStep,
    find_head,
    trainable,
)
from amal_hf.metagrad.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS, clean_loss
from amal_hf.metrics import METRICS
from amal_hf.tasks import task_of

CASES = {"number": (REGRESSION, 1), "two numbers": (REGRESSION, 2), "several classes": (MULTI_LABEL, 3)}
cases = pytest.mark.parametrize(("task", "count"), CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def student(name: str, count: int) -> nn.Module:
    """A model of `helpers` with another number of outputs."""
    model = build(name)
    model.classifier = nn.Linear(HIDDEN, count).double()
    model.config.num_labels = count
    return model


def answers(task: str, n: int, count: int, seed: int) -> torch.Tensor:
    """Labels as the collator makes them: `[n]` numbers for one output, else `[n, C]`."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(n, count, generator=draw, dtype=torch.float64) * 2
    return (found > 0).double() if task == MULTI_LABEL else found.squeeze(1)


def said(task: str, count: int) -> tuple[LossStack, dict[str, torch.Tensor]]:
    """Label and teacher, each silent on a row."""
    n = len(LENGTHS)
    batch = {"labels": answers(task, n, count, seed=1), "teacher_logits": torch.randn(n, count, dtype=torch.float64)}
    batch["labels"][1], batch["teacher_logits"][2] = torch.nan, torch.nan
    losses = {"label": SquaredError(), "teacher": Distillation(kind="mse")}
    if task == MULTI_LABEL:
        losses = {"label": BinaryCrossEntropy(), "teacher": Distillation(kind="sigmoid", temperature=2.0)}
    return LossStack(losses, {}), batch


def network_problem(task: str, count: int, name: str = "bert", lr: float = 0.3) -> OutputsProblem:
    model = student(name, count)
    stack, batch = said(task, count)
    judge = PureModel(model, token_batch(model, META_LENGTHS, seed=3), training=False)
    clean = answers(task, len(META_LENGTHS), count, seed=4)
    return OutputsProblem.through(
        PureModel(model, token_batch(model, LENGTHS), training=False),
        lambda outputs: stack(outputs, batch),
        params={key: p.detach().clone() for key, p in trainable(model).items()},
        weights=row_weights(len(LENGTHS), 2),
        val_loss=lambda params: clean_loss(task, judge(params).logits, clean),
        lr=lr,
    )


def head_problem(task: str, count: int, adam: bool = False) -> HeadProblem:
    model = student("bert", count)
    head, features, _ = captured(model, token_batch(model, LENGTHS))
    _, clean_features, _ = captured(model, token_batch(model, META_LENGTHS, seed=3))
    stack, batch = said(task, count)
    clean, params = answers(task, len(META_LENGTHS), count, seed=4), head.params()
    step = SGDStep(0.3)
    if adam:
        optimizer = torch.optim.AdamW(params.values(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            clean_loss(task, head.logits(params, clean_features), clean).backward()
            optimizer.step()
        step = as_lookahead(optimizer, params, exact=False)
    return HeadProblem.on(
        features,
        lambda logits: stack(Outputs(logits=logits), batch),
        names=head.names,
        params={key: p.detach().clone() for key, p in params.items()},
        weights=row_weights(len(features), 2),
        val_loss=lambda moved: clean_loss(task, head.logits(moved, clean_features), clean),
        lr=step,
    )


# ---- the meta-gradient ----


@cases
@pytest.mark.parametrize(("estimator", "tolerance"), [(ForwardMode(), 1e-10), (FiniteDifference(1e-4), 1e-6)])
def test_whole_network_equals_the_oracle(task, count, estimator, tolerance):
    problem = network_problem(task, count)
    found = estimator(problem)
    assert relative_error(found, DoubleBackward()(problem)) <= tolerance
    assert not found[1, 0] and not found[2, 1] and found[0].all()  # where a source is silent


@cases
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_closed_form_of_the_head_equals_the_oracle(task, count, adam):
    problem = head_problem(task, count, adam)
    assert relative_error(HeadClosedForm()(problem), DoubleBackward()(problem)) <= 1e-10
    assert relative_error(HeadClosedForm()(problem), ForwardMode()(problem)) <= 1e-10


@cases
def test_the_oracle_is_what_retraining_changes(task, count):
    """∂V/∂λ_ik is what V changes by when λ_ik does: two real steps, no formula."""
    problem, step = head_problem(task, count), 1e-5
    expected = torch.zeros_like(problem.weights)
    for i, k in np.ndindex(*expected.shape):
        nudge = torch.zeros_like(expected)
        nudge[i, k] = step
        ahead, behind = (replace(problem, weights=problem.weights + sign * nudge) for sign in (1, -1))
        values = [problem.val_loss(p.lookahead.move(p.params, p.gradient())) for p in (ahead, behind)]
        expected[i, k] = (values[0] - values[1]) / (2 * step)
    assert relative_error(HeadClosedForm()(problem), expected) <= 1e-6


@cases
@pytest.mark.parametrize("moves", ["head", "all"])
def test_lookahead_takes_the_loss_of_the_task(task, count, moves):
    """The trainer's own path: D along ∇V of this task, one gradient a row; and no class is advised."""
    model = student("bert", count)
    inputs, clean = token_batch(model, LENGTHS), token_batch(model, META_LENGTHS, seed=3)
    stack, batch = said(task, count)
    labels, sampler = answers(task, len(META_LENGTHS), count, seed=4), MetaSampler(3, 3, seed=0)
    encode = lambda rows: {key: t[torch.as_tensor(rows)] for key, t in clean.items()}  # noqa: E731
    noise, params = RNGState(torch.device("cpu")), trainable(model)
    if moves == "head":
        head = find_head(model, inputs)
        args = SimpleNamespace(meta_batch_size=3, probe_weight=0.0)
        lookahead, params = HeadLookahead(model, head, labels, encode, sampler, args, task), head.params()
    else:
        lookahead = FullModelLookahead(model, ForwardMode(), labels, encode, sampler, task)
    losses_of = lambda out: stack.with_classes(out, batch)  # noqa: E731
    known = Batch(inputs=inputs, noise=noise, losses_of=losses_of, lookahead=NoStep(), num_rows=len(LENGTHS))
    lookahead.prepare(known)
    with lookahead.capture_features():
        outputs = Outputs(logits=model(**inputs).logits)
    along, length = lookahead.directional_derivatives(
        Step(**vars(known), outputs=outputs, weights=row_weights(len(LENGTHS), 2))
    )

    truth = labels.reshape(-1, count)
    of_task = F.mse_loss if task == REGRESSION else F.binary_cross_entropy_with_logits
    model.eval()
    v = torch.autograd.grad(of_task(model(**clean).logits, truth), list(params.values()))
    expected = slow_directional(stack(outputs, batch), params.values(), v)
    tolerance = 1e-5  # features and V are float32 in the trainer's path
    assert relative_error(along[:, :2], expected) <= tolerance
    assert length == pytest.approx(float(torch.cat([g.flatten() for g in v]).norm()), rel=tolerance)
    assert lookahead.inverse_temperature == 0


def test_clean_loss_is_the_models_own():
    logits = torch.randn(4, 3)
    for task, labels, own in (
        (SINGLE_LABEL, torch.tensor([0, 2, 1, 1]), F.cross_entropy),
        (MULTI_LABEL, (torch.randn(4, 3) > 0).float(), F.binary_cross_entropy_with_logits),
        (REGRESSION, torch.randn(4, 3), F.mse_loss),
    ):
        assert torch.equal(clean_loss(task, logits, labels), own(logits, labels))
    one, label = logits[:, :1], torch.randn(4)
    assert torch.equal(clean_loss(REGRESSION, one, label), F.mse_loss(one.squeeze(), label))  # no [4, 4] by broadcast


# ---- the task, and what follows from it ----


def config(num_labels: int, problem_type: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(num_labels=num_labels, problem_type=problem_type)


def test_the_task_is_the_one_transformers_would_infer():
    vectors, classes = Dataset.from_dict({"label": [[1.0, 0.0]]}), Dataset.from_dict({"labels": [1]})
    assert task_of(config(1), [], {}) == REGRESSION
    assert task_of(config(2), [], {"clean": classes}) == SINGLE_LABEL
    assert task_of(config(2), [], {"clean": vectors}) == MULTI_LABEL
    assert task_of(config(2), [], {"clean": None, "eval": {"near": classes, "far": vectors}}) == MULTI_LABEL
    assert task_of(config(2), [BinaryCrossEntropy()], {}) == MULTI_LABEL
    assert task_of(config(2), [CrossEntropy()], {}) == SINGLE_LABEL
    for task in TASKS:
        assert task_of(config(2, task), [BinaryCrossEntropy()], {"clean": vectors}) == task
    with pytest.raises(ValueError, match=r"`problem_type`: expected one of .*found 'ranking'"):
        task_of(config(2, "ranking"), [], {})


# ---- metrics ----


def test_regression_metrics_by_hand():
    said_, truth = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 0.0], [4.0, 2.0]])
    found = regression_metrics(EvalPrediction((said_, "hidden"), truth))
    assert found["mse"] == pytest.approx(np.square(said_ - truth).mean())
    assert found["mae"] == pytest.approx(np.abs(said_ - truth).mean())
    correlations = [np.corrcoef(said_[:, c], truth[:, c])[0, 1] for c in range(2)]
    assert found["pearson"] == pytest.approx(np.mean(correlations))
    assert found["spearman"] == pytest.approx((1.0 + 0.5) / 2)
    assert regression_metrics(EvalPrediction(said_[:, :1], truth[:, 0]))["mse"] == pytest.approx(1 / 3)


def test_multi_label_metrics_by_hand():
    logits, truth = np.array([[2.0, -1.0, 3.0], [-1.0, 1.0, -2.0]]), np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = multi_label_metrics(EvalPrediction(logits, truth))
    assert found["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # two hits, one too many, one missed
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1.0 + 0.0) / 3)
    assert set(METRICS) == set(TASKS)
