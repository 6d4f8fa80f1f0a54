"""One reader of classes: by name, whoever asks, and an order that looks wrong is said.

What else the kind lists stands elsewhere:

    every reader: tests/data/test_classes.py::test_a_label_means_the_same_from_every_file_and_to_every_reader
    names that are numbers: tests/data/test_classes.py::test_what_a_value_means
    another order in Python: tests/data/test_columns_of_train.py::test_classes_in_another_order
    another order of the model: tests/data/test_columns_of_train.py::test_a_model_of_another_order
    another order than the votes': tests/end_to_end/test_denoise.py::test_classes_in_another_order_than_the_votes
    spellings: tests/data/test_classes.py::test_spellings_of_one_class_are_merged_with_a_message
    annotators by name, empty cells: tests/labeling/test_formats.py::test_names_indices_and_silence
    annotators of a file: tests/data/test_split.py::test_annotators_become_one_column_of_votes
    -1 in files: tests/data/test_split.py::test_a_class_label_of_minus_one_is_no_label
    test rows without labels: tests/data/test_split.py::test_a_test_split_without_labels_is_not_measured
    some test rows without: tests/data/test_split.py::test_rows_without_a_label_are_left_out_and_counted
    functions and classes by name: tests/labeling/test_votes.py::test_idle_functions_and_missing_classes_are_warned_of
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import planted
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from snorkel.labeling import labeling_function
from transformers import EvalPrediction

from amal_hf import Annotators, CrossEntropy, Distillation, LabelingFunctions, classification_metrics
from amal_hf.labeling.checks import warn_order
from amal_hf.labeling.label_splits import LabelConfig, label_splits


def messages_of(call, *given, **settings):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(*given, **settings)
    return [str(each.message) for each in found]


# ---- an order that looks wrong ----


@pytest.mark.parametrize(
    ("right", "said", "classes", "warned"),
    [
        (5, 100, 4, True),  # by chance 25, standard deviation 4.3
        (17, 100, 4, False),  # within two of them
        (16, 100, 4, True),
        (0, 10, 4, False),  # 2.5 by chance, and 2 x 1.4 below is less than none
        (40, 100, 2, False),
        (39, 100, 2, True),
        (0, 0, 4, False),
    ],
)
def test_fewer_right_than_by_chance(right, said, classes, warned):
    told = messages_of(warn_order, right, said, classes, "classes")
    assert len(told) == warned
    if warned:
        assert told[0].startswith(f"`classes`: {right} of {said} answers are right")
        assert "is the order of classes right?" in told[0]


@labeling_function()
def names_itself(row):
    """Counts classes as they were thought of: low, mid, high."""
    return {"low": 0, "mid": 1, "high": 2}[row.text.split()[0]]


@pytest.mark.parametrize(("classes", "warned"), [(["high", "mid", "low"], False), (["low", "mid", "high"], False),
                                                 (["mid", "high", "low"], True)])  # fmt: skip
def test_functions_that_count_other_classes(classes, warned, tmp_path):
    """Three orders: its own (all right), turned round (a third right: chance) and shifted (none right)."""
    texts = [f"{name} w{i}" for i in range(20) for name in ("low", "mid", "high")]
    rows = Dataset.from_dict(
        {"text": texts, "label": [classes.index(text.split()[0]) for text in texts]},
        features=Features({"text": Value("string"), "label": ClassLabel(names=classes)}),
    )
    config = LabelConfig(output_dir=str(tmp_path / "out"), label_models="majority", num_proc=1)
    told = messages_of(label_splits, [names_itself], DatasetDict(train=rows), config)
    assert any("is the order of classes right?" in each for each in told) == warned


@pytest.mark.parametrize("loss", [LabelingFunctions("said"), Distillation("said"), CrossEntropy("said")])
def test_a_source_of_another_order_in_training(loss, build):
    """On 24 clean rows 8 are right by chance; none is, for the classes are shifted by one."""
    parts = []
    for split in (planted.make_rows(24, tokens=False), planted.make_rows(24, 1, tokens=False)):
        shifted = [(y + 1) % 3 for y in split["truth"]]
        forms = {
            "LabelingFunctions": [[y] for y in shifted],
            "Distillation": [[5.0 * (c == y) for c in range(3)] for y in shifted],
            "CrossEntropy": shifted,
        }
        parts.append(split.add_column("said", forms[type(loss).__name__]))
    trainer = build({"method": "denoise", "num_train_epochs": 1}, train_dataset=parts[0], clean_dataset=parts[1],
                    losses={"x": loss})  # fmt: skip
    told = messages_of(trainer.train)
    assert any("`losses['x']`: 0 of 24 answers are right" in each for each in told)


def test_a_usual_set_of_functions_is_no_news(build):
    trainer = build({"method": "denoise", "num_train_epochs": 1}, train_dataset=planted.make_rows(24, tokens=False),
                    clean_dataset=planted.make_rows(24, 1, tokens=False), losses=planted.make_losses())  # fmt: skip
    assert not [each for each in messages_of(trainer.train) if "order of classes" in each]


# ---- what is said names classes ----


def test_classes_without_a_clean_row_are_named(build):
    clean = planted.make_rows(12, 1).filter(lambda row: row["label"] == 1)
    told = messages_of(build, clean_dataset=clean)
    assert any("no clean row of class(es) ['air', 'land'] among 4" in each for each in told)


def test_by_the_model_s_names_where_labels_are_numbers(build):
    model = planted.make_student()
    model.config.id2label = dict(enumerate(["low", "mid", "high"]))
    numbers = lambda rows: rows.cast_column("label", Value("int64"))  # noqa: E731
    clean = numbers(planted.make_rows(12, 1)).filter(lambda row: row["label"] != 2)
    told = messages_of(build, model=model, clean_dataset=clean, train_dataset=numbers(planted.make_rows(16)))
    assert any("no clean row of class(es) ['high']" in each for each in told)


@pytest.mark.parametrize("said", ["sea", " SEA ", ["sea"]])
def test_a_class_column_of_names_is_read_by_name(said, build):
    """`class_encode_column` would number the classes that one annotator happens to name: "sea" would be 0."""
    rows = planted.make_rows(8).add_column("gpt", [None, *[said] * 7])
    trainer = build({"method": "fixed", "num_train_epochs": 1}, train_dataset=rows, losses={"gpt": CrossEntropy("gpt")})
    assert trainer.train_dataset["gpt"][:] == [None, *[planted.NAMES.index("sea")] * 7]
    trainer.train()
    assert [each is None for each in trainer.weights["gpt"]] == [True, *[False] * 7]


def test_a_class_column_of_other_names_is_refused(build):
    rows = planted.make_rows(8).add_column("gpt", ["fire"] * 8)
    with pytest.raises(ValueError, match=r"found 'fire' \(8 rows.*in column 'gpt' of 'train'"):
        build({"method": "fixed"}, train_dataset=rows, losses={"gpt": CrossEntropy("gpt")})


def test_names_where_nobody_names_the_classes_are_refused(build):
    rows = planted.make_rows(8).cast_column("label", Value("int64")).add_column("gpt", ["sea"] * 8)
    with pytest.raises(ValueError, match=r"column 'gpt': expected classes 0 to 2.*Annotators\(") as refusal:
        build({"method": "fixed"}, train_dataset=rows, losses={"gpt": CrossEntropy("gpt")},
              clean_dataset=planted.make_rows(9, 1).cast_column("label", Value("int64")))  # fmt: skip
    assert "class_encode_column" not in str(refusal.value)


def test_an_annotator_that_never_names_a_class_keeps_the_order(build):
    parts = []
    for split in (planted.make_rows(24, tokens=False), planted.make_rows(24, 1, tokens=False)):
        said = [None if y == 0 else planted.NAMES[y] for y in split["truth"]]
        parts.append(split.add_column("gpt", said))
    trainer = build({"method": "fixed", "num_train_epochs": 1}, train_dataset=parts[0], clean_dataset=parts[1],
                    losses={"llm": Annotators(["gpt"])})  # fmt: skip
    votes = [vote for (vote,) in trainer.train_dataset["amal_votes_llm"]]
    assert votes == [-1 if y == 0 else y for y in parts[0]["truth"]]


# ---- rows to be measured ----


@pytest.mark.parametrize("nothing", [-1, None])
def test_the_hub_s_minus_one_is_no_label_in_python(nothing, build):
    """Half of the rows have a label: metrics are of these, and the loss is finite."""
    rows = planted.make_rows(12, 2)
    half = [y if i % 2 else nothing for i, y in enumerate(rows["label"])]
    part = rows.remove_columns("label").add_column("label", half, feature=rows.features["label"])
    trainer = build({"method": "fixed"}, compute_metrics=classification_metrics)
    found = trainer.evaluate(part)
    logits = trainer.predict(rows).predictions
    there = [i for i in range(12) if i % 2]
    right = np.mean([logits[i].argmax() == rows[i]["label"] for i in there])
    assert found["eval_rows"] == 6 and found["eval_accuracy"] == pytest.approx(right)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    assert found["eval_loss"] == pytest.approx(np.mean([-log_p[i, rows[i]["label"]] for i in there]), abs=1e-5)


def test_no_label_is_no_number():
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    assert classification_metrics(EvalPrediction(logits, np.array([-100, -100, -100]))) == {"rows": 0}
    found = classification_metrics(EvalPrediction(logits, np.array([0, -100, 0])))
    assert found["rows"] == 2 and found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2), "-100 is no class"


def test_a_train_row_of_minus_one_abstains(build, caplog):
    rows = planted.make_rows(8)
    labels = [-1, *rows["label"][1:]]
    rows = rows.remove_columns("label").add_column("label", labels, feature=rows.features["label"])
    with caplog.at_level(logging.ERROR):
        trainer = build({"method": "fixed", "num_train_epochs": 1}, train_dataset=rows)
        trainer.train()
    assert trainer.weights["label"][0] is None and trainer.weights["label"][1] is not None


# ---- the same reader in Python ----


@pytest.mark.parametrize(
    "said",
    [
        lambda y: float(y),  # what pandas makes of whole numbers beside a gap
        lambda y: [planted.NAMES[y]],
        lambda y: {"choices": [planted.NAMES[y]]},
        lambda y: f" {planted.NAMES[y].upper()}",
    ],
    ids=["floats", "lists of one", "choices", "spelled otherwise"],
)
def test_labels_in_python_are_read_as_those_of_a_file(said, build):
    """Every form in train, clean and evaluation rows; a gap in train and in evaluation is no label."""
    parts = [planted.make_rows(12, seed, tokens=False) for seed in range(3)]
    model = planted.make_student()
    model.config.id2label = dict(enumerate(planted.NAMES))

    def as_said(rows, gap):
        made = [None if gap and i == 4 else said(y) for i, y in enumerate(rows["label"])]
        return rows.remove_columns(["label"]).add_column("label", made)

    train, clean, tried = (as_said(rows, gap) for rows, gap in zip(parts, (True, False, True), strict=True))
    trainer = build({"method": "fixed", "num_train_epochs": 1}, model=model, train_dataset=train, clean_dataset=clean,
                    compute_metrics=classification_metrics)  # fmt: skip
    trainer.train()
    wanted = [None if i == 4 else y for i, y in enumerate(parts[0]["label"])]
    assert trainer.corrected_dataset()["label_before"][:] == wanted
    assert trainer.clean_dataset["label"][:] == parts[1]["label"][:]
    right = trainer.predict(parts[2]).predictions.argmax(-1) == np.array(parts[2]["label"])
    found = trainer.evaluate(tried)
    assert found["eval_rows"] == 11 and found["eval_accuracy"] == pytest.approx(np.delete(right, 4).mean())


@pytest.mark.parametrize("losses", [("label",), ("teacher",)], ids=["a source", "nobody's"])
@pytest.mark.parametrize("nothing", [-1, -100, None])
@pytest.mark.parametrize("nameless", [True, False])
def test_a_number_below_zero_is_no_label_in_python(nameless, nothing, losses, build):
    rows = planted.make_rows(12, tokens=False)
    labels = [nothing if i % 3 == 0 else y for i, y in enumerate(rows["label"])]
    part = rows.remove_columns("label").add_column("label", labels)
    model, clean = planted.make_student(), planted.make_rows(9, 1, tokens=False)
    if nameless:
        clean = clean.cast_column("label", Value("int64"))
    else:
        model.config.id2label = dict(enumerate(planted.NAMES))
    trainer = build({"method": "fixed", "num_train_epochs": 1}, model=model, train_dataset=part, clean_dataset=clean,
                    eval_dataset=part, losses=planted.make_losses(*losses),
                    compute_metrics=classification_metrics)  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_rows"] == 8
    if "label" in losses:
        assert [each is None for each in trainer.weights["label"]] == [i % 3 == 0 for i in range(12)]


def test_numbers_with_a_fraction_are_no_classes(build):
    rows = planted.make_rows(12)
    odd = rows.remove_columns("label").add_column("label", [0.5 + y for y in rows["label"]])
    with pytest.raises(ValueError, match=r"`label`: expected indices of classes, found .* fraction such as 0\.5\."):
        build({"method": "fixed"}, train_dataset=odd)


@pytest.mark.parametrize(
    ("labels", "clean", "message"),
    [
        ("words", "indices", "expected names or numbers in column 'label', found both"),
        ("one", "one", "`classes`: expected two classes or more, found only"),
        ("words", "nothing", "`clean_dataset`: expected clean rows that steer the weights, found none"),
        ("nothing", "words", "`train_dataset`: expected at least one row, found none"),
    ],
)
def test_a_model_by_name_and_labels_that_say_too_little(labels, clean, message, build, tmp_path):
    planted.make_student().save_pretrained(tmp_path / "model")
    planted.make_tokenizer().save_pretrained(tmp_path / "model")

    def part(rows, kind):
        made = [planted.NAMES[y] if kind == "words" else "air" if kind == "one" else y for y in rows["label"]]
        return rows.remove_columns("label").add_column("label", made).select([] if kind == "nothing" else range(9))

    train, steer = planted.make_rows(9, tokens=False), planted.make_rows(9, 1, tokens=False)
    with pytest.raises(ValueError, match=message):
        build({"method": "denoise"}, model=str(tmp_path / "model"), processing_class=None,
              train_dataset=part(train, labels), clean_dataset=part(steer, clean),
              losses=planted.make_losses("label"))  # fmt: skip
