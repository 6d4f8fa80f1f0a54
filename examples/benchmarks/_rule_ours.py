"""Ours, in `rule_denoising.py`: method "denoise", as `amal-hf train` runs it, with one setting for all data sets."""

from __future__ import annotations

import numpy as np
import torch
from _rule_data import Parts
from _rule_methods import learn
from _work import BATCH
from transformers import AutoTokenizer, set_seed

from amal_hf import LabelingFunctions
from amal_hf.beforehand import ADDED
from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising import add_posterior, gold_share, with_gold


def ours(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """Every labeling function, a probe of the clean rows, and gold: weighted per row.

    Returns:
        logits `[N, C]` of the test rows.
    """
    given = parts.settings
    set_seed(seed)
    student = load_student(default_model(), parts.classes, given.layers, given.freeze_embeddings)
    if torch.cuda.is_available():
        student.cuda()
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    rows, clean = add_posterior(
        parts.train.remove_columns("truth"), parts.clean, student, tokenizer,
        max_length=given.max_length, bf16=given.bf16,
    )  # fmt: skip
    share = gold_share(len(clean), len(rows), steps * BATCH, votes_only=True)
    trainer = learn(
        parts, with_gold(rows, clean, share), {"rules": LabelingFunctions(), **ADDED}, seed, steps,
        model=student, method="denoise",
    )  # fmt: skip
    return parts.predict(trainer)
