"""Rows of a `datasets.Dataset`: identity, tokens, the leak guard, and batches that carry the sources (floor 2)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
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
        ids: `row_id` of every training row; None for a stream, whose rows have no place of their own: -1.
    """

    def __init__(self, ids: Sequence[int] | None) -> None:
        self.ids = torch.arange(0) if ids is None else torch.as_tensor(np.asarray(ids)).long()
        self._sorted, self._order = self.ids.sort()
        self._stream = ids is None

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self._stream:
            return torch.full((len(next(iter(batch.values()))),), -1)
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
        ValueError: there is none; or a column has no value at all, or two are the label.
    """
    example = next(iter(dataset), None) if dataset is not None else None
    if example is None:
        raise ValueError("`train_dataset`: expected at least one row, found none. Pass the rows to train on.")
    if len(both := [name for name in (LABELS, *LABEL_ALIASES) if name in example]) > 1:
        raise ValueError(f"`train_dataset`: expected one column of labels, found {both}. Remove or rename the others.")
    if isinstance(dataset, Dataset):  # where the row misses a value, the first one there is
        missing = [name for name, value in example.items() if value is None]
        example |= {name: next((v for v in dataset[name] if v is not None), None) for name in missing}
    return {LABELS if name in LABEL_ALIASES else name: value for name, value in example.items()}


def check_columns(example: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
    """The columns the losses read are there, lists where they must be, and not empty in every row.

    Raises:
        ValueError: naming the column.
    """
    known = {name: loss for name, loss in losses.items() if isinstance(loss, Loss)}
    _checks.columns("train_dataset", example, {name: loss.columns for name, loss in known.items()})
    for name, loss in known.items():
        for column in loss.columns:
            if example[column] is None:
                raise ValueError(
                    f"`train_dataset`: expected values in column {column!r}, which source {name!r} reads; found None "
                    "in every row. Fill it, or drop the source."
                )
            if isinstance(loss, (LabelingFunctions, MajorityVote)) and np.ndim(example[column]) != 1:
                raise ValueError(
                    f"`train_dataset`: expected a list of votes in column {column!r}, found {example[column]!r}. "
                    "Write a single function's votes as lists of one, [vote]."
                )


def check_said(train: Any, meta: Dataset | None, losses: Iterable[Loss], num_classes: int, tried: Any = None) -> None:
    """What is said is about one of C classes: classes 0..C-1, votes -1..C-1, C logits. Streams pass unseen.

    Args:
        tried: the evaluation set, or a dictionary of them.

    Raises:
        ValueError: naming the column, what was expected and what was found.
    """
    if meta is not None:
        _check_clean(meta, num_classes)
    for name, split in tried.items() if isinstance(tried, dict) else [("", tried)]:
        _check_tried("eval_dataset" + f"[{name!r}]" * bool(name), split, num_classes)
    if not isinstance(train, Dataset):
        return
    names = {LABELS if name in LABEL_ALIASES else name: name for name in train.column_names}
    for loss in losses:
        for column in loss.columns:
            if column != getattr(loss, "mask_column", None):  # that says where, not what
                _check_column(loss, _values(train, names[column]), names[column], num_classes)


def _check_column(loss: Loss, said: pa.ChunkedArray, column: str, num_classes: int) -> None:
    where, nothing = f"`train_dataset`: column {column!r}", said.null_count == len(said)
    if isinstance(loss, (LabelingFunctions, MajorityVote)):
        _checks.numbers(where, said.type, whole=True)
        _checks.equal_width(where, *_span(pc.list_value_length(said)))
        low, high = _span(pc.list_flatten(said))
        _checks.votes(column, low, high, num_classes)
        nothing = nothing or (low, high) == (-1, -1)
    elif isinstance(loss, CrossEntropy) and not hasattr(said.type, "value_type"):
        whole = pa.types.is_integer(said.type)
        named = said.filter(pc.not_equal(said, loss.ignore_index)) if whole else said
        _checks.classes(where, _span(named) if whole else said.type, num_classes)
        nothing = len(named) == named.null_count
    elif isinstance(loss, (CrossEntropy, Distillation, Agreement)):
        _checks.numbers(where, said.type)
        _checks.equal_width(where, *_span(pc.list_value_length(said)), num_classes)
        odds = isinstance(loss, CrossEntropy) or getattr(loss, "probabilities", False)
        _checks.within(where, *_span(_numbers_in(said)), *((0.0, 1.0) if odds else (-1e30, 1e30)))
    if isinstance(loss, CrossEntropy) and len(loss.class_weights or ()) not in (0, num_classes):
        raise ValueError(
            f"`class_weights`: expected {num_classes} numbers, one per class, found {len(loss.class_weights or ())}. "
            "Give every class one."
        )
    if nothing:
        warnings.warn(
            f"{where}: says nothing about any row, so its source trains nothing. Fill it, or drop the source.",
            stacklevel=5,
        )


def _numbers_in(said: pa.ChunkedArray) -> pa.ChunkedArray:
    flat = pc.list_flatten(said)
    return flat.filter(pc.invert(pc.is_nan(flat))) if pa.types.is_floating(flat.type) else flat


def _check_tried(where: str, split: Any, num_classes: int) -> None:
    """Classes of an evaluation set, where it has any."""
    column = next((c for c in (LABELS, *LABEL_ALIASES) if isinstance(split, Dataset) and c in split.column_names), None)
    if column is not None:
        classes = _values(split, column)
        found = _span(classes) if pa.types.is_integer(classes.type) else classes.type
        _checks.classes(f"`{where}`: column {column!r}", found, num_classes)


def clean_rows(dataset: Dataset, device: torch.device) -> tuple[Dataset, Tensor]:
    """The clean rows without `row_id`, and their classes `[M]`."""
    rows = dataset.select_columns([name for name in dataset.column_names if name != ROW_ID])
    column = next(c for c in (LABELS, *LABEL_ALIASES) if c in rows.column_names)
    return rows, torch.as_tensor(rows[column][:], device=device)


def _check_clean(dataset: Dataset, num_classes: int) -> None:
    column = next((c for c in (LABELS, *LABEL_ALIASES) if c in dataset.column_names), None)
    if column is None:
        raise ValueError(
            f"`meta_dataset`: expected a column 'label', found {dataset.column_names}. Rename the column of the class."
        )
    classes = _values(dataset, column)
    if classes.null_count:
        raise ValueError(
            f"`meta_dataset`: expected a class on every row, found {classes.null_count} rows without. Drop them: what "
            "steers must be clean."
        )
    found = _span(classes) if pa.types.is_integer(classes.type) else classes.type
    _checks.classes(f"`meta_dataset`: column {column!r}", found, num_classes)
    unseen = sorted(set(range(num_classes)) - set(classes.unique().to_pylist()))
    if unseen:
        warnings.warn(
            f"`meta_dataset`: no clean row of class(es) {unseen} among {len(classes)}: whoever names them will "
            "seem wrong. Add a few rows of every class.",
            stacklevel=4,
        )


def _values(dataset: Dataset, column: str) -> pa.ChunkedArray:
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def _span(values: pa.ChunkedArray) -> tuple[int, int]:
    """Least and greatest; (0, 0) of nothing."""
    found = pc.min_max(values).as_py()
    return (0, 0) if found["min"] is None else (found["min"], found["max"])


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
        splits: e.g. train, meta, selection and test; a dictionary of evaluation sets counts as several.
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
        f"{counts}. Steering, selecting or testing on rows that are trained on measures memory, not trust: remove them."
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


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
        for name, values in batch.items():
            if isinstance(values, Tensor) and values.dim() > 0 and len(values) != len(features):
                raise ValueError(
                    f"`data_collator`: expected {len(features)} rows in {name!r}, as many as it was given, found "
                    f"{len(values)}. Drop rows before training, with `train_dataset.filter`."
                )
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
