"""Where weights may live: a box per weight, a simplex per row, a mean over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amal_hf._types import Tensors


def box(weights: Tensor, low: float = 1e-7, high: float = 2 - 1e-7) -> Tensor:
    """Clip every weight to [low, high] (AMAL's released code: [1e-7, 2 − 1e-7]).

    Args:
        weights: `[N, K]`.

    Returns:
        `[N, K]`.

    Example:
        >>> box(torch.tensor([[-1.0, 0.5, 3.0]]))  # shape: [1, 3]
        tensor([[1.0000e-07, 5.0000e-01, 2.0000e+00]])
    """
    return weights.clamp(low, high)


def simplex(weights: Tensor, mask: Tensor) -> Tensor:
    r"""Euclidean projection of each row's applicable weights onto $\{w \ge 0, \sum_k w_k = 1\}$.

    $$w_{ik} = \max(u_{ik} - \tau_i, 0), \qquad \textstyle\sum_k w_{ik} = 1$$

    Args:
        weights: u, `[N, K]`.
        mask: `[N, K]`; masked entries stay as they are and take no share.

    Returns:
        `[N, K]`. For K = 2 a step against the gradient followed by this projection is ALM-KD's
        λ ← clip(λ − κ(g₁ − g₀)/2, 0, 1).

    Example:
        >>> simplex(torch.tensor([[0.9, 0.5, 7.0]]), torch.tensor([[True, True, False]]))  # shape: [1, 3]
        tensor([[0.7000, 0.3000, 7.0000]])

    References:
        Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1.
    """
    order = torch.where(mask, weights, -torch.inf).sort(-1, descending=True).values
    rank = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    finite = torch.where(order.isfinite(), order, 0.0)
    threshold = (finite.cumsum(-1) - 1) / rank
    support = (order > threshold).sum(-1, keepdim=True).clamp_min(1)
    tau = threshold.gather(-1, support - 1)
    return torch.where(mask, (weights - tau).clamp_min(0), weights)


def share(weights: Tensor, mask: Tensor) -> Tensor:
    """Scale each row's applicable weights to sum to one. Shapes `[N, K]`; rows without any stay 0."""
    kept = weights * mask
    return kept / kept.sum(-1, keepdim=True).clamp_min(1e-12)


def centred(gradient: Tensor, mask: Tensor, blocks: Sequence[Sequence[int]]) -> Tensor:
    """Subtract each block's mean over the batch where it applies: the block's mean weight then stays.

    Args:
        gradient, mask: `[N, K]`.
        blocks: columns of each block, e.g. all labeling functions together.

    Returns:
        `[N, K]`; 0 where masked.

    Example:
        >>> centred(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1, dtype=torch.bool), [[0]])  # shape: [2, 1]
        tensor([[-1.],
                [ 1.]])
    """
    moved = torch.zeros_like(gradient)
    for columns in blocks:
        block, applies = gradient[:, list(columns)], mask[:, list(columns)]
        mean = (block * applies).sum() / applies.sum().clamp_min(1)
        moved[:, list(columns)] = (block - mean) * applies
    return moved


class MeanWeight:
    """The running mean over rows of Σ_k λ_ik, by which weights are divided so that theirs stays 1.

    Example:
        >>> mean = MeanWeight()
        >>> mean.count(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> mean.commit(lambda sums: sums)
        >>> mean.held(torch.ones(1, 2))  # shape: [1, 2]; rows weigh 2 in the mean
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self) -> None:
        self.mean = torch.zeros(())  # 0: none yet
        self.found = self.known = False  # of any rows; of a step that was trained
        self._sum, self._rows = torch.zeros(()), 0  # of this optimizer step: Σ_ik λ_ik and rows

    def count(self, weights: Tensor) -> None:
        """Note a batch's λ, `[N, K]`, until the optimizer steps."""
        self._sum, self._rows = self._sum.to(weights) + weights.sum(), self._rows + len(weights)

    def held(self, weights: Tensor) -> Tensor:
        """λ divided by the mean, `[N, K]`; as it is before the first `commit`."""
        return weights / self.mean.to(weights) if self.found else weights

    def commit(self, summed: Callable[[Tensor], Tensor], before: bool = False) -> None:
        """Move the mean, by what all micro-batches (and, `summed`, all processes) counted since the last.

        Args:
            before: what was counted is what λ was before a first step, which may move it: that step sets the mean anew.
        """
        total, rows = summed(torch.tensor([float(self._sum), float(self._rows)]))
        if rows > 0 and total > 0:
            keep = 0.9 if self.known else 0.0  # the first step sets the mean, later ones move it by a tenth
            self.mean, self.found, self.known = keep * self.mean + (1 - keep) * total / rows, True, not before
        self._sum, self._rows = torch.zeros(()), 0

    def state(self) -> Tensors:
        """What must survive a checkpoint."""
        return {"mean_weight": self.mean}

    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned."""
        self.mean = state["mean_weight"]
        self.found = self.known = bool(self.mean > 0)
