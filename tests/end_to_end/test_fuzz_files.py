"""Damaged files of rows given to `amal-hf train`, `label` and `teach`: refused in one line, or read as they stand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import planted
import pytest
from datasets import Dataset, load_from_disk
from fuzz_damages import DAMAGES
from fuzz_files import EVERY, Damage
from fuzz_rounds import Case, Reached, Tally, clocked, judge

from amal_hf import AMALTrainer

SEED = 0
FUNCTIONS = """from snorkel.labeling import labeling_function
@labeling_function()
def first(x):
    return 0 if x.text.startswith("w1") else -1
@labeling_function()
def second(x):
    return 1 if "w2" in x.text else -1
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    model = planted.make_student()
    model.config.id2label = dict(enumerate(sorted(planted.NAMES)))
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "student")
    planted.make_tokenizer().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def pairs(*parts: Dataset) -> Counter[tuple[str, str | None]]:
    """Texts and names of their labels, with how often they come."""
    found: Counter[tuple[str, str | None]] = Counter()
    for part in parts:
        names = getattr(part.features.get("label"), "names", None)
        labels = part["label"][:] if names else [None] * len(part)
        said = [names[c] if names and c is not None and c >= 0 else None for c in labels]
        found.update(zip(map(str, part["text"]), said, strict=True))
    return found


@pytest.mark.slow
def test_damaged_files_of_rows(student, tmp_path, monkeypatch, capsys):
    reached: list[AMALTrainer] = []

    def train(trainer: AMALTrainer, *_: Any, **__: Any) -> None:
        reached.append(trainer)
        raise Reached

    def reading(command: str, damage: Damage, out: Path) -> str:
        """What is not so in what was read; "" where all is."""
        wanted = Counter((row["text"], row["label"]) for row in damage.rows or [])
        if command == "train":
            found = pairs(reached[-1].given_rows, reached[-1].clean_dataset, reached[-1].eval_dataset)
        else:
            found = pairs(load_from_disk(str(out))["train"])
        return str([*((found - wanted) + (wanted - found)).items()][:4]) if found != wanted else ""

    monkeypatch.setattr(AMALTrainer, "train", train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    flags = {
        "train": ["--model", student, "--clean_rows", 9, "--selection_rows", 9, "--max_steps", 2, "--use_cpu"],
        "label": ["--num_proc", 1, "--label_models", "majority"],
        "teach": ["--use_cpu", "--cache_dir", tmp_path / "cache"],
    }
    before = {"train": ["--data"], "label": [tmp_path / "functions.py"], "teach": [student]}
    names, tally = [*DAMAGES], Tally()
    random.Random(SEED).shuffle(names)
    with clocked():
        for number, (name, command) in enumerate((name, command) for name in names for command in EVERY):
            damage, place = DAMAGES[name], tmp_path / f"case{number}"
            place.mkdir()
            argv = [command, *before[command], damage.write(place), *flags[command], "--output_dir", place / "out"]
            argv += damage.flags if command == "train" else []
            wrong = True if command in damage.refused else False if command in damage.allowed else None
            right = lambda c=command, d=damage, p=place: reading(c, d, p / "out")  # noqa: E731
            judge(Case(f"{command}: {name}", [str(each) for each in argv], wrong, right, place), tally, capsys)
    with capsys.disabled():
        print(f"\n{len(names)} damaged files given to {len(EVERY)} commands: {tally}")
    tally.check(3 * len(names))
