"""Users' data as it comes: folders and files of every kind become splits with one vocabulary."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from planted import NAMES, make_rows

from amal_hf.data.classes import name_classes
from amal_hf.data.load import load_splits

ROWS: list[dict[str, Any]] = [
    {"text": "wind and rain", "label": "air", "weak_labels": [0, -1]},
    {"text": 'a fish, a "wave"', "label": "sea", "weak_labels": [1, 1]},
    {"text": "a field\nafter rain", "label": "land", "weak_labels": [-1, 2]},
]


def flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without lists: CSV has none."""
    return [{k: v for k, v in row.items() if k != "weak_labels"} for row in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
        return
    text = (
        "\n".join(map(json.dumps, rows)) + "\n"
        if kind == "jsonl"
        else Dataset.from_list(rows).to_pandas().to_csv(index=False)
    )
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.csv.gz", "rows.parquet"])
def test_a_file_is_the_training_split(name, tmp_path):
    rows = flat(ROWS) if ".csv" in name else ROWS
    write(tmp_path / name, rows)
    splits = load_splits(str(tmp_path / name))
    assert list(splits) == ["train"]
    assert list(splits["train"]) == rows


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "parquet"])
@pytest.mark.parametrize("second", ["validation", "valid", "dev"])
def test_a_folder_of_files(ending, second, tmp_path):
    rows = flat(ROWS) if ending == "csv" else ROWS
    for split, count in (("train", 3), (second, 2), ("test", 1)):
        write(tmp_path / f"{split}.{ending}", rows[:count])
    splits = load_splits(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 2, "test": 1}
    assert list(splits["train"]) == rows


def test_a_folder_may_list_its_classes(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "info.json").write_text(json.dumps({"classes": ["sea", "land", "air"]}))
    train = load_splits(str(tmp_path))["train"]
    assert train.features["label"].names == ["sea", "land", "air"]
    assert train["label"][:] == [2, 0, 1]


def test_saved_to_disk(tmp_path):
    rows = make_rows(12, tokens=False)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, clean=rows.select(range(3))).save_to_disk(tmp_path / "many")
    one, many = load_splits(str(tmp_path / "one")), load_splits(str(tmp_path / "many"))
    assert list(one) == ["train"] and list(one["train"]) == list(rows)
    assert {name: len(split) for name, split in many.items()} == {"train": 12, "clean": 3}
    assert one["train"].features["label"].names == NAMES


def test_wrench_folder(tmp_path):
    (tmp_path / "label.json").write_text(json.dumps({str(i): f"class {i}" for i in range(11)}))
    row = {"label": 10, "weak_labels": [-1, 10], "data": {"text": "rain", "source": "x"}}
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps({"0": row, "7": {**row, "label": 2}}))
    splits = load_splits(str(tmp_path))
    assert set(splits) == {"train", "validation", "test"}
    assert splits["train"][1] == {"id": "7", "text": "rain", "source": "x", "label": 2, "weak_labels": [-1, 10]}
    # "10" comes after "9", not after "1"
    assert splits["train"].features["label"].names == [f"class {i}" for i in range(11)]


# ---- classes ----


def splits_of(**labels: list[Any]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_dict({"label": values}) for name, values in labels.items()})


def test_names_become_indices_in_the_order_of_all_splits():
    named = name_classes(splits_of(train=["b", "c"], test=["a", "c"]), "label", None)
    assert named["train"].features["label"] == ClassLabel(names=["a", "b", "c"])
    assert named["train"]["label"][:] == [1, 2] and named["test"]["label"][:] == [0, 2]


def test_the_given_order_of_classes_holds():
    named = name_classes(splits_of(train=["b", "c", "a"]), "label", ["c", "b", "a", "d"])
    assert named["train"]["label"][:] == [1, 0, 2]
    assert named["train"].features["label"].num_classes == 4


def test_integers_stay_and_gaps_count():
    named = name_classes(splits_of(train=[0, 3]), "label", None)
    assert named["train"]["label"][:] == [0, 3]
    assert named["train"].features["label"].names == ["0", "1", "2", "3"]


def test_missing_labels_stay_missing():
    named = name_classes(splits_of(train=["b", None, "a"]), "label", None)
    assert named["train"]["label"][:] == [1, None, 0]
    assert name_classes(splits_of(train=[1, -100, 0]), "label", None)["train"]["label"][:] == [1, None, 0]


def test_gaps_in_a_csv_leave_the_classes_whole_numbers(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,2\nb,\nc,0\n")
    named = name_classes(load_splits(str(tmp_path / "rows.csv")), "label", None)
    assert named["train"].features["label"].names == ["0", "1", "2"]
    assert named["train"]["label"][:] == [2, None, 0]


def test_other_columns_and_splits_without_labels_are_left_alone():
    splits = splits_of(train=["a", "b"])
    splits["unlabelled"] = Dataset.from_dict({"text": ["x"]})
    named = name_classes(splits, "label", None)
    assert named["unlabelled"].column_names == ["text"]
    assert named["train"]["label"][:] == [0, 1]


@pytest.mark.parametrize("classes", [["air", "sea", "land"], None])
def test_class_labels_are_kept(classes):
    splits = DatasetDict(train=make_rows(6))
    assert name_classes(splits, "label", classes)["train"].features["label"].names == NAMES


def test_class_labels_are_reordered_when_asked():
    """The names decide, not the indices they had."""
    named = name_classes(DatasetDict(train=make_rows(6)), "label", ["land", "sea", "air"])
    assert named["train"].features["label"].int2str(named["train"]["label"][:]) == [NAMES[i % 3] for i in range(6)]
