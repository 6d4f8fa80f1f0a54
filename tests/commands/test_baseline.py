"""`baseline: true`: a plain `Trainer` beside the run, which it does not touch; and what a run finds at its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import planted
import pytest
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer

from amal_hf.cli import main
from amal_hf.commands import baseline
from amal_hf.commands._findings import findings


def trained(folder: Path, good, written, **changes) -> Path:
    assert main(["train", written({**good, "output_dir": str(folder), **changes})]) == 0
    return folder


@pytest.mark.slow
def test_the_run_is_the_same_bit_for_bit(good, written, tmp_path, capsys):
    """final_epochs draw random numbers after the baseline would: none of them differs."""
    given = {"selection_rows": 2, "final_epochs": 1.0}
    alone = trained(tmp_path / "alone", good, written, **given)
    capsys.readouterr()
    beside = trained(tmp_path / "beside", good, written, baseline=True, **given)
    assert "baseline" in capsys.readouterr().out
    for name in ("model.safetensors", "weights.safetensors"):
        assert planted.identical(load_file(alone / name), load_file(beside / name)) == []
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, beside))
    assert one == {name: scores for name, scores in other.items() if name != "baseline"}
    found = other["baseline"]
    assert found["trained_on"] == "given labels" and {"accuracy", "macro_f1", "ece", "loss"} <= {*found["test"]}
    assert (
        found["rows"] == 60 + len(one["selection"]) * 0 + json.loads((beside / "run.json").read_text())["data"]["clean"]
    )


@pytest.fixture
def seen(monkeypatch) -> list[Trainer]:
    """The plain trainers that were made."""
    made: list[Trainer] = []

    class Seen(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.began = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            made.append(self)

    monkeypatch.setattr(baseline, "Trainer", Seen)
    return made


@pytest.mark.slow
def test_same_student_steps_batch_and_seed(seen, good, written, tmp_path, place):
    folder = trained(tmp_path / "run", good, written, baseline=True)
    (plain,) = seen
    start = AutoModelForSequenceClassification.from_pretrained(place / "student")
    assert planted.identical(plain.began, dict(start.named_parameters())) == []
    assert plain.state.global_step == good["max_steps"]
    assert plain.args.seed == good["seed"] and plain.args.train_batch_size == good["per_device_train_batch_size"]
    assert plain.args.learning_rate == good["learning_rate"]
    assert not Path(plain.args.output_dir).exists() and type(plain).__mro__[1] is Trainer
    assert not {*folder.iterdir()} & {folder / "checkpoint-6", folder / "baseline"}


@pytest.mark.slow
def test_without_labels_it_is_the_majority_vote(seen, good, written, tmp_path, place):
    trained(tmp_path / "run", good, written, baseline=True, train_on_labels=False, teacher_columns=[])
    (plain,) = seen
    rows = [json.loads(line) for line in (place / "corpus" / "train.jsonl").read_text().splitlines()]
    expected = []
    for row in rows:
        counts = np.bincount([v for v in row["weak_labels"] if v >= 0], minlength=3)
        if (counts == counts.max()).sum() == 1:  # a tie has no majority
            expected.append(int(counts.argmax()))
    labels = plain.train_dataset["labels"][:]
    assert labels[: len(expected)] == expected and len(labels) > len(expected)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["baseline"]
    assert found["trained_on"] == "majority vote" and found["rows"] == len(labels)


def test_nothing_to_compare_on_is_refused_first(good, written, tmp_path, capsys):
    given = {**good, "baseline": True, "test_split": "", "selection_rows": 0}
    assert main(["train", written(given)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "`baseline`: expected test or selection rows" in error and "test_split" in error
    assert not Path(good["output_dir"]).exists()


# --- findings --------------------------------------------------------------------------------------------------------


def measured(folder: Path, accuracy: float, named: int, right: int = 20) -> list[str]:
    """Findings of a run with 100 test rows and one teacher that is right on `right` of 20 clean rows."""
    teachers = [[0 if i < right else 1] for i in range(20)]
    rows = {"label": [0] * 20, "teachers": teachers, "teachers_confidence": [[1.0]] * 20}
    Dataset.from_dict(rows).save_to_disk(folder / "clean")
    scores = {"accuracy": accuracy, "rows": 100, "classes_named": named}
    return findings(folder, {"test": scores}, {"label": "label", "kd": "teachers/0"})


def test_a_student_of_one_class_is_found(tmp_path):
    (found,) = measured(tmp_path, accuracy=0.33, named=1, right=6)
    assert "one and the same class on all 100 test rows" in found


def test_a_student_far_below_its_teacher_is_found(tmp_path):
    (found,) = measured(tmp_path, accuracy=0.6, named=3)
    assert "far below its teacher: 'kd' is right on 100% of 20 clean rows, the student on 60% of 100 test rows" in found


def test_nothing_is_found_where_all_is_well(tmp_path):
    assert measured(tmp_path, accuracy=0.95, named=3) == []
    assert findings(tmp_path, {}, {"kd": "teachers/0"}) == []


def test_a_finding_is_printed(good, written, capsys):
    """A student that cannot learn (rate 0) names one class or stays below its teacher."""
    assert main(["train", written({**good, "learning_rate": 1e-12})]) == 0
    assert "look      the student" in capsys.readouterr().out


# --- card, format ----------------------------------------------------------------------------------------------------


def test_the_card_and_the_format(good, written, tmp_path, capsys):
    folder = trained(tmp_path / "a_run_of *mine*", good, written, baseline=True)
    card = (folder / "README.md").read_text()
    assert "# a\\_run\\_of \\*mine\\*\n" in card and "None dataset" not in card
    for part in ("- 0: air", "| test | 12 |", "a plain `Trainer` on given labels", "- 60 training rows", "| rules/0 |",
                 "## Licence", "training_steps: 6", "2202.03250"):  # fmt: skip
        assert part in card, part
    assert main(["denoise", str(folder)]) == 0
    (first,) = Dataset.from_csv(str(folder / "denoised" / "corpus.csv")).select([0])
    assert {*first["votes"].split("; ")} <= {*planted.NAMES, "-"} and first["label"] in planted.NAMES
    run = json.loads((folder / "run.json").read_text())
    assert run["format"] == 1 and len(load_from_disk(folder / "rows")) == 60
    (folder / "run.json").write_text(json.dumps({**run, "format": 0}))
    for command in ("report", "denoise"):
        capsys.readouterr()
        assert main([command, str(folder)]) == 2
        assert "`RUN_DIR`: expected a run folder of format 1, found format 0" in capsys.readouterr().err
