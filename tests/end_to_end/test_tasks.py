"""Regression and multi-label heads through the trainer: what runs, what is refused, what is learned."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from planted import VOCABULARY, WORDS, identical, parameters, sentence, table_of
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, set_seed

from amal_hf import CrossEntropy, Distillation
from amal_hf.losses import BinaryCrossEntropy, FunctionLoss, SquaredError
from amal_hf.metagrad.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, clean_loss
from amal_hf.metrics import METRICS
from amal_hf.mixing import Trust

COUNT = {REGRESSION: 1, MULTI_LABEL: 3}
TOPICS = 5  # of eight words each
METHODS = ["fixed", "amal", "amal-step", "alm-kd", "shared", "l2r", "meta-weight-net", "network"]
both = pytest.mark.parametrize("task", COUNT)


def make_rows(task: str, n: int = 32, seed: int = 0, wrong: float = 0.0) -> Dataset:
    """Texts of two topics: their mean is the number, and topics 0 to 2 are the classes. `wrong` labels are shuffled."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        topics = [draw.randrange(TOPICS) for _ in range(2)]
        words = [draw.randrange(8 * topic, 8 * topic + 8) for topic in topics for _ in range(3)]
        ids = [VOCABULARY["[CLS]"], *(VOCABULARY[f"w{w}"] for w in words), VOCABULARY["[SEP]"]]
        truth: Any = sum(topics) / 2 - 2 if task == REGRESSION else [float(c in topics) for c in range(3)]
        values = [truth] if task == REGRESSION else [4 * t - 2 for t in truth]
        teacher = [value + draw.gauss(0, 0.3) for value in values]
        rows.append({"text": sentence(words), "input_ids": ids, "attention_mask": [1] * len(ids), "truth": truth})
        rows[-1] |= {"label": truth, "teacher_logits": teacher, "shuffled": False}
    moved = draw.sample(range(n), int(wrong * n))
    for i, j in zip(moved, moved[1:] + moved[:1], strict=True):
        rows[i] |= {"label": rows[j]["truth"], "shuffled": rows[i]["truth"] != rows[j]["truth"]}
    return Dataset.from_list(rows)


def make_student(task: str, count: int | None = None, problem_type: str | None = None, layers: int = 1) -> nn.Module:
    assert WORDS == 8 * TOPICS
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY), max_position_embeddings=16, initializer_range=0.2, **sizes, **still,
            num_labels=count or COUNT[task], problem_type=problem_type,
        )
    )  # fmt: skip


def make_losses(task: str) -> dict[str, Any]:
    if task == REGRESSION:
        return {"label": SquaredError(), "teacher": Distillation(kind="mse")}
    return {"label": BinaryCrossEntropy(), "teacher": Distillation(kind="sigmoid", temperature=2.0)}


def make_trainer(build: Any, task: str, settings: dict[str, Any] | None = None, **given: Any) -> Any:
    """A trainer on the planted problem of a task; `build` makes one of settings and arguments."""
    given.setdefault("model", make_student(task))
    given.setdefault("losses", make_losses(task))
    given.setdefault("train_dataset", make_rows(task, wrong=0.4))
    given.setdefault("clean_dataset", make_rows(task, 12, seed=1))
    return build({"learning_rate": 5e-3, "method": "meta-weight-net", **(settings or {})}, **given)


@pytest.fixture
def make(build):
    return partial(make_trainer, build)


# ---- what runs ----


@pytest.mark.parametrize("task", [REGRESSION, pytest.param(MULTI_LABEL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_recipes_that_need_no_class(method, task, make):
    start = {"method": method, "meta_start": 0} | ({"refresh_every": 1} if method == "amal" else {})
    trainer = make(task, start, eval_dataset=make_rows(task, 8, seed=2), compute_metrics=METRICS[task])
    trainer.train()
    table = table_of(trainer)
    assert table.isfinite().all() and (table >= 0).all()
    spread = (table.amax(0) - table.amin(0)).max() + (table[0, 0] - table[0, 1]).abs()
    assert (spread > 1e-4) == (method != "fixed"), "weights that learn have moved, and fixed ones have not"
    assert trainer.model.config.problem_type == trainer.task == task
    scores = trainer.evaluate()
    assert math.isfinite(scores["eval_loss"]) and {f"eval_{name}" for name in trainer_metrics(task)} <= set(scores)


def trainer_metrics(task: str) -> set[str]:
    return {"mse", "mae", "pearson", "spearman"} if task == REGRESSION else {"micro_f1", "macro_f1"}


@both
def test_the_whole_network_looks_ahead_as_well(task, make):
    trainer = make(task, {"method": "amal-step", "lookahead_params": "all"})
    trainer.train()
    assert table_of(trainer).ne(1).all()


@both
def test_evaluation_is_the_loss_of_the_lookahead(task, make):
    rows = make_rows(task, 16, seed=2)
    trainer = make(task, eval_dataset=rows)
    found = trainer.predict(rows)
    labels = torch.as_tensor(found.label_ids)
    expected = clean_loss(task, torch.as_tensor(found.predictions), labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(labels, torch.tensor(rows["label"][:]))


def test_several_numbers_a_row(make):
    rows, meta = (make_rows(MULTI_LABEL, n, seed) for n, seed in ((32, 0), (12, 1)))
    student = make_student(REGRESSION, 3, REGRESSION)
    trainer = make(REGRESSION, model=student, train_dataset=rows, clean_dataset=meta, eval_dataset=meta)
    trainer.train()
    assert table_of(trainer).ne(1).any()
    assert trainer.task == REGRESSION and math.isfinite(trainer.evaluate()["eval_loss"])


@both
def test_whole_numbers_are_numbers(task, make):
    """Stars from 1 to 5, or 0 and 1 in a list: the same run as with floats."""

    def trained(whole: bool) -> Any:
        kind = (lambda x: round(2 * x)) if whole else (lambda x: float(round(2 * x)))
        each = lambda x: [kind(y) for y in x] if isinstance(x, list) else kind(x)  # noqa: E731
        if task == MULTI_LABEL:
            each = lambda x: [int(y) for y in x] if whole else x  # noqa: E731
        splits = [make_rows(task, n, s).map(lambda row: {"label": each(row["label"])}) for n, s in ((16, 0), (8, 1))]
        splits = [Dataset.from_list(split.to_list()) for split in splits]
        trainer = make(task, train_dataset=splits[0], clean_dataset=splits[1], eval_dataset=splits[1])
        trainer.train()
        return parameters(trainer) | {"loss": torch.tensor(trainer.evaluate()["eval_loss"])}

    assert identical(trained(True), trained(False)) == []


@both
def test_rows_without_a_label(task, make):
    """None, or NaN, is no label: the source says nothing there, and the others train the row."""
    rows = make_rows(task, 16)
    blank: Any = float("nan") if task == REGRESSION else [float("nan")] * 3
    labels = [None, blank, *rows["label"][2:]]
    trainer = make(task, train_dataset=rows.remove_columns("label").add_column("label", labels))
    trainer.train()
    table = table_of(trainer)
    assert table[:2, 0].isnan().all() and table[2:, 0].isfinite().all() and table[:, 1].isfinite().all()


# ---- the method ----


def test_the_default_is_refused_by_name(make):
    with pytest.raises(ValueError, match=r"`method`: 'denoise' .* Set method='meta-weight-net'"):
        make(REGRESSION, {"method": "denoise"})


def test_heads_of_one_class_are_as_before(build):
    trainer = build()
    assert (trainer.task, trainer.args.method, trainer.settings.probe_weight) == (SINGLE_LABEL, "trust", 0.7)


# ---- what is refused ----


def changed(task: str, labels: Any, n: int = 12, seed: int = 1) -> Dataset:
    return make_rows(task, n, seed).remove_columns("label").add_column("label", labels)


NAN = float("nan")
LOG_POSTERIOR = make_rows(REGRESSION).add_column("evidence", [[0.0]] * 32)
REFUSED: dict[str, tuple[str, Any]] = {
    "trust": ("method.*Set method='meta-weight-net'", lambda m: m(REGRESSION, {"method": "trust"})),
    "denoise": ("method.*Set method=", lambda m: m(REGRESSION, {"method": "denoise"}, train_dataset=LOG_POSTERIOR)),
    "a mixing of classes": ("method", lambda m: m(MULTI_LABEL, mixing=Trust(2, 3, torch.ones(2)))),
    "a probe": ("probe_weight.*Leave it out", lambda m: m(REGRESSION, {"method": "shared", "probe_weight": 0.5})),
    "classes": ("losses.*SquaredError", lambda m: m(REGRESSION, losses={"label": CrossEntropy()})),
    "kl of one number": ("losses.*kind='mse'", lambda m: m(REGRESSION, losses={"teacher": Distillation()})),
    "kl of several": ("losses.*kind='sigmoid'", lambda m: m(MULTI_LABEL, losses={"teacher": Distillation()})),
    "no number": (
        "clean_dataset.*1 missing",
        lambda m: m(REGRESSION, clean_dataset=changed(REGRESSION, [NAN, *[0.0] * 11])),
    ),
    "no value": (
        "clean_dataset.*1 missing",
        lambda m: m(REGRESSION, clean_dataset=changed(REGRESSION, [None, *[0.0] * 11])),
    ),
    "one answer missing": (
        "clean_dataset.*1 missing",
        lambda m: m(MULTI_LABEL, clean_dataset=changed(MULTI_LABEL, [[1.0, 0.0, NAN]] + [[1.0, 0.0, 0.0]] * 11)),
    ),
    "other width": (
        "clean_dataset.*expected 3 entries",
        lambda m: m(MULTI_LABEL, clean_dataset=changed(MULTI_LABEL, [[1.0, 0.0]] * 12)),
    ),
    "one class a row": (
        "clean_dataset.*list of 3 numbers.*int64",
        lambda m: m(MULTI_LABEL, clean_dataset=changed(MULTI_LABEL, [0, 1, 2] * 4)),
    ),
    "one class a row, trained on": (
        "train_dataset.*list of 3 numbers.*int64",
        lambda m: m(MULTI_LABEL, train_dataset=changed(MULTI_LABEL, [0, 1, 2] * 4, seed=0)),
    ),
    "words": (
        "clean_dataset.*a number in every row.*string",
        lambda m: m(REGRESSION, clean_dataset=changed(REGRESSION, ["good"] * 12)),
    ),
    "beyond numbers": (
        "train_dataset.*finite numbers",
        lambda m: m(REGRESSION, train_dataset=changed(REGRESSION, [math.inf] * 12, seed=0)),
    ),
    "more than certain": (
        "train_dataset.*0 to 1",
        lambda m: m(MULTI_LABEL, train_dataset=changed(MULTI_LABEL, [[3.0, 0.0, 0.0]] * 12, seed=0)),
    ),
    "a teacher of other width": (
        "train_dataset.*expected 1 entries",
        lambda m: m(REGRESSION, train_dataset=changed(MULTI_LABEL, [0.0] * 12, seed=0)),
    ),
    "no label to steer by": (
        "clean_dataset.*'label'",
        lambda m: m(REGRESSION, clean_dataset=make_rows(REGRESSION, 12, 1).remove_columns("label")),
    ),
    "one evaluation set of other width": (
        r"eval_dataset\['far'\].*expected 3 entries",
        lambda m: m(MULTI_LABEL, eval_dataset={"far": changed(MULTI_LABEL, [[1.0]] * 12, seed=2)}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_door(case, make, tmp_path):
    told, wrong = REFUSED[case]
    with pytest.raises(ValueError, match=rf"(?s)`{told}"):
        # the task is not left to be inferred from what is wrong
        wrong(lambda task, *rest, **given: make(task, *rest, model=make_student(task, problem_type=task), **given))
    assert not list(tmp_path.iterdir())


def test_a_source_of_ones_own_needs_no_class(make):
    def absolute(outputs, batch):
        return (outputs.logits[:, 0] - batch["labels"]).abs()

    trainer = make(REGRESSION, losses={"label": SquaredError(), "robust": FunctionLoss(absolute, ("labels",))})
    trainer.train()
    assert table_of(trainer).ne(1).any()


# ---- invariance; 1×16 = 4×4 is in test_support_matrix.py ----


@both
def test_resumed_is_uninterrupted(task, make):
    settings = {"method": "amal-step", "save_strategy": "steps", "save_steps": 3}
    whole = make(task, settings)
    whole.train()
    resumed = make(task, {**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    ends = lambda t: parameters(t) | t.weigher.state_dict() | {"table": table_of(t)}  # noqa: E731
    assert whole.state.global_step == 8
    assert identical(ends(whole), ends(resumed)) == []


# ---- what is learned ----


@pytest.mark.slow
@both
def test_labels_that_were_shuffled_are_trusted_less(task, make):
    """40 % of the labels belong to other rows; the teacher is decent. Weights find them, and the student gains."""
    train, test = make_rows(task, 320, wrong=0.4), make_rows(task, 160, seed=2)

    def trained(method: str) -> tuple[Any, float]:
        settings = {"method": method, "num_train_epochs": 12, "per_device_train_batch_size": 16}
        trainer = make(
            task, settings, model=make_student(task), train_dataset=train, clean_dataset=make_rows(task, 40, seed=1),
            eval_dataset=test,
        )  # fmt: skip
        trainer.train()
        return trainer, trainer.evaluate()["eval_loss"]

    (learned, loss), (_, equal) = trained("meta-weight-net"), trained("fixed")
    table = table_of(learned)
    clean = [not shuffled for shuffled in train["shuffled"]]
    found = roc_auc_score(clean, table[:, 0])
    assert found > 0.7
    assert loss < equal
