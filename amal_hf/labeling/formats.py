"""Supervision as it comes: labelled subsets, columns of answers, votes in a table of their own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, concatenate_datasets

from amal_hf import _checks
from amal_hf._types import ROW_ID
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
            f"`{column}`: expected true or false on every row, found {flags.type} with {flags.null_count} missing."
        )
    labelled = flags.to_numpy(zero_copy_only=False).astype(bool)
    return split.select(np.flatnonzero(labelled)), split.select(np.flatnonzero(~labelled))


def votes_from_columns(
    dataset: Dataset, columns: Sequence[str], classes: Sequence[str], unknown: str = "raise", column: str = VOTES
) -> Dataset:
    """The data set with a column of votes `[N, M]`, one vote an annotator: an answer is a labeling function's vote.

    An answer names a class (case and white space around it do not matter) or is its index, unless class names are
    numbers themselves. A missing one, an empty string and -1 abstain.

    Args:
        dataset: N rows.
        columns: M columns of answers, strings or whole numbers.
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
        raise ValueError(f"`columns`: expected columns of answers to put into a new {column!r}, found {found}.")
    names = _class_keys(classes)
    votes = np.full((len(dataset), len(columns)), ABSTAIN, np.int32)
    odd: dict[str, Counter[Any]] = {}
    for j, name in enumerate(columns):
        answers, distinct = _answers(dataset, name)
        said = [_vote(answer, names, len(classes)) for answer in distinct]
        votes[:, j] = np.array([ABSTAIN if vote is None else vote for vote in said], np.int32)[answers]
        counts = np.bincount(answers, minlength=len(said))
        if None in said:
            odd[name] = Counter({distinct[i]: int(counts[i]) for i, vote in enumerate(said) if vote is None})
    if odd:
        _report(odd, classes, unknown)
    return dataset.add_column(column, list(votes))


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
            raise ValueError(f"`{argument}`: expected {on!r} to be unique, found more than once: {twice}.")
    place = {key: i for i, key in enumerate(keys["other"])}
    lost = [key for key in keys["dataset"] if key not in place]
    if lost or len(place) != len(dataset):
        raise ValueError(
            f"`other`: expected the same rows by {on!r}, found {len(place)} for {len(dataset)}, {len(lost)} of these "
            f"missing: {lost[:5]}."
        )
    both = [c for c in other.column_names if c in dataset.column_names and c != on]
    if both:
        raise ValueError(f"`other`: expected new columns, found {both} in both. Drop or rename them in one.")
    added = other.remove_columns(on).select([place[key] for key in keys["dataset"]])
    return concatenate_datasets([dataset, added], axis=1)


def _needs(argument: str, dataset: Dataset, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in dataset.column_names]
    if missing:
        raise ValueError(f"`{argument}`: expected column(s) {missing}, found only {dataset.column_names}. Name others.")


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:].column(0)


def _answers(dataset: Dataset, name: str) -> tuple[np.ndarray, list[Any]]:
    """Which of the distinct answers each row gives, `[N]`, and these, the last of them None: missing."""
    feature, column = dataset.features[name], _column(dataset, name)
    if pa.types.is_nested(column.type):
        raise ValueError(f"`columns`: expected a string or a number on each row of {name!r}, found {column.type}.")
    encoded = column.dictionary_encode().combine_chunks()
    distinct = encoded.dictionary.to_pylist()
    if isinstance(feature, ClassLabel):  # its own order of classes may be another
        distinct = [None if index < 0 else feature.int2str(index) for index in distinct]
    places = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    return places, [*distinct, None]


def _class_keys(classes: Sequence[str]) -> Mapping[str, int]:
    """Class names as answers spell them -> index."""
    exact = {str(name).strip(): i for i, name in enumerate(classes)}
    loose = {name.lower(): i for name, i in exact.items()}
    if len(exact) != len(classes):
        raise ValueError(f"`classes`: expected every name once, found {list(classes)}.")
    return exact if len(loose) != len(exact) else loose | exact  # names that differ by case alone: case matters


def _vote(answer: Any, names: Mapping[str, int], num_classes: int) -> int | None:
    """The class an answer names, -1 where it names none on purpose, None where it is no class."""
    if isinstance(answer, str):
        text = answer.strip()
        return names.get(text, names.get(text.lower())) if text else ABSTAIN
    if answer is None or answer != answer:  # a CSV's missing number is NaN
        return ABSTAIN
    if not float(answer).is_integer():
        return None
    number = int(answer)
    if number != ABSTAIN and any(name.isdecimal() for name in names):  # stars, grades: 5 is the class "5"
        return names.get(str(number))
    return number if ABSTAIN <= number < num_classes else None


def _report(odd: Mapping[str, Counter[Any]], classes: Sequence[str], unknown: str) -> None:
    told = "; ".join(
        f"{name}: {sum(counts.values())} answers, e.g. {[answer for answer, _ in counts.most_common(5)]}"
        for name, counts in odd.items()
    )
    message = f"`columns`: expected answers among {list(classes)} or their indices, found others in {told}."
    if unknown == "raise":
        raise ValueError(f"{message} Map them to classes, or let them abstain with unknown='abstain'.")
    warnings.warn(f"{message} They abstain (unknown='abstain').", VoteWarning, stacklevel=3)
