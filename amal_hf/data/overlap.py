"""The leak guard: rows whose text stands in several splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from datasets import Dataset


def text_key(text: str) -> str:
    """A text's identity for the leak guard: case and white space do not matter."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def overlap(splits: Mapping[str, Dataset], text_columns: Sequence[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """Rows of the second split whose text also stands in the first: (normalised, letter by letter) for every pair.

    Texts are compared where every split has them, else tokens.
    """
    shared = set.intersection(*({*split.column_names} for split in splits.values())) if splits else set()
    by = [c for c in text_columns if c in shared] or [c for c in ("input_ids",) if c in shared]
    texts = {
        name: [" ".join(map(str, row)) for row in zip(*(split[c][:] for c in by), strict=True)]
        for name, split in splits.items()
    }
    keys = {name: [text_key(text) for text in rows] for name, rows in texts.items()}
    found = {}
    for first, second in combinations(splits, 2):
        seen, seen_exactly = set(keys[first]), set(texts[first])
        count = sum(key in seen for key in keys[second])
        if count:
            found[first, second] = (count, sum(text in seen_exactly for text in texts[second]))
    return found


def guard_splits(splits: Mapping[str, Any], text_columns: Sequence[str], strict: bool, only: str = "") -> None:
    """Warn of rows shared between splits before training; refuse with `strict`. Streams pass unseen.

    Args:
        splits: e.g. train, clean, selection and test; a dictionary of evaluation sets counts as several.
        only: a split; only pairs that it is part of are looked at ("": all).

    Raises:
        ValueError: `strict` and an overlap.
    """
    several = {
        (f"{name}/{one}" if isinstance(split, dict) else name): each
        for name, split in splits.items()
        for one, each in (split.items() if isinstance(split, dict) else [("", split)])
    }
    shared = overlap({name: split for name, split in several.items() if isinstance(split, Dataset)}, text_columns)
    shared = {pair: count for pair, count in shared.items() if not only or only in pair}
    if not shared:
        return
    counts = ", ".join(
        f"{n} of {second}'s rows also stand in {first} ({exact} of them letter by letter)"
        for (first, second), (n, exact) in shared.items()
    )
    message = (
        f"{'/'.join(f'`{name}_dataset`' for name in splits if name != 'train')}: expected disjoint splits, found that "
        f"{counts}. Judging, selecting or testing on rows that are trained on measures memory, not trust: remove them."
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)
