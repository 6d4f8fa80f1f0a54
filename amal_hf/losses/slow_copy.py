"""The student's own slow copy (a moving average of its parameters) as a source: self-training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import SLOW_LOGITS, Batch, Outputs
from amal_hf.losses.base import Loss


@dataclass(frozen=True)
class SlowCopy(Loss):
    r"""Cross-entropy to what the student's slow copy says of the row, covered by other sources or not.

    $$\ell_i = -\sum_c \mathrm{softmax}(\bar z_i)_c \log\mathrm{softmax}(z_i)_c, \qquad
      \bar z_i = f(x_i; \bar\theta), \quad \bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$$

    The trainer keeps $\bar\theta$ where this source is among its losses and writes $\bar z$ into the batch; no
    column of the data set is read. Before `AMALConfig.slow_start` the copy says nothing (mask False).

    Returns:
        `[N]`, in nats; 0 while the copy says nothing.

    Example:
        >>> batch = {"input_ids": torch.zeros(1, 3), "slow_logits": torch.tensor([[2.0, 0.0]])}
        >>> SlowCopy()(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1]
        tensor([0.6931])

    References:
        Tarvainen & Valpola (2017), "Mean teachers", equation 2; weighted per row here as any other source.
    """

    anywhere = True

    columns: tuple[str, ...] = ()  # a field stands in for the property

    def mask(self, batch: Batch) -> Tensor:
        rows = next(iter(batch.values()))
        return torch.full((rows.shape[0],), SLOW_LOGITS in batch, dtype=torch.bool, device=rows.device)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        if SLOW_LOGITS not in batch:
            return outputs.logits.sum(1) * 0.0
        return F.cross_entropy(outputs.logits, batch[SLOW_LOGITS].softmax(1), reduction="none")

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        if SLOW_LOGITS not in batch:
            rows = next(iter(batch.values()))
            return torch.zeros(rows.shape[0], num_classes, device=rows.device)
        return batch[SLOW_LOGITS].softmax(1)
