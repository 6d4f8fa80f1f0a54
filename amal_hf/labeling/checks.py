"""What votes must be before anything is learned from them: integers -1..C-1, one column a function."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor

from amal_hf.losses import ABSTAIN

VOTES = "weak_labels"


class VoteWarning(UserWarning):
    """Votes that are allowed and odd: a function that never fires, one that raised, a class no function votes for."""


def check_votes(
    votes: Any, num_classes: int, names: Sequence[str] | None = None, rows: int | None = None, where: str = "votes"
) -> np.ndarray:
    """The votes as an integer matrix, checked; odd ones are warned of.

    Args:
        votes: `[N, M]`, -1 abstains: an array, a tensor or lists.
        num_classes: C.
        names: names of the M functions.
        rows: how many rows the table beside the votes has.
        where: what the message calls the votes, e.g. a file's name.

    Returns:
        `[N, M]`.

    Raises:
        ValueError: rows of several lengths, no integers, another number of functions or rows, a vote outside -1..C-1.

    Example:
        >>> check_votes([[0, -1], [1, 1]], num_classes=2).shape  # [N, M]
        (2, 2)
        >>> check_votes([[0, 2]], num_classes=2, names=["a", "b"])
        Traceback (most recent call last):
        ValueError: `votes`: expected -1 (abstain) to 1, found that function 'b' votes 2 on row 0. Check the order ...
    """
    matrix = as_matrix(votes, where)
    if names is not None and matrix.shape[1] != len(names):
        raise ValueError(
            f"`{where}`: expected {len(names)} votes in every row, one per function {list(names)}; found "
            f"{matrix.shape[1]}. Name as many as there are functions."
        )
    if rows is not None and len(matrix) != rows:
        raise ValueError(
            f"`{where}`: expected votes on {rows} rows, as many as the table has; found {len(matrix)}. Vote on it."
        )
    named = [str(j) for j in range(matrix.shape[1])] if names is None else list(names)
    wrong = np.argwhere((matrix < ABSTAIN) | (matrix >= num_classes))
    if len(wrong):
        i, j = wrong[0]
        raise ValueError(
            f"`{where}`: expected -1 (abstain) to {num_classes - 1}, found that function {named[j]!r} votes "
            f"{matrix[i, j]} on row {i}. Check the order of classes and their number."
        )
    polarity = [sorted(set(np.unique(column)) - {ABSTAIN}) for column in matrix.T]
    warn_abstaining(polarity, named, [str(c) for c in range(num_classes)], where)
    return matrix


def as_matrix(votes: Any, where: str = "votes") -> np.ndarray:
    """Votes as integers `[N, M]`.

    Raises:
        ValueError: rows of several lengths, or no integers.
    """
    try:
        matrix = np.asarray(votes.cpu() if isinstance(votes, Tensor) else votes)
    except ValueError:  # rows of several lengths
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iu":
        lengths = sorted({len(row) for row in votes if hasattr(row, "__len__")}) if isinstance(votes, list) else []
        ragged = f"rows of {lengths[0]} to {lengths[-1]} votes" if len(lengths) > 1 else ""
        raise ValueError(
            f"`{where}`: expected integers [rows, functions], found "
            f"{ragged or f'{matrix.dtype} of shape {list(matrix.shape)}'}. Write -1 where a function abstains."
        )
    return matrix


def vote_matrix(dataset: Dataset, column: str = VOTES) -> np.ndarray:
    """A column of votes as integers `[N, M]`, read without a Python object per vote.

    Raises:
        ValueError: rows of several lengths, missing rows or votes, or no integers.
    """
    votes = dataset.select_columns([column]).with_format("arrow")[:].column(0).combine_chunks()
    lists = hasattr(votes.type, "value_type")
    flat = votes.flatten() if lists else votes
    if not lists or not pa.types.is_integer(flat.type):
        raise ValueError(
            f"`{column}`: expected a list of integers in every row, found {votes.type}. Name the column of votes."
        )
    missing = votes.null_count + flat.null_count
    if missing:
        raise ValueError(
            f"`{column}`: expected a vote of every function, found {missing} missing. Write -1 to abstain."
        )
    lengths = pc.min_max(pc.list_value_length(votes)).as_py()
    if lengths["min"] != lengths["max"]:
        raise ValueError(
            f"`{column}`: expected as many votes in every row as there are functions, found {lengths['min']} to "
            f"{lengths['max']}. Give every row as many."
        )
    width = votes.type.list_size if pa.types.is_fixed_size_list(votes.type) else lengths["max"] or 0
    return flat.to_numpy(zero_copy_only=False).reshape(len(votes), width)


def warn_abstaining(
    polarity: Sequence[Iterable[int]], names: Sequence[str], classes: Sequence[str], where: str = "votes"
) -> None:
    """Warn of functions that never fire and of classes that no function votes for.

    Args:
        polarity: the classes each function votes for, -1 left out.
        names: names of the functions.
        classes: names of the C classes.
    """
    abstaining = [name for name, some in zip(names, polarity, strict=True) if not list(some)]
    voted = {int(c) for some in polarity for c in some}
    unnamed = [name for c, name in enumerate(classes) if c not in voted]
    if abstaining:
        _warn(f"`{where}`: function(s) {abstaining} never vote: they teach nothing here. Mend them, or leave them out.")
    if unnamed:
        _warn(
            f"`{where}`: no function votes for class(es) {unnamed}: rules alone cannot teach them. Write a function "
            "for each, or train on clean rows of them."
        )


def warn_order(right: int, given: int, num_classes: int, where: str) -> None:
    """Warn of answers that are right less often than chance, by more than two standard deviations.

    Args:
        right, given: answers about rows whose class is known.
        num_classes: C.
    """
    chance = given / num_classes
    if right < chance - 2 * (chance * (1 - 1 / num_classes)) ** 0.5:
        _warn(
            f"`{where}`: {right} of {given} answers are right where the class is known, fewer than by chance (one of "
            f"{num_classes}): is the order of classes right? Give `classes` in the order in which they are counted."
        )


def warn_faults(faults: dict[str, int], rows: int, where: str) -> None:
    """Warn of functions that raised and were let abstain, with how often."""
    if faults:
        counts = ", ".join(f"{name} on {count}" for name, count in faults.items())
        _warn(f"`{where}`: functions raised and abstain there (on_error='abstain'), of {rows} rows: {counts}.")


def _warn(message: str) -> None:
    warnings.warn(message, VoteWarning, stacklevel=3)
