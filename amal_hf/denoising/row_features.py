"""What is known of rows before training, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class RowFeatures:
    """Features, votes and distributions of rows in their order.

    Args:
        features: the encoder's, `[N, H]`, of unit length.
        votes: source -> classes named, `[N, M]`, -1 abstains.
        logits: source -> log-probabilities `[N, C]`, NaN where it abstains.
    """

    features: Tensor
    votes: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor) -> RowFeatures:
        votes, logits = ({name: t[rows] for name, t in block.items()} for block in (self.votes, self.logits))
        return RowFeatures(self.features[rows], votes, logits)
