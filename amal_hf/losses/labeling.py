"""Losses over Snorkel-style votes `[N, M]`: -1 abstains, 0..C-1 names a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss, expected_tangent

ABSTAIN = -1


@dataclass(frozen=True)
class LabelingFunctions(Loss):
    r"""One source per labeling function: its vote as a label, masked where it abstains.

    $$\ell_{ij} = -\log \mathrm{softmax}(z_i)_{\Lambda_{ij}} \quad\text{where } \Lambda_{ij} \ne -1$$

    Args:
        column: votes `[N, M]`, integers; -1 abstains.
        names: names of the M functions, for logs and the trust table (default: 0..M-1).

    Returns:
        `[N, M]`, in nats; 0 where the function abstains.

    Raises:
        ValueError: `names` of another length than the votes.

    Example:
        >>> batch = {"weak_labels": torch.tensor([[0, -1, 1]])}
        >>> LabelingFunctions()(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1, 3]
        tensor([[0.6931, 0.0000, 0.6931]])

    References:
        Ratner et al. (2017), "Snorkel", section 2 (votes); docs/method.md.
    """

    column: str = "weak_labels"
    names: tuple[str, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def vote_columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        return batch[self.column] != ABSTAIN

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        votes = batch[self.column]
        log_p = F.log_softmax(outputs.logits, -1).gather(1, votes.clamp_min(0))
        return torch.where(self.mask(batch), -log_p, 0.0)

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        return F.one_hot(batch[self.column].clamp_min(0), num_classes) * self.mask(batch)[..., None].float()

    def soft_target(self, batch: Batch, num_classes: int) -> tuple[float, Tensor]:
        return 1.0, self.target(batch, num_classes)

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor:
        named = tangent.gather(1, batch[self.column].clamp_min(0))
        return (expected_tangent(outputs.logits, tangent)[:, None] - named) * self.mask(batch)

    def sources(self, name: str, example: Mapping[str, Any]) -> tuple[str, ...]:
        count = len(example[self.column])
        names = self.names or tuple(str(j) for j in range(count))
        if len(names) != count:
            raise ValueError(f"`names`: expected {count} names, one per vote in {self.column!r}; found {len(names)}.")
        return tuple(f"{name}/{each}" for each in names)


@dataclass(frozen=True)
class MajorityVote(Loss):
    r"""Cross-entropy to the distribution of votes on the row; ties share.

    $$q_{ic} = \tfrac{1}{m_i}\,|\{j : \Lambda_{ij} = c\}|_{\text{tied maxima}}, \qquad
      \ell_i = -\textstyle\sum_c q_{ic}\log \mathrm{softmax}(z_i)_c$$

    Args:
        column: votes `[N, M]`, integers; -1 abstains.

    Returns:
        `[N]`, in nats; 0 where no function votes.

    Example:
        >>> batch = {"weak_labels": torch.tensor([[0, 0, 1], [-1, -1, -1]])}
        >>> MajorityVote()(Outputs(logits=torch.tensor([[1.0, 0.0], [0.0, 0.0]])), batch)  # shape: [2]
        tensor([0.3133, 0.0000])

    References:
        Snorkel's `MajorityLabelVoter`, whose ties are resolved here by sharing, not at random.
    """

    column: str = "weak_labels"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def vote_columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        return (batch[self.column] != ABSTAIN).any(-1)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        log_p = F.log_softmax(outputs.logits, -1)
        return (self.target(batch, log_p.shape[-1]).to(log_p.dtype) * -log_p).sum(-1)

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        votes = batch[self.column]
        counts = (F.one_hot(votes.clamp_min(0), num_classes) * (votes != ABSTAIN)[..., None]).sum(1)
        winners = (counts == counts.amax(-1, keepdim=True)) & self.mask(batch)[:, None]
        return winners.float() / winners.sum(-1, keepdim=True).clamp_min(1)

    def soft_target(self, batch: Batch, num_classes: int) -> tuple[float, Tensor]:
        return 1.0, self.target(batch, num_classes)

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor:
        named = self.target(batch, tangent.shape[1]).to(tangent.dtype)
        return named.sum(-1) * expected_tangent(outputs.logits, tangent) - (named * tangent).sum(-1)
