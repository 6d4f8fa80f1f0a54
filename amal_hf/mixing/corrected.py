"""Weights from a corrected label: what clean rows knew beforehand, and what the student has learned since."""

from __future__ import annotations

import torch
from torch import Tensor

from amal_hf.mixing.base import Mixing, Rows


class Corrected(Mixing):
    r"""Trust a source as far as the row's corrected label agrees with what it asserts.

    $$\pi_i \propto \pi^0_i{}^{1/2}\, p(\bar\theta)_i{}^{1/2}, \qquad \lambda_{ik} = \sum_c \pi_{ic}\, q_{ikc}$$

    with $\pi^0$ the column of evidence (see `amal_hf.evidence`) and $p(\bar\theta)$ the student's slow copy; before
    the copy speaks, and without one, π = π⁰. Learns nothing by itself, so no lookahead is paid for: what the clean
    rows have to say stands in the column, asked before the student could memorise them, so that they can be trained
    on as well.

    Args:
        start: weight of sources that assert no class (entropy, user functions), `[K]`.
        slow: position of the slow copy among the sources; None: there is none.

    Example:
        >>> corrected = Corrected(torch.ones(2), slow=None)
        >>> rows = Rows(
        ...     index=torch.tensor([0]), losses=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
        ...     targets=torch.eye(3)[[0, 1]][None],  # source 0 says class 0, source 1 says class 1
        ...     advice=torch.zeros(1, 3), evidence=torch.tensor([[0.9, 0.05, 0.05]]).log(),
        ... )
        >>> corrected.weights(rows)  # shape: [1, 2]
        tensor([[0.9000, 0.0500]])

    References:
        METHODS (E2), the soft label's meta-gradient, with the head taken to its end; Tarvainen & Valpola (2017).
    """

    learns = False

    def __init__(self, start: Tensor, slow: int | None) -> None:
        self.start, self.slow = start, slow

    def weights(self, rows: Rows) -> Tensor:
        believed = torch.einsum("nc,nkc->nk", self.posterior(rows), rows.targets)
        asserts = rows.targets.sum(-1) > 0
        return torch.where(asserts, believed, self.start.to(believed)) * rows.mask

    def posterior(self, rows: Rows) -> Tensor:
        """π, `[N, C]`: the corrected label of each row."""
        if self.slow is None:
            return rows.evidence.softmax(-1)
        speaks = rows.mask[:, self.slow, None]
        slow = rows.targets[:, self.slow].clamp_min(1e-6).log()
        return torch.where(speaks, (rows.evidence + slow) / 2, rows.evidence).softmax(-1)
