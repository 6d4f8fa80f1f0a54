"""Cross-entropy to any column that holds a class or a distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss, expected_tangent


@dataclass(frozen=True)
class CrossEntropy(Loss):
    r"""Cross-entropy of the student to a label: hard or soft, human or machine.

    $$\ell_i = -v_i \sum_c w_c\, q_{ic} \log \mathrm{softmax}(z_i)_c$$

    with $q_i$ the one-hot label (smoothed by $s$: $(1-s)\,q + s/C$) or the distribution in `column`, and $v_i = 1$
    unless `weight_column` says otherwise.

    Args:
        column: integers `[N]` (a class) or floats `[N, C]` (a distribution). Any annotator is a
            column: a crowd worker, an old model's predictions, an LLM, a label model's posterior.
        ignore_index: class that means "no label for this row" (also: a row of NaN).
        label_smoothing: $s$ in [0, 1).
        class_weights: $w_c$, one per class; rows are *not* renormalised by the sum of weights,
            so a row's loss does not depend on the rest of its batch.
        weight_column: a column of numbers $v_i \ge 0$ `[N]` ("": all are 1); where it is 0 the row says nothing. As
            class weights, they are not divided by their sum.

    Returns:
        `[N]`, in nats; 0 where the row has no label.

    Raises:
        ValueError: `label_smoothing` outside [0, 1), or a negative class weight.

    Example:
        >>> batch = {"crowd": torch.tensor([[0.5, 0.5], [1.0, 0.0]])}
        >>> CrossEntropy("crowd")(Outputs(logits=torch.tensor([[0.0, 0.0], [2.0, 0.0]])), batch)  # shape: [2]
        tensor([0.6931, 0.1269])
    """

    column: str = "labels"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    weight_column: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"`label_smoothing`: expected a number in [0, 1), found {self.label_smoothing}.")
        if self.class_weights is None:
            return
        weights = tuple(float(w) for w in self.class_weights)  # of a list, an array or a tensor
        if not weights or min(weights) < 0:
            raise ValueError(f"`class_weights`: expected non-negative numbers, found {self.class_weights}.")
        object.__setattr__(self, "class_weights", weights)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, self.weight_column) if self.weight_column else (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        target = batch[self.column]
        covered = ~target.isnan().any(-1) if target.is_floating_point() else target != self.ignore_index
        return covered & (batch[self.weight_column] > 0) if self.weight_column in batch else covered

    def _weighted(self, rows: Tensor, batch: Batch) -> Tensor:
        """Rows `[N, ...]` times their weight."""
        if not self.weight_column:
            return rows
        given = batch[self.weight_column]
        weights = torch.where(given > 0, given, 0).to(rows.dtype)
        return rows * weights.view(-1, *[1] * (rows.dim() - 1))

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits, target = outputs.logits, batch[self.column]
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if not target.is_floating_point():
            # the kernel `Trainer`'s own loss uses: all-fixed one-hot weights stay bit-equal to it
            rows = F.cross_entropy(
                logits,
                target,
                weight,
                reduction="none",
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
            )
            return self._weighted(rows, batch)
        mask = self.mask(batch)
        target = torch.where(mask[:, None], target, 0.0).to(logits.dtype)
        rows = F.cross_entropy(logits, target, weight, reduction="none", label_smoothing=self.label_smoothing)
        return self._weighted(torch.where(mask, rows, 0.0), batch)  # smoothing gives a row of zeros a target

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        target, covered = batch[self.column], self.mask(batch)
        if target.is_floating_point():
            return torch.where(covered[:, None], target, 0.0)
        return F.one_hot(torch.where(covered, target, 0), num_classes) * covered[:, None].float()

    def soft_target(self, batch: Batch, num_classes: int) -> tuple[float, Tensor] | None:
        if self.class_weights is not None:
            return None
        target = self.target(batch, num_classes)
        if self.label_smoothing:
            target = target + self.label_smoothing * (1 / num_classes - target) * self.mask(batch)[:, None]
        return 1.0, self._weighted(target, batch)

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor | None:
        if self.class_weights is not None:
            return None
        mask, num_classes = self.mask(batch), tangent.shape[1]
        target = self.target(batch, num_classes).to(tangent.dtype)
        wanted = target + self.label_smoothing * (1 / num_classes - target)
        moves = wanted.sum(-1) * expected_tangent(outputs.logits, tangent) - (wanted * tangent).sum(-1)
        return self._weighted(moves * mask, batch)
