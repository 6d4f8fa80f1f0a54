"""From texts to tokens; what is longer than what is read is counted, and warned of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from amal_hf import _checks
from amal_hf.data.split import as_texts

logger = logging.get_logger(__name__)

CUT = "amal_cut"
"""Whether a row's text is longer than what is read of it; while it is tokenized."""


def tokenized(
    dataset: Dataset, tokenizer: Any, text_columns: Sequence[str], max_length: int, name: str = ""
) -> Dataset:
    """Add `input_ids` and friends from the text column(s), unless they are there.

    Args:
        name: what the data set is called in the warning that counts its rows that are cut ("": no warning).

    Raises:
        ValueError: neither tokens nor the text column(s) are there, or rows without a text: which ones.
    """
    if "input_ids" in dataset.column_names:
        return dataset
    missing = [c for c in text_columns if c not in dataset.column_names]
    if tokenizer is None or missing:
        what = f"column(s) {missing}" if missing else "a tokenizer"
        raise ValueError(
            f"`text_columns`: expected tokens (`input_ids`) or text with a tokenizer; {what} missing among "
            f"{_checks.few(dataset.column_names)}. Tokenize first, pass `processing_class`, or set `text_columns`."
        )
    dataset = as_texts(dataset, text_columns, name or "the rows", blank=True)

    def read(rows: dict[str, list[Any]]) -> dict[str, Any]:
        found = tokenizer(*(rows[c] for c in text_columns), truncation=True, max_length=max_length)
        fast = getattr(found, "encodings", None) or []
        return {**found, CUT: [bool(each.overflowing) for each in fast] or [False] * len(found["input_ids"])}

    made = dataset.map(read, batched=True, desc="Tokenizing")
    cut = int(np.sum(made.with_format("numpy")[CUT][:])) if name and len(made) else 0
    if cut:
        logger.warning(
            f"`max_length`: {cut} of {len(made)} rows of {name} ({cut / len(made):.0%}) are longer than {max_length} "
            "tokens: what stands behind is not read. Raise it where that matters."
        )
    return made.remove_columns([CUT])


def in_tokens(split: Any, tokenizer: Any, settings: Any, name: str = "") -> Any:
    """`tokenized` for a data set or a dictionary of them, as `settings` (an `AMALConfig`) say; streams as they are."""
    if isinstance(split, dict):
        return {name: in_tokens(each, tokenizer, settings) for name, each in split.items()}
    if not isinstance(split, Dataset):
        return split
    return tokenized(split, tokenizer, settings.text_columns, settings.max_length, name)
