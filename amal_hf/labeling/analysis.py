"""Snorkel's `LFAnalysis` of votes that come in chunks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
from snorkel.labeling import LFAnalysis

SHARES = ["Coverage", "Overlaps", "Conflicts"]
JUDGED = ["Correct", "Incorrect"]
CHUNK_ROWS = 20_000


def analyze(votes: np.ndarray, names: Sequence[str], gold: np.ndarray | None = None) -> pd.DataFrame:
    """Snorkel's table: per function which classes it names, on what share of rows, how often it is right.

    Args:
        votes: `[N, M]`, -1 abstains.
        names: names of the M functions.
        gold: true classes `[N]`; negative where unknown.

    Returns:
        a row per function: j, Polarity, Coverage, Overlaps, Conflicts; with `gold` also Correct, Incorrect and
        "Emp. Acc.", NaN where a function covers no row with a gold label (0 in Snorkel).

    Raises:
        ValueError: not one name per function.

    Example:
        >>> votes = np.array([[0, -1], [1, 1], [0, 1], [-1, -1]])  # [N, M]
        >>> analyze(votes, ["a", "b"], gold=np.array([0, 1, 1, 1]))[["Coverage", "Conflicts", "Emp. Acc."]]
           Coverage  Conflicts  Emp. Acc.
        a      0.75       0.25   0.666667
        b      0.50       0.25   1.000000
    """

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for start in range(0, max(1, len(votes)), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            yield votes[rows], None if gold is None else gold[rows]

    return analyze_chunks(chunks(), names)


def analyze_chunks(chunks: Iterable[tuple[np.ndarray, np.ndarray | None]], names: Sequence[str]) -> pd.DataFrame:
    """`analyze` of votes `[rows, M]` and gold `[rows]` (or None) that come chunk by chunk.

    Every figure is a mean over rows, so Snorkel's of the chunks add up to Snorkel's of the whole.
    """
    rows, named = 0, [SimpleNamespace(name=name) for name in names]
    sums = pd.DataFrame(0.0, index=list(names), columns=SHARES)
    judged = pd.DataFrame(0, index=list(names), columns=JUDGED)
    polarity: list[set[int]] = [set() for _ in names]
    labelled = False
    with warnings.catch_warnings():
        # scipy's, about a call inside snorkel 0.10 that does not concern the numbers
        warnings.simplefilter("ignore", FutureWarning)
        for votes, gold in chunks:
            known = np.zeros(len(votes), bool) if gold is None else gold >= 0
            if len(votes):
                table = LFAnalysis(votes.astype(np.int64), named).lf_summary()
                sums += table[SHARES] * len(votes)
                rows += len(votes)
                for voted, found in zip(polarity, table["Polarity"], strict=True):
                    voted.update(int(c) for c in found)
            if gold is not None and known.any():
                labelled = True
                judged += LFAnalysis(votes[known].astype(np.int64), named).lf_summary(gold[known])[JUDGED]
    table = pd.DataFrame({"j": range(len(names)), "Polarity": [sorted(voted) for voted in polarity]}, index=list(names))
    table[SHARES] = sums / max(rows, 1)
    if labelled:
        table[JUDGED] = judged
        table["Emp. Acc."] = judged["Correct"] / judged.sum(axis=1)
    return table
