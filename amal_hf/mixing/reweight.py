"""Weights straight from the meta-gradient, with no memory: learning to reweight."""

from __future__ import annotations

import torch
from torch import Tensor

from amal_hf.mixing.base import Mixing, Rows


class Reweight(Mixing):
    r"""A source weighs on a row what it helps the clean rows there, now:

    $$\lambda_{ik} = \frac{\max(0, -g_{ik})}{\sum_{jl} \max(0, -g_{jl})} \sum_{jl} m_{jl}$$

    $g$ is a positive multiple of ∂V/∂λ, so $\max(0, -g)$ is the rectified $D$ of docs/method.md (E1); the weights of a
    batch's covered entries average one. Where nothing in it helps, the batch weighs nothing, as in the
    original.
    A row weighs `start` where no meta-gradient has shown it in this optimizer step.

    The sums are over a micro-batch (of all processes), so splitting a batch changes the weights a little. A running
    mean, moved once per optimizer step, would not; but near the minimum of V the sign of v turns from step to step,
    and the batches that help then weigh up to ten times their due.

    Args:
        start: λ, `[K]`, before a meta-gradient is known.

    Example:
        >>> reweight, nothing = Reweight(torch.ones(1)), torch.zeros(3, 1)
        >>> rows = Rows(torch.arange(3), nothing, nothing == 0, torch.zeros(3, 1, 2), torch.zeros(3, 2))
        >>> reweight.update(rows, torch.tensor([[-1.0], [-3.0], [2.0]]))  # rows 0 and 1 lower V, row 2 raises it
        >>> reweight.weights(rows)  # shape: [3, 1]
        tensor([[0.7500],
                [2.2500],
                [0.0000]])

    References:
        Ren et al. (ICML 2018), "Learning to reweight examples for robust deep learning", equations 8 and 9.
    """

    per_row = True  # between `update` and `weights` a row is found by its index

    def __init__(self, start: Tensor) -> None:
        self.start = start
        self._seen: tuple[Tensor, Tensor] | None = None  # index [M] and λ [M, K] of the last rows

    def weights(self, rows: Rows) -> Tensor:
        start = self.start.to(rows.losses).expand_as(rows.losses)
        if self._seen is None:
            return start * rows.mask
        index, known = self._seen
        same = rows.index[:, None] == index  # [N, M]
        found = known.to(start)[same.int().argmax(1).to(start.device)]
        return torch.where(same.any(1, keepdim=True).to(start.device), found, start) * rows.mask

    def update(self, rows: Rows, gradient: Tensor) -> None:
        helps = torch.where(rows.mask, -gradient, 0.0).clamp_min(0)
        scale = rows.mask.sum() / helps.sum()
        self._seen = rows.index, torch.where(helps > 0, helps * scale, 0.0)

    def commit(self) -> None:
        self._seen = None  # a meta-gradient is used at its own step only
