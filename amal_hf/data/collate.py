"""Batches that carry the sources' columns beside what the model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amal_hf._types import LABELS
from amal_hf.data.columns import LABEL_ALIASES
from amal_hf.metagrad.tasks import SINGLE_LABEL

ABSENT = -100
"""Class, or number, of a row that has none."""


class _Row(dict[str, Any]):
    """What the model reads of a row; label and sources' columns are found by their names, and not listed.

    A collator that pads and stacks whatever it finds leaves them alone, and one of the user's that asks for them can.
    """

    whole: dict[str, Any]

    def __missing__(self, name: str) -> Any:
        return self.whole[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As `self[name]`, `default` where there is no such column."""
        return self.whole.get(name, default)


class SourceCollator:
    """Wraps any collator: pads what the model reads, and stacks the sources' columns beside it.

    Args:
        inner: the collator of the model's inputs; a row lists only these, and the sources' columns are found by name.
        columns: columns read by losses, and `row_id`.
        example: a row without missing values, from which list-valued columns get their width and type.
        task: where it has no classes, labels are floats whatever their column holds.
        votes: those of the columns that hold votes; every other list holds real numbers, whatever their type.

    Missing values: None in a class column becomes -100, in votes -1, in a distribution NaN.
    """

    def __init__(
        self,
        inner: Callable[[list[dict[str, Any]]], Any],
        columns: Sequence[str],
        example: Mapping[str, Any],
        task: str = SINGLE_LABEL,
        votes: Sequence[str] = (),
    ) -> None:
        self.inner, self.columns, self.task, self.votes = inner, tuple(columns), task, frozenset(votes)
        self.missing = {c: self._blank(c, example[c]) for c in columns if example.get(c) is not None}

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows, listed = _with_labels(features), list[dict[str, Any]]()
        single = self.task == SINGLE_LABEL
        for given, row in zip(features, rows, strict=True):  # no function of ours is called once a row
            if single and LABELS in row and row[LABELS] is None:  # also where no loss reads it
                row[LABELS] = ABSENT
            own = _Row(row)
            own.whole = {**given, **row}
            for column in self.columns:
                own.pop(column, None)
            listed.append(own)
        batch = dict(self.inner(listed))
        for name, values in batch.items():
            if isinstance(values, Tensor) and values.dim() > 0 and len(values) != len(features):
                raise ValueError(
                    f"`data_collator`: expected {len(features)} rows in {name!r}, as many as it was given, found "
                    f"{len(values)}. Drop rows before training, with `train_dataset.filter`."
                )
        batch |= self._stacked(rows)
        if self.task != SINGLE_LABEL and LABELS in batch:
            batch[LABELS] = batch[LABELS].float()
        return batch

    def sources(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The sources' columns alone, without tokens."""
        return self._stacked(_with_labels(features))

    def _stacked(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {}
        for column in self.columns:
            if column not in rows[0]:
                continue
            if column not in self.missing:
                self._look_at(column, rows)
            blank = self.missing.get(column, ABSENT)
            values = [blank if (value := row.get(column)) is None else value for row in rows]
            lists = isinstance(blank, np.ndarray)
            batch[column] = torch.as_tensor(np.asarray(values, dtype=blank.dtype) if lists else values)
        return batch

    def _look_at(self, column: str, rows: list[dict[str, Any]]) -> None:
        """A column that was made since: width and type are those of its first value, once there is one."""
        value = next((value for row in rows if (value := row.get(column)) is not None), None)
        if value is not None:
            self.missing[column] = self._blank(column, value)

    def _blank(self, column: str, value: Any) -> Any:
        """What stands for a missing value of a column that holds such values: a number, or an array `[width]`."""
        if np.ndim(value) == 0:
            return ABSENT
        return np.full(np.shape(value), -1) if column in self.votes else np.full(np.shape(value), np.nan, np.float32)


def _with_labels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, whose label is called `labels` whatever its column is called."""
    named = []
    for row in rows:
        own = dict(row)
        for alias in LABEL_ALIASES:
            if alias in own:
                own[LABELS] = own.pop(alias)
        named.append(own)
    return named
