"""Votes on their way into training: whose they are, which classes they count, and whether all rows agree."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from amal_hf.data.read_files import read_json
from amal_hf.labeling.checks import VOTES, VoteWarning, check_votes, vote_matrix, warn_abstaining
from amal_hf.labeling.label_splits import NAMES, SUMMARY
from amal_hf.losses import ABSTAIN


def function_names(folder: str, column: str = VOTES) -> tuple[str, ...] | None:
    """Names of the functions behind a column of votes, where `amal-hf label` wrote them beside the data; else None."""
    file = Path(folder) / NAMES
    return _listed(read_json(file), file) if folder and column == VOTES and file.is_file() else None


def _listed(found: Any, file: Path) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"`data`: expected a list of names in {str(file)!r}, found {str(found)[:60]}. Write the folder anew: "
            "amal-hf label."
        )
    return tuple(found)


def check_order(folder: str, splits: Mapping[str, Dataset], label_column: str, classes: Sequence[str]) -> None:
    """Votes are positions in the classes they were cast for: under other classes they would mean something else.

    Args:
        folder: where the data lie; `amal-hf label` noted the classes there.
        splits: the rows as loaded, before labels are matched with `classes`.
        classes: the classes of the run, in order.

    Raises:
        ValueError: the votes count other classes, or the same in another order.
    """
    features = (split.features.get(label_column) for split in splits.values())
    counted = next((list(feature.names) for feature in features if isinstance(feature, ClassLabel)), None)
    summary = Path(folder) / SUMMARY
    if folder and summary.is_file() and (Path(folder) / NAMES).is_file():
        found = read_json(summary)
        counted = list(_listed(found.get("classes") if isinstance(found, dict) else found, summary))
    numbered = counted is not None and counted == [str(c) for c in range(len(counted))]  # named only now
    if counted is not None and not numbered and counted != list(classes):
        raise ValueError(
            f"`classes`: expected the classes that the votes count, {counted}, found {list(classes)}. Name them in "
            "the votes' order, or vote again."
        )


def check_functions(
    train: Dataset, clean: Dataset, column: str, classes: Sequence[str], names: Sequence[str] | None = None
) -> None:
    """The votes on training rows and, where these have any, on clean rows are of the same functions; odd ones warn.

    Args:
        train, clean: rows; a row without votes (None) is one on which all abstain.
        column: votes `[N, M]`.
        classes: names of the C classes.
        names: names of the M functions.

    Raises:
        ValueError: rows of several lengths, votes outside -1..C-1, or another number of functions in one place.
    """
    width = None
    for where, rows in (("train", train), ("clean rows", clean)):
        if column not in rows.column_names:
            continue
        _, votes = cast_votes(rows, column)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VoteWarning)  # told below, with names, and of the training rows alone
            check_votes(votes, len(classes), names, where=f"{column} of {where}")
        if width not in (None, votes.shape[1]):
            raise ValueError(
                f"`{column}`: expected votes of the same {width} functions on the clean rows as in train, found "
                f"{votes.shape[1]}. Apply one file of functions to both."
            )
        if width is None:
            width = votes.shape[1]
            polarity = [sorted({*np.unique(votes[:, j]).tolist()} - {ABSTAIN}) for j in range(width)]
            warn_abstaining(polarity, list(names or map(str, range(width))), classes, where=f"{column} of {where}")


def cast_votes(rows: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[n]` of the rows that have votes at all (not None), and these votes `[n, M]`."""
    values = rows.select_columns([column]).with_format("arrow")[:].column(0)
    there = np.flatnonzero(values.is_valid().to_numpy())
    return there, vote_matrix(rows if len(there) == len(rows) else rows.select(there), column)
