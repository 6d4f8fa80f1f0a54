"""What each source asserts about the class of every row, as the label model reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from amal_hf._types import LABELS, Batch
from amal_hf.denoising.experts import one_hot
from amal_hf.losses import Loss

logger = logging.get_logger(__name__)

AT_ONCE = 512  # rows whose dense targets [n, K, C] are held at a time
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
        judged = LABELS not in loss.columns and {*_needed(loss)} <= {*clean.column_names}
        theirs = _asserted(loss, clean, num_classes, collate) if judged else None
        if theirs is None or not (theirs.named >= 0).any():
            if LABELS not in loss.columns:
                unjudged.append(name)
            for column, block in enumerate(asserted.named.unbind(1)):
                found.labels[f"{name}/{column}"] = block
        elif asserted.named.shape[1] != theirs.named.shape[1]:
            raise ValueError(
                f"`{loss.columns[0]}`: expected {asserted.named.shape[1]} votes a row on clean rows, as in "
                f"train_dataset, found {theirs.named.shape[1]}. Apply one file of functions to both."
            )
        elif asserted.hard and theirs.hard:
            found.votes[name] = (asserted.named, theirs.named)
        else:
            blocks = [*zip(asserted.blocks(num_classes), theirs.blocks(num_classes), strict=True)]
            for k, (ours, its) in enumerate(blocks):
                found.distributions[name if len(blocks) == 1 else f"{name}/{k}"] = (_log(ours), _log(its))
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


def _needed(loss: Loss) -> list[str]:
    """The columns without which it asserts nothing: how much a row weighs is no assertion."""
    return [c for c in loss.columns if c != getattr(loss, "weight_column", "")]


def _asserted(loss: Loss, rows: Dataset, num_classes: int, collate: Callable[..., Batch]) -> _Asserted | None:
    """What is asserted of all rows; None where the source never asserts a distribution."""
    names = {*loss.columns} | ({"label", "label_ids"} if LABELS in loss.columns else set())
    rows = rows.select_columns([c for c in rows.column_names if c in names])
    if not rows.column_names:
        return None
    parts = []
    for batch in DataLoader(rows, AT_ONCE, collate_fn=collate):
        target = loss.target(batch, num_classes)
        if target is None:
            return None
        parts.append(_Asserted.of(target.float().reshape(len(target), -1, num_classes)))
    return _Asserted.joined(parts, num_classes)


@dataclass(frozen=True)
class _Asserted:
    """What k sources of a block assert of N rows.

    Args:
        named: the class, `[N, k]`; -1 where there is none.
        dense: the distribution, `[N, k, C]`, zeros where there is none; None where every assertion names one class, and
            there are several sources: C numbers for each would be held for what one says.
    """

    named: Tensor
    dense: Tensor | None

    @classmethod
    def of(cls, target: Tensor) -> _Asserted:
        hard = target.shape[1] > 1 and _hard(target)
        return cls(_named(target), None if hard else target)

    @classmethod
    def joined(cls, parts: list[_Asserted], num_classes: int) -> _Asserted:
        named = torch.cat([part.named for part in parts])
        if all(part.dense is None for part in parts):
            return cls(named, None)
        dense = [one_hot(p.named, num_classes).float() if p.dense is None else p.dense for p in parts]
        return cls(named, torch.cat(dense))

    @property
    def hard(self) -> bool:
        return self.dense is None or _hard(self.dense)

    def blocks(self, num_classes: int) -> Sequence[Tensor]:
        """The distribution of each source, k times `[N, C]`."""
        if self.dense is None:
            return [one_hot(each, num_classes).float() for each in self.named.unbind(1)]
        return self.dense.unbind(1)


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
