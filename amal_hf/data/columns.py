"""Rows of a `datasets.Dataset`: identity, columns and what they hold."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor

from amal_hf import _checks
from amal_hf._types import LABELS, ROW_ID
from amal_hf.data.class_columns import ANSWERS, ORDERED
from amal_hf.data.classes import same_classes
from amal_hf.losses import Agreement, CrossEntropy, Distillation, LabelingFunctions, Loss, MajorityVote

LABEL_ALIASES = ("label", "label_ids")


def with_row_ids(dataset: Dataset) -> Dataset:
    """The data set with a `row_id` column: the one it has, or 0..N-1.

    Raises:
        ValueError: the column is there but not unique integers.
    """
    if ROW_ID not in dataset.column_names:
        return dataset.add_column(ROW_ID, np.arange(len(dataset)))
    values = values_of(dataset, ROW_ID)
    if not pa.types.is_integer(values.type) or values.null_count or len(pc.unique(values)) != len(values):
        raise ValueError(
            f"`train_dataset`: expected a whole number of its own on every row in column {ROW_ID!r}, found "
            f"{len(pc.unique(values))} different values of type {values.type} on {len(values)} rows, "
            f"{values.null_count} of them missing. Drop the column to number rows by position."
        )
    return dataset


def without_idle(splits: DatasetDict, read: Collection[str]) -> DatasetDict:
    """The splits without columns that nobody reads, where there are very many: `datasets` handles each in every step.

    Args:
        read: columns that a run reads, beside tokens, labels, `row_id` and `true_label`.
    """
    kept = {*read, ROW_ID, LABELS, *LABEL_ALIASES, "true_label", "input_ids", "attention_mask", "token_type_ids"}
    return DatasetDict(
        {
            name: split.select_columns([c for c in split.column_names if c in kept])
            if len(split.column_names) > ORDERED
            else split
            for name, split in splits.items()
        }
    )


class RowIndex:
    """Where a batch's rows stand in the training set, by `row_id`: batch -> positions `[N]`.

    Args:
        ids: `row_id` of every training row (0..N-1 are not kept); None for a stream, whose rows have no place: -1.
    """

    def __init__(self, ids: Sequence[int] | None) -> None:
        self._stream, found = ids is None, torch.as_tensor(np.asarray([] if ids is None else ids)).long()
        self._num_rows, self._sorted = len(found), None if found.equal(torch.arange(len(found))) else found.sort()

    @property
    def ids(self) -> Tensor:
        """`row_id` of every training row, `[rows]`."""
        return torch.arange(self._num_rows) if self._sorted is None else self._sorted[0][self._sorted[1].argsort()]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self._stream:
            return torch.full((len(next(iter(batch.values()))),), -1)
        ids = batch[ROW_ID].cpu()
        return ids if self._sorted is None else self._sorted[1][torch.searchsorted(self._sorted[0], ids)]


def check_asserted(
    train: Any,
    clean: Dataset | None,
    losses: Iterable[Loss],
    num_classes: int,
    tried: Any = None,
    names: Sequence[str] = (),
) -> None:
    """Every source asserts one of C classes: classes 0..C-1, votes -1..C-1, C logits. Streams pass unseen.

    Args:
        tried: the evaluation set, or a dictionary of them.
        names: the model's names of the classes.

    Raises:
        ValueError: naming the column, what was expected and what was found.
    """
    _check_order({"train_dataset": train, "clean_dataset": clean, "eval_dataset": tried}, names)
    if clean is not None:
        _check_clean(clean, num_classes, names)
    for where, split, column in labelled("eval_dataset", tried):
        _check_classes(f"`{where}`: column {column!r}", values_of(split, column), num_classes)
    if not isinstance(train, Dataset):
        return
    here = {LABELS if name in LABEL_ALIASES else name: name for name in train.column_names}
    for loss in losses:
        for column in loss.columns:
            _check_column(loss, values_of(train, here[column]), here[column], num_classes)


def _check_order(splits: Mapping[str, Any], names: Sequence[str]) -> None:
    """An index means one class in every data set and in the model, where these name their classes."""
    named = {
        where: split.rename_column(column, LABELS) if column != LABELS else split
        for name, each in splits.items()
        for where, split, column in labelled(name, each)
    }
    found = same_classes(named, LABELS)
    if found is not None and list(names) != found and sorted(names) == sorted(found):
        raise ValueError(
            f"`model`: expected its classes in the data's order, {found}, found {list(names)} in `id2label`. Map the "
            "labels by name: data.classes.name_classes(splits, column, classes)."
        )


def _check_column(loss: Loss, entries: pa.ChunkedArray, column: str, num_classes: int) -> None:
    where, nothing = f"`train_dataset`: column {column!r}", entries.null_count == len(entries)
    if column == getattr(loss, "mask_column", None):  # that says where, not what
        return _checks.booleans(where, entries)
    if column == getattr(loss, "weight_column", ""):
        return _checks.row_weights(where, entries)
    if isinstance(loss, (LabelingFunctions, MajorityVote)):
        _checks.numbers(where, entries.type, whole=True)
        _checks.equal_width(where, *span(pc.list_value_length(entries)))
        if missing := pc.list_flatten(entries).null_count:
            raise ValueError(
                f"{where}: expected a vote of every function, found {missing} missing. Write -1 where one abstains."
            )
        low, high = span(pc.list_flatten(entries))
        _checks.votes(column, low, high, num_classes)
        nothing = nothing or (low, high) == (-1, -1)
    elif isinstance(loss, CrossEntropy) and not hasattr(entries.type, "value_type"):
        whole = pa.types.is_integer(entries.type)
        named = entries.filter(pc.not_equal(entries, loss.ignore_index)) if whole else entries
        _checks.classes(where, span(named) if whole else entries.type, num_classes)
        nothing = len(named) == named.null_count
    elif isinstance(loss, (CrossEntropy, Distillation, Agreement)):
        _checks.numbers(where, entries.type)
        _checks.equal_width(where, *span(pc.list_value_length(entries)), num_classes)
        odds, logs = isinstance(loss, CrossEntropy), getattr(loss, "log_probabilities", False)
        odds = odds or getattr(loss, "probabilities", False)
        low, high = span(numbers_in(entries))
        _checks.within(where, max(low, -1e30) if logs else low, high, *_bounds(odds, logs))
        read = isinstance(loss, Distillation) and not column.startswith(ANSWERS)
        if read and (empty := _blank_rows(entries, num_classes, logs)):
            warnings.warn(
                f"{where}: expected logits on every row, found null or NaN on {empty} of {len(entries)}: the teacher "
                "abstains there. Read it again if it should not.",
                stacklevel=5,
            )
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


def _bounds(odds: bool, logs: bool) -> tuple[float, float]:
    """Least and greatest of probabilities, of their logarithms, or of any finite numbers."""
    return (0.0, 1.0) if odds else (-1e30, 0.0 if logs else 1e30)


def _blank_rows(entries: pa.ChunkedArray, width: int, logs: bool = False) -> int:
    """Rows of a column of lists that are null, or hold a number that is missing (log-probabilities: nothing else)."""
    missing = np.isnan(pc.list_flatten(entries).to_numpy().reshape(-1, width))
    return entries.null_count + int((missing.all(1) if logs else missing.any(1)).sum())


def _check_classes(where: str, entries: pa.ChunkedArray, num_classes: int) -> None:
    _checks.classes(where, span(entries) if pa.types.is_integer(entries.type) else entries.type, num_classes)


def numbers_in(entries: pa.ChunkedArray) -> pa.ChunkedArray:
    """All numbers of a column, of its lists where it holds such, without NaN."""
    flat = pc.list_flatten(entries) if hasattr(entries.type, "value_type") else entries
    return flat.filter(pc.invert(pc.is_nan(flat))) if pa.types.is_floating(flat.type) else flat


def label_column(dataset: Dataset) -> str | None:
    """The name of its column of labels, where it has one."""
    return next((c for c in (LABELS, *LABEL_ALIASES) if c in dataset.column_names), None)


def labelled(name: str, splits: Any) -> Iterator[tuple[str, Dataset, str]]:
    """A data set, or each of a dictionary of them, with what to call it and its column of labels, where it has one."""
    for key, split in splits.items() if isinstance(splits, dict) else [("", splits)]:
        column = label_column(split) if isinstance(split, Dataset) else None
        if column is not None:
            yield name + f"[{key!r}]" * bool(key), split, column


def clean_rows_and_labels(dataset: Dataset, device: torch.device) -> tuple[Dataset, Tensor]:
    """The clean rows without `row_id`, and their labels: classes `[M]`, or numbers `[M]` or `[M, C]`."""
    rows = dataset.select_columns([name for name in dataset.column_names if name != ROW_ID])
    return rows, torch.as_tensor(rows[label_column(rows)][:], device=device)


def check_labelled(dataset: Dataset) -> str:
    """The clean rows' column of labels.

    Raises:
        ValueError: there is none.
    """
    column = label_column(dataset)
    if column is None:
        raise ValueError(
            f"`clean_dataset`: expected a column 'label', found {_checks.few(dataset.column_names)}. Rename the "
            "column of the label."
        )
    return column


def _check_clean(dataset: Dataset, num_classes: int, names: Sequence[str]) -> None:
    column = check_labelled(dataset)
    classes = values_of(dataset, column)
    if classes.null_count:
        raise ValueError(
            f"`clean_dataset`: expected a class on every row, found {classes.null_count} rows without. Drop them: what "
            "steers must be clean."
        )
    _check_classes(f"`clean_dataset`: column {column!r}", classes, num_classes)
    unseen = sorted(set(range(num_classes)) - set(classes.unique().to_pylist()))
    if unseen:
        names = getattr(dataset.features[column], "names", None) or names
        missing = [names[c] if c < len(names) else c for c in unseen]
        warnings.warn(
            f"`clean_dataset`: no clean row of class(es) {missing} among {len(classes)}: whoever names them will "
            "seem wrong. Add a few rows of every class.",
            stacklevel=5,
        )


def values_of(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """A whole column."""
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def span(values: pa.ChunkedArray) -> tuple[int, int]:
    """Least and greatest; (0, 0) of nothing."""
    found = pc.min_max(values).as_py()
    return (0, 0) if found["min"] is None else (found["min"], found["max"])


def weights_dataset(ids: Tensor, weights: Tensor, sources: Sequence[str]) -> Dataset:
    """Weights `[rows, K]` as a data set: `row_id` and one float column per source, NaN as null."""
    values = weights.float().numpy()
    columns = {name: pa.array(values[:, k], mask=np.isnan(values[:, k])) for k, name in enumerate(sources)}
    return Dataset(pa.table({ROW_ID: ids.numpy(), **columns}))
