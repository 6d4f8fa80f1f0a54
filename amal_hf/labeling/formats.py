"""Supervision as it comes: labelled subsets, columns of answers, votes in a table of their own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from amal_hf import _checks
from amal_hf._types import ROW_ID
from amal_hf.data.classes import ClassReader, answers
from amal_hf.labeling.checks import VOTES, VoteWarning
from amal_hf.losses import ABSTAIN

UNKNOWN = ("raise", "abstain")


def labelled_subset(split: Dataset, column: str = "labeled") -> tuple[Dataset, Dataset]:
    """The rows somebody has labelled, and the others (Learning From Rules' L and U), each in the split's order.

    Args:
        split: rows with a boolean `column`.

    Raises:
        ValueError: no such column, or one that is not true or false on every row.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a", "b", "c"], "labeled": [True, False, False]})
        >>> labelled, unlabelled = labelled_subset(rows)
        >>> labelled["text"][:], unlabelled["text"][:]
        (['a'], ['b', 'c'])

    References:
        Awasthi et al. (ICLR 2020), "Learning from Rules Generalizing Labeled Exemplars".
    """
    _needs("split", split, [column])
    flags = _column(split, column)
    if not pa.types.is_boolean(flags.type) or flags.null_count:
        raise ValueError(
            f"`{column}`: expected true or false on every row, found {flags.type} with {flags.null_count} missing. "
            "Fill it."
        )
    labelled = flags.to_numpy(zero_copy_only=False).astype(bool)
    return split.select(np.flatnonzero(labelled)), split.select(np.flatnonzero(~labelled))


def votes_from_columns(
    dataset: Dataset, columns: Sequence[str], classes: Sequence[str], unknown: str = "raise", column: str = VOTES
) -> Dataset:
    """The data set with a column of votes `[N, M]`, one vote an annotator: an answer is a labeling function's vote.

    Answers are read as labels are (`data.classes.ClassReader`): by name, else by index where no name is a number. A
    missing one, an empty string and -1 abstain.

    Args:
        dataset: N rows.
        columns: M columns of answers: strings, whole numbers, or lists of one.
        classes: C class names in the order of their indices.
        unknown: what becomes of answers that are no class: "raise", or "abstain" with a warning that counts them.
        column: name of the votes' column.

    Raises:
        ValueError: a column that is not there, or is there already; answers that are no class, some of them named.

    Example:
        >>> rows = Dataset.from_dict({"gpt": ["Spam", None, "ham "], "llama": [1, 0, -1]})
        >>> votes_from_columns(rows, ["gpt", "llama"], classes=["ham", "spam"])["weak_labels"][:]  # [N, M]
        [[1, 1], [-1, 0], [0, -1]]
    """
    _checks.one_of("unknown", unknown, UNKNOWN)
    _needs("dataset", dataset, columns)
    if column in dataset.column_names or not columns:
        found = f"a column {column!r} already" if columns else "no columns"
        raise ValueError(
            f"`columns`: expected columns of answers to put into a new {column!r}, found {found}. Name others."
        )
    reader = ClassReader(classes)
    votes = np.full((len(dataset), len(columns)), ABSTAIN, np.int32)
    odd: dict[str, Counter[Any]] = {}
    for j, name in enumerate(columns):
        places, texts = answers(dataset, name)
        indices = [None if text is None else reader.index(text) for text in texts]
        votes[:, j] = np.array([ABSTAIN if index is None else index for index in indices], np.int32)[places]
        counts = np.bincount(places, minlength=len(indices))
        if -1 in indices:
            odd[name] = Counter({texts[i]: int(counts[i]) for i, index in enumerate(indices) if index == -1})
    if odd:
        _report(odd, classes, unknown)
    return dataset.add_column(column, list(votes))


def distributions_from_columns(
    splits: Mapping[str, Dataset], answer: str, confidence: str, classes: Sequence[str], column: str
) -> dict[str, Dataset]:
    """The splits with a column of distributions `[N, C]`: an annotator's answer, as sure as it says, the rest shared.

    Args:
        answer: column of answers, read as `votes_from_columns` does; NaN where there is none.
        confidence: column of numbers from 0 to 1, or in percent ("85%" too), one unit in all splits; missing: sure. "":
            all are missing.
        classes: C class names in the order of their indices.
        column: name of the new column.

    Raises:
        ValueError: a column that is not there, an answer that is no class, or a confidence that is no share: which row.

    Example:
        >>> rows = Dataset.from_dict({"gpt": ["spam", None, "ham"], "sure": [80, 50, None]})
        >>> splits = distributions_from_columns({"train": rows}, "gpt", "sure", ["ham", "spam"], "asserted")
        >>> splits["train"]["asserted"][:]  # [N, C]
        [[0.2, 0.8], [nan, nan], [1.0, 0.0]]
    """
    for split in splits.values():
        _needs("dataset", split, [answer, *filter(None, [confidence])])
    sure = {name: _confidences(split, confidence) for name, split in splits.items()}
    known = np.concatenate([*sure.values(), np.zeros(0)])
    percent = bool((known > 1).any())
    if percent and ((known > 0) & (known < 1)).any():
        raise ValueError(
            f"`{confidence}`: expected numbers from 0 to 1, or all in percent, found both {known[known < 1].max()} and "
            f"{known[known > 1][0]}. Bring them to one unit."
        )
    made = {}
    for name, split in splits.items():
        votes = np.asarray(votes_from_columns(split.select_columns([answer]), [answer], classes)[VOTES][:])[:, 0]
        share = np.nan_to_num(sure[name] / (100 if percent else 1), nan=1.0)
        shares = np.repeat(((1 - share) / max(len(classes) - 1, 1))[:, None], len(classes), 1)
        shares[np.arange(len(votes)), votes] = share
        shares[votes == ABSTAIN] = np.nan
        flat = pa.array(shares.reshape(-1).round(9))
        lists = pa.FixedSizeListArray.from_arrays(flat, len(classes)).cast(pa.list_(flat.type))
        made[name] = concatenate_datasets([split, Dataset(pa.table({column: lists}))], axis=1)
    return made


def _confidences(split: Dataset, column: str) -> np.ndarray:
    """Numbers `[N]` from 0 to 100, NaN where none is given; text may end with a percent sign."""
    if not column:
        return np.full(len(split), np.nan)
    found = _column(split, column).to_pylist()
    numbers = np.full(len(found), np.nan)
    for i, value in enumerate(found):
        text = str(value).strip().removesuffix("%").strip()
        if value is None or not text:
            continue
        try:
            numbers[i] = float(text)
        except ValueError:
            numbers[i] = -1
        if not (0 <= numbers[i] <= 100 or value != value):
            raise ValueError(
                f"`{column}`: expected a number from 0 to 1, or in percent, found {value!r} on row {i}. Correct it, or "
                "leave it out: an answer without one is sure."
            )
    return numbers


def join_columns(dataset: Dataset, other: Dataset, on: str = ROW_ID) -> Dataset:
    """The columns of `other` beside those of `dataset`, row by row as the column `on` says, whatever their order.

    Args:
        dataset: N rows.
        other: the same N rows, in any order, e.g. `on` and `weak_labels` or posteriors `[N, C]`.
        on: a column of both, unique.

    Raises:
        ValueError: `on` is missing or not unique, the rows are not the same, or a column is in both.

    Example:
        >>> rows = Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"]})
        >>> votes = Dataset.from_dict({"id": ["b", "a"], "weak_labels": [[1, -1], [0, 0]]})
        >>> join_columns(rows, votes, on="id")["weak_labels"][:]  # [N, M]
        [[0, 0], [1, -1]]
    """
    keys = {}
    for argument, each in (("dataset", dataset), ("other", other)):
        _needs(argument, each, [on])
        keys[argument] = each[on][:]
        twice = [key for key, count in Counter(keys[argument]).most_common(5) if count > 1]
        if twice:
            raise ValueError(
                f"`{argument}`: expected {on!r} to be unique, found more than once: {twice}. Drop the repeated rows."
            )
    place = {key: i for i, key in enumerate(keys["other"])}
    lost = [key for key in keys["dataset"] if key not in place]
    if lost or len(place) != len(dataset):
        raise ValueError(
            f"`other`: expected the same rows by {on!r}, found {len(place)} for {len(dataset)}, {len(lost)} of these "
            f"missing: {lost[:5]}. Join tables of the same rows."
        )
    both = sorted({*other.column_names} & {*dataset.column_names} - {on})
    if both:
        raise ValueError(f"`other`: expected new columns, found {both} in both. Drop or rename them in one.")
    added = other.remove_columns(on).select([place[key] for key in keys["dataset"]])
    return concatenate_datasets([dataset, added], axis=1)


def _needs(argument: str, dataset: Dataset, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in dataset.column_names]
    if missing:
        found = _checks.few(dataset.column_names)
        raise ValueError(f"`{argument}`: expected column(s) {missing}, found only {found}. Name others.")


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:].column(0)


def _report(odd: Mapping[str, Counter[Any]], classes: Sequence[str], unknown: str) -> None:
    others = "; ".join(
        f"{name}: {sum(counts.values())} answers, e.g. {[answer for answer, _ in counts.most_common(5)]}"
        for name, counts in odd.items()
    )
    message = f"`columns`: expected answers among {_checks.few(classes)} or their indices, found others in {others}."
    if unknown == "raise":
        raise ValueError(
            f"{message} Map them to classes, or leave these cells empty, which abstains; in Python "
            "votes_from_columns(..., unknown='abstain') makes votes of them."
        )
    warnings.warn(f"{message} They abstain (unknown='abstain').", VoteWarning, stacklevel=3)
