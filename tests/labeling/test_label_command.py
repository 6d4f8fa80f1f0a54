"""`amal-hf label`: a file of functions and a corpus become columns; Dask gives the same; memory stays where it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from snorkel.labeling.model import LabelModel

from amal_hf import CrossEntropy, LabelingFunctions
from amal_hf.cli import main
from amal_hf.data.columns import check_asserted
from amal_hf.data.load import load_splits
from amal_hf.labeling import vote_matrix
from amal_hf.losses import LossStack

YOUTUBE = Path(__file__).parents[3] / "shared" / "data" / "youtube"
LFS = """
from snorkel.labeling import LabelingFunction, labeling_function

@labeling_function()
def wind(x):
    return 0 if "wind" in x.text else -1

@labeling_function()
def fish(x):
    return 1 if "fish" in x.text else -1

@labeling_function()
def wet(x):
    return 1 if "wet" in x["text"] else -1
"""
ROWS = [
    {"text": "a fish in the wet", "label": "sea"},
    {"text": "a wet wind", "label": "air"},
    {"text": "a wind, no more", "label": "air"},
    {"text": "nothing", "label": None},
] * 10


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "lfs.py").write_text(LFS)
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:3])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def label(place: Path, *flags: str, lfs: str = "lfs.py", data: str = "data") -> int:
    given = [str(place / lfs), str(place / data), "--output_dir", str(place / "out"), "--num_proc", "1", *flags]
    return main(["label", *given])


def leftovers(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_columns_names_and_statistics_are_written_and_printed(place, capsys):
    assert label(place) == 0
    made = load_splits(str(place / "out"))
    assert made["train"].column_names == ["text", "label", "weak_labels", "majority", "label_model", "cage"]
    assert made["train"]["text"][:] == [row["text"] for row in ROWS]
    assert made["train"]["weak_labels"][:4] == [[-1, 1, 1], [0, -1, 1], [0, -1, -1], [-1, -1, -1]]
    assert made["test"]["majority"][:] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    for column in ("majority", "label_model", "cage"):
        said = np.array(made["train"][column][:])
        assert said.shape == (40, 2) and np.isnan(said[3::4]).all()
        np.testing.assert_allclose(np.delete(said, np.s_[3::4], 0).sum(1), 1, rtol=1e-5)
    assert json.loads((place / "out" / "lfs.json").read_text()) == ["wind", "fish", "wet"]
    table = pd.read_csv(place / "out" / "lf_analysis_train.csv", index_col="function")
    assert table["Coverage"].to_dict() == {"wind": 0.5, "fish": 0.25, "wet": 0.5}
    assert table["Emp. Acc."].to_dict() == {"wind": 1.0, "fish": 1.0, "wet": 0.5}
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["classes"] == ["air", "sea"] and summary["splits"]["train"]["covered"] == 0.75
    assert summary["splits"]["test"]["majority"] == pytest.approx(2.5 / 3)
    printed = capsys.readouterr().out
    assert "Emp. Acc." in printed and "label_model" not in printed and "snorkel" in printed
    assert not leftovers(place)


def test_the_trainers_sources_read_the_columns(place):
    assert label(place) == 0
    train = load_from_disk(str(place / "out"))["train"]
    names = tuple(json.loads((place / "out" / "lfs.json").read_text()))
    losses = {
        "rules": LabelingFunctions(names=names),
        **{c: CrossEntropy(c) for c in ("majority", "label_model", "cage")},
    }
    check_asserted(train, None, losses.values(), 2)
    stack = LossStack(losses, train[0])
    assert stack.names == ("rules/wind", "rules/fish", "rules/wet", "majority", "label_model", "cage")


def test_a_seed_gives_one_corpus_and_an_earlier_one_is_replaced(place):
    assert label(place, "--seed", "3") == 0
    first = load_from_disk(str(place / "out"))["train"].to_pandas()
    assert label(place, "--seed", "3", "--label_models", "snorkel") == 0
    second = load_from_disk(str(place / "out"))["train"].to_pandas()
    assert "cage" not in second.columns
    np.testing.assert_array_equal(np.stack(first["label_model"]), np.stack(second["label_model"]))
    assert not leftovers(place)


def test_without_labels_classes_come_from_the_votes(place, capsys):
    pd.DataFrame({"text": [row["text"] for row in ROWS]}).to_csv(place / "rows.csv", index=False)
    assert label(place, data="rows.csv") == 0
    made = load_from_disk(str(place / "out"))["train"]
    assert made.features["majority"].length == 2
    assert "Emp. Acc." not in capsys.readouterr().out
    assert label(place, "--classes", "air", "sea", "land", data="rows.csv") == 0
    assert load_from_disk(str(place / "out"))["train"].features["majority"].length == 3


def test_columns_that_are_there_are_replaced_with_a_warning(place):
    assert label(place) == 0
    (place / "out").rename(place / "voted")
    for models, columns in (
        ("majority,snorkel,cage", ["majority", "label_model", "cage"]),
        ("majority", ["majority"]),
        ("", []),
    ):
        with pytest.warns(UserWarning, match=r"'majority', 'weak_labels'\].*replaced"):
            assert label(place, "--label_models", models, data="voted") == 0
        assert load_from_disk(str(place / "out"))["train"].column_names == ["text", "label", "weak_labels", *columns]


def test_functions_and_classes_without_votes_are_warned_of(place):
    (place / "more.py").write_text(LFS + "@labeling_function()\ndef mute(x):\n    return -1\n")
    with pytest.warns(UserWarning) as told:
        assert label(place, "--classes", "air", "sea", "land", lfs="more.py") == 0
    messages = " ".join(str(w.message) for w in told)
    assert "function(s) ['mute'] never vote" in messages and "class(es) ['land']" in messages


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no file": ({"lfs": "none.py"}, [], "`LFS.py`"),
    "no functions": ({"lfs": "empty.py"}, [], "`LFS.py`: expected functions .* found none"),
    "no data": ({"data": "none.jsonl"}, [], "`data`"),
    "unknown label model": ({}, ["--label_models", "majority,oracle"], "`label_models`.*oracle"),
    "too few functions for snorkel": ({"lfs": "two.py"}, [], "`label_models`: .*at least 3.*majority,cage"),
    "unknown engine": ({}, ["--engine", "flink"], "`engine`"),
    "a folder with other things": ({}, ["--output_dir", "HERE"], "`output_dir`"),
    "a class that is none": ({}, ["--classes", "air", "land"], "`classes`.*sea"),
    "a vote for no class": ({"lfs": "high.py"}, [], "'high' returned 2 on row 0 of train"),
    "a function that raises": ({"lfs": "bad.py"}, [], r"'bad' raised KeyError: 'x'; on row 2 of train \('a wind, no"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(place, capsys, case):
    (place / "empty.py").write_text("x = 1\n")
    (place / "two.py").write_text(LFS.replace("@labeling_function()\ndef wet", "def wet"))
    (place / "high.py").write_text(LFS + "@labeling_function()\ndef high(x):\n    return 2\n")
    (place / "bad.py").write_text(
        LFS + "@labeling_function()\ndef bad(x):\n    return 0 if 'wet' in x.text else {}['x']\n"
    )
    files, flags, told = BAD[case]
    assert label(place, *(str(place) if flag == "HERE" else flag for flag in flags), **files) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(told, error), error
    assert not (place / "out").exists() and not leftovers(place)


def test_it_goes_on_only_if_asked(place):
    (place / "bad.py").write_text(
        LFS + "@labeling_function()\ndef bad(x):\n    return 0 if 'wet' in x.text else {}['x']\n"
    )
    with pytest.warns(UserWarning, match="`train`: .*bad on 20") as told:
        assert label(place, "--on_error", "abstain", lfs="bad.py") == 0
    assert any("`test`" in str(w.message) and "bad on 1." in str(w.message) for w in told)
    assert load_from_disk(str(place / "out"))["train"]["weak_labels"][2] == [0, -1, -1, -1]


@pytest.mark.slow
def test_two_dask_workers_vote_the_same(place):
    pytest.importorskip("distributed")
    (place / "some.py").write_text(
        LFS + "@labeling_function()\ndef some(x):\n    return 0 if 'wet' in x.text else {}['x']\n"
    )
    with pytest.warns(UserWarning, match="some on 20"):
        assert label(place, "--on_error", "abstain", lfs="some.py") == 0
    ours = load_from_disk(str(place / "out"))
    # in a process of its own: the workers are spawned, and run what started them
    command = [sys.executable, "-m", "amal_hf", "label", str(place / "some.py"), str(place / "data")]
    command += ["--output_dir", str(place / "dask"), "--engine", "dask", "--num_workers", "2"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "'some' raised KeyError: 'x'; on row 2 of train" in refused.stderr
    done = subprocess.run([*command, "--on_error", "abstain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = load_from_disk(str(place / "dask"))
    for split in ("train", "test"):
        assert theirs[split]["weak_labels"][:] == ours[split]["weak_labels"][:]
        np.testing.assert_array_equal(theirs[split]["label_model"][:], ours[split]["label_model"][:])
    assert "some on 20" in done.stderr


# ---- real votes ----


@pytest.mark.skipif(not YOUTUBE.is_dir(), reason="the youtube votes are not beside this checkout")
@pytest.mark.parametrize("fitted_on", ["covered rows", "all rows"])
def test_snorkels_label_model_is_reproduced_on_youtube(tmp_path, fitted_on):
    names = json.loads((YOUTUBE / "info.json").read_text())
    count = len(load_splits(str(YOUTUBE))["train"][0]["weak_labels"])
    (tmp_path / "lfs.py").write_text(
        "from snorkel.labeling import LabelingFunction\n"
        f"VOTES = [LabelingFunction(f'rule{{j}}', lambda x, j=j: x.weak_labels[j]) for j in range({count})]\n"
    )
    assert names["classes"] == ["HAM", "SPAM"]
    out = tmp_path / "out"
    command = ["label", str(tmp_path / "lfs.py"), str(YOUTUBE), "--output_dir", str(out), "--num_proc", "2"]
    with pytest.warns(UserWarning, match="replaced"):
        assert main([*command, "--seed", "0", "--label_models", "majority,snorkel"]) == 0
    made, given = load_from_disk(str(out)), load_splits(str(YOUTUBE))
    train = vote_matrix(given["train"])
    fitted = train[(train >= 0).any(1)] if fitted_on == "covered rows" else train
    model = LabelModel(cardinality=2, verbose=False)
    model.fit(fitted, seed=0, progress_bar=False)
    for split in ("train", "validation", "test"):
        votes, gold = vote_matrix(given[split]), np.array(given[split]["label"][:])
        np.testing.assert_array_equal(vote_matrix(made[split]), votes)
        covered = (votes >= 0).any(1)
        theirs = (model.predict_proba(votes).argmax(1) == gold)[covered].mean()
        ours = (np.array(made[split]["label_model"][:]).argmax(1) == gold)[covered].mean()
        print(f"{fitted_on}, {split}: snorkel {theirs:.2%}, the column {ours:.2%}")
        assert abs(ours - theirs) <= 0.005


# ---- memory ----

WATCHED = """
import sys, threading, time
from pathlib import Path
import psutil
from datasets import Dataset, DatasetDict, disable_progress_bars
from amal_hf.labeling import LabelConfig, label_splits, load_functions
rows, folder = int(sys.argv[1]), Path(sys.argv[2])
disable_progress_bars()
import amal_hf.labeling.label_splits
sys.modules["amal_hf.labeling.label_splits"].FIT_ROWS = 10_000
data = Dataset.from_generator(
    lambda: ({"text": f"row {i} wind fish " + "." * 300} for i in range(rows)), cache_dir=str(folder / "cache")
)
functions = load_functions(folder / "lfs.py")
def private():
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20
peak, over = 0.0, False
def watch():
    global peak
    while not over:
        peak = max(peak, private())
        time.sleep(0.01)
watching = threading.Thread(target=watch)
before = private()
watching.start()
if sys.argv[3] == "streamed":
    label_splits(functions, DatasetDict(train=data), LabelConfig(str(folder / "out"), "majority,snorkel", num_proc=1))
else:
    held = data["text"][:]
over = True
watching.join()
print(peak - before)
"""


def grown(place: Path, rows: int, how: str) -> float:
    """MiB of memory of its own that a process comes to hold."""
    folder = place / f"{how}{rows}"
    folder.mkdir()
    (folder / "lfs.py").write_text(LFS)
    done = subprocess.run([sys.executable, "-c", WATCHED, str(rows), str(folder), how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tells private memory from pages of files, as Linux counts them")
def test_memory_does_not_grow_with_the_corpus(place):
    small, large = grown(place, 20_000, "streamed"), grown(place, 200_000, "streamed")
    print(f"20,000 rows: {small:.0f} MiB, 200,000 rows: {large:.0f} MiB")
    assert large < small + 15
    assert grown(place, 200_000, "held") > 60  # what the texts alone take: the measure sees it


@pytest.mark.parametrize("body", ["import os; os._exit(0)", "raise SystemExit(0)", "raise GeneratorExit"])
def test_no_function_ends_the_command(body, place, capsys):
    (place / "ends.py").write_text(LFS + f"@labeling_function()\ndef ends(x):\n    {body}\n")
    assert label(place, lfs="ends.py") == 2
    assert "`functions`: expected" in capsys.readouterr().err and not (place / "out").exists()
