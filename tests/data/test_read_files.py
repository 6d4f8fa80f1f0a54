"""Files as people have them: read as they are, or refused in one line that names file and cause."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from amal_hf.cli import main
from amal_hf.data.classes import name_classes
from amal_hf.data.load import load_splits


def csv_of(folder: Path, text: str, name: str = "train.csv") -> Dataset:
    (folder / name).write_text(text)
    return load_splits(str(folder / name))["train"]


@pytest.mark.parametrize("name", ["None", "NA", "null", "nan", "N/A", "NULL", "01", "1_000", "inf"])
def test_words_stay_words(name, tmp_path):
    train = csv_of(tmp_path, f"text,label\n{name},{name}\nwater,x\n")
    assert train["label"][:] == [name, "x"] and train["text"][:] == [name, "water"]


def test_only_an_empty_cell_is_missing(tmp_path):
    train = csv_of(tmp_path, 'text,n,x,b,code\na,1,0.5,True,01\nb,,,,\n"",3,2,False,02\n')
    assert train[:] == {
        "text": ["a", "b", None], "n": [1, None, 3], "x": [0.5, None, 2.0], "b": [True, None, False],
        "code": ["01", None, "02"],
    }  # fmt: skip


def test_quotes_commas_lines_and_marks(tmp_path):
    train = csv_of(tmp_path, '\ufefftext,label\r\n"a, ""b""\nc",x\r\n5" pipe,y\r\n\r\n')
    assert train[:] == {"text": ['a, "b"\nc', '5" pipe'], "label": ["x", "y"]}


def test_long_numbers_are_not_rounded(tmp_path):
    assert csv_of(tmp_path, "id,label\n12345678901234567890,a\n1,b\n")["id"][:] == ["12345678901234567890", "1"]


CSV = "text,label\na,x\nb,y\n"
BAD = {
    "comma": ("train.csv", b"text,label\na,x\none, two,y\n", r"expected 2 cells in line 3 of 'train.csv'.*found 3"),
    "trailing comma": ("train.csv", b"text,label\na,x,\n", "expected 2 cells in line 2.*found 3"),
    "short row": ("train.csv", b"text,label\na\n", "expected 2 cells in line 2.*found 1"),
    "semicolons": ("train.csv", b"text;label\na;x\n", "found ';' in its header"),
    "unclosed quote": ("train.csv", b'text,label\n"a,x\n', "found at line 2"),
    "duplicate header": ("train.csv", b"text,text\na,b\n", r"twice or empty: \['text'\]"),
    "latin-1": ("train.csv", "text,label\ncafé,x\n".encode("latin-1"), "expected text in UTF-8.*0xe9.*iconv"),
    "latin-1 json": ("train.jsonl", '{"text": "café"}\n'.encode("latin-1"), "expected text in UTF-8"),
    "empty": ("train.csv", b"", "found none"),
    "header alone": ("train.csv", b"text,label\n", "expected rows in 'train.csv', found none"),
    "empty json": ("train.jsonl", b"\n", "expected rows in 'train.jsonl', found none"),
    "binary": ("train.csv", bytes(range(256)), "found bytes of zero"),
    "utf-16": ("train.csv", CSV.encode("utf-16"), "found bytes of zero"),
    "no gz": ("train.csv.gz", b"text,label\n", "expected a whole .gz file"),
    "truncated gz": ("train.csv.gz", gzip.compress(CSV.encode() * 99)[:-12], "expected a whole .gz file"),
    "damaged gz": ("train.csv.gz", gzip.compress(CSV.encode())[:10] + b"\xff" * 30, "expected a whole .gz file"),
    "broken line": ("train.jsonl", b'{"text": "a"}\n{"text": \n', "JSON object in line 2 of 'train.jsonl'"),
    "scalars": ("train.jsonl", b"1\n2\n", "expected an object in every row of 'train.jsonl', found '1' in row 0"),
    "columns": ("train.json", b'{"text": ["a"], "label": [1]}', "found one object of columns"),
    "surrogate": ("train.jsonl", b'{"text": "\\ud800"}\n', "'train.jsonl|train.jsonl'"),
    "kinds": ("train.jsonl", b'{"label": [1]}\n{"label": "a"}\n', "expected values of one kind in column 'label'"),
    "parquet": ("train.parquet", b"PAR1 and nothing", "train.parquet', found what cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line(case, tmp_path, capsys):
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=message) as error:
            load_splits(str(data))
        assert str(error.value).startswith("`data`: expected") and "\n" not in str(error.value)
    assert main(["train", "--data", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--report_to", "none"]) == 2
    assert "Traceback" not in capsys.readouterr().err


# ---- several files ----


def test_all_files_of_a_split_are_read(tmp_path):
    (tmp_path / "train.1.csv").write_text("text,label\na,1\n")
    (tmp_path / "train.2.csv").write_text("label,text\n2,b\n")
    (tmp_path / "train.jsonl").write_text('{"text": "c", "label": "x"}\n')
    (tmp_path / "clean.csv").write_text(CSV)
    splits = load_splits(str(tmp_path))
    assert splits["train"][:] == {"text": ["a", "b", "c"], "label": ["1", "2", "x"]}
    assert len(splits["clean"]) == 2


def test_files_of_a_split_with_other_columns(tmp_path):
    (tmp_path / "train.1.csv").write_text(CSV)
    (tmp_path / "train.2.csv").write_text("text,labels\na,x\n")
    with pytest.raises(ValueError, match=r"`data`: .*'train.1.csv' in 'train.2.csv' too, found \['label', 'labels'\]"):
        load_splits(str(tmp_path))


def test_shards_as_the_hub_writes_them(tmp_path):
    for i in range(2):
        Dataset.from_dict({"text": [f"{i}"]}).to_parquet(str(tmp_path / f"train-{i:05d}-of-00002.parquet"))
    assert load_splits(str(tmp_path))["train"]["text"][:] == ["0", "1"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_path_may_have_any_characters(ending, tmp_path, monkeypatch):
    folder = tmp_path / "star*[a]? {b}"
    folder.mkdir()
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[ending](str(tmp_path / f"t.{ending}"))
    (tmp_path / f"t.{ending}").rename(folder / f"train.{ending}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for data in (str(folder), str(folder / f"train.{ending}"), "~/star*[a]? {b}"):
        assert load_splits(data)["train"][:] == rows[:]


def test_a_dictionary_without_train(tmp_path):
    DatasetDict(dev=Dataset.from_dict({"text": ["a"]})).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"`data`: expected a split 'train' .*found \['dev'\]"):
        load_splits(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match=r"`data`: expected rows in .*saved"):
        load_splits(str(tmp_path / "saved"))


@pytest.mark.parametrize("told", [["y", "x"], {"0": "y", "1": "x"}, {"y": 0, "x": 1}])
def test_lists_of_classes(told, tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "info.json").write_text(json.dumps({"classes": told}))
    train = load_splits(str(tmp_path))["train"]
    assert train.features["label"].names == ["y", "x"] and train["label"][:] == [1, 0]


@pytest.mark.parametrize(
    "told", ["{", '{"classes": "air"}', '{"classes": {"a": 5}}', '{"classes": []}', '{"classes": [[1]]}']
)
def test_lists_of_classes_that_are_none(told, tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "info.json").write_text(told)
    with pytest.raises(ValueError, match=r"`data`: expected .*info\.json"):
        load_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "told"),
    [("label.json", "[]"), ("label.json", '{"a": "b"}'), ("train.json", "[1]"), ("train.json", '{"0": {"label": 0}}')],
)
def test_wrench_folders_with_a_part_missing(file, told, tmp_path):
    (tmp_path / "label.json").write_text('{"0": "a", "1": "b"}')
    row = {"label": 1, "weak_labels": [0], "data": {"text": "t"}}
    (tmp_path / "train.json").write_text(json.dumps({"0": row}))
    assert load_splits(str(tmp_path))["train"]["label"][:] == [1]
    (tmp_path / file).write_text(told)
    with pytest.raises(ValueError, match=f"`data`: expected .*{re.escape(file)}"):
        load_splits(str(tmp_path))


def test_answers_of_annotation_tools(tmp_path):
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": []}, {"text": "c", "label": ["y"]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": {"choices": ["y"]}}\n')
    named = name_classes(load_splits(str(tmp_path)), "label", None)
    assert named["train"]["label"][:] == [0, None, 1] and named["test"]["label"][:] == [1]


# ---- exports of annotation tools ----


def choice(text: str, accept: list[str], answer: str = "accept") -> dict:
    return {"text": text, "options": [{"id": "x"}, {"id": "y"}], "accept": accept, "answer": answer, "_task_hash": 1}


def task(text: str, *choices: list[str], **annotation: bool) -> dict:
    results = [{"result": [{"type": "choices", "value": {"choices": each}}], **annotation} for each in choices]
    return {"id": 7, "data": {"text": text, "source": "mail"}, "annotations": results, "predictions": []}


EXPORTS = {
    "choices of Prodigy": ([choice("a", ["x"]), choice("b", []), choice("c", ["y"], "ignore")], ["x", None, None]),
    "labels of Prodigy": (
        [
            {"text": "a", "label": "x", "answer": "accept"},
            {"text": "b", "label": "x", "answer": "reject"},
            {"text": "b", "label": "y", "answer": "accept"},
        ],
        ["x", "y"],
    ),
    "annotators of Prodigy who agree": ([choice("a", ["x"]), choice("a", ["x"]), choice("b", ["y"])], ["x", "y"]),
    "Label Studio": ([task("a", ["x"]), task("b"), task("c", ["y"], ["y"])], ["x", None, "y"]),
    "a cancelled annotation": ([task("a", ["x"], was_cancelled=True), task("b", ["y"])], [None, "y"]),
    "one task": ([task("a", ["x"])], ["x"]),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_exports_are_read_as_rows(case, tmp_path):
    rows, labels = EXPORTS[case]
    for name, content in (("train.json", json.dumps(rows)), ("train.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(content)
        train = load_splits(str(tmp_path / name))["train"]
        assert train["label"][:] == labels and train["text"][:] == ["a", "b", "c"][: len(labels)]
        assert not {"answer", "accept", "options", "annotations", "_task_hash"} & {*train.column_names}


REFUSED = {
    "annotators of Prodigy who disagree": ([choice("a", ["x"]), choice("a", ["y"])], "found 'x', 'y' on 'a'. Settle"),
    "several choices of Prodigy": ([choice("a", ["x", "y"])], "found 'x', 'y' on 'a'"),
    "one class of Prodigy": (
        [{"text": t, "label": "x", "answer": a} for t, a in (("a", "accept"), ("b", "reject"))],
        "found rows on which 'x' alone was accepted or rejected",
    ),
    "annotators of Label Studio who disagree": ([task("a", ["x"], ["y"])], "found 'x', 'y' on 'a'"),
    "several choices of Label Studio": ([task("a", ["x", "y"])], "found 'x', 'y' on 'a'"),
    "results of no shape": ([{"data": {"text": "a"}, "annotations": [3]}], "expected names of classes chosen"),
    "a label beside": ([{"data": {"text": "a", "label": "x"}, "annotations": []}], "expected no 'label' beside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_exports_without_one_class_a_text_are_refused(case, tmp_path):
    rows, message = REFUSED[case]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=f"`data`: .*'train.json'.*{re.escape(message)}|{re.escape(message)}"):
        load_splits(str(tmp_path))


def test_a_name_twice_in_an_object(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x", "label": "y"}\n')
    with pytest.raises(ValueError, match=r"`data`: expected every name once in an object of 'train.jsonl', .*'label'"):
        load_splits(str(tmp_path))
