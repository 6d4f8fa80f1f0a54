"""Rows of a `datasets.Dataset`: identity, tokens, the leak guard, and batches that carry the sources."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from amal_hf.metagrad.tasks import SINGLE_LABEL

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


class _Row(dict[str, Any]):
    """What the model reads of a row; label and sources' columns are found by their names, and not listed.

    A collator that pads and stacks whatever it finds leaves them alone, and one of the user's that asks for them can.
    """

    def __init__(self, row: Mapping[str, Any], given: Mapping[str, Any], hidden: Sequence[str]) -> None:
        super().__init__({name: value for name, value in row.items() if name not in hidden})
        self._all = {**given, **row}

    def __missing__(self, name: str) -> Any:
        return self._all[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As `self[name]`, `default` where there is no such column."""
        return self._all.get(name, default)


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
        self.inner, self.columns, self.task = inner, tuple(columns), task
        lists = {c: np.asarray(example[c]) for c in columns if c in example and np.ndim(example[c]) > 0}
        self.blanks = {
            c: np.full(v.shape, -1) if c in votes else np.full(v.shape, np.nan, np.float32) for c, v in lists.items()
        }

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        renamed = [{LABELS if k in LABEL_ALIASES else k: v for k, v in row.items()} for row in features]
        if self.task == SINGLE_LABEL:  # no label is -100, also where no loss reads it
            renamed = [{**row, LABELS: -100} if LABELS in row and row[LABELS] is None else row for row in renamed]
        batch = dict(self.inner([_Row(row, given, self.columns) for row, given in zip(renamed, features, strict=True)]))
        for name, values in batch.items():
            if isinstance(values, Tensor) and values.dim() > 0 and len(values) != len(features):
                raise ValueError(
                    f"`data_collator`: expected {len(features)} rows in {name!r}, as many as it was given, found "
                    f"{len(values)}. Drop rows before training, with `train_dataset.filter`."
                )
        batch |= self.sources(renamed)
        if self.task != SINGLE_LABEL and LABELS in batch:
            batch[LABELS] = batch[LABELS].float()
        return batch

    def sources(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The sources' columns alone, without tokens."""
        renamed = [{LABELS if k in LABEL_ALIASES else k: v for k, v in row.items()} for row in features]
        return {
            c: self._stack([row.get(c) for row in renamed], self._blank(c, renamed))
            for c in self.columns
            if c in renamed[0]
        }

    def _blank(self, column: str, rows: list[dict[str, Any]]) -> np.ndarray | None:
        if column not in self.blanks:  # a column that was made since
            found: Any = next((row[column] for row in rows if row.get(column) is not None), None)
            return None if np.ndim(found) == 0 else np.full(np.shape(found), np.nan, np.float32)
        return self.blanks[column]

    def _stack(self, values: list[Any], blank: np.ndarray | None) -> Tensor:
        if blank is None:
            return torch.as_tensor([-100 if v is None else v for v in values])
        return torch.as_tensor(np.asarray([blank if v is None else v for v in values], dtype=blank.dtype))
