"""A teacher's outputs in the data's order of classes, or a clear word on why they cannot be."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Value

GENERIC = re.compile(r"(LABEL_)?\d+")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def class_order(teacher: str, id2label: Mapping[int, str], classes: Sequence[str]) -> list[int]:
    """For each class of the data, the index of the teacher's logit: `logits[:, order]` `[N, C]` is in the data's order.

    Names decide, whatever their case; names that say nothing (LABEL_0, "0") are taken in the order they stand, with a
    warning.

    Raises:
        ValueError: other names, or another number of them; with both maps.

    Example:
        >>> class_order("t", {0: "POS", 1: "NEG"}, ["neg", "pos"])
        [1, 0]
    """
    theirs, ours = [str(id2label[i]) for i in range(len(id2label))], [str(c) for c in classes]
    for fold in (str, lambda name: name.strip().casefold()):
        place = {fold(name): i for i, name in enumerate(theirs)}
        if len(place) == len(theirs) and set(place) == {fold(c) for c in ours} and len(ours) == len(theirs):
            return [place[fold(c)] for c in ours]
    maps = f"the teacher's classes {dict(enumerate(theirs))}, the data's {dict(enumerate(ours))}"
    generic = all(map(GENERIC.fullmatch, theirs)) or all(map(GENERIC.fullmatch, ours))
    if generic and len(theirs) == len(ours):
        warnings.warn(
            f"`teacher`: {teacher!r} and the data name their classes differently and are taken to mean the same in the "
            f"same order: {maps}. If so, silence this with names in `id2label`; if not, the teacher teaches nonsense.",
            UserWarning,
            stacklevel=2,
        )
        return list(range(len(ours)))
    raise ValueError(
        f"`teacher`: expected {teacher!r} to name the classes of the data, found {maps}. Set `id2label` in its "
        "config.json to the data's names, or take a teacher of these classes."
    )


def output_order(teacher: str, config: Any, label: Any, classes: Sequence[str] | None = None) -> list[int]:
    """`class_order`, after checking that the teacher does the data's task.

    Args:
        teacher: its name, for messages.
        config: its configuration: `problem_type`, `num_labels`, `id2label`.
        label: the data's label feature: a `ClassLabel` (one class a row), a list (several), a float (regression);
            None, or anything else: not known.
        classes: the classes' names where `label` has none.

    Returns:
        indices of the teacher's outputs in the data's order, C of them.

    Raises:
        ValueError: another task, other classes.
    """
    task = _task(label)
    found = config.problem_type or (REGRESSION if config.num_labels == 1 else None)
    # `problem_type` is often unset, and then any number of outputs above one may be single- or multi-label
    if (task is not None and (found or task) != task) or (task == REGRESSION and config.num_labels != 1):
        raise ValueError(
            f"`teacher`: expected a teacher for the data's task, {task}, found that {teacher!r} does "
            f"{found or 'classification'} with {config.num_labels} output(s). Take another teacher or label column, or "
            "set the right `problem_type` in its config.json."
        )
    if task == REGRESSION:
        return [0]
    named = getattr(label, "feature", label)
    names = named.names if isinstance(named, ClassLabel) else classes
    return list(range(config.num_labels)) if names is None else class_order(teacher, config.id2label, names)


def _task(label: Any) -> str | None:
    if isinstance(label, ClassLabel):
        return SINGLE
    if isinstance(label, Value):
        return REGRESSION if label.dtype.startswith("float") else None
    return MULTI if hasattr(label, "feature") else None
