"""Labels that are no single class: a number (regression), or several classes at once (multi-label)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss


@dataclass(frozen=True)
class SquaredError(Loss):
    r"""Squared error of the student's number(s) to a label's.

    $$\ell_i = \tfrac1C \sum_c (z_{ic} - y_{ic})^2$$

    Args:
        column: floats `[N]` (C = 1) or `[N, C]`.
        ignore_value: number that means "no label for this row" (also: NaN); what the collator writes for `None`.

    Returns:
        `[N]`, in squared units of the label; 0 where the row has none.

    Raises:
        ValueError: at the first batch, labels of another width than the student's logits.

    Example:
        >>> batch = {"labels": torch.tensor([1.0, float("nan")])}
        >>> SquaredError()(Outputs(logits=torch.tensor([[3.0], [0.0]])), batch)  # shape: [2]
        tensor([4., 0.])
    """

    column: str = "labels"
    ignore_value: float = -100.0

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        target = _by_class(batch[self.column])
        return ~(target.isnan() | (target == self.ignore_value)).any(1)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        target, mask = _matching(batch[self.column], outputs.logits, self.column), self.mask(batch)
        rows = (outputs.logits - torch.where(mask[:, None], target, 0.0)).square().mean(1)
        return torch.where(mask, rows, 0.0)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    r"""Each class a yes or a no of its own: sigmoid cross-entropy, multi-label.

    $$\ell_i = -\frac{1}{|K_i|} \sum_{c \in K_i} y_{ic} \log \sigma(z_{ic}) + (1-y_{ic}) \log \sigma(-z_{ic})$$

    over the classes $K_i$ whose answer is known.

    Args:
        column: `[N, C]`, 1 or 0 (or a probability); NaN or a negative number: not known.

    Returns:
        `[N]`, in nats; 0 where nothing is known.

    Raises:
        ValueError: at the first batch, labels of another width than the student's logits.

    Example:
        >>> batch = {"labels": torch.tensor([[1.0, -1.0], [0.0, 1.0]])}
        >>> BinaryCrossEntropy()(Outputs(logits=torch.tensor([[0.0, 5.0], [0.0, 2.0]])), batch)  # shape: [2]
        tensor([0.6931, 0.4100])
    """

    column: str = "labels"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def _known(self, batch: Batch) -> Tensor:
        return _by_class(batch[self.column]) >= 0  # NaN is not

    def mask(self, batch: Batch) -> Tensor:
        return self._known(batch).any(1)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        target, known = _matching(batch[self.column], outputs.logits, self.column), self._known(batch)
        each = F.binary_cross_entropy_with_logits(outputs.logits, torch.where(known, target, 0.0), reduction="none")
        return torch.where(known, each, 0.0).sum(1) / known.sum(1).clamp_min(1)


def _by_class(target: Tensor) -> Tensor:
    return target[:, None] if target.dim() == 1 else target


def _matching(target: Tensor, logits: Tensor, column: str) -> Tensor:
    target = _by_class(target)
    if target.shape != logits.shape:
        raise ValueError(
            f"`column`: expected {column!r} to hold {logits.shape[1]} number(s) a row, one per output of the student, "
            f"found {target.shape[1]}. Check the column, or the model's `num_labels`."
        )
    return target.to(logits.dtype)
