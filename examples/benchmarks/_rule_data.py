"""Data of `rule_denoising.py`: splits without shared texts, tokens, posteriors of the votes, clean rows by seed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from amal_hf._files import replaced_folder, write_whole
from amal_hf.data import text_key, tokenized
from amal_hf.loading import load_splits
from amal_hf.runs import default_model
from amal_hf.weak.label_models import COLUMNS, fit

BATCH = 32
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
"""On a CPU that others use too, only the time of this process's own work compares methods."""


@dataclass(frozen=True)
class Settings:
    """What all methods share on one data set; its hash names the runs it belongs to."""

    layers: int
    freeze_embeddings: bool
    learning_rate: float
    steps: int  # 0: so many epochs over the training rows
    epochs: int
    max_length: int
    rows: int  # of the training split; 0: all
    bf16: bool
    batch: int = BATCH

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Parts:
    """One data set as one run sees it.

    Args:
        train: tokens, votes `weak_labels`, posteriors `majority`, `label_model`, `cage`, and `truth`, the true class,
            which is for the upper bound alone.
        clean: rows of `validation` drawn for this budget and seed: the same columns, with `label` for `truth`.
        test: tokens and `label`.
        folder: where runs of these settings keep what they share.
    """

    name: str
    classes: list[str]
    train: Dataset
    clean: Dataset
    test: Dataset
    settings: Settings
    folder: Path
    extra_seconds: float = field(default=0.0)  # of work that another run did (+), or that is no training (-)

    @property
    def covered(self) -> Dataset:
        """The training rows that some function votes on."""
        return self.train.select(np.flatnonzero((np.asarray(self.train["weak_labels"][:]) >= 0).any(1)))

    def predict(self, trainer: Any, rows: Dataset | None = None) -> np.ndarray:
        """Logits `[N, C]` of the test rows (or of `rows`) in their order; not counted as training."""
        started = clock()
        # grouped by length, `Trainer.predict` too answers in the order of its groups (transformers 5.23)
        trainer.args.train_sampling_strategy = "random"
        logits = trainer.predict(self.test if rows is None else rows).predictions
        self.extra_seconds -= clock() - started
        return logits[0] if isinstance(logits, tuple) else logits

    def halves(self) -> tuple[Dataset, Dataset]:
        """The clean rows as two halves, class by class; of an odd number the first half has one more."""
        labels = np.asarray(self.clean["label"][:])
        of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        halves = (np.sort(np.concatenate([rows[start::2] for rows in of_class])) for start in (0, 1))
        first, second = (self.clean.select(rows) for rows in halves)
        return first, second


def load_parts(data: Path, name: str, settings: Settings, out: Path, budget: str, seed: int) -> Parts:
    """One data set for one run; what runs share is made once and kept under `out`/cache."""
    folder = out / "cache" / f"{name}-{settings.hash}"
    splits = load_from_disk(str(made(folder / "splits", lambda path: _prepare(data / name, settings, path))))
    classes = splits["train"].features["label"].names
    posteriors = load_file(
        made(folder / f"posteriors-{seed}.safetensors", lambda path: _aggregate(splits, len(classes), seed, path))
    )
    for split in ("train", "validation"):
        for column in COLUMNS.values():
            splits[split] = splits[split].add_column(column, list(posteriors[f"{split}/{column}"]))
    clean = splits["validation"]
    if budget.isdigit():
        clean = clean.select(draw(np.asarray(clean["label"][:]), int(budget), seed))
    train = splits["train"].rename_column("label", "truth")
    return Parts(name, classes, train, clean, splits["test"], settings, folder)


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of so many rows of each class (fewer where it has fewer); smaller draws are part of larger ones."""
    picked = [
        np.random.default_rng((seed, c)).permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)
    ]
    return np.concatenate(picked)


def _prepare(source: Path, settings: Settings, path: Path) -> None:
    """Train keeps no text of validation or test, validation none of test; then tokens."""
    loaded = load_splits(str(source))
    taken = set(map(text_key, loaded["test"]["text"]))
    kept = {"test": loaded["test"]}
    for split in ("validation", "train"):
        keys = list(map(text_key, loaded[split]["text"]))
        kept[split] = loaded[split].select([i for i, key in enumerate(keys) if key not in taken])
        taken |= set(keys)
    if settings.rows and settings.rows < len(kept["train"]):
        kept["train"] = kept["train"].shuffle(seed=0).select(range(settings.rows))
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    columns = ["text", "label", "weak_labels"]
    DatasetDict(
        {k: tokenized(v.select_columns(columns), tokenizer, ["text"], settings.max_length) for k, v in kept.items()}
    ).save_to_disk(str(path))


def _aggregate(splits: DatasetDict, num_classes: int, seed: int, path: Path) -> None:
    """Every label model, fitted to the votes of train, says what it believes of train and validation."""
    votes = {split: np.asarray(splits[split]["weak_labels"][:]) for split in ("train", "validation")}
    found: dict[str, np.ndarray] = {}
    for name, column in COLUMNS.items():
        posterior = fit(name, votes["train"], num_classes, seed)
        found |= {f"{split}/{column}": posterior(said) for split, said in votes.items()}
    save_file(found, path)


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by one process if it is not there while the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        if not path.exists():
            if path.suffix:
                write_whole(path, make)
            else:
                with replaced_folder(path) as scratch:
                    make(scratch / "made")
    return path


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold `path` with this process's number in it; False where another holds it. The dead hold nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True
