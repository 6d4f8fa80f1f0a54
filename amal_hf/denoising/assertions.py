"""What each source asserts about the class of every row, as the label model reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from amal_hf._types import LABELS, Batch
from amal_hf.losses import Loss

logger = logging.get_logger(__name__)

AT_ONCE = 4096  # rows whose dense targets [n, K, C] are held at a time
HARD = 0.999  # a distribution that gives so much to one class names it

Pair = tuple[Tensor, Tensor]
"""Of the training rows and of the clean rows."""


@dataclass
class Assertions:
    """What sources assert of the training rows and, where these have the columns too, of the clean rows.

    Args:
        votes: source -> classes named, `[N, M]` and `[rows, M]`; -1 abstains. One entry for each block.
        distributions: source -> log-probabilities, `[N, C]` and `[rows, C]`; NaN where it abstains.
        labels: source -> classes `[N]`, -1 none, of sources that the clean rows cannot judge: how often they err is
            learned from the other rows.
        unused: sources that assert no class.
    """

    votes: dict[str, Pair] = field(default_factory=dict)
    distributions: dict[str, Pair] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def read_assertions(
    losses: Mapping[str, Loss],
    train: Dataset,
    clean: Dataset,
    num_classes: int,
    collate: Callable[[list[dict[str, Any]]], Batch],
) -> Assertions:
    """The assertions of all sources; one that no expert can use is named in a warning.

    Args:
        losses: name -> source.
        train, clean: rows with the columns that the sources read.
        num_classes: C.
        collate: rows -> the sources' columns as tensors.
    """
    found, unjudged = Assertions(), []
    for name, loss in losses.items():
        asserted = _asserted(loss, train, num_classes, collate)
        if asserted is None:
            found.unused.append(name)
            continue
        judged = LABELS not in loss.columns and {*loss.columns} <= {*clean.column_names}
        theirs = _asserted(loss, clean, num_classes, collate) if judged else None
        if theirs is None or not theirs.sum():
            if LABELS not in loss.columns:
                unjudged.append(name)
            for column, block in enumerate(_named(asserted).unbind(1)):
                found.labels[f"{name}/{column}"] = block
        elif asserted.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"`{loss.columns[0]}`: expected {asserted.shape[1]} votes a row on clean rows, as in train_dataset, "
                f"found {theirs.shape[1]}. Apply one file of functions to both."
            )
        elif _hard(asserted) and _hard(theirs):
            found.votes[name] = (_named(asserted), _named(theirs))
        elif asserted.shape[1] == 1:
            found.distributions[name] = (_log(asserted[:, 0]), _log(theirs[:, 0]))
        else:
            for k, (ours, its) in enumerate(zip(asserted.unbind(1), theirs.unbind(1), strict=True)):
                found.distributions[f"{name}/{k}"] = (_log(ours), _log(its))
    if unjudged:
        logger.warning(
            f"`clean_dataset`: expected the columns of {unjudged}, to see how often they are right; found none with "
            "values. What they name is taken for labels that may be wrong. Ask them about the clean rows as well."
        )
    if found.unused:
        logger.warning(
            f"`losses`: method 'denoise' corrects labels by what sources assert, and {found.unused} assert no class: "
            "they are trained on at their start weight. Give a source of your own a `target`, or drop it."
        )
    return found


def _asserted(loss: Loss, rows: Dataset, num_classes: int, collate: Callable[..., Batch]) -> Tensor | None:
    """The distribution asserted, `[N, k, C]`, zeros where the source abstains; None where it never asserts any."""
    names = {LABELS, "label", "label_ids"} if LABELS in loss.columns else {*loss.columns}
    rows = rows.select_columns([c for c in rows.column_names if c in names])
    if not rows.column_names:
        return None
    parts = []
    for batch in DataLoader(rows, AT_ONCE, collate_fn=collate):
        target = loss.target(batch, num_classes)
        if target is None:
            return None
        parts.append(target.float().reshape(len(target), -1, num_classes))
    return torch.cat(parts)


def _hard(asserted: Tensor) -> bool:
    """Whether every assertion names one class."""
    return bool(((asserted.sum(-1) == 0) | (asserted.amax(-1) >= HARD)).all())


def _named(asserted: Tensor) -> Tensor:
    """The class named, `[N, k]`; -1 where there is none."""
    return torch.where(asserted.sum(-1) > 0, asserted.argmax(-1), -1)


def _log(asserted: Tensor) -> Tensor:
    """Log-probabilities, `[N, C]`; NaN where nothing is asserted."""
    covered = asserted.sum(-1, keepdim=True) > 0
    return torch.where(covered, asserted.double().clamp_min(1e-9).log().log_softmax(-1), torch.nan)
