"""Ours, in `rule_denoising.py`: method "denoise", with one setting for all data sets; its corrected labels alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from _rule_data import Parts
from _work import clock
from datasets import Dataset
from transformers import EvalPrediction

from amal_hf import AMALTrainer, CrossEntropy, LabelingFunctions
from amal_hf.denoising import LOG_POSTERIOR, without_clean_rows
from amal_hf.denoising.inputs import prepare_rows
from amal_hf.metrics import classification_metrics

CORRECTED = "corrected"
"""Column: the corrected label as class probabilities `[N, C]`."""


def ours(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Every labeling function, a probe of the clean rows, and these rows themselves: weighted per row.

    Returns:
        logits `[N, C]` of the test rows.
    """
    trainer = _trainer(parts, seed, steps)
    trainer.train()
    if trainer.prepared:
        _judge(parts, trainer.prepared.train)
    return parts.predict(trainer)


def trust(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Method "trust" on the rows that some function votes on: the clean rows steer, and are not trained on."""
    rows, rules = parts.covered.remove_columns("truth"), {"rules": LabelingFunctions()}
    return parts.predict(parts.learn(rows, rules, seed, steps, clean=parts.clean, method="trust"))


def plain(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Cross-entropy to the corrected labels, without weights per row and source; clean rows among them as ours has."""
    rows = corrected_rows(parts, seed, steps)
    rows = rows.add_column(CORRECTED, list(np.exp(np.asarray(rows[LOG_POSTERIOR][:]))))
    return parts.predict(parts.learn(rows, {"label": CrossEntropy(CORRECTED)}, seed, steps))


def corrected_rows(parts: Parts, seed: int, steps: int) -> Dataset:
    """The rows that method "denoise" trains on, with log π; behind them the clean rows, so often as it sees them."""
    rows = prepare_rows(_trainer(parts, seed, steps)).train
    _judge(parts, rows)
    return rows


def _trainer(parts: Parts, seed: int, steps: int) -> AMALTrainer:
    return parts.trainer(
        parts.train.remove_columns("truth"), {"rules": LabelingFunctions()}, seed, steps,
        clean=parts.clean, method="denoise", max_length=parts.settings.max_length,
    )  # fmt: skip


def _judge(parts: Parts, rows: Dataset) -> None:
    """Accuracy and calibration error of the corrected labels on the training rows, in percent; not counted in time."""
    started = clock()
    said = np.asarray(without_clean_rows(rows)[LOG_POSTERIOR][:])
    found: dict[str, Any] = classification_metrics(EvalPrediction(said, np.asarray(parts.train["truth"][:])))
    parts.facts |= {f"{CORRECTED}_{key}": 100 * found[key] for key in ("accuracy", "ece")}
    parts.extra_seconds -= clock() - started
