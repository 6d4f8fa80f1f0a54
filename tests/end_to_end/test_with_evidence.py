"""Recipe "denoise" from Python: `AMALTrainer(**with_evidence(...))` is the run of `amal-hf train`, said in one call."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import yaml
from datasets import Value, load_from_disk
from planted import identical, make_losses, make_rows, make_student, make_tokenizer, parameters, table_of
from transformers import AutoModelForSequenceClassification, set_seed

from amal_hf import AMALConfig, AMALTrainer, denoised, with_evidence
from amal_hf.cli import main
from amal_hf.commands.train import load_student
from amal_hf.run_folder.corrected import denoise

ADDED = ["evidence", "probe", "gold"]


def given(folder: Path, **changes: Any) -> dict[str, Any]:
    """All that `with_evidence` takes; rows with text."""
    settings = {**planted.SETTINGS, **changes.pop("settings", {})}
    return {
        "model": make_student(),
        "args": AMALConfig(str(folder / "run"), **settings),
        "losses": make_losses(),
        "train_dataset": make_rows(60, wrong=0.4, tokens=False),
        "clean_dataset": make_rows(24, 1, tokens=False),
        "processing_class": make_tokenizer(),
        **changes,
    }


def run(arguments: dict[str, Any]) -> tuple[AMALTrainer, dict[str, Any]]:
    prepared = with_evidence(**arguments)
    trainer = AMALTrainer(**prepared)
    trainer.train()
    return trainer, prepared


def test_it_is_the_run_of_the_command(tmp_path):
    student = tmp_path / "student"
    for part in (make_student(), make_tokenizer()):
        part.save_pretrained(student)
    usual = given(tmp_path)
    (tmp_path / "data").mkdir()
    judged = {
        "train": usual["train_dataset"],
        "validation": usual["clean_dataset"],
        "test": make_rows(9, 2, tokens=False),
    }
    for name, rows in judged.items():
        rows.remove_columns("truth").to_json(tmp_path / "data" / f"{name}.jsonl")
    config = {"data": str(tmp_path / "data"), "model": str(student), "output_dir": str(tmp_path / "command"),
              "votes_column": "weak_labels", "teacher_columns": ["teacher_logits"], "clean_split": "validation",
              "selection_split": "test", "test_split": "", "classes": planted.NAMES, "method": "denoise",
              **planted.SETTINGS}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "config.yaml")]) == 0

    set_seed(usual["args"].seed)  # of the fresh head
    model = load_student(str(student), planted.NAMES)
    trainer, prepared = run({**usual, "model": model})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "command")
    assert identical(parameters(trainer), dict(theirs.named_parameters())) == []
    mine, saved = denoised(trainer, prepared["train_dataset"]), denoise(tmp_path / "command")
    assert mine.features == saved.features and mine[:] == saved[:]
    settings = json.loads((tmp_path / "command" / "run.json").read_text())["config"]
    assert json.loads(trainer.args.describe()) == settings and settings["method"] == "denoise"


def test_what_was_given_stays_as_it_was(tmp_path):
    arguments = given(tmp_path)
    before = arguments["args"].to_dict(), arguments["train_dataset"][:], arguments["clean_dataset"][:]
    prepared = with_evidence(**arguments)
    assert (arguments["args"].to_dict(), arguments["train_dataset"][:], arguments["clean_dataset"][:]) == before
    assert list(arguments["losses"]) == ["label", "teacher", "rules"]
    assert list(prepared["losses"]) == ["label", "teacher", "rules", "probe", "gold"]
    assert prepared.keys() == arguments.keys()
    assert {*ADDED} <= {*prepared["train_dataset"].column_names}
    assert len(prepared["train_dataset"]) == 60 + 24  # as often as the others, where labels and teachers speak
    assert prepared["args"].mixing_start == [1.0] * 7 and len(arguments["args"].mixing_start) == 1


def test_a_teacher_stands_at_its_skill(tmp_path):
    clean = make_rows(24, 1, tokens=False)
    half = [[4.0, 0.0, 0.0] if i % 2 else row for i, row in enumerate(clean["teacher_logits"])]
    clean = clean.remove_columns("teacher_logits").add_column("teacher_logits", half)
    label, teacher, *rest = with_evidence(**given(tmp_path, clean_dataset=clean))["args"].mixing_start
    assert 0.3 < teacher < 0.8 and [label, *rest] == [1.0] * 6  # besides: three functions, the probe, gold


def test_weights_are_of_the_users_rows(tmp_path):
    rows = make_rows(20, wrong=0.4, tokens=False).add_column("row_id", [*range(100, 120)])
    trainer, prepared = run(given(tmp_path, train_dataset=rows))
    assert len(prepared["train_dataset"]) == 44
    assert trainer.weights["row_id"][:] == [*range(100, 120)]
    assert denoised(trainer, prepared["train_dataset"])["row_id"][:] == [*range(100, 120)]


def test_labels_by_another_name_or_as_numbers(tmp_path):
    usual, _ = run(given(tmp_path))
    other = given(tmp_path)
    for name in ("train_dataset", "clean_dataset"):
        rows = other[name].cast_column("label", Value("int64"))
        other[name] = rows.rename_column("label", "labels")
    trainer, _ = run(other)
    assert identical(parameters(usual), parameters(trainer)) == []
    np.testing.assert_array_equal(table_of(usual), table_of(trainer))


def test_labels_that_no_source_reads_are_not_read(tmp_path):
    plain = given(tmp_path, losses=make_losses("rules"))
    rows = plain["train_dataset"]
    shifted = rows.remove_columns("label").add_column("label", [(y + 1) % 3 for y in rows["label"]])
    others = {**plain, "train_dataset": shifted}
    found = [with_evidence(**each)["train_dataset"] for each in (plain, others)]
    assert "label" not in found[0].column_names and found[0]["evidence"][:] == found[1]["evidence"][:]


def test_a_teacher_that_the_clean_rows_do_not_know(tmp_path, caplog):
    blind = make_rows(24, 1, tokens=False).remove_columns("teacher_logits")
    with caplog.at_level(logging.WARNING):
        prepared = with_evidence(**given(tmp_path, clean_dataset=blind))
    assert any("['teacher_logits'] not found" in record.getMessage() for record in caplog.records)
    assert prepared["args"].mixing_start == [1.0] * 7
    AMALTrainer(**prepared).train()


def test_rows_with_their_evidence_are_not_asked_again(tmp_path):
    once = with_evidence(**given(tmp_path))
    again = with_evidence(**once)
    assert again["train_dataset"][:] == once["train_dataset"][:] and list(again["losses"]) == list(once["losses"])


def numbers() -> Any:
    model = make_student()
    model.config.problem_type = "regression"
    return model


REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "another method": ("method", lambda: {"settings": {"method": "amal"}}),
    "another mixing": ("method", lambda: {"settings": {"mixing": "instance"}}),
    "no one class a row": ("model", lambda: {"model": numbers()}),
    "no tokenizer": ("processing_class", lambda: {"processing_class": None}),
    "a stream": ("train_dataset", lambda: {"train_dataset": make_rows(8, tokens=False).to_iterable_dataset()}),
    "no rows": ("train_dataset", lambda: {"train_dataset": make_rows(8, tokens=False).select([])}),
    "rows without text": ("train_dataset", lambda: {"train_dataset": make_rows(8)}),
    "clean rows without text": ("clean_dataset", lambda: {"clean_dataset": make_rows(8, 1)}),
    "no clean rows": ("clean_dataset", lambda: {"clean_dataset": None}),
    "clean rows without label": (
        "clean_dataset",
        lambda: {"clean_dataset": make_rows(9, 1, tokens=False).remove_columns("label")},
    ),
    "clean rows of one class": ("clean", lambda: {"clean_dataset": make_rows(9, 1, tokens=False).select([0, 3, 6])}),
    "a column that is missing": (
        "train_dataset",
        lambda: {"train_dataset": make_rows(9, tokens=False).remove_columns("weak_labels")},
    ),
    "other functions on the clean rows": (
        "weak_labels",
        lambda: {
            "clean_dataset": make_rows(9, 1, tokens=False)
            .remove_columns("weak_labels")
            .add_column("weak_labels", [[0, 1]] * 9)
        },
    ),
    "no losses": ("losses", lambda: {"losses": {}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_before_anything_is_read(case, tmp_path):
    name, changes = REFUSED[case]
    with pytest.raises(ValueError, match=f"^`{name}`: .*expected.*found|^`{name}`: source"):
        with_evidence(**given(tmp_path, **changes()))
    assert not (tmp_path / "run").exists()


def test_classes_of_the_model_and_of_the_clean_rows(tmp_path):
    model = make_student()
    model.config.num_labels = 4
    with pytest.raises(ValueError, match="expected the model's 4 classes in column 'label', found 3"):
        with_evidence(**given(tmp_path, model=model))


def test_the_trainer_says_who_prepares_the_evidence(tmp_path):
    with pytest.raises(ValueError, match=r"`train_dataset`: method 'denoise' expects .*with_evidence\(model="):
        AMALTrainer(**given(tmp_path, settings={"method": "denoise"}))


def test_the_corpus_is_saved_like_any(tmp_path):
    trainer, prepared = run(given(tmp_path))
    corpus = denoised(trainer, prepared["train_dataset"])
    corpus.save_to_disk(tmp_path / "corpus")
    assert load_from_disk(tmp_path / "corpus")[:] == corpus[:]
    assert corpus.features["label"].names == planted.NAMES
