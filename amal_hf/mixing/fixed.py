"""Weights that do not learn, and weights that all rows share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.mixing import projections
from amal_hf.mixing.base import Mixing, Rows


class Fixed(Mixing):
    """The same hand-set vector for every row: the incumbent's alpha.

    Args:
        start: λ, `[K]`.
    """

    learns = False
    reads = "columns"

    def __init__(self, start: Tensor) -> None:
        self.vector = start

    def weights(self, rows: Rows) -> Tensor:
        return self.vector.to(rows.losses).expand_as(rows.losses) * rows.mask


class Shared(Mixing):
    r"""One vector `[K]` for all rows, learned: $\lambda_k \leftarrow \Pi(\lambda_k - \kappa\, \bar g_k)$.

    $\bar g_k$ is the mean meta-gradient over the rows of the optimizer step where source k applies.

    Args:
        start: λ, `[K]`.
        constraint: "box" (every weight in `clamp`) or "simplex".
        step: κ.
        clamp: bounds of the box.
    """

    def __init__(
        self, start: Tensor, constraint: Literal["box", "simplex"], step: float, clamp: tuple[float, float]
    ) -> None:
        self.vector, self.constraint, self.step, self.clamp = start.clone(), constraint, step, clamp
        self._sum, self._count = torch.zeros_like(start), torch.zeros_like(start)

    def weights(self, rows: Rows) -> Tensor:
        weights = self.vector.to(rows.losses).expand_as(rows.losses) * rows.mask
        return weights if self.constraint == "box" else projections.share(weights, rows.mask)

    def update(self, rows: Rows, gradient: Tensor) -> None:
        self._sum += (gradient * rows.mask).sum(0).to(self._sum)
        self._count += rows.mask.sum(0).to(self._count)

    def commit(self) -> None:
        moved = self.vector - self.step * self._sum / self._count.clamp_min(1)
        if self.constraint == "box":
            self.vector.copy_(projections.box(moved, *self.clamp))
        else:
            self.vector.copy_(projections.simplex(moved[None], torch.ones_like(moved[None], dtype=torch.bool))[0])
        self._sum.zero_()
        self._count.zero_()

    def state(self) -> Tensors:
        return {"shared": self.vector}
