"""A free weight for every row and source: AMAL's form."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.mixing import projections
from amal_hf.mixing.base import Mixing, Rows


class Table(Mixing):
    r"""One weight per row and source, $\lambda_{ik} \leftarrow \Pi(\lambda_{ik} - \kappa\, g_{ik})$.

    Args:
        num_rows: rows of the training set.
        start: λ of every row, `[K]`.
        constraint: "box" (AMAL: every weight in `clamp`, no coupling) or "simplex" (ALM-KD: a
            convex mixture of the sources that apply to the row).
        step: κ, on the meta-gradient as the trainer scales it.
        clamp: bounds of the box.
        dtype: of the table, default that of `start`. In float16 it takes 2 K bytes a row; steps are taken in float32
            and rounded, so that near λ = 1 what moves a weight by less than 2.4e-4 is lost.

    Raises:
        ValueError: from `load_state`, if the table belongs to other rows or losses.

    Example:
        >>> table = Table(4, torch.tensor([0.5, 0.5]), "simplex", step=0.2, clamp=(0.0, 1.0))
        >>> nothing = torch.zeros(1, 2)
        >>> rows = Rows(torch.tensor([3]), nothing, nothing == 0, torch.zeros(1, 2, 3), torch.zeros(1, 3))
        >>> table.update(rows, torch.tensor([[1.0, -1.0]]))  # source 1 lowers V
        >>> table.weights(rows)  # shape: [1, 2]
        tensor([[0.3000, 0.7000]])

    References:
        Sivasubramanian et al. (AAAI 2023), arXiv 2202.03250v3 (box), v1 (simplex, ALM-KD).
    """

    per_row = True

    def __init__(
        self,
        num_rows: int,
        start: Tensor,
        constraint: Literal["box", "simplex"],
        step: float,
        clamp: tuple[float, float],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.table = start.to(dtype or start.dtype).repeat(num_rows, 1)  # [rows, K]
        self.constraint, self.step, self.clamp = constraint, step, clamp

    def weights(self, rows: Rows) -> Tensor:
        weights = self.table[rows.index.to(self.table.device)].to(rows.losses)
        return weights * rows.mask if self.constraint == "box" else projections.share(weights, rows.mask)

    def update(self, rows: Rows, gradient: Tensor) -> None:
        index, mask = rows.index.to(self.table.device), rows.mask.to(self.table.device)
        gradient = gradient.to(self.table.device) * mask
        once, place = index.unique(return_inverse=True)
        if len(once) < len(index):  # a row that was drawn twice takes one step, along both gradients
            gradient = gradient.new_zeros(len(once), gradient.shape[1]).index_add_(0, place, gradient)
            mask = mask.new_zeros(len(once), mask.shape[1]).index_put_((place,), mask)
            index = once
        now = self.table[index].to(torch.promote_types(self.table.dtype, torch.float32))
        step = self.step * gradient.to(now)
        if self.constraint == "box":
            moved = projections.box(now - step, *self.clamp)
        else:
            moved = projections.simplex(torch.where(mask, projections.share(now, mask), now) - step, mask)
        self.table[index] = moved.to(self.table)

    def state(self) -> Tensors:
        return {"table": self.table}
