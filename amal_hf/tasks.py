"""What the head does: one class a row, several, or numbers; and which settings and sources fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers.utils import logging

from amal_hf import _checks
from amal_hf.data.columns import (
    LABEL_ALIASES,
    LABELS,
    check_asserted,
    check_labelled,
    labelled,
    numbers_in,
    span,
    values_of,
)
from amal_hf.losses import (
    Agreement,
    BinaryCrossEntropy,
    CrossEntropy,
    Distillation,
    Entropy,
    FromVotes,
    LabelingFunctions,
    Loss,
    MajorityVote,
    PosteriorLabel,
    SquaredError,
    Unlabelled,
)
from amal_hf.metagrad.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS

logger = logging.get_logger(__name__)

OF_ONE_CLASS = (Agreement, CrossEntropy, Entropy, FromVotes, LabelingFunctions, MajorityVote, PosteriorLabel,
                Unlabelled)  # fmt: skip
"""Losses that read the logits as odds between classes of which one is right."""

NUMBERS = ("int", "uint", "float", "double", "halffloat")
"""How Arrow types of numbers begin."""

IN_PLACE = {
    REGRESSION: "SquaredError(), Distillation(kind='mse')",
    MULTI_LABEL: "BinaryCrossEntropy(), Distillation(kind='sigmoid')",
}


def resolve_task(config: Any, losses: Mapping[str, Loss], splits: Mapping[str, Any]) -> str:
    """The task, after every column was checked against it.

    Args:
        config: the model's.
        losses: name -> source.
        splits: train, clean and eval, each a data set or nothing.

    Raises:
        ValueError: a source, a setting or a column does not fit the task.
    """
    task, train, clean = task_of(config, losses.values(), splits), splits["train"], splits["clean"]
    _check_numbers_of(train, losses.values(), config.num_labels)
    if task == SINGLE_LABEL:
        check_asserted(train, clean, losses.values(), config.num_labels, splits["eval"], _names(config))
        return task
    _check_losses(task, losses)
    check_asserted(train, None, losses.values(), config.num_labels)
    if clean is not None:
        check_labelled(clean)
    for name in ("clean", "eval"):
        for where, split, column in labelled(f"{name}_dataset", splits[name]):
            _check_numbers(f"`{where}`: column {column!r}", values_of(split, column), config.num_labels, task)
    return task


def _names(config: Any) -> list[str]:
    """The model's names of its classes, in order."""
    return [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())]


def task_of(config: Any, losses: Iterable[Loss], splits: Mapping[str, Any]) -> str:
    """`config.problem_type`; where it is unset what Transformers would infer from the labels, before it sees any.

    Raises:
        ValueError: a task nobody knows.

    Example:
        >>> from types import SimpleNamespace
        >>> task_of(SimpleNamespace(problem_type=None, num_labels=1), [], {})
        'regression'
    """
    given = getattr(config, "problem_type", None)
    if given is not None:
        _checks.one_of("problem_type", given, TASKS)
        return given
    if config.num_labels == 1:
        return REGRESSION
    judges = [found for name in ("clean", "eval") for found in labelled(name, splits.get(name))]
    vectors = any(hasattr(split.data.schema.field(column).type, "value_type") for _, split, column in judges)
    several = vectors or any(isinstance(loss, BinaryCrossEntropy) for loss in losses)
    return MULTI_LABEL if several else SINGLE_LABEL


def _check_losses(task: str, losses: Mapping[str, Loss]) -> None:
    for name, loss in losses.items():
        between_classes = isinstance(loss, Distillation) and loss.kind not in ("mse", "sigmoid")
        if between_classes or isinstance(loss, OF_ONE_CLASS):
            raise ValueError(
                f"`losses`: expected losses for a {task} head, e.g. {IN_PLACE[task]}; found {loss!r} as {name!r}, for "
                "one class a row. Choose another, or set the model's `problem_type`."
            )


def _check_numbers_of(train: Any, losses: Iterable[Loss], num_classes: int) -> None:
    """The columns of the losses that read numbers; streams pass unseen."""
    if not isinstance(train, Dataset):
        return
    names = {LABELS if name in LABEL_ALIASES else name: name for name in train.column_names}
    for loss in losses:
        if isinstance(loss, (SquaredError, BinaryCrossEntropy)):
            task, column = REGRESSION if isinstance(loss, SquaredError) else MULTI_LABEL, names[loss.column]
            where = f"`train_dataset`: column {column!r}"
            _check_numbers(where, values_of(train, column), num_classes, task, gaps=True)


def _check_numbers(where: str, values: pa.ChunkedArray, num_classes: int, task: str, gaps: bool = False) -> None:
    """A number a row, or C of them; from 0 to 1 for several classes. With `gaps` some are not known."""
    listed, single = hasattr(values.type, "value_type"), task == REGRESSION and num_classes == 1
    if not (listed or single) or not str(getattr(values.type, "value_type", values.type)).startswith(NUMBERS):
        wanted = "a number" if single else f"a list of {num_classes} numbers"
        raise ValueError(
            f"{where}: expected {wanted} in every row, as {task} has them, found values of type {values.type}. Convert "
            "the column, or set the model's `problem_type` and `num_labels`."
        )
    if listed:
        _checks.equal_width(where, *span(pc.list_value_length(values)), num_classes)
    numbers = numbers_in(values)
    missing = len(values) * (num_classes if listed else 1) - (len(numbers) - numbers.null_count)
    if missing and not gaps:
        raise ValueError(
            f"{where}: expected every number, found {missing} missing (None or NaN). Drop these rows: what steers, or "
            "is measured against, must be known."
        )
    low, high = span(numbers)
    if task == REGRESSION:
        _checks.within(where, low, high, -1e30, 1e30)
    else:  # a negative answer is one that is not known
        _checks.within(where, max(low, 0) if gaps else low, high, 0.0, 1.0)
