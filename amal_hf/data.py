"""Rows of a `datasets.Dataset`: identity, tokens, the leak guard, and batches that carry the sources (floor 2)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from amal_hf import _checks
from amal_hf._types import ROW_ID
from amal_hf.losses import Agreement, CrossEntropy, Distillation, LabelingFunctions, Loss, MajorityVote

LABELS = "labels"
LABEL_ALIASES = ("label", "label_ids")


def with_row_ids(dataset: Dataset) -> Dataset:
    """The data set with a `row_id` column: the one it has, or 0..N-1.

    Raises:
        ValueError: the column is there but not unique integers.
    """
    if ROW_ID not in dataset.column_names:
        return dataset.add_column(ROW_ID, np.arange(len(dataset)))
    ids = np.asarray(dataset.with_format("numpy")[ROW_ID][:])
    if ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(ids):
        raise ValueError(
            f"`train_dataset`: expected unique integers in column {ROW_ID!r}, found {len(np.unique(ids))} distinct "
            f"{ids.dtype} values in {len(ids)} rows. Drop the column to number rows by position."
        )
    return dataset


class RowIndex:
    """Where a batch's rows stand in the training set, by `row_id`: batch -> positions `[N]`.

    Args:
        ids: `row_id` of every training row; None for a stream, whose rows have no place of their own.
    """

    def __init__(self, ids: Sequence[int] | None) -> None:
        self.ids = torch.arange(0) if ids is None else torch.as_tensor(np.asarray(ids)).long()
        self._sorted, self._order = self.ids.sort()
        self._stream = ids is None

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self._stream:
            return torch.arange(len(next(iter(batch.values()))))
        return self._order[torch.searchsorted(self._sorted, batch[ROW_ID].cpu())]


def tokenized(dataset: Dataset, tokenizer: Any, text_columns: Sequence[str], max_length: int) -> Dataset:
    """Add `input_ids` and friends from the text column(s), unless they are there.

    Raises:
        ValueError: neither tokens nor the text column(s) are there.
    """
    if "input_ids" in dataset.column_names:
        return dataset
    missing = [c for c in text_columns if c not in dataset.column_names]
    if tokenizer is None or missing:
        what = f"column(s) {missing}" if missing else "a tokenizer"
        raise ValueError(
            f"`text_columns`: expected tokens (`input_ids`) or text with a tokenizer; {what} missing among "
            f"{dataset.column_names}. Tokenize first, pass `processing_class`, or set `text_columns`."
        )
    return dataset.map(
        lambda rows: tokenizer(*(rows[c] for c in text_columns), truncation=True, max_length=max_length),
        batched=True,
        desc="Tokenizing",
    )


def in_tokens(split: Any, tokenizer: Any, settings: Any) -> Any:
    """`tokenized` for a data set or a dictionary of them, as `settings` (an `AMALConfig`) say; streams as they are."""
    if isinstance(split, dict):
        return {name: in_tokens(each, tokenizer, settings) for name, each in split.items()}
    if not isinstance(split, Dataset):
        return split
    return tokenized(split, tokenizer, settings.text_columns, settings.max_length)


def first_row(dataset: Any) -> dict[str, Any]:
    """A row of the training set without missing values, its label column called `labels`.

    Raises:
        ValueError: there is none.
    """
    example = next(iter(dataset), None) if dataset is not None else None
    if example is None:
        raise ValueError("`train_dataset`: expected at least one row, found none.")
    if isinstance(dataset, Dataset):  # where the row misses a value, the first one there is
        missing = [name for name, value in example.items() if value is None]
        example |= {name: next((v for v in dataset[name] if v is not None), None) for name in missing}
    return {LABELS if name in LABEL_ALIASES else name: value for name, value in example.items()}


def check_said(train: Any, meta: Dataset | None, losses: Iterable[Loss], num_classes: int) -> None:
    """What is said is about one of C classes: classes 0..C-1, votes -1..C-1, C logits. Streams pass unseen.

    Raises:
        ValueError: naming the column, what was expected and what was found.
    """
    if meta is not None:
        _check_clean(meta, num_classes)
    if not isinstance(train, Dataset):
        return
    names = {LABELS if name in LABEL_ALIASES else name: name for name in train.column_names}
    for loss in losses:
        for column in loss.columns:
            said, where = _values(train, names[column]), f"`train_dataset`: column {names[column]!r}"
            if isinstance(loss, (LabelingFunctions, MajorityVote)):
                _checks.equal_width(where, *_span(pc.list_value_length(said)))
                _checks.votes(names[column], *_span(pc.list_flatten(said)), num_classes)
            elif isinstance(loss, CrossEntropy) and not hasattr(said.type, "value_type"):
                whole = pa.types.is_integer(said.type)
                named = said.filter(pc.not_equal(said, loss.ignore_index)) if whole else said
                _checks.classes(where, _span(named) if whole else said.type, num_classes)
            elif isinstance(loss, (CrossEntropy, Distillation, Agreement)):
                _checks.equal_width(where, *_span(pc.list_value_length(said)), num_classes)


def _check_clean(dataset: Dataset, num_classes: int) -> None:
    column = next((c for c in (LABELS, *LABEL_ALIASES) if c in dataset.column_names), None)
    if column is None:
        raise ValueError(f"`meta_dataset`: expected a column 'label', found {dataset.column_names}.")
    classes = _values(dataset, column)
    if classes.null_count:
        raise ValueError(f"`meta_dataset`: expected a class on every row, found {classes.null_count} rows without.")
    found = _span(classes) if pa.types.is_integer(classes.type) else classes.type
    _checks.classes(f"`meta_dataset`: column {column!r}", found, num_classes)


def _values(dataset: Dataset, column: str) -> pa.ChunkedArray:
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def _span(values: pa.ChunkedArray) -> tuple[int, int]:
    """Least and greatest; (0, 0) of nothing."""
    found = pc.min_max(values).as_py()
    return (0, 0) if found["min"] is None else (found["min"], found["max"])


def text_key(text: str) -> str:
    """A text's identity for the leak guard: case and white space do not matter."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def overlap(splits: Mapping[str, Dataset], text_columns: Sequence[str]) -> dict[tuple[str, str], int]:
    """Rows of the second split whose text (normalised) also stands in the first, for every pair of splits."""
    keys = {}
    for name, split in splits.items():
        by = [c for c in text_columns if c in split.column_names] or (
            ["input_ids"] if "input_ids" in split.column_names else []
        )
        columns = [split[c][:] for c in by]
        keys[name] = [text_key(" ".join(map(str, row))) for row in zip(*columns, strict=True)]
    found = {}
    names = list(keys)
    for a, first in enumerate(names):
        seen = set(keys[first])
        for second in names[a + 1 :]:
            shared = sum(key in seen for key in keys[second])
            if shared:
                found[first, second] = shared
    return found


def guard_splits(splits: Mapping[str, Any], text_columns: Sequence[str], strict: bool) -> None:
    """Warn of rows shared between splits before training; refuse with `strict`. Streams pass unseen.

    Raises:
        ValueError: `strict` and an overlap.
    """
    several = [split if isinstance(split, dict) else {name: split} for name, split in splits.items()]
    given = {name: split for some in several for name, split in some.items() if isinstance(split, Dataset)}
    shared = overlap(given, text_columns)
    if not shared:
        return
    counts = ", ".join(f"{n} of {second}'s rows also stand in {first}" for (first, second), n in shared.items())
    message = (
        f"`meta_dataset`/`eval_dataset`: expected disjoint splits, found that {counts}. Steering or selecting on "
        "rows that are trained on measures memory, not trust: remove them."
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=3)


def weights_dataset(ids: Tensor, weights: Tensor, sources: Sequence[str]) -> Dataset:
    """Weights `[rows, K]` as a data set: `row_id` and one float column per source, NaN as null."""
    values = weights.float().numpy()
    columns = {name: pa.array(values[:, k], mask=np.isnan(values[:, k])) for k, name in enumerate(sources)}
    return Dataset(pa.table({ROW_ID: ids.numpy(), **columns}))


class SourceCollator:
    """Wraps any collator: pads what the model reads, and stacks the sources' columns beside it.

    Args:
        inner: the collator of the model's inputs; it never sees the sources' columns.
        columns: columns read by losses, and `row_id`.
        example: a row without missing values, from which list-valued columns get their width and type.

    Missing values: None in a class column becomes -100, in votes -1, in a distribution NaN.
    """

    def __init__(
        self, inner: Callable[[list[dict[str, Any]]], Any], columns: Sequence[str], example: Mapping[str, Any]
    ) -> None:
        self.inner, self.columns = inner, tuple(columns)
        lists = {c: np.asarray(example[c]) for c in columns if c in example and np.ndim(example[c]) > 0}
        self.blanks = {
            c: np.full(v.shape, -1) if v.dtype.kind in "iu" else np.full(v.shape, np.nan, np.float32)
            for c, v in lists.items()
        }

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        renamed = [{LABELS if k in LABEL_ALIASES else k: v for k, v in row.items()} for row in features]
        mine = {c: [row.get(c) for row in renamed] for c in self.columns if c in renamed[0]}
        batch = dict(self.inner([{k: v for k, v in row.items() if k not in mine} for row in renamed]))
        return batch | {column: self._stack(values, self.blanks.get(column)) for column, values in mine.items()}

    def sources(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The sources' columns alone, without tokens."""
        renamed = [{LABELS if k in LABEL_ALIASES else k: v for k, v in row.items()} for row in features]
        return {
            c: self._stack([row[c] for row in renamed], self.blanks.get(c)) for c in self.columns if c in renamed[0]
        }

    def _stack(self, values: list[Any], blank: np.ndarray | None) -> Tensor:
        if blank is None:
            return torch.as_tensor([-100 if v is None else v for v in values])
        return torch.as_tensor(np.asarray([blank if v is None else v for v in values], dtype=blank.dtype))
