"""Method "denoise" in Python: `AMALTrainer(...).train()` is the run of `amal-hf train`; what is wrong is refused."""

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

from amal_hf import AMALConfig, AMALTrainer
from amal_hf.cli import main
from amal_hf.commands.train import load_student
from amal_hf.denoising import LOG_POSTERIOR
from amal_hf.run_folder.corrected import denoise

SETTINGS = {name: value for name, value in planted.SETTINGS.items() if name != "meta_batch_size"}


def make(folder: Path, **changes: Any) -> AMALTrainer:
    """A trainer with the default method, on rows with text."""
    settings = {**SETTINGS, **changes.pop("settings", {})}
    given = {
        "model": make_student(),
        "losses": make_losses(),
        "train_dataset": make_rows(60, wrong=0.4, tokens=False),
        "clean_dataset": make_rows(24, 1, tokens=False),
        "processing_class": make_tokenizer(),
        **changes,
    }
    return AMALTrainer(args=AMALConfig(str(folder / "run"), **settings), **given)


def run(folder: Path, **changes: Any) -> AMALTrainer:
    trainer = make(folder, **changes)
    trainer.train()
    return trainer


def test_it_is_the_run_of_the_command(tmp_path):
    student = tmp_path / "student"
    for part in (make_student(), make_tokenizer()):
        part.save_pretrained(student)
    rows, clean = make_rows(60, wrong=0.4, tokens=False), make_rows(24, 1, tokens=False)
    selection = make_rows(9, 2, tokens=False)
    (tmp_path / "data").mkdir()
    for name, split in {"train": rows, "validation": clean, "test": selection}.items():
        split.remove_columns("truth").to_json(tmp_path / "data" / f"{name}.jsonl")
    config = {"data": str(tmp_path / "data"), "model": str(student), "output_dir": str(tmp_path / "command"),
              "votes_column": "weak_labels", "teacher_columns": ["teacher_logits"], "clean_split": "validation",
              "selection_split": "test", "test_split": "", "classes": planted.NAMES, **SETTINGS}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "config.yaml")]) == 0

    set_seed(AMALConfig(str(tmp_path / "run"), **SETTINGS).seed)  # of the fresh head
    trainer = run(tmp_path, model=load_student(str(student), planted.NAMES), train_dataset=rows, clean_dataset=clean)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "command")
    assert identical(parameters(trainer), dict(theirs.named_parameters())) == []
    mine, saved = trainer.corrected_dataset(), denoise(tmp_path / "command")
    assert mine.features == saved.features and mine[:] == saved[:]
    settings = json.loads((tmp_path / "command" / "run.json").read_text())["config"]
    assert json.loads(trainer.args.describe()) == settings and settings["method"] == "denoise"


def test_what_was_given_stays_as_it_was(tmp_path):
    rows, clean, losses = make_rows(60, wrong=0.4, tokens=False), make_rows(24, 1, tokens=False), make_losses()
    before = rows[:], clean[:]
    trainer = make(tmp_path, train_dataset=rows, clean_dataset=clean, losses=losses)
    args = trainer.args.to_dict()
    trainer.train()
    assert (rows[:], clean[:]) == before and trainer.args.to_dict() == args
    assert list(losses) == ["label", "teacher", "rules"]
    assert list(trainer.stack.losses) == ["label", "teacher", "rules", "probe", "clean"]
    assert len(trainer.train_dataset) == 60 + 24  # as often as the others, where labels and teachers speak
    assert trainer.settings.mixing_start == [1.0] * 7 and trainer.args.mixing_start is None


def test_a_teacher_starts_at_its_adjusted_balanced_accuracy(tmp_path):
    clean = make_rows(24, 1, tokens=False)
    half = [[4.0, 0.0, 0.0] if i % 2 else row for i, row in enumerate(clean["teacher_logits"])]
    clean = clean.remove_columns("teacher_logits").add_column("teacher_logits", half)
    label, teacher, *rest = run(tmp_path, clean_dataset=clean).settings.mixing_start
    assert 0.3 < teacher < 0.8 and [label, *rest] == [1.0] * 6  # besides: three functions, the probe, the clean rows
    start = [0.25] * 7
    assert run(tmp_path, clean_dataset=clean, settings={"mixing_start": 0.25}).settings.mixing_start in ([0.25], start)


def test_weights_are_of_the_users_rows(tmp_path):
    rows = make_rows(20, wrong=0.4, tokens=False).add_column("row_id", [*range(100, 120)])
    trainer = run(tmp_path, train_dataset=rows)
    assert len(trainer.train_dataset) == 44
    assert trainer.weights["row_id"][:] == [*range(100, 120)]
    assert trainer.corrected_dataset()["row_id"][:] == [*range(100, 120)]


def test_suspects_are_the_rows_whose_label_is_corrected(tmp_path):
    rows, model = make_rows(60, wrong=0.4, tokens=False), make_student()
    model.config.id2label = dict(enumerate(planted.NAMES))
    trainer = run(tmp_path, train_dataset=rows, model=model)
    suspects, corpus = trainer.suspects(), trainer.corrected_dataset()
    changed = {row["row_id"]: row for row in corpus if row["label"] != row["label_before"]}
    assert {*suspects["row_id"]} == {*changed} and len(suspects) == len(changed) > 0
    assert suspects["confidence"][:] == sorted(suspects["confidence"][:], reverse=True)
    for row in suspects:
        there = changed[row["row_id"]]
        assert row["text"] == rows[row["row_id"]]["text"] == there["text"]
        assert row["given"] == planted.NAMES[rows[row["row_id"]]["label"]]
        assert row["suggested"] == planted.NAMES[there["label"]] != row["given"]
        assert row["confidence"] == there["confidence"]


def test_labels_by_another_name_or_as_numbers(tmp_path):
    usual = run(tmp_path / "usual")
    other = {}
    for name, rows in (("train_dataset", make_rows(60, wrong=0.4, tokens=False)),
                       ("clean_dataset", make_rows(24, 1, tokens=False))):  # fmt: skip
        other[name] = rows.cast_column("label", Value("int64")).rename_column("label", "labels")
    trainer = run(tmp_path / "other", **other)
    assert identical(parameters(usual), parameters(trainer)) == []
    np.testing.assert_array_equal(table_of(usual), table_of(trainer))


def test_labels_that_no_source_reads_are_not_read(tmp_path):
    rows = make_rows(60, wrong=0.4, tokens=False)
    shifted = rows.remove_columns("label").add_column("label", [(y + 1) % 3 for y in rows["label"]])
    one, two = (
        run(tmp_path / str(i), losses=make_losses("rules"), train_dataset=each)
        for i, each in enumerate((rows, shifted))
    )
    assert one.train_dataset[LOG_POSTERIOR][:] == two.train_dataset[LOG_POSTERIOR][:]
    assert identical(parameters(one), parameters(two)) == []


def test_a_teacher_that_the_clean_rows_do_not_know(tmp_path, caplog):
    blind = make_rows(24, 1, tokens=False).remove_columns("teacher_logits")
    with caplog.at_level(logging.WARNING):
        trainer = run(tmp_path, clean_dataset=blind)
    told = [record.getMessage() for record in caplog.records]
    assert any("expected the columns of ['teacher']" in each for each in told)
    assert trainer.settings.mixing_start == [1.0] * 7


def test_training_twice_is_training_once(tmp_path):
    """The rows are prepared once, and the second run begins where the first did."""
    trainer = make(tmp_path, model=None, model_init=lambda: make_student())
    found = []
    for _ in range(2):
        trainer.train()
        found.append((parameters(trainer), table_of(trainer), len(trainer.train_dataset)))
    (one, weights, rows), (two, again, as_many) = found
    assert identical(one, two) == [] and rows == as_many == 84
    np.testing.assert_array_equal(weights, again)


def numbers() -> Any:
    model = make_student()
    model.config.problem_type = "regression"
    return model


def four() -> Any:
    model = make_student()
    model.config.num_labels = 4
    return model


REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "another mixing": ("mixing", lambda: {"settings": {"mixing": "instance"}}),
    "a setting that is not read": ("meta_every", lambda: {"settings": {"meta_every": 1}}),
    "no one class a row": ("losses", lambda: {"model": numbers()}),
    "text and no tokenizer": ("text_columns", lambda: {"processing_class": None}),
    "tokens and no tokenizer": (
        "processing_class",
        lambda: {"processing_class": None, "train_dataset": make_rows(8), "clean_dataset": make_rows(9, 1)},
    ),
    "a stream": (
        "train_dataset",
        lambda: {
            "train_dataset": make_rows(8, tokens=False).to_iterable_dataset(),
            "settings": {"max_steps": 2},
        },
    ),
    "no rows": ("train_dataset", lambda: {"train_dataset": make_rows(8, tokens=False).select([])}),
    "no clean rows": ("clean_dataset", lambda: {"clean_dataset": None}),
    "clean rows without label": (
        "clean_dataset",
        lambda: {"clean_dataset": make_rows(9, 1, tokens=False).remove_columns("label")},
    ),
    "clean rows of one class": (
        "clean_dataset",
        lambda: {"clean_dataset": make_rows(9, 1, tokens=False).select([0, 3, 6])},
    ),
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
    "a name that is taken": ("losses", lambda: {"losses": {"probe": make_losses("label")["label"]}}),
    "classes of the model and of the clean rows": ("train_dataset", lambda: {"model": four()}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_before_anything_is_trained(case, tmp_path):
    name, changes = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^`{name}`: (.*expect(ed|s).*(found|missing)|source)"):
        run(tmp_path, **changes())
    assert not [*(tmp_path / "run").rglob("*")]


def test_the_corpus_is_saved_like_any(tmp_path):
    corpus = run(tmp_path).corrected_dataset()
    corpus.save_to_disk(tmp_path / "corpus")
    assert load_from_disk(tmp_path / "corpus")[:] == corpus[:]
    assert corpus.features["label"].names == planted.NAMES
