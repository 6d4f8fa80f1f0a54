"""Self-training in `rule_denoising.py`: COSINE's pseudo-labels, without its contrastive and confidence terms."""

from __future__ import annotations

import numpy as np
import torch
from _rule_data import Parts
from _work import predict
from datasets import Dataset
from scipy.special import entr, softmax

from amal_hf import AMALTrainer, CrossEntropy
from amal_hf.denoising import with_clean_rows

FIRST, ROUNDS = 0.5, 3  # share of the steps on the majority vote; how often pseudo-labels are made anew
SURE = 0.7  # ξ
TOKENS = {"input_ids", "token_type_ids", "attention_mask"}
TARGET, WEIGHT = "soft_label", "confidence"


def self_training(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Half of the steps on the majority vote, the rest in three rounds on the student's own soft pseudo-labels.

    A round asks the student about all training rows, makes pseudo-labels, keeps the rows with confidence ω ≥ 0.7 (all,
    where none has), weighs them by ω, and goes on with a fresh optimizer. Clean rows with their class are a quarter
    of all rows throughout; COSINE itself has none.

    References:
        Yu et al. (2021), section 3: equations for soft pseudo-labels and for ω.
    """
    covered, rows = parts.covered, parts.train
    first = round(FIRST * steps)
    trainer = _phase(parts, covered, np.asarray(covered["majority"][:]), np.ones(len(covered)), seed, first)
    for nth in range(ROUNDS):
        target, confidence = pseudo_labels(predict(trainer, rows))
        kept = np.flatnonzero(confidence >= SURE)
        kept = kept if len(kept) else np.arange(len(rows))
        length = (steps - first) * (nth + 1) // ROUNDS - (steps - first) * nth // ROUNDS
        trainer = _phase(
            parts, rows.select(kept), target[kept], confidence[kept], seed + nth + 1, length, trainer.model
        )
    return parts.predict(trainer)


def pseudo_labels(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f² / Σ_i f, normalised, `[N, C]`, and its confidence ω = 1 − entropy / log C, `[N]`, from logits `[N, C]`."""
    said = softmax(logits.astype(float), axis=1)
    sharp = said**2 / said.sum(0)
    sharp /= sharp.sum(1, keepdims=True)
    return sharp, 1 - entr(sharp).sum(1) / np.log(sharp.shape[1])


def _phase(
    parts: Parts, rows: Dataset, target: np.ndarray, weight: np.ndarray, seed: int, steps: int, model: object = None
) -> AMALTrainer:
    """Train on soft labels `[n, C]` of rows, each with its weight, and on the clean rows."""
    known = parts.clean_labels
    mixed = with_clean_rows(
        _labelled(rows, target, weight),
        _labelled(parts.clean, np.eye(len(parts.classes))[known], np.ones(len(known))),
        torch.as_tensor(known),
        len(parts.classes),
    )
    return parts.learn(mixed, {"label": CrossEntropy(TARGET, weight_column=WEIGHT)}, seed, steps, model=model)


def _labelled(rows: Dataset, target: np.ndarray, weight: np.ndarray) -> Dataset:
    tokens = rows.select_columns([c for c in rows.column_names if c in TOKENS])
    return tokens.add_column(TARGET, list(target)).add_column(WEIGHT, weight)
