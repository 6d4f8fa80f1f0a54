"""Sources that people have and nobody heard: weights of rows, log-probabilities of answers, confidence in words.

What else the kind lists stands elsewhere:

    annotators in every form: tests/denoising/test_assertions.py::test_a_perfect_annotator_is_used_in_every_form
    integers, null rows: tests/denoising/test_assertions.py::test_a_perfect_annotator_is_used_in_every_form
    nobody judges: tests/denoising/test_assertions.py::test_labels_that_no_clean_row_can_judge_are_used_as_labels
    their majority: tests/denoising/test_assertions.py::test_three_annotators_are_worth_their_majority
"""

from __future__ import annotations

import logging
import math
from typing import Any

import planted
import pytest
import torch
import yaml
from datasets import Dataset
from torch.nn.functional import log_softmax

from amal_hf import AMALConfig, Annotators, CrossEntropy, Distillation, Outputs
from amal_hf.commands.settings import DataConfig, source_losses
from amal_hf.commands.train import prepare
from amal_hf.door import as_votes
from amal_hf.labeling.formats import distributions_from_columns
from amal_hf.losses import LossStack

LOGITS = torch.tensor([[0.3, -1.2, 0.5], [2.0, 0.1, -0.4], [-0.7, 0.2, 0.9], [0.0, 1.0, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0])


# ---- a weight for every row ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_a_row_s_loss_is_times_its_weight(soft, smoothing):
    labels = torch.tensor([2, 0, 1, -100])
    column = torch.eye(3, dtype=torch.float64)[labels.clamp_min(0)] if soft else labels
    if soft:
        column[3] = math.nan
    batch = {"labels": column, "sure": WEIGHTS}
    loss = CrossEntropy(weight_column="sure", label_smoothing=smoothing)
    wanted = []
    for i, (label, weight) in enumerate(zip([2, 0, 1, None], WEIGHTS.tolist(), strict=True)):
        z = LOGITS[i].tolist()
        log_p = [v - math.log(sum(map(math.exp, z))) for v in z]
        q = [(1 - smoothing) * (c == label) + smoothing / 3 for c in range(3)]
        wanted.append(0.0 if label is None else -weight * sum(a * b for a, b in zip(q, log_p, strict=True)))
    found = loss(Outputs(logits=LOGITS), batch)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    assert loss.mask(batch).tolist() == [True, True, False, False], "a weight of 0 says nothing"


def test_folded_and_along_a_tangent_it_is_the_same_loss():
    """The way that needs no forward for weights, and the closed derivative, against the losses themselves."""
    batch = {"labels": torch.tensor([2, 0, 1, 1]), "sure": WEIGHTS, "teacher_logits": LOGITS.flip(1)}
    stack = LossStack({"label": CrossEntropy(weight_column="sure", label_smoothing=0.2), "teacher": Distillation()}, {})
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.2], [0.4, 0.6], [0.9, 0.1]], dtype=torch.float64)
    rows = (weights * stack(Outputs(logits=LOGITS), batch)).sum(1)
    torch.testing.assert_close(stack.soft_sources(batch, 3).fold(weights)(LOGITS), rows)

    tangent, step = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1e-6
    ends = [stack(Outputs(logits=LOGITS + s * step * tangent), batch) for s in (1, -1)]
    found = stack.along(Outputs(logits=LOGITS), tangent, batch)[:, :2]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), atol=1e-8, rtol=1e-6)


def test_a_row_of_weight_two_is_the_row_twice(build):
    """SGD on one batch: 8 rows of which one weighs 2, and 9 rows; the mean is over 8 and 9."""
    rows = planted.make_rows(8)
    twice = rows.select([*range(8), 3])
    settings = {"method": "fixed", "optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0}
    once = rows.add_column("sure", [2.0 if i == 3 else 1.0 for i in range(8)])
    by_weight = build(settings | {"per_device_train_batch_size": 8}, train_dataset=once,
                      losses={"label": CrossEntropy(weight_column="sure")})  # fmt: skip
    start = planted.parameters(by_weight)
    by_copy = build(settings | {"per_device_train_batch_size": 9}, train_dataset=twice,
                    losses=planted.make_losses("label"))  # fmt: skip
    for trainer in (by_weight, by_copy):
        trainer.train()
    one, other = planted.parameters(by_weight), planted.parameters(by_copy)
    for name in start:
        torch.testing.assert_close(8 * (one[name] - start[name]), 9 * (other[name] - start[name]), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1.0, -0.5, *[1.0] * 6], "found -0.5 on row 1"),
        ([1.0, 1.0, float("nan"), *[1.0] * 5], "found nan on row 2"),
        ([*[1.0] * 7, float("inf")], "found inf on row 7"),
        ([*[1.0] * 6, None, 1.0], "found nan on row 6"),
        ([*"11111111"], "found values of type string"),
    ],
)
def test_what_is_no_weight_is_refused(weights, told, build):
    rows = planted.make_rows(8).add_column("sure", weights)
    with pytest.raises(ValueError, match=f"column 'sure': expected a .*{told}"):
        build({"method": "fixed"}, train_dataset=rows, losses={"label": CrossEntropy(weight_column="sure")})


def test_in_every_method_and_without_it_on_clean_rows(build):
    rows = planted.make_rows(16, wrong=0.4, tokens=False)
    rows = rows.add_column("sure", [i % 3 for i in range(16)])
    losses = {"label": CrossEntropy(weight_column="sure"), "teacher": Distillation()}
    for method in ("trust", "amal-step", "denoise"):
        trainer = build({"method": method, "num_train_epochs": 1}, train_dataset=rows, losses=losses,
                        clean_dataset=planted.make_rows(12, 1, tokens=False))  # fmt: skip
        trainer.train()
        table = trainer.weights["label"][:]
        assert [v is None for v in table] == [i % 3 == 0 for i in range(16)]
        assert trainer.evaluate(planted.make_rows(9, 2, tokens=False))["eval_loss"] > 0


@pytest.mark.parametrize("given", [torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 2.0, 0.5]).numpy(), [1, 2, 0.5]])
def test_class_weights_may_be_an_array(given, build):
    loss = CrossEntropy(class_weights=given)
    assert loss.class_weights == (1.0, 2.0, 0.5)
    build({"method": "fixed"}, losses={"label": loss})


# ---- log-probabilities of the classes that an LLM could have named ----

NAMED = [
    ([math.log(0.6), math.log(0.2), None, None], [0.6, 0.2, 0.1, 0.1]),  # what is missing is shared
    ([math.log(0.3), math.log(0.1), math.log(0.05), math.log(0.05)], [0.6, 0.2, 0.1, 0.1]),  # the rest went elsewhere
    ([None, math.log(0.7), None, None], [0.1, 0.7, 0.1, 0.1]),
    ([None] * 4, None),
    (None, None),
]


def test_missing_mass_is_shared_and_an_empty_row_abstains(build):
    from amal_hf.data.collate import SourceCollator

    rows = Dataset.from_dict({"gpt": [row for row, _ in NAMED]})
    batch = SourceCollator(lambda rows: {}, ["gpt"], rows[0]).sources([*rows])
    loss = Distillation("gpt", log_probabilities=True, temperature=1.0)
    assert loss.mask(batch).tolist() == [wanted is not None for _, wanted in NAMED]
    found = loss.target(batch, 4)
    wanted = torch.tensor([wanted or [0.0] * 4 for _, wanted in NAMED])
    torch.testing.assert_close(found.float(), wanted)
    logits = torch.tensor([[0.5, -0.5, 0.2, 0.0]]).expand(5, 4).clone().requires_grad_()
    kl = loss(Outputs(logits=logits), batch)
    log_q = log_softmax(logits[0].detach(), 0)
    for i, (_, p) in enumerate(NAMED):
        hand = 0.0 if p is None else sum(a * (math.log(a) - b) for a, b in zip(p, log_q.tolist(), strict=True))
        assert kl[i].item() == pytest.approx(hand, abs=1e-5)
    kl.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("other", [{"probabilities": True}, {"kind": "mse"}, {"kind": "sigmoid"}])
def test_log_probabilities_are_one_distribution(other):
    with pytest.raises(ValueError, match="`log_probabilities`: expected one distribution"):
        Distillation(log_probabilities=True, **other)


def test_probabilities_are_not_their_logarithms(build):
    rows = planted.make_rows(8).add_column("gpt", [[0.2, 0.3, 0.5]] * 8)
    with pytest.raises(ValueError, match=r"column 'gpt': expected log-probabilities, at most 0, found 0.2 to 0.5"):
        build({"method": "fixed"}, train_dataset=rows, losses={"gpt": Distillation("gpt", log_probabilities=True)})


# ---- confidence in words ----


def test_an_answer_has_its_stated_confidence():
    rows = Dataset.from_dict({"gpt": ["SEA", "land", None, "air"], "sure": ["85%", " 40 ", "10", None]})
    clean = Dataset.from_dict({"gpt": ["air"], "sure": ["1"]})  # one per cent: the unit is that of all splits
    made = distributions_from_columns({"train": rows, "clean": clean}, "gpt", "sure", planted.NAMES, "said")
    said = made["train"]["said"][:]
    assert said[0] == pytest.approx([0.075, 0.85, 0.075]) and said[1] == pytest.approx([0.3, 0.3, 0.4])
    assert all(map(math.isnan, said[2])) and said[3] == [1.0, 0.0, 0.0]
    assert made["clean"]["said"][0] == pytest.approx([0.01, 0.495, 0.495])


@pytest.mark.parametrize(
    ("sure", "told"),
    [
        ([0.5, 90], "found both 0.5 and 90"),
        ([0.5, -0.1], "found -0.1 on row 1"),
        ([50, 101], "found 101 on row 1"),
        (["very", "0.5"], "found 'very' on row 0"),
    ],
)
def test_what_is_no_confidence_is_refused(sure, told):
    rows = {"train": Dataset.from_dict({"gpt": ["air", "sea"], "sure": sure})}
    with pytest.raises(ValueError, match=f"`sure`: expected .*{told}"):
        distributions_from_columns(rows, "gpt", "sure", planted.NAMES, "said")


def test_a_column_of_confidence_for_each():
    with pytest.raises(ValueError, match="`confidence`: expected a column for each"):
        Annotators(["gpt", "rater"], confidence=["sure"])
    with pytest.raises(ValueError, match=r"source 'llm' reads column\(s\) \['sure'\]"):
        as_votes({"llm": Annotators(["gpt"], confidence=["sure"])},
                 {"train": Dataset.from_dict({"gpt": ["air"]})}, planted.NAMES)  # fmt: skip


def answered(count: int, seed: int) -> Dataset:
    """Rows without a label that is read: one annotator right, and sure, where another is neither."""
    rows = planted.make_rows(count, seed, tokens=False)
    truth = rows["truth"][:]
    return rows.remove_columns(["teacher_logits", "weak_labels", "truth"]).add_column(
        "gpt", [planted.NAMES[t if i % 4 else (t + 1) % 3] for i, t in enumerate(truth)]
    ).add_column("sure", [95 if i % 4 else 40 for i in range(count)]).add_column(
        "gpt_logs", [[math.log(0.8) if c == t else None for c in range(3)] for t in truth]
    )  # fmt: skip


def test_from_python_and_from_yaml(build, tmp_path):
    """The same columns, bit for bit, whichever way."""
    (tmp_path / "data").mkdir()
    parts = {"train": answered(36, 0), "clean": answered(18, 1)}
    for name, rows in parts.items():
        rows.to_json(tmp_path / "data" / f"{name}.jsonl")
    told = yaml.safe_load(
        """
        llm: {loss: annotators, columns: [gpt], confidence: [sure]}
        logs: {loss: distillation, column: gpt_logs, log_probabilities: true}
        """
    )
    data = DataConfig(data=str(tmp_path / "data"), train_on_labels=False, classes=planted.NAMES, model="x/y")
    _, read, losses = prepare(data, AMALConfig(str(tmp_path / "run")), told)
    given: dict[str, Any] = {
        "llm": Annotators(["gpt"], confidence=["sure"]),
        "logs": Distillation("gpt_logs", log_probabilities=True),
    }
    mine, rows = as_votes(given, parts, planted.NAMES)
    assert [*losses] == [*mine] == ["llm/gpt", "logs"] and losses == mine
    column = losses["llm/gpt"].column
    assert read["train"][column][:] == rows["train"][column][:]
    assert read["clean"][column][:] == rows["clean"][column][:]

    trainer = build({"method": "denoise", "num_train_epochs": 1}, losses=given, train_dataset=parts["train"],
                    clean_dataset=parts["clean"])  # fmt: skip
    trainer.train()
    assert trainer.stack.names == ("llm/gpt", "logs", "probe", "clean")
    truth = planted.make_rows(36, tokens=False)["truth"][:]
    right = [a == b for a, b in zip(trainer.corrected_dataset()["label"], truth, strict=True)]
    assert sum(right) / len(right) > 0.9


# ---- what is heard as something else ----


@pytest.mark.parametrize(
    "column",
    ["evidence", "probe", *(pytest.param(c, marks=pytest.mark.slow) for c in ("gold", "log_posterior", "clean"))],
)
def test_a_column_of_the_user_s_is_nobody_else_s(column, build):
    """Whatever it is called and holds, it changes nothing where no source reads it."""
    parts = [planted.make_rows(18, wrong=0.3, tokens=False), planted.make_rows(12, 1, tokens=False)]
    usual = build({"method": "denoise", "num_train_epochs": 1}, train_dataset=parts[0], clean_dataset=parts[1])
    usual.train()
    for made in ("some words", 0.5, [0.1, 0.2, 0.7]):
        train, clean = (split.add_column(column, [made] * len(split)) for split in parts)
        other = build({"method": "denoise", "num_train_epochs": 1}, train_dataset=train, clean_dataset=clean)
        other.train()
        assert planted.identical(planted.parameters(other), planted.parameters(usual)) == []
        assert other.given_rows[column][:] == [made] * 18


@pytest.mark.parametrize("name", ["probe", "clean"])
def test_a_source_of_the_user_s_is_not_replaced(name, build):
    with pytest.raises(ValueError, match=f"`losses`: expected names other than 'probe' and 'clean'.*'{name}'"):
        build({"method": "denoise"}, losses={name: CrossEntropy()})


def squares(outputs, batch):
    """A penalty that the logits have no part in."""
    return outputs.hidden_states[-1].pow(2).mean((1, 2))


@pytest.mark.parametrize("params", ["head", "all"])
def test_a_source_that_does_not_read_the_logits_is_warned_of(params, build, caplog):
    model = planted.make_student()
    model.config.output_hidden_states = True
    losses = {"label": CrossEntropy(), "small": squares}
    settings = {"method": "amal-step", "lookahead_params": params, "num_train_epochs": 1}
    trainer = build(settings, model=model, losses=losses, train_dataset=planted.make_rows(16, wrong=0.4))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert ("`lookahead_params`: 'head' sees" in caplog.text and "['small']" in caplog.text) == (params == "head")
    moved = {name: len({*trainer.weights[name][:]}) > 1 for name in ("label", "small")}
    assert moved == {"label": True, "small": params == "all"}


class NeverTrains(torch.nn.Module):
    """A student whose `train()` keeps eval mode, as people freeze dropout or batch norm."""

    def __init__(self):
        super().__init__()
        self.inner = planted.make_student()
        self.config = self.inner.config

    def train(self, mode=True):
        return super().train(False)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("method", ["fixed", "trust"])
def test_a_student_that_stays_in_eval_mode_has_all_its_sources(method, build):
    """There is no dropout: it is the same run, bit for bit, and not that of the labels alone."""
    usual, odd = build({"method": method}), build({"method": method}, model=NeverTrains())
    for trainer in (usual, odd):
        trainer.train()
    theirs = {name.removeprefix("inner."): p for name, p in planted.parameters(odd).items()}
    assert planted.identical(theirs, planted.parameters(usual)) == []
    assert planted.table_of(odd).isfinite().all()


@pytest.mark.parametrize("which", ["train_dataset", "clean_dataset", "eval_dataset"])
def test_two_columns_of_labels_are_refused_in_every_split(which, build):
    rows = planted.make_rows(12, 2)
    with pytest.raises(ValueError, match=f"`{which}`: expected one column of labels, found"):
        build(**{which: rows.add_column("labels", [0] * 12)})


def test_a_vote_that_is_missing_in_a_list(build):
    rows = (
        planted.make_rows(8).remove_columns("weak_labels").add_column("weak_labels", [[None, 1, 2]] + [[0, 1, 2]] * 7)
    )
    with pytest.raises(ValueError, match="column 'weak_labels': expected a vote of every function, found 1 missing"):
        build(train_dataset=rows, losses=planted.make_losses("rules"))


def test_a_forgotten_switch_is_named(tmp_path):
    """Rows without a label and `train_on_labels` left on: the key stands in the message."""
    (tmp_path / "data").mkdir()
    planted.make_rows(9, 1, tokens=False).to_json(tmp_path / "data" / "clean.jsonl")
    planted.make_rows(9, tokens=False).remove_columns("label").to_json(tmp_path / "data" / "train.jsonl")
    data = DataConfig(data=str(tmp_path / "data"), votes_column="weak_labels", model="x/y")
    with pytest.raises(ValueError, match="train_on_labels"):
        prepare(data, AMALConfig(str(tmp_path / "run")), {})


# ---- where a source is asked ----


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        ([True, False, None, True], [True, False, False, True]),
        ([1, 0, None, 1], [True, False, False, True]),
        ([1.0, 0.0, 0.0, 1.0], [True, False, False, True]),
        (["yes", "no", "no", "yes"], None),
        ([2, 0, 1, 3], None),  # a count is no answer to "where?"
    ],
)
def test_a_column_that_says_where_says_true_or_false(asked, heard, build):
    rows = planted.make_rows(4).add_column("asked", asked)
    given: dict[str, Any] = {"train_dataset": rows, "losses": {"t": Distillation(mask_column="asked")}}
    if heard is None:
        with pytest.raises(ValueError, match="column 'asked': expected true or false on every row, found"):
            build({"method": "fixed"}, **given)
        return
    trainer = build({"method": "fixed", "num_train_epochs": 1}, **given)
    trainer.train()
    assert [each is not None for each in trainer.weights["t"]] == heard


# ---- annotators ----


@pytest.mark.parametrize("in_yaml", [True, False])
def test_an_annotator_in_two_sources_is_refused(in_yaml, build):
    rows = planted.make_rows(8).add_column("gpt", ["sea"] * 8)
    with pytest.raises(ValueError, match=r"expected every annotator in one source, found 'gpt' in .* and 'llm'"):
        if in_yaml:
            source_losses(DataConfig(data="d", annotators=["gpt"]), {"llm": {"loss": "annotators", "columns": ["gpt"]}})
        else:
            build(train_dataset=rows, losses={"a": Annotators(["gpt"]), "llm": Annotators(["gpt"])})


def test_a_column_that_an_annotator_lacks_is_named_with_its_source(build):
    with pytest.raises(ValueError, match=r"`train_dataset`: source 'llm' reads column\(s\) \['gpt'\]"):
        build(losses={"llm": Annotators(["gpt"])})


def test_blanks_beside_a_confidence_are_no_news(build, recwarn):
    rows = planted.make_rows(9).add_column("gpt", ["sea", None, "air"] * 3).add_column("sure", [0.8, None, 0.9] * 3)
    build({"method": "fixed"}, train_dataset=rows, losses={"llm": Annotators(["gpt"], confidence=["sure"])})
    assert not [each for each in recwarn if "amal_answers" in str(each.message)]
