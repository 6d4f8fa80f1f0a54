"""Labeling functions: found in a file, applied to every row, and named with the row where they fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from snorkel.labeling import LabelingFunction, PandasLFApplier, labeling_function
from snorkel.preprocess import preprocessor

from amal_hf.corpus import LABELING_FUNCTIONS, load_corpus
from amal_hf.labeling import VoteWarning, apply_functions, load_functions, vote_matrix
from amal_hf.labeling.voter import Voter

FILE = """
from __future__ import annotations
import re
from dataclasses import dataclass
from neighbour import LAND
from snorkel.labeling import LabelingFunction, labeling_function
from snorkel.preprocess import preprocessor

@dataclass
class Words:
    words: tuple[str, ...]

WIND = re.compile("wind|rain")

@preprocessor(memoize=True)
def lower(x):
    x.text = x.text.lower()
    return x

@labeling_function()
def second_letter_z(x):
    return 0 if WIND.search(x["text"]) else -1

@labeling_function(pre=[lower], resources={"words": Words(("fish", "wave"))})
def first_letter_a(x, words):
    return 1 if any(word in x.text for word in words.words) else -1

MADE = [LabelingFunction(f"made_{w}", lambda x, w=w: LAND if w in x.text else -1) for w in ("field", "hill")]
ALSO = first_letter_a
"""
TEXTS = ["wind and a FISH", "a field", "a wave on a hill", "nothing"] * 30
SAID = [[0, 1, -1, -1], [-1, -1, 2, -1], [-1, 1, -1, 2], [-1, -1, -1, -1]] * 30


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def lfs(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("LAND = 2\n")
    (tmp_path / "lfs.py").write_text(FILE)
    return tmp_path / "lfs.py"


def texts(values: list[str] | None = None) -> Dataset:
    values = TEXTS if values is None else values
    return Dataset.from_dict({"text": values, "place": range(len(values))})


def says(name: str, said: Any) -> LabelingFunction:
    """A function that returns `said` on the row at place 7, and class 0 elsewhere."""

    def vote(x: Any) -> Any:
        if x.place != 7:
            return 0
        if isinstance(said, Exception):
            raise said
        return said

    return LabelingFunction(name, vote)


# ---- from a file ----


def test_functions_of_a_file_come_in_order_of_definition_and_once(lfs):
    assert [f.name for f in load_functions(lfs)] == ["second_letter_z", "first_letter_a", "made_field", "made_hill"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("x = 1", "found none"),
        ("def f(:", "SyntaxError"),
        ("import no_such_package", "ModuleNotFoundError.*no_such_package"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "from snorkel.labeling import LabelingFunction as L\na, b = L('same', len), L('same', len)",
            "name of its own.*'same'",
        ),
    ],
)
def test_files_that_hold_no_functions(tmp_path, content, told):
    (tmp_path / "f.py").write_text(content)
    with pytest.raises(ValueError, match=told):
        load_functions(tmp_path / "f.py")


def test_only_a_python_file_is_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`LFS.py`.*none.py"):
        load_functions(tmp_path / "none.py")
    (tmp_path / "votes.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"`LFS.py`.*votes.npy"):
        load_functions(tmp_path / "votes.npy")


# ---- applied ----


@pytest.mark.parametrize("num_proc", [1, 3])
def test_votes_are_in_order_whatever_the_processes(lfs, num_proc):
    voted = apply_functions(load_functions(lfs), texts(), num_proc, num_classes=3)
    assert voted["weak_labels"][:] == SAID
    assert voted["text"][:] == TEXTS and voted.column_names == ["text", "place", "weak_labels"]
    assert voted.features["weak_labels"].feature.dtype == "int8"


def test_functions_without_a_file_reach_other_processes():
    threshold = 60
    inner = LabelingFunction("inner", lambda x: int(x.place >= threshold))
    voted = apply_functions([inner], texts(), 2)
    assert voted["weak_labels"][:] == [[0]] * 60 + [[1]] * 60


def test_votes_are_those_of_snorkels_own_applier():
    rows = load_corpus()["selection"].select_columns(["text"])
    theirs = PandasLFApplier(LABELING_FUNCTIONS).apply(rows.to_pandas(), progress_bar=False)
    assert (theirs >= 0).any(0).all()  # every function says something
    np.testing.assert_array_equal(vote_matrix(apply_functions(LABELING_FUNCTIONS, rows, 2, num_classes=5)), theirs)


def test_rows_selected_and_rows_missing():
    picked = texts().select([5, 9, 7])
    assert apply_functions([says("seven", 1)], picked)["weak_labels"][:] == [[0], [0], [1]]
    nothing = apply_functions([says("seven", 1), says("also", 1)], texts([]), 2)
    assert len(nothing) == 0 and vote_matrix(nothing).shape == (0, 2)


def test_votes_may_be_all_there_is():
    alone = Dataset.from_dict({"weak_labels": [[3], [4]]})
    assert apply_functions([LabelingFunction("f", lambda x: x.weak_labels[0] - 3)], alone)["weak_labels"][:] == [
        [0],
        [1],
    ]


def test_many_classes_and_classes_unknown():
    many = apply_functions([says("f", 300)], texts(), num_classes=301)
    assert many["weak_labels"][7] == [300]
    assert apply_functions([says("f", 12345)], texts())["weak_labels"][7] == [12345]


def test_what_preprocessors_memoize_goes_with_its_rows():
    calls = []

    @preprocessor(memoize=True)
    def slow(x):
        calls.append(x.text)
        return x

    @labeling_function(pre=[slow])
    def one(x):
        return -1

    @labeling_function(pre=[slow])
    def two(x):
        return 0

    apply_functions([one, two], texts(["a", "b"]))
    assert calls == ["a", "b"] and not slow._cache


# ---- failing ----


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_function_that_raises_is_named_with_its_row(num_proc):
    functions = [says("good", 0), says("bad", KeyError("colour"))]
    with pytest.raises(ValueError, match=r"'bad' raised KeyError: 'colour'; on row 7 of tales \('nothing.*on_error"):
        rows = texts(["nothing " + "much " * 30] * 20)
        apply_functions(functions, rows, num_proc, name="tales")


def test_a_column_that_is_not_there_is_such_a_failure():
    with pytest.raises(ValueError, match=r"'f' raised AttributeError: .*'txt'; on row 0 of data"):
        apply_functions([LabelingFunction("f", lambda x: x.txt)], texts())


@pytest.mark.parametrize("num_proc", [1, 2])
def test_it_may_abstain_there_and_is_counted(num_proc):
    functions = [says("good", 1), says("bad", KeyError("colour"))]
    with pytest.warns(VoteWarning, match=r"`tales`: .*of 120 rows: bad on 1\."):
        voted = apply_functions(functions, texts(), num_proc, on_error="abstain", name="tales")
    assert voted["weak_labels"][7] == [1, -1]
    assert [row for i, row in enumerate(voted["weak_labels"][:]) if i != 7] == [[0, 0]] * 119


@pytest.mark.parametrize("said", [None, 3, -2, "1", 1.0, [1], [1, 2]])
@pytest.mark.parametrize("on_error", ["raise", "abstain"])
def test_a_vote_for_no_class_is_named_with_its_row(said, on_error):
    with pytest.raises(ValueError, match=r"-1 \(abstain\) to 2, found that .*'bad' returned .* on row 7 of data"):
        apply_functions([says("bad", said)], texts(), num_classes=3, on_error=on_error)


@pytest.mark.parametrize("said", [True, np.int64(1), np.int8(1), np.True_])
def test_whole_numbers_of_every_kind_are_votes(said):
    assert apply_functions([says("f", said)], texts(), num_classes=2)["weak_labels"][7] == [1]


def test_a_process_that_dies_is_no_hang():
    def ends(x: Any) -> int:
        import os

        os._exit(1)

    with pytest.raises(OSError, match=r"`functions`: .*found that one died"):
        apply_functions([LabelingFunction("ends", ends)], texts(), 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"engine": "flink"}, "`engine`"), ({"on_error": "ignore"}, "`on_error`"), ({"num_proc": 0}, "`num_proc`")],
)
def test_settings_that_do_not_exist(given, told):
    with pytest.raises(ValueError, match=told):
        apply_functions([says("f", 0)], texts(), **given)


def test_only_whole_spans_are_read():
    voter = Voter([says("seven", 1)], texts(), 2, "raise", "data")
    assert voter(range(6, 9))[0].tolist() == [[0], [1], [0]] and voter([7, 3])[0].tolist() == [[1], [0]]


@pytest.mark.parametrize("engine", ["dask", "spark"])
def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, {"dask": "dask.dataframe", "spark": "pyspark.sql"}[engine], None)
    with pytest.raises(ValueError, match=f"`engine`: '{engine}' needs .*pip install"):
        apply_functions([says("f", 0)], texts(), engine=engine)
