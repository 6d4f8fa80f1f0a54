"""Votes as users have them: matrices beside tables, subsets, columns of answers, label maps that disagree."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from amal_hf.data.classes import name_classes, same_classes
from amal_hf.data.load import load_splits
from amal_hf.labeling.checks import VoteWarning
from amal_hf.labeling.formats import join_columns, labelled_subset, votes_from_columns

DATA = Path(__file__).parents[3] / "shared" / "data"
TEXTS = ["wind and rain", "a fish", "a field\nafter rain"]
MATRIX = np.array([[0, -1, 2], [1, 1, -1], [-1, -1, 0]])


def write(folder: Path, name: str, count: int = 3) -> None:
    table = Dataset.from_dict({"text": TEXTS[:count], "label": [0, 1, 2][:count]})
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[name.rsplit(".", 1)[1]](folder / name)


# ---- a Snorkel matrix beside a table ----


@pytest.mark.parametrize("table", ["train.csv", "train.jsonl", "train.parquet"])
@pytest.mark.parametrize("matrix", ["train.L.npy", "L_train.npy"])
@pytest.mark.parametrize("kind", [np.int8, np.int64])
def test_a_matrix_is_the_votes_of_its_table(table, matrix, kind, tmp_path):
    write(tmp_path, table)
    write(tmp_path, "test.csv", 2)
    np.save(tmp_path / matrix, MATRIX.astype(kind))
    splits = load_splits(str(tmp_path))
    assert splits["train"]["weak_labels"][:] == MATRIX.tolist()
    assert splits["train"]["text"][:] == TEXTS
    assert splits["test"].column_names == ["text", "label"]
    alone = load_splits(str(tmp_path / table))["train"]
    assert alone["weak_labels"][:] == MATRIX.tolist()


def test_every_split_has_its_own_matrix(tmp_path):
    for name, count in (("train", 3), ("valid", 2), ("test", 1)):
        write(tmp_path, f"{name}.csv", count)
        np.save(tmp_path / f"{name}.L.npy", MATRIX[::-1][:count])
    splits = load_splits(str(tmp_path))
    assert {n: s["weak_labels"][:] for n, s in splits.items()} == {
        "train": MATRIX[::-1].tolist(),
        "validation": MATRIX[::-1][:2].tolist(),
        "test": MATRIX[::-1][:1].tolist(),
    }


class Bomb:
    """What a pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path):
    write(tmp_path, "train.csv")
    mark = tmp_path / "ran"
    for save in (
        lambda file: file.write_bytes(b""),
        lambda file: np.save(file, np.array([Bomb(mark)] * 3, dtype=object), allow_pickle=True),
        lambda file: file.write_bytes(pickle.dumps(Bomb(mark))),
    ):
        save(tmp_path / "train.L.npy")
        with pytest.raises(ValueError, match=r"`train.L.npy`: expected an array of whole numbers, found what numpy"):
            load_splits(str(tmp_path))
        assert not mark.exists()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (MATRIX[:2], r"`train.L.npy`: expected 3 rows of votes, as many as 'train.csv' has; found 2"),
        (
            MATRIX.astype(float),
            r"expected whole numbers \[rows, functions\].*float64 of shape \[3, 3\], least -1.0",
        ),
        (MATRIX[0], r"found int64 of shape \[3\]"),
        (MATRIX - 1, r"found int64 of shape \[3, 3\], least -2"),
        (np.array(["a", "b", "c"]), r"found <U1 of shape \[3\]"),
    ],
    ids=["rows", "floats", "vector", "below", "text"],
)
def test_a_matrix_that_does_not_fit(matrix, message, tmp_path):
    write(tmp_path, "train.csv")
    np.save(tmp_path / "train.L.npy", matrix)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


def test_votes_in_two_places_or_of_no_table(tmp_path):
    write(tmp_path, "train.csv")
    np.save(tmp_path / "train.L.npy", MATRIX)
    np.save(tmp_path / "L_train.npy", MATRIX)
    with pytest.raises(ValueError, match=r"expected votes for 'train.csv' in one place, found \['train.L.npy', 'L_"):
        load_splits(str(tmp_path))
    (tmp_path / "L_train.npy").rename(tmp_path / "L_valdation.npy")
    with pytest.raises(ValueError, match=r"found none for \['L_valdation.npy'\]"):
        load_splits(str(tmp_path))
    (tmp_path / "L_valdation.npy").unlink()
    write(tmp_path, "valid.csv")
    np.save(tmp_path / "validation.L.npy", MATRIX)  # not the name of the table
    with pytest.raises(ValueError, match=r"found none for \['validation.L.npy'\]"):
        load_splits(str(tmp_path))
    (tmp_path / "validation.L.npy").unlink()
    row = {"text": "a", "label": 0, "weak_labels": [0, 1]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(ValueError, match=r"in one place, found \['train.L.npy', \"column 'weak_labels'\"\]"):
        load_splits(str(tmp_path))


# ---- labelled subsets ----


def test_the_labelled_and_the_others_in_order():
    rows = Dataset.from_dict({"text": list("abcde"), "labeled": [False, True, False, True, True]})
    labelled, unlabelled = labelled_subset(rows)
    assert labelled["text"][:] == ["b", "d", "e"] and unlabelled["text"][:] == ["a", "c"]
    none, every = labelled_subset(labelled.map(lambda row: {"labeled": False}))
    assert len(none) == 0 and every["text"][:] == ["b", "d", "e"]


def test_labelled_must_be_true_or_false():
    rows = Dataset.from_dict({"text": ["a", "b"], "labeled": [True, None], "flag": [0, 1]})
    with pytest.raises(ValueError, match="`labeled`: expected true or false on every row, found bool with 1 missing"):
        labelled_subset(rows)
    with pytest.raises(ValueError, match="`flag`: expected true or false on every row, found int64"):
        labelled_subset(rows, "flag")
    with pytest.raises(ValueError, match=r"`split`: expected column\(s\) \['gold'\], found only"):
        labelled_subset(rows, "gold")


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside this checkout")
@pytest.mark.parametrize(("name", "count"), [("youtube", 100), ("sms", 69), ("trec", 68)])
def test_learning_from_rules_subsets(name, count):
    train = load_splits(str(DATA / name))["train"]
    labelled, unlabelled = labelled_subset(train)
    assert len(labelled) == count and len(labelled) + len(unlabelled) == len(train)
    assert all(labelled["labeled"][:]) and not any(unlabelled["labeled"][:])


# ---- answers of annotators ----

CLASSES = ["ham", "spam", "other"]


def answers(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def votes(dataset: Dataset, **settings: Any) -> list[list[int]]:
    return votes_from_columns(dataset, dataset.column_names, CLASSES, **settings)["weak_labels"][:]


def test_names_indices_and_silence():
    said = answers(
        names=["ham", " SPAM\n", "Other", None, ""],
        indices=[0, 1, 2, None, -1],
        floats=[0.0, 1.0, 2.0, float("nan"), -1.0],  # a CSV of whole numbers with gaps
    )
    assert votes(said) == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [-1, -1, -1], [-1, -1, -1]]


def test_answers_stay_beside_their_rows():
    said = answers(a=["ham", "spam", None, "other"], b=[2, 1, 0, None])
    order = [3, 0, 2, 1]
    voted = votes_from_columns(said.select(order), ["b", "a"], CLASSES, column="llm")
    assert voted["llm"][:] == [[-1, 2], [2, 0], [0, -1], [1, 1]]
    assert voted["a"][:] == ["other", "ham", None, "spam"]


def test_an_annotator_with_its_own_order_of_classes():
    said = answers(a=[0, 1, 2]).cast_column("a", ClassLabel(names=["other", "ham", "spam"]))
    assert votes(said) == [[2], [0], [1]]


def test_numbers_that_are_names_of_classes():
    voted = votes_from_columns(answers(a=[1, 5, None], b=["5", "1", ""]), ["a", "b"], list("12345"))
    assert voted["weak_labels"][:] == [[0, 4], [4, 0], [-1, -1]]


def test_a_data_set_of_several_pieces():
    pieces = concatenate_datasets([answers(a=["ham", "spam"]), answers(a=["other", "ham"])])
    assert votes(pieces) == [[0], [1], [2], [0]]


def test_case_matters_where_it_tells_classes_apart():
    voted = votes_from_columns(answers(a=["US", "us"]), ["a"], ["us", "US"])
    assert voted["weak_labels"][:] == [[1], [0]]


def test_an_annotator_that_never_answers():
    assert votes(answers(a=["ham", None], b=[None, None])) == [[0, -1], [-1, -1]]


ODD = {"gpt": ["ham", "I think spam", "I think spam", "phishing"], "llama": [0, 3, 1, 2]}


def test_answers_that_are_no_class_are_named():
    with pytest.raises(
        ValueError,
        match=r"gpt: 3 answers, e.g. \['I think spam', 'phishing'\]; llama: 1 answers, e.g. \['3'\]. Map them",
    ):
        votes(answers(**ODD))


def test_answers_that_are_no_class_abstain_if_asked():
    with pytest.warns(VoteWarning, match=r"gpt: 3 answers, e.g. \['I think spam', 'phishing'\].*They abstain"):
        assert votes(answers(**ODD), unknown="abstain") == [[0, 0], [-1, -1], [-1, 1], [-1, 2]]
    for odd in (1.5, float("inf"), -2.0):
        with pytest.warns(VoteWarning, match="a: 1 answers"):
            assert votes(answers(a=[odd, 1.0]), unknown="abstain") == [[-1], [1]]


def test_columns_that_cannot_be_read():
    said = answers(a=["ham"], b=[["ham", "spam"]], weak_labels=[[0]])
    for columns, message in (
        (["c"], r"`dataset`: expected column\(s\) \['c'\], found only"),
        (["b"], "`b`: expected one class in a row, found 2"),
        ([], "`columns`: expected columns of answers to put into a new 'votes', found no columns"),
    ):
        with pytest.raises(ValueError, match=message):
            votes_from_columns(said, columns, CLASSES, column="votes")
    with pytest.raises(ValueError, match="found a column 'weak_labels' already"):
        votes_from_columns(said, ["a"], CLASSES)
    with pytest.raises(ValueError, match="`classes`: expected every name once"):
        votes_from_columns(said, ["a"], ["ham", "ham "], column="votes")
    with pytest.raises(ValueError, match="`unknown`: expected one of"):
        votes_from_columns(said, ["a"], CLASSES, unknown="skip", column="votes")


# ---- votes in a table of their own ----


def test_rows_in_another_order_are_put_right():
    rows = Dataset.from_dict({"row_id": [7, 3, 5], "text": list("abc")})
    other = Dataset.from_dict({"row_id": [3, 5, 7], "weak_labels": [[3, 0], [5, 0], [7, 0]]})
    joined = join_columns(rows, other)
    assert joined["weak_labels"][:] == [[7, 0], [3, 0], [5, 0]] and joined["text"][:] == list("abc")
    picked = join_columns(rows.select([2, 0]), other.filter(lambda row: row["row_id"] > 3))
    assert picked["weak_labels"][:] == [[5, 0], [7, 0]]


@pytest.mark.parametrize(
    ("ids", "column", "message"),
    [
        ([3, 5, 9], "v", r"`other`: expected the same rows by 'row_id', found 3 for 3, 1 of these missing: \[7\]"),
        ([3, 5, 7, 9], "v", "found 4 for 3, 0 of these missing"),
        ([3, 5, 5], "v", r"`other`: expected 'row_id' to be unique, found more than once: \[5\]"),
        ([3, 5, 7], "text", r"`other`: expected new columns, found \['text'\] in both"),
    ],
    ids=["others", "more", "twice", "both"],
)
def test_rows_that_are_not_the_same(ids, column, message):
    rows = Dataset.from_dict({"row_id": [7, 3, 5], "text": list("abc")})
    with pytest.raises(ValueError, match=message):
        join_columns(rows, Dataset.from_dict({"row_id": ids, column: ids}))


# ---- label maps ----


def labelled(names: list[str] | None, labels: list[Any]) -> Dataset:
    rows = Dataset.from_dict({"label": labels})
    return rows if names is None else rows.cast_column("label", ClassLabel(names=names))


@pytest.mark.parametrize("other", [["spam", "ham"], ["ham", "junk"], ["ham", "spam", "other"]])
def test_label_maps_that_differ_are_refused(other):
    splits = DatasetDict(train=labelled(["ham", "spam"], [0, 1]), test=labelled(other, [0, 1]))
    for check in (lambda: name_classes(splits, "label", None), lambda: same_classes(splits)):
        with pytest.raises(ValueError, match=r"`classes`: expected the same classes in the same order in every split"):
            check()


def test_a_given_order_matches_labels_by_name():
    splits = DatasetDict(train=labelled(["ham", "spam"], [0, 1, 1]), test=labelled(["spam", "ham"], [0, 0, 1]))
    named = name_classes(splits, "label", ["ham", "spam"])
    assert named["train"]["label"][:] == [0, 1, 1] and named["test"]["label"][:] == [1, 1, 0]
    assert same_classes(named) == ["ham", "spam"]


@pytest.mark.parametrize("plain", [["spam", "ham"], [1, 0]], ids=["names", "indices"])
def test_a_split_without_names_takes_those_of_another(plain):
    named = name_classes(
        DatasetDict(test=labelled(None, plain), train=labelled(["ham", "spam"], [0, 1])), "label", None
    )
    assert named["test"]["label"][:] == [1, 0] and same_classes(named) == ["ham", "spam"]


def test_names_in_one_file_and_numbers_in_another():
    splits = DatasetDict(train=labelled(None, ["ham", "spam"]), test=labelled(None, [0, 1]))
    with pytest.raises(ValueError, match="`classes`: expected names or numbers in column 'label', found both"):
        name_classes(splits, "label", None)
    assert name_classes(splits, "label", ["ham", "spam"])["test"]["label"][:] == [0, 1]


def test_no_names_at_all():
    assert same_classes({"train": labelled(None, [0]), "other": Dataset.from_dict({"text": ["a"]})}) is None
