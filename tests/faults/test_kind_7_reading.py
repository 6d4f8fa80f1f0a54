"""What a person reads: one number for one thing, nothing about what is not there, names as they are.

What else the kind lists stands elsewhere:

    help is short and in groups: tests/commands/test_help.py::test_help_of_train_is_in_groups
    every command has help: tests/commands/test_help.py::test_every_command_has_help
    help takes no second: tests/commands/test_help.py::test_help_takes_less_than_a_second_of_cpu
    --version: tests/commands/test_help.py::test_version
    --config: tests/commands/test_config.py::test_the_file_is_named_in_either_way
    misspelt and odd flags: tests/commands/test_config.py::test_flags_are_refused_in_one_line
    what stderr holds: tests/commands/test_streams.py::test_what_a_good_run_says
    every source is documented: tests/docs/test_pages.py::test_yaml_is_a_configuration
    one class, far below its teacher: tests/commands/test_baseline.py::test_a_student_far_below_its_teacher_is_found
    a student of one class: tests/commands/test_baseline.py::test_a_student_of_one_class_is_found
    the model card: tests/commands/test_baseline.py::test_the_card_and_the_format
    texts in the report: tests/report/test_report.py::test_names_and_texts_are_shown_not_run
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from datasets import Dataset
from packaging.requirements import Requirement
from packaging.version import Version

import amal_hf
from amal_hf import classification_metrics
from amal_hf.commands._summary import summary
from amal_hf.denoising.reader import encode_rows
from amal_hf.report import write_report
from amal_hf.report.functions import judge_functions
from amal_hf.report.run import read_run
from amal_hf.report.summary import Classes, Group, least_trusted, trust

HOUSE = Path(amal_hf.__file__).parent
NAN = float("nan")


def run_folder(folder: Path, primary: str | None = "label", **columns: list) -> Path:
    """Ten rows, of which four were visited; a label (where it is primary) and one function that votes on six rows."""
    label = [0, 1] * 5 if primary else [-1] * 10
    votes = [[0] if i < 6 else [-1] for i in range(10)]
    seen = {0, 1, 6, 7}
    mask = [[primary is not None, i < 6] for i in range(10)]
    weights = [[0.9 if i in seen else NAN, 0.5 if i in seen else NAN] for i in range(10)]
    weights = [[w if said else 0.0 for w, said in zip(*both, strict=True)] for both in zip(weights, mask, strict=True)]
    rows = {
        "row_id": [*range(10)], "text": [f"text {i}" for i in range(10)], "label": label, "majority": [0] * 10,
        "votes": votes, "teacher": [-1] * 10, "student": [0] * 10, "student_confidence": [0.9] * 10,
        "weights": weights, "mask": mask, "corrected": [[0.9, 0.1], [0.2, 0.8]] * 5,
    }  # fmt: skip
    Dataset.from_dict({**rows, **columns}).save_to_disk(str(folder / "rows"))
    about = {"classes": ["a", "b"], "sources": ["label", "rules/f"], "primary": primary, "method": "denoise",
             "asserts": {"label": "label", "rules/f": "votes/0"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    return folder


# ---- the report ----


def test_a_rule_covers_as_much_in_every_table(tmp_path):
    """Six of ten rows, whether they were visited or not; its mean trust is of the two that were."""
    run = read_run(run_folder(tmp_path))
    told = trust(run, Group("rules/f", (1,)), Classes.of(run))
    (judged,) = judge_functions(run)
    assert told.coverage == judged.coverage == 0.6 and told.mean == judged.trust == 0.5
    assert run.mask[:, 1].sum() == 2 and run.covers[:, 1].sum() == 6
    page = write_report(tmp_path).read_text()
    assert page.count("60 %</span>") == 1 and page.count("60.0 %</span>") == 1


def test_rows_that_were_not_visited_are_counted_by_the_run_itself(build, tmp_path):
    """Two steps of eight rows see 16 of 48: coverage is the votes', trust that of the rows seen."""
    rows = planted.make_rows(48, tokens=False)
    losses = planted.make_losses("label", "rules")
    trainer = build({"method": "trust", "max_steps": 2}, train_dataset=rows, losses=losses,
                    compute_metrics=classification_metrics)  # fmt: skip
    trainer.train()
    trainer.save_run(planted.make_rows(9, 2, tokens=False))
    run = read_run(tmp_path / "run0")
    votes = np.array(rows["weak_labels"][:])
    for j in range(3):
        assert trust(run, Group("", (1 + j,)), Classes.of(run)).coverage == (votes[:, j] >= 0).mean()
    assert (~np.isnan(run.weights[:, 0])).sum() == 16
    shown = trainer.corrected_dataset()["trust"][:]
    assert sum(row["label"] is not None for row in shown) == 16


@pytest.mark.parametrize(
    ("history", "told"),
    [
        (None, "the run has no history.json"),
        ({"step": [], "epoch": [], "mean": {"label": []}}, "history.json holds no step"),
        ({"step": [3], "epoch": [1.0], "mean": {"label": [0.9]}}, "A single point"),
    ],
)
def test_a_history_that_is_empty_is_not_one_that_is_missing(history, told, tmp_path):
    run_folder(tmp_path)
    if history is not None:
        (tmp_path / "history.json").write_text(json.dumps(history))
    page = write_report(tmp_path).read_text()
    found = [
        each for each in ("the run has no history.json", "history.json holds no step", "A single point") if each in page
    ]
    assert found == [told]


def test_without_a_label_no_label_is_distrusted(tmp_path):
    run = read_run(run_folder(tmp_path, primary=None))
    assert not len(least_trusted(run))
    page = write_report(tmp_path).read_text()
    assert "No label is a source of this run" in page and "data-row=" not in page


def test_nothing_differs_from_a_label_that_is_not_there(tmp_path):
    """The label's source speaks, and one row has none: its votes and student are no contradiction."""
    page = write_report(run_folder(tmp_path, label=[-1, 1, *[0, 1] * 4])).read_text()
    rows = dict(re.findall(r'data-row="(\d+)"(.*?)</tr>', page, re.DOTALL))
    assert 'class="differs"' not in rows["0"] and 'class="differs"' in rows["1"]


def test_sources_that_are_added_are_explained(tmp_path):
    run_folder(tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    about |= {"sources": ["label", "probe"], "asserts": {}}
    (tmp_path / "run.json").write_text(json.dumps(about))
    page = write_report(tmp_path).read_text()
    assert "“probe” is what the student's encoder" in page.replace("&#39;", "'") and "“clean” is" not in page
    (tmp_path / "run.json").write_text(json.dumps(about | {"method": "trust"}))
    assert "“probe” is" not in write_report(tmp_path).read_text(), "a user's own source of that name"


# ---- the last words of a run ----


@pytest.mark.parametrize(("seen", "shown"), [(84, True), (30, False)])
def test_how_many_rows_an_epoch_has(seen, shown, tmp_path):
    """Clean rows are repeated among the training rows: an epoch is longer than the file, and that is printed."""
    run = {"classes": ["air", "sea", "land"], "asserts": {}, "data": {"train": 30}, "epoch": seen}
    labels = [0, 1, 2] * 10
    Dataset.from_dict({"label": labels, "corrected": np.eye(3)[labels].tolist()}).save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "run.json").write_text(json.dumps(run))
    printed = summary(tmp_path, {}, {}, tmp_path / "report.html")
    assert ("epoch     84 rows: 30 of train, and clean rows, repeated, 54" in printed) == shown


def test_the_run_counts_its_epoch(build, tmp_path):
    trainer = build({"method": "denoise", "num_train_epochs": 1}, losses=planted.make_losses("rules"),
                    train_dataset=planted.make_rows(24, tokens=False), compute_metrics=classification_metrics,
                    clean_dataset=planted.make_rows(12, 1, tokens=False))  # fmt: skip
    trainer.train()
    trainer.save_run()
    run = json.loads((tmp_path / "run0" / "run.json").read_text())
    assert run["data"]["train"] == 24 and run["epoch"] == len(trainer.train_dataset) > 24


# ---- what is installed ----

DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}
ON_REQUEST = {"pyspark"}  # `--engine spark` says what to install


def imported() -> dict[str, set[str]]:
    """Distributions that the package imports, and where."""
    found: dict[str, set[str]] = {}
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in named} - {*sys.stdlib_module_names, "amal_hf"}:
                found.setdefault(DISTRIBUTIONS.get(top, top), set()).add(path.name)
    return found


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dask"]]
    return {Requirement(line).name.lower(): Requirement(line) for line in lines}


def test_what_is_imported_is_declared():
    missing = {name: where for name, where in imported().items() if name not in {*declared(), *ON_REQUEST}}
    assert not missing


def test_every_dependency_has_a_lowest_version_that_is_met_here():
    for name, needed in declared().items():
        assert [each.operator for each in needed.specifier] == [">="], name
        assert importlib.metadata.version(name) in needed.specifier, name


@pytest.mark.parametrize("name", ["safetensors", "huggingface-hub"])
def test_a_lowest_version_is_one_that_transformers_allows(name):
    (bound,) = declared()[name].specifier
    asked = [Requirement(line) for line in importlib.metadata.requires("transformers")]
    (theirs,) = [each for each in asked if each.name.lower() == name and not each.marker]
    assert Version(bound.version) in theirs.specifier


def test_features_alone_are_returned():
    features = encode_rows(planted.make_student(), planted.make_tokenizer(), planted.make_rows(3, tokens=False))
    assert isinstance(features, torch.Tensor) and features.shape == (3, 16)
