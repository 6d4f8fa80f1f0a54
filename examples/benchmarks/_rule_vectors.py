"""Rivals of `rule_denoising.py` that train no encoder: logistic regression on sentence vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _rule_data import Parts
from _rule_ours import corrected_rows
from _work import clock, made
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from transformers import AutoTokenizer

from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising import CLEAN_LABEL, LOG_POSTERIOR
from amal_hf.denoising.reader import encode_rows

GRID = [1.0, 10.0, 100.0, 1000.0]
ITERATIONS = 2000
LEAST = 0.01  # what weighs less is left out of the fit


def clean_vectors(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Fitted to the clean rows; C by cross-validation on them."""
    vectors = _Vectors(parts)
    return logits(cross_validated(vectors.clean, parts.clean_labels, seed), vectors.test, len(parts.classes))


def corrected_vectors(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Fitted to the corrected labels, each class of a row weighted by its probability, and to the clean rows.

    The clean rows weigh as much as the times that method "denoise" would see them; C is scikit-learn's, 1.
    """
    rows = corrected_rows(parts, seed, steps)
    vectors = _Vectors(parts)
    train, classes, known = vectors.train, np.arange(len(parts.classes)), parts.clean_labels
    posterior = np.exp(np.asarray(rows[LOG_POSTERIOR][:])[: len(train)])
    times = (np.asarray(rows[CLEAN_LABEL][:]) >= 0).sum() / len(known)
    at, named = np.nonzero(posterior > LEAST)
    model = LogisticRegression(max_iter=ITERATIONS).fit(
        np.concatenate([train[at], vectors.clean]),
        np.concatenate([classes[named], known]),
        np.concatenate([posterior[at, named], np.full(len(known), times)]),
    )
    return logits(model, vectors.test, len(parts.classes))


def cross_validated(vectors: np.ndarray, labels: np.ndarray, seed: int) -> LogisticRegression:
    """C of `GRID` by 5-fold log loss; fewer folds where a class has fewer rows, and C = 10 where one has but one."""
    folds = min(5, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return LogisticRegression(C=10.0, max_iter=ITERATIONS).fit(vectors, labels)
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    search = GridSearchCV(LogisticRegression(max_iter=ITERATIONS), {"C": GRID}, scoring="neg_log_loss", cv=cut)
    return search.fit(vectors, labels).best_estimator_


def logits(model: LogisticRegression, vectors: np.ndarray, num_classes: int) -> np.ndarray:
    """Log-probabilities `[N, C]`; -inf of a class that the model has not seen."""
    found = np.full((len(vectors), num_classes), -np.inf)
    found[:, model.classes_] = model.predict_log_proba(vectors)
    return found


class _Vectors:
    """Vectors of the rows, from the whole pretrained encoder: mean over tokens, of unit length.

    They are made once for all runs; the time that reading a training or a clean row took counts for each.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.made_in = parts, 0.0
        started = clock()
        self.read = load_file(made(parts.folder / "vectors.safetensors", self._make))
        parts.extra_seconds -= clock() - started

    @property
    def train(self) -> np.ndarray:
        return self._counted("train", slice(None))

    @property
    def clean(self) -> np.ndarray:
        return self._counted("validation", self.parts.drawn)

    @property
    def test(self) -> np.ndarray:
        return self.read["test"]

    def _counted(self, split: str, rows: slice | np.ndarray) -> np.ndarray:
        found = self.read[split][rows]
        self.parts.extra_seconds += float(self.read[f"{split}/seconds"]) * len(found) / len(self.read[split])
        return found

    def _make(self, path: Path) -> None:
        parts, found = self.parts, dict[str, np.ndarray]()
        model = load_student(default_model(), parts.classes)
        tokenizer, length = AutoTokenizer.from_pretrained(default_model()), parts.settings.max_length
        for split in ("train", "validation", "test"):
            started = clock()
            rows = encode_rows(model, tokenizer, getattr(parts, split), max_length=length, bf16=parts.settings.bf16)
            found |= {split: np.ascontiguousarray(rows), f"{split}/seconds": np.asarray(clock() - started)}
        save_file(found, path)
