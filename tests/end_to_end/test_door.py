"""What a user gives a trainer: names for classes, a name for a model, answers of annotators."""

from __future__ import annotations

import planted
import pytest
from datasets import ClassLabel, Dataset

from amal_hf import Annotators, CrossEntropy, classification_metrics

NAMES = [f"topic {c}" for c in range(planted.CLASSES)]


def named(rows: Dataset, **answers: list) -> Dataset:
    """Rows whose label is a class' name, with columns of answers."""
    labels = [NAMES[c] for c in rows["label"]]
    made = rows.select_columns(["text", "truth"]).add_column("label", labels)
    for column, said in answers.items():
        made = made.add_column(column, said)
    return made


def answered(rows: Dataset) -> list[str | None]:
    """The right class, now and then in capitals or with a blank behind, and nothing on every tenth row."""
    forms = (str, str.upper, lambda name: f"{name} ")
    return [None if i % 10 == 9 else forms[i % 3](NAMES[c]) for i, c in enumerate(rows["truth"])]


def test_labels_and_answers_by_name_are_those_by_index(build, rows):
    train, clean = rows(64, wrong=0.4, tokens=False), rows(24, seed=1, tokens=False)
    losses = {"label": CrossEntropy(), "people": Annotators(["gpt"])}
    given = {"train_dataset": named(train, gpt=answered(train)), "clean_dataset": named(clean, gpt=answered(clean))}
    by_name = build({"method": "denoise"}, losses=losses, **given)
    by_name.train()

    index = {name: i for i, name in enumerate(NAMES)}
    given = {
        key: split.map(
            lambda row: {"label": index[row["label"]], "gpt": -1 if row["gpt"] is None else row["truth"]},
            remove_columns=["label", "gpt"],
        ).cast_column("label", ClassLabel(names=NAMES))
        for key, split in given.items()
    }
    by_index = build({"method": "denoise"}, losses=losses, **given)
    by_index.train()
    assert planted.identical(planted.parameters(by_name), planted.parameters(by_index)) == []
    assert by_name.stack.names == ("label", "people/gpt", "probe", "clean")

    corpus = by_name.corrected_dataset()
    assert len(corpus) == 64 and corpus.features["label"].names == NAMES
    right = [a == b for a, b in zip(corpus["label"], train["truth"], strict=True)]
    assert sum(right) / 64 > 0.85, "an annotator that is right wherever it answers was not heard"
    suspects = by_name.suspects()
    assert {*suspects["given"]} <= {*NAMES} and list(suspects["confidence"]) == sorted(suspects["confidence"])[::-1]


def test_rows_to_be_measured_may_name_their_class(build, rows):
    clean = named(rows(12, seed=1, tokens=False))
    trainer = build(
        {"method": "fixed"},
        train_dataset=named(rows(16, tokens=False)),
        clean_dataset=clean,
        losses=planted.make_losses("label"),
    )
    assert trainer.evaluate(clean)["eval_loss"] > 0


@pytest.mark.parametrize("columns", ["gpt", [], ["gpt", "gpt"]])
def test_annotators_are_a_list_of_columns(columns):
    with pytest.raises(ValueError, match="`columns`: expected a list of different column names"):
        Annotators(columns)


def test_an_answer_that_is_no_class_is_named(build, rows):
    train = rows(8, tokens=False)
    odd = named(train, gpt=["topic 1", "weather", *[None] * 6])
    with pytest.raises(ValueError, match="weather"):
        build(
            {"method": "denoise"},
            train_dataset=odd,
            clean_dataset=named(rows(8, seed=1, tokens=False)),
            losses={"gpt": Annotators(["gpt"])},
        )


def test_a_finished_run_is_saved_whole(build, rows, tmp_path):
    trainer = build(
        {"method": "denoise"},
        folder=tmp_path / "run",
        losses=planted.make_losses("label"),
        compute_metrics=classification_metrics,
    )
    trainer.train()
    scores = trainer.save_run(rows(16, seed=2, tokens=False))
    assert scores["test"]["rows"] == 16
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "suspects.csv", "rows", "run.json", "metrics.json", "report.html"} <= there
