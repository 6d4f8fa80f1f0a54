"""Which rows train, are clean, select and test: only what somebody named, and n of every class."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from planted import make_rows

from amal_hf.commands.train import DataConfig, divide, source_losses
from amal_hf.data.split import check_texts, hold_out


def rows_of(labels: list[Any], start: int = 0) -> Dataset:
    places = list(range(start, start + len(labels)))
    return Dataset.from_dict({"text": [f"text {i}" for i in places], "label": labels, "place": places})


def places(part: Dataset) -> set[int]:
    return set(part["place"][:])


def parts_of(splits: dict[str, Dataset], **settings: Any) -> dict[str, Dataset]:
    return divide(DatasetDict(splits), DataConfig(**settings), seed=0)


def sizes(parts: dict[str, Dataset]) -> dict[str, int]:
    return {name: len(part) for name, part in parts.items()}


def test_held_out_rows_are_so_many_of_every_class_and_seeded():
    pool = make_rows(60).add_column("place", list(range(60)))
    held, rest = hold_out(pool, 4, seed=3)
    assert Counter(held["label"][:]) == {0: 4, 1: 4, 2: 4}
    assert len(rest) == 48 and not places(held) & places(rest)
    assert held["place"][:] == sorted(held["place"][:]) == hold_out(pool, 4, seed=3)[0]["place"][:]
    assert held["place"][:] != hold_out(pool, 4, seed=4)[0]["place"][:]


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_class_gets_its_rows_and_keeps_half(seed):
    pool = rows_of([1] * 4 + [0] * 396).cast_column("label", ClassLabel(names=["often", "rare"]))
    held, rest = hold_out(pool, 20, seed)
    assert Counter(held["label"][:]) == {0: 20, 1: 2} and Counter(rest["label"][:]) == {0: 376, 1: 2}


def test_a_class_with_too_few_rows_is_said(caplog):
    often = rows_of([1] * 4 + [0] * 396).cast_column("label", ClassLabel(names=["often", "rare"]))
    hold_out(often, 20, 0)
    assert "of some classes fewer than 20 are held out: 2 of 'rare' (4 rows)." in caplog.text
    caplog.clear()
    hold_out(often, 2, 0)
    assert not caplog.text


def test_a_split_that_selects_and_is_clean_is_divided_and_said(caplog):
    rows = {"train": rows_of([0, 1] * 30), "validation": rows_of([0, 1] * 10, 100)}
    parts = parts_of(rows, clean_split="validation", selection_split="validation")
    assert sizes(parts) == {"train": 60, "clean": 10, "selection": 10}
    assert "`selection_split`: 10 rows of 'validation' select, 10 are left to be clean." in caplog.text


def test_nobody_called_a_row_clean():
    with pytest.raises(
        ValueError, match=r"`clean_split`: expected a split with true labels.*\['test', 'train'\].*clean_rows: N"
    ):
        parts_of({"train": rows_of([0, 1] * 30), "test": rows_of([0, 1])})


@pytest.mark.parametrize("name", ["clean", "validation"])
def test_a_split_that_is_called_clean_is_taken_with_a_message(name, caplog):
    parts = parts_of({"train": rows_of([0, 1] * 30), name: rows_of([0, 1] * 5, 100), "test": rows_of([1, 0], 200)})
    assert sizes(parts) == {"train": 60, "clean": 10, "test": 2}
    assert f"the labels of {name!r} are taken as true" in caplog.text


def test_clean_comes_before_validation_and_what_is_named_before_both(caplog):
    splits = {
        "train": rows_of([0, 1] * 9),
        **{n: rows_of([0, 1] * 5, 100 * i) for i, n in enumerate(["validation", "clean", "mine"], 1)},
    }
    assert places(parts_of(splits)["clean"]) == set(range(200, 210))
    caplog.clear()
    assert places(parts_of(splits, clean_split="mine")["clean"]) == set(range(300, 310))
    assert "taken as true" not in caplog.text


def test_every_row_stays_in_train_unless_it_is_held_out():
    train = make_rows(90).add_column("place", list(range(90)))
    assert sizes(parts_of({"train": train, "validation": make_rows(9)})) == {"train": 90, "clean": 9}
    parts = parts_of({"train": train}, clean_rows=4, selection_rows=6)
    assert sizes(parts) == {"train": 60, "clean": 12, "selection": 18}
    assert len(places(parts["train"]) | places(parts["clean"]) | places(parts["selection"])) == 90


def test_selection_rows_come_from_the_clean_split_if_asked_for():
    splits = {"train": make_rows(30), "validation": make_rows(24, seed=1), "test": make_rows(9, seed=2)}
    shared = parts_of(splits, clean_split="validation", selection_split="validation")
    assert sizes(shared) == {"train": 30, "clean": 12, "selection": 12, "test": 9}
    assert sizes(parts_of(splits, selection_rows=2)) == {"train": 30, "clean": 18, "selection": 6, "test": 9}
    rest = parts_of(splits, clean_split="validation", selection_split="validation", clean_rows=2)
    assert sizes(rest) == {"train": 30, "clean": 6, "selection": 18, "test": 9}
    some = parts_of(splits, clean_split="validation", clean_rows=2, selection_split="test")
    assert len(some["clean"]) == 6 and list(some["selection"]) == list(some["test"])


@pytest.mark.parametrize("setting", ["clean_split", "selection_split", "test_split"])
@pytest.mark.parametrize(
    ("name", "message"), [("train", "not trained on, found 'train'"), ("none", r"expected one of \['clean'\]")]
)
def test_splits_that_cannot_be_named(setting, name, message):
    splits = {"train": rows_of([0, 1] * 9), "clean": rows_of([0, 1])}
    with pytest.raises(ValueError, match=f"`{setting}`: .*{message}"):
        parts_of(splits, **{setting: name})


# ---- rows without a label ----


@pytest.mark.parametrize("missing", [None, -1, -100])
def test_rows_without_a_label_are_left_out_and_counted(missing, caplog):
    splits = {name: rows_of([0, missing, 1, missing]) for name in ("clean", "selection", "test")}
    parts = parts_of({"train": rows_of([0, 1, missing, 1]), **splits}, selection_split="selection")
    assert sizes(parts) == {"train": 4, "clean": 2, "selection": 2, "test": 2}
    for name in splits:
        assert f"`{name}`: 2 of 4 rows have no label" in caplog.text


def test_a_class_label_of_minus_one_is_no_label():
    feature = ClassLabel(names=["a", "b"])
    test = rows_of([0, -1, 1]).cast_column("label", feature)
    parts = parts_of({"train": rows_of([0, 1]).cast_column("label", feature), "clean": rows_of([0, 1]), "test": test})
    assert parts["test"]["label"][:] == [0, 1]


@pytest.mark.parametrize("test", [rows_of([None, None]), rows_of([-1, -1]), rows_of([0]).remove_columns("label")])
def test_a_test_split_without_labels_is_not_measured(test, caplog):
    assert "test" not in parts_of({"train": rows_of([0, 1]), "clean": rows_of([0, 1]), "test": test})
    assert "`test_split`: no row of 'test' has a label" in caplog.text


def test_clean_rows_without_any_label():
    with pytest.raises(ValueError, match="`validation`: expected 'label' on its rows, found none among 2"):
        parts_of({"train": rows_of([0, 1]), "validation": rows_of([None, None])})


# ---- labels ----


def test_one_reader_reads_the_labels_of_all_splits():
    splits = {
        "train": rows_of(["Ham", "spam ", "HAM", None]),
        "clean": rows_of([0, 1]),
        "test": rows_of([["spam"], ["ham"]]),
    }
    parts = parts_of(splits, classes=["ham", "spam"])
    assert [parts[name]["label"][:] for name in ("train", "clean", "test")] == [[0, 1, 0, None], [0, 1], [1, 0]]


@pytest.mark.parametrize("split", ["train", "clean", "test"])
def test_two_columns_of_labels(split):
    splits = {name: rows_of([0, 1]) for name in ("train", "clean", "test")}
    splits[split] = splits[split].add_column("labels", [1, 0])
    with pytest.raises(
        ValueError, match=rf"`label_column`: expected labels in 'label' of {split!r} alone, found \['labels'\]"
    ):
        parts_of(splits)


def test_another_name_for_the_label():
    parts = parts_of({"train": make_rows(60).rename_column("label", "genre")}, label_column="genre", clean_rows=2)
    assert all("label" in part.column_names for part in parts.values())


def test_annotators_become_one_column_of_votes():
    train = rows_of([0, 1, 1]).add_column("gpt", ["ham", "", "Spam"]).add_column("llama", [0, None, -1])
    settings = {"annotators": ["gpt", "llama"], "classes": ["ham", "spam"]}
    parts = parts_of({"train": train, "clean": rows_of([0, 1])}, **settings)
    assert parts["train"]["annotators"][:] == [[0, 0], [-1, -1], [1, -1]]
    assert "annotators" not in parts["clean"].column_names
    loss = source_losses(DataConfig(**settings))["annotators"]
    assert loss.sources("annotators", parts["train"][0]) == ("annotators/gpt", "annotators/llama")
    with pytest.raises(ValueError, match=r"`columns`: .*gpt: 1 answers, e.g. \['eggs'\]"):
        parts_of({"train": rows_of([0]).add_column("gpt", ["eggs"])}, annotators=["gpt"], classes=["ham", "spam"])


# ---- texts ----


@pytest.mark.parametrize("split", ["train", "clean", "selection", "test"])
@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_rows_without_a_text(split, text):
    splits = {name: rows_of([0, 1, 0]) for name in ("train", "clean", "selection", "test")}
    splits[split] = splits[split].remove_columns("text").add_column("text", ["a", text, "b"])
    with pytest.raises(
        ValueError, match=rf"`text`: expected a text on every row of {split!r}, found 1 without, e.g. row\(s\) \[1\]"
    ):
        check_texts(splits, ["text"])


def test_texts_that_are_numbers_and_texts_that_are_none():
    numbers = Dataset.from_dict({"text": [1, 23]})
    assert check_texts({"train": numbers}, ["text"])["train"]["text"][:] == ["1", "23"]
    for odd, message in (
        ({"text": [1.5]}, "expected texts in column 'text' of 'test'"),
        ({"words": ["a"]}, "expected a column 'text' in 'test'"),
    ):
        with pytest.raises(ValueError, match=f"`text_columns`: {message}"):
            check_texts({"test": Dataset.from_dict(odd)}, ["text"])
