"""Damaged run folders given to `amal-hf denoise`, `report` and `train --resume_from_checkpoint`."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import planted
import pytest
from fuzz_rounds import Case, Tally, clocked, judge
from fuzz_runs import BOTH, CHECKPOINTS, DAMAGES
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from amal_hf.cli import main

SEED = 0


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A run of four steps with labels, functions and a teacher; a checkpoint after the second."""
    rows = planted.make_rows(60, wrong=0.2, tokens=False).rename_column("truth", "true_label")
    named = [{**row, "label": planted.NAMES[row["label"]]} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    planted.make_student().save_pretrained(tmp_path / "student")
    planted.make_tokenizer().save_pretrained(tmp_path / "student")
    return [
        "train", "--data", str(tmp_path / "train.jsonl"), "--model", str(tmp_path / "student"),
        "--votes_column", "weak_labels", "--teacher_columns", "teacher_logits", "--classes", *planted.NAMES,
        "--clean_rows", "6", "--selection_rows", "6", "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1",
        "--report_to", "none", "--use_cpu", "--output_dir",
    ]  # fmt: skip


@pytest.fixture
def whole(command: list[str], tmp_path: Path) -> Path:
    assert main([*command, str(tmp_path / "run")]) == 0
    assert main(["denoise", str(tmp_path / "run"), str(tmp_path / "corpus")]) == 0
    return tmp_path / "run"


def corpus(folder: Path) -> list[dict[str, str]]:
    with (folder / "corpus.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_damaged_run_folders(whole, tmp_path, monkeypatch, capsys):
    """What is run writes what it writes of the whole folder, where the damage does not concern it."""
    monkeypatch.chdir(tmp_path)
    names, tally = [*DAMAGES], Tally()
    random.Random(SEED).shuffle(names)
    page, wanted = (whole / "report.html").read_text(), corpus(tmp_path / "corpus")

    def reading(place: Path, same: bool) -> str:
        if (place / "denoised" / "corpus.csv").is_file() and corpus(place / "denoised") != wanted:
            return "another corpus"
        return "another page" if same and (place / "report.html").read_text() != page else ""

    with clocked():
        for number, (name, asked) in enumerate((name, asked) for name in names for asked in BOTH):
            damage, place = DAMAGES[name], tmp_path / f"case{number}" / "run"
            shutil.copytree(whole, place)
            damage.spoil(place)
            same = damage.same or asked == "denoise"
            wrong, argv = asked in damage.refused, [asked, str(place)]
            right = lambda place=place, same=same: reading(place, same)  # noqa: E731
            if asked == "denoise" and "report" in damage.refused:
                right = lambda place=place: reading(place, False)  # noqa: E731
            judge(Case(f"{asked}: {name}", argv, wrong, right, place.parent), tally, capsys)
    with capsys.disabled():
        print(f"\n{len(names)} damaged run folders given to {len(BOTH)} commands: {tally}")
    tally.check(2 * len(names))


class Interrupts(TrainerCallback):
    """Ctrl-C in the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_damaged_checkpoints(command, whole, tmp_path, monkeypatch, capsys):
    """What is gone on from ends bit for bit where the uninterrupted run does."""
    monkeypatch.chdir(tmp_path)
    DEFAULT_CALLBACKS.append(Interrupts)
    try:
        assert main([*command, str(tmp_path / "killed")]) == 130
    finally:
        DEFAULT_CALLBACKS.remove(Interrupts)
    names, tally = [*CHECKPOINTS], Tally()
    random.Random(SEED).shuffle(names)

    def reading(place: Path) -> str:
        ended = (place / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        return "" if ended else "another model"

    with clocked():
        for number, name in enumerate(names):
            damage, place = CHECKPOINTS[name], tmp_path / f"case{number}" / "run"
            shutil.copytree(tmp_path / "killed", place)
            damage.spoil(place / "checkpoint-2")
            argv = [*command, str(place), "--resume_from_checkpoint", str(place / "checkpoint-2")]
            wrong = "train" in damage.refused
            judge(Case(name, argv, wrong, lambda place=place: reading(place), place.parent), tally, capsys)
    with capsys.disabled():
        print(f"\n{len(names)} damaged checkpoints: {tally}")
    assert not tally.wrong and not tally.poor, "\n".join([*tally.wrong, *tally.poor])
