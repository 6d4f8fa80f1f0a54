"""Losses without a target of their own: confidence on rows that no source covers, agreement with a posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss
from amal_hf.losses.labeling import ABSTAIN


@dataclass(frozen=True)
class Entropy(Loss):
    r"""Entropy of the student's prediction (Grandvalet & Bengio, 2004).

    $$\ell_i = -\sum_c p_{ic}\log p_{ic}, \qquad p_i = \mathrm{softmax}(z_i)$$

    Args:
        uncovered: votes column `[N, M]`; the loss then applies only to rows where every function
            abstains. None: to all rows.

    Returns:
        `[N]`, in nats.

    Example:
        >>> Entropy()(Outputs(logits=torch.zeros(1, 2)), {"labels": torch.zeros(1)})  # shape: [1]
        tensor([0.6931])

    References:
        Grandvalet & Bengio (2004), equation 5; SPEAR's L2 (Maheshwari et al., 2021).
    """

    uncovered: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.uncovered is None else (self.uncovered,)

    @property
    def vote_columns(self) -> tuple[str, ...]:
        return self.columns

    def mask(self, batch: Batch) -> Tensor:
        if self.uncovered is not None:
            return (batch[self.uncovered] == ABSTAIN).all(-1)
        rows = next(iter(batch.values()))
        return torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        log_p = F.log_softmax(outputs.logits, -1)
        return torch.where(self.mask(batch), -(log_p.exp() * log_p).sum(-1), 0.0)


@dataclass(frozen=True)
class Agreement(Loss):
    r"""Divergence of the student from a given posterior, in the student's direction.

    $$\ell_i = \mathrm{KL}(p_i \,\|\, P_i) = \sum_c p_{ic}(\log p_{ic} - \log P_{ic})$$

    Args:
        column: posterior `[N, C]`, probabilities; a row of NaN is not covered.

    Returns:
        `[N]`, in nats.

    Example:
        >>> batch = {"posterior": torch.tensor([[0.5, 0.5]])}
        >>> Agreement("posterior")(Outputs(logits=torch.tensor([[1.0, 0.0]])), batch)  # shape: [1]
        tensor([0.1109])

    References:
        SPEAR's L6 (Maheshwari et al., 2021, arXiv 2008.09887, section 3).
    """

    column: str = "posterior"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        return ~batch[self.column].isnan().any(-1)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        log_p = F.log_softmax(outputs.logits, -1)
        log_q = torch.nan_to_num(batch[self.column], nan=1.0).clamp_min(1e-12).log().to(log_p.dtype)
        return torch.where(self.mask(batch), (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        return torch.where(self.mask(batch)[:, None], batch[self.column], 0.0)
