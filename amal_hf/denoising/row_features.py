"""What is known of rows before training, as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor


@dataclass(frozen=True)
class RowFeatures:
    """What experts look at, of rows in their order.

    Args:
        features: the encoder's, `[N, H]`, of unit length.
        votes: `[N, K]`, -1 abstains; K may be 0.
        logits: a teacher's column -> `[N, C]`, NaN where it abstains.
    """

    features: Tensor
    votes: Tensor
    logits: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> RowFeatures:
        return RowFeatures(self.features[rows], self.votes[rows], {name: t[rows] for name, t in self.logits.items()})


def votes_of(column: str, rows: Dataset, width: int) -> Tensor:
    """A column of votes, `[N, K]`; -1 where it is null, and everywhere if there is none."""
    said: Sequence[Any] = rows[column][:] if column in rows.column_names else [None] * len(rows)
    return torch.as_tensor([[-1] * width if row is None else row for row in said]).reshape(len(rows), width)


def logits_of(column: str, rows: Dataset, num_classes: int) -> Tensor:
    """A teacher's column as it stands, `[N, C]`; NaN where it is null."""
    silent = [math.nan] * num_classes
    return torch.as_tensor([silent if row is None else row for row in rows[column]], dtype=torch.double)
