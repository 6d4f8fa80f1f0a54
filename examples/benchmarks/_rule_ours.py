"""Ours, in `rule_denoising.py`: method "denoise", with one setting for all data sets."""

from __future__ import annotations

import numpy as np
from _rule_data import Parts
from _rule_methods import learn

from amal_hf import LabelingFunctions


def ours(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Every labeling function, a probe of the clean rows, and these rows themselves: weighted per row.

    Returns:
        logits `[N, C]` of the test rows.
    """
    trainer = learn(
        parts, parts.train.remove_columns("truth"), {"rules": LabelingFunctions()}, seed, steps,
        clean=parts.clean, method="denoise", max_length=parts.settings.max_length,
    )  # fmt: skip
    return parts.predict(trainer)
