"""One reader of classes: what a label means never depends on the file it comes from."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from amal_hf.data.classes import ClassReader, infer_classes, name_classes
from amal_hf.data.load import load_splits
from amal_hf.labeling import votes_from_columns


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["ham", "spam"], ["spam", " SPAM\n", 1, 1.0, "1", "1.0", ["spam"], {"choices": ["spam"]}], 1),
        ([True, False], [False, "False", "false", [False]], 1),
        (["yes", "True"], [True, "true"], 1),
        (list("12345"), [1, 1.0, "1", "01", "1.0"], 0),
        ([100, 200, 300], [200, 200.0, "200"], 1),
        (["01", "02"], ["02", 2, "2"], 1),
        (["None", "NA", "null"], ["NA", "na"], 1),
        (["-1", "1"], [-1, -1.0, "-1"], 0),
        (["us", "US"], ["US"], 1),
        (["ham", "spam"], [None, "", "  ", math.nan, -1, -100, "-1", [], {"choices": []}], None),
    ],
)
def test_what_a_value_means(names, values, expected):
    read = ClassReader(names)
    assert [read(value) for value in values] == [expected] * len(values)


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["ham", "spam"], 2), (["ham", "spam"], 0.5), (["ham", "spam"], True), (list("123"), 0), (["us", "US"], "Us"),
        (["ham", "spam"], math.inf), (["ham", "spam"], -2), ([100, 200], 0),
    ],
)  # fmt: skip
def test_what_is_no_class(names, value):
    with pytest.raises(ValueError, match=r"`classes`: expected a class of .*, found .* \(1 row"):
        ClassReader(names)(value)


def test_several_classes_in_a_row_are_refused():
    with pytest.raises(ValueError, match="expected one class in a row, found 2"):
        ClassReader(["a", "b"])(["a", "b"])
    with pytest.raises(ValueError, match=r"`label`: expected one class in a row, found 2.*in 'train'"):
        infer_classes({"train": column(["a"], ["a", "b"])}, "label")


@pytest.mark.parametrize("names", [[], "air", ["a", "a "], ["a", ""], ["a"]])
def test_names_that_are_none(names):
    with pytest.raises(ValueError, match="`classes`: expected"):
        ClassReader(names)


def test_unknown_spellings_are_counted_and_the_nearest_class_is_named():
    splits = DatasetDict(train=column("positive", "positve", "positve", "xyz"))
    with pytest.raises(
        ValueError, match=r"'positve' \(2 rows, nearest 'positive'\), 'xyz' \(1 row\) in column 'label' of 'train'"
    ):
        name_classes(splits, "label", ["negative", "positive"])


# ---- found in the data ----


def column(*labels: Any) -> Dataset:
    return Dataset.from_dict({"label": list(labels)})


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", None], ["a", "b"]),
        ([0, 3], list("0123")),
        ([0.0, None, 1.0], list("01")),
        ([True, False], ["False", "True"]),
        (["01", "02"], ["01", "02"]),
        (["10", "02", "01"], ["01", "02", "10"]),
        (["None", "NA"], ["NA", "None"]),
        ([-1, 0, 1], list("01")),
        ([["x"], ["y"]], ["x", "y"]),
    ],
)
def test_classes_that_are_found(labels, names):
    assert infer_classes({"train": column(*labels)}, "label") == names


def test_spellings_of_one_class_are_merged_with_a_message(caplog):
    labels = ["Positive", "positive ", "POSITIVE", "Positive", "negative", "Negative", "negative"]
    named = name_classes(DatasetDict(train=column(*labels), test=column("positive")), "label", None)
    assert named["train"].features["label"].names == ["Positive", "negative"]
    assert named["train"]["label"][:] == [0, 0, 0, 0, 1, 1, 1] and named["test"]["label"][:] == [0]
    assert "'positive' as 'Positive' (2 rows)" in caplog.text and "'Negative' as 'negative' (1 row)" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10**6], r"`classes`: .*up to 1000000 \(1 row"),
        ([0, 2**60], "`classes`: .*whole numbers up to"),
        ([100, 200, 300], "`classes`: .*list them in `classes`"),
        ([f"text {i}" for i in range(80)], "`label_column`: expected at most 1000 classes"),
        ([f"c{i % 1100}" for i in range(4400)], "found 1100 in 4400 rows"),
        ([0.5, 1.5], "numbers such as"),
        (["a", "1"], "expected names or numbers"),
        (["01", "1", "2"], "expected names or numbers"),
        (["us", "US", "Us"], r"two classes or more, found only \['US'\]"),
        ([-1, 1], "-1 may be a class or no label"),
        ([None, None], "found no label on any row"),
    ],
)
def test_columns_that_hold_no_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        name_classes(DatasetDict(train=column(*labels)), "label", None)


def test_the_column_keeps_its_place_and_the_others_theirs():
    rows = Dataset.from_dict({"a": [1, 2, 3], "label": ["y", "x", "y"], "b": list("pqr")}).select([2, 0, 1])
    named = name_classes(DatasetDict(train=rows), "label", None)["train"]
    assert named.column_names == ["a", "label", "b"]
    assert named[:] == {"a": [3, 1, 2], "label": [1, 1, 0], "b": ["r", "p", "q"]}


# ---- properties ----

NAMES = st.one_of(
    st.sampled_from([["ham", "spam"], ["True", "False"], ["None", "NA", "nan"], ["01", "02", "10"], list("12345"),
                     ["100", "200"], ["0", "1"], ["yes", "no"], ["null", "x"]]),
    st.lists(st.text("abcXYZ 01-_é,;\"'", min_size=1, max_size=5).map(lambda t: " ".join(t.split())).filter(bool),
             min_size=2, max_size=5, unique_by=str.casefold)
    .filter(lambda names: not {"-1", "-100"} & {*names}),
)  # fmt: skip


def write(folder: Path, ending: str, values: list[Any]) -> Path:
    file = folder / f"rows.{ending}"
    texts = [f"text {i}" for i in range(len(values))]
    if ending == "csv":
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([["text", "label"], *zip(texts, values, strict=True)])
    elif ending == "jsonl":
        file.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in zip(texts, values, strict=True)))
    else:
        Dataset.from_dict({"text": texts, "label": values}).to_parquet(str(file))
    return file


@settings(max_examples=60, deadline=None)
@given(NAMES, st.data())
def test_a_label_means_the_same_from_every_file_and_to_every_reader(tmp_path_factory, names, data):
    rows = data.draw(st.lists(st.sampled_from([*range(len(names)), None]), min_size=2, max_size=8))
    if all(row is None for row in rows):
        rows[0] = 0
    said = [None if row is None else names[row] for row in rows]
    folder = tmp_path_factory.mktemp("rows")
    for ending in ("csv", "jsonl", "parquet"):
        loaded = load_splits(str(write(folder, ending, said)))
        assert name_classes(loaded, "label", names)["train"]["label"][:] == rows, ending
        votes = votes_from_columns(loaded["train"], ["label"], names)["weak_labels"][:]
        assert votes == [[-1 if row is None else row] for row in rows]
    order = sorted(names, reverse=True)
    held = Dataset.from_dict({"label": [None if name is None else order.index(name) for name in said]})
    held = held.cast_column("label", ClassLabel(names=order))
    assert name_classes(DatasetDict(train=held), "label", names)["train"]["label"][:] == rows


@settings(max_examples=60, deadline=None)
@given(NAMES)
def test_case_and_space_are_forgiven_and_positions_are_read_where_no_name_is_a_number(names):
    read = ClassReader(names)
    assert [read(f"  {name.upper()} ") for name in names] == list(range(len(names)))
    if not any(name.lstrip("-").isdecimal() for name in names):
        assert [read(i) for i in range(len(names))] == [read(str(i)) for i in range(len(names))] == [*range(len(names))]
