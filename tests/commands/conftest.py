"""A tiny corpus, a tiny student, and settings that train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
import yaml


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows in `corpus` and a student in `student`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "corpus").mkdir()
    for split, count, seed in (("train", 60, 0), ("validation", 12, 1), ("test", 12, 2)):
        rows = planted.make_rows(count, seed, wrong=0.3 * (split == "train"), tokens=False).remove_columns(["truth"])
        names = rows.features["label"].names
        lines = [json.dumps({**row, "label": names[row["label"]]}) for row in rows]
        (folder / "corpus" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    planted.make_student(dropout=0.2).save_pretrained(folder / "student")
    planted.make_tokenizer().save_pretrained(folder / "student")
    return folder


@pytest.fixture
def good(place: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that ends well."""
    return {
        "data": str(place / "corpus"), "model": str(place / "student"), "output_dir": str(tmp_path / "run"),
        "votes_column": "weak_labels", "teacher_columns": ["teacher_logits"], "classes": planted.NAMES,
        "clean_split": "validation", "selection_rows": 12, "max_steps": 6, "report_to": "none",
        "use_cpu": True, "seed": 3, "per_device_train_batch_size": 8, "save_strategy": "no", "learning_rate": 1e-3,
    }  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """`written(settings)`: the path of a CONFIG.yaml with them; of a text, as it stands."""

    def write(settings: dict[str, Any] | str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings, allow_unicode=True))
        return str(path)

    return write
