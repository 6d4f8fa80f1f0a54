"""Data of `rule_denoising.py`: splits without shared texts, tokens, posteriors of the votes, clean rows by seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from _work import Settings, clock, learn, made, make_trainer, predict, without_shared_texts
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from amal_hf import AMALTrainer
from amal_hf.commands.train import default_model
from amal_hf.data.tokens import tokenized
from amal_hf.labeling.label_models import COLUMNS, fit


@dataclass
class Parts:
    """One data set as one run sees it.

    Args:
        train: tokens, votes `weak_labels`, posteriors `majority`, `label_model`, `cage`, and `truth`, the true class,
            which is for the upper bound alone.
        validation: the same columns, with `label` for `truth`.
        drawn: positions of its rows drawn for this budget and seed, the clean ones.
        test: tokens and `label`.
        folder: where runs of these settings keep what they share.
    """

    name: str
    classes: list[str]
    train: Dataset
    validation: Dataset
    drawn: np.ndarray
    test: Dataset
    settings: Settings
    folder: Path
    extra_seconds: float = field(default=0.0)  # of work that another run did (+), or that is no training (-)
    facts: dict[str, Any] = field(default_factory=dict)  # what a run's JSON says besides

    @cached_property
    def clean(self) -> Dataset:
        return self.validation.select(self.drawn)

    @property
    def clean_labels(self) -> np.ndarray:
        return np.asarray(self.clean["label"][:])

    @property
    def covered(self) -> Dataset:
        """The training rows that some function votes on."""
        return self.train.select(np.flatnonzero((np.asarray(self.train["weak_labels"][:]) >= 0).any(1)))

    def trainer(self, *args: Any, **kwargs: Any) -> AMALTrainer:
        """`_work.make_trainer` with what these parts share."""
        return make_trainer(self.settings, self.classes, *args, **kwargs)

    def learn(self, *args: Any, **kwargs: Any) -> AMALTrainer:
        """`_work.learn` with what these parts share."""
        return learn(self.settings, self.classes, *args, **kwargs)

    def predict(self, trainer: Any, rows: Dataset | None = None) -> np.ndarray:
        """Logits `[N, C]` of the test rows (or of `rows`) in their order; not counted as training."""
        started = clock()
        logits = predict(trainer, self.test if rows is None else rows)
        self.extra_seconds -= clock() - started
        return logits

    def halves(self) -> tuple[Dataset, Dataset]:
        """The clean rows as two halves, class by class; of an odd number the first half has one more."""
        labels = self.clean_labels
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
    train, validation = splits["train"].rename_column("label", "truth"), splits["validation"]
    drawn = np.arange(len(validation))
    if budget.isdigit():
        drawn = draw(np.asarray(validation["label"][:]), int(budget), seed)
    return Parts(name, classes, train, validation, drawn, splits["test"], settings, folder)


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of so many rows of each class (fewer where it has fewer); smaller draws are part of larger ones."""
    picked = [
        np.random.default_rng((seed, c)).permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)
    ]
    return np.concatenate(picked)


def _prepare(source: Path, settings: Settings, path: Path) -> None:
    """Splits without shared texts, in tokens."""
    kept = without_shared_texts(source, "text", "label", "weak_labels")
    if settings.rows and settings.rows < len(kept["train"]):
        kept["train"] = kept["train"].shuffle(seed=0).select(range(settings.rows))
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    tokens = {k: tokenized(v, tokenizer, ["text"], settings.max_length) for k, v in kept.items()}
    DatasetDict(tokens).save_to_disk(str(path))


def _aggregate(splits: DatasetDict, num_classes: int, seed: int, path: Path) -> None:
    """Every label model, fitted to the votes of train, says what it believes of train and validation."""
    votes = {split: np.asarray(splits[split]["weak_labels"][:]) for split in ("train", "validation")}
    found: dict[str, np.ndarray] = {}
    for name, column in COLUMNS.items():
        posterior = fit(name, votes["train"], num_classes, seed)
        found |= {f"{split}/{column}": posterior(said) for split, said in votes.items()}
    save_file(found, path)
