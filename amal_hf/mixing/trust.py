"""`Trust`: a source weighs as much as the clean rows believe what it asserts about this row."""

from __future__ import annotations

import torch
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.mixing.base import Mixing, Rows

PRIOR_RIGHT, PRIOR_ROWS = 0.6, 100.0
"""Before anything is seen, a source is right on 60 % of each class, as if 100 rows of it had been seen."""


class Trust(Mixing):
    r"""Weights from the soft-label meta-gradient and each source's record of being right.

    One exponentiated-gradient step on the row's soft label, against its meta-gradient (METHODS
    E2), is a class distribution; the sources' confusion matrices $P_k(s \mid c)$ turn it into a
    posterior, and a source weighs what the posterior gives to the classes it asserts:

    $$\pi_i(c) \propto \exp(a_{ic}) \prod_k \Big(\prod_s P_k(s \mid c)^{q_{iks}}\Big)^{\beta_i}, \qquad
      \lambda_{ik} = \sum_c \pi_i(c)\, q_{ikc}$$

    with the class gradient $a_i = -\tau\,\partial V/\partial q_i$ (centred, of length τ; see `Rows`). A source
    competes with every class it could have named, not only with the other sources, so a row on which
    nobody is right weighs little. $P_k$ is learned online from the same posterior (one Dawid–Skene M-step
    per optimizer step, with forgetting) and shrunk towards the source's overall rate.
    $\beta_i = m_i^{-1/2}$ tempers the product where $m_i$ sources cover the row, since labeling functions are
    not independent.

    Memoryless per row: it needs no table, and weighs rows never seen before.

    Args:
        num_sources, num_classes: K and C.
        start: weight of sources that assert no class (entropy, user functions), `[K]`.
        forgetting: share of the old confusion counts kept per optimizer step.

    Example:
        >>> trust = Trust(2, 3, torch.ones(2))
        >>> rows = Rows(
        ...     index=torch.tensor([0]), losses=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
        ...     targets=torch.eye(3)[[0, 1]][None],  # source 0 asserts class 0, source 1 asserts class 1
        ...     class_gradient=6 * torch.tensor([[0.8, -0.4, -0.4]]),  # the clean rows would rather have class 0
        ... )
        >>> trust.weights(rows)  # shape: [1, 2]
        tensor([[9.9891e-01, 7.4577e-04]])

    References:
        Sivasubramanian et al. (AAAI 2023) for the per-row, per-source lookahead; Kivinen & Warmuth
        (1997) for exponentiated gradient; Dawid & Skene (1979), equations 2.3–2.5.
    """

    reads = "class_gradient"

    def __init__(
        self,
        num_sources: int,
        num_classes: int,
        start: Tensor,
        forgetting: float = 0.995,
    ) -> None:
        self.start, self.forgetting = start, forgetting
        self.counts = torch.zeros(num_sources, num_classes, num_classes)  # [K, C true, C asserted]
        self._new, self._pending = torch.zeros_like(self.counts), False
        self._log_p: Tensor | None = None  # [K · C asserted, C true], until the counts change
        self._last: tuple[Rows, Tensor, Tensor] | None = None  # what `update` and `weights` both ask of the same rows

    def weights(self, rows: Rows) -> Tensor:
        posterior, asserts = self._believe(rows)
        believed = (rows.targets * posterior[:, None]).sum(-1)
        return torch.where(asserts, believed, self.start.to(believed)) * rows.mask

    def posterior(self, rows: Rows) -> Tensor:
        """π, `[N, C]`: the class of each row, by class gradient and sources together."""
        return self._believe(rows)[0]

    def _believe(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """π `[N, C]`, and which sources assert a class, bool `[N, K]`."""
        if self._last is not None and self._last[0] is rows:
            return self._last[1:]
        if self._log_p is None:
            device = rows.targets.device  # what is counted stays there: nothing waits for it
            self.counts, self._new = self.counts.to(device), self._new.to(device)
            self._log_p = self.confusion().log().transpose(1, 2).flatten(0, 1)
        log_posterior = rows.targets.flatten(1) @ self._log_p.to(rows.targets)
        asserts = rows.targets.sum(-1) > 0
        tempered = log_posterior * asserts.sum(-1, keepdim=True).clamp_min(1) ** -0.5
        self._last = rows, (rows.class_gradient + tempered).softmax(-1), asserts
        return self._last[1:]

    def confusion(self) -> Tensor:
        """P_k(s | c), `[K, C true, C asserted]`: what was counted, shrunk towards the source's overall rate.

        The prior is never forgotten, so no class can be talked away before the student has learned to see it, and a
        rare class borrows the source's record on the others.
        """
        num_classes = self.counts.shape[-1]
        hits = self.counts.diagonal(dim1=1, dim2=2).sum(-1) + PRIOR_RIGHT * PRIOR_ROWS
        right = (hits / (self.counts.sum((1, 2)) + PRIOR_ROWS))[:, None, None]  # [K, 1, 1]
        same = torch.eye(num_classes, device=self.counts.device)
        prior = same * right + (1 - same) * (1 - right) / max(num_classes - 1, 1)
        counts = self.counts + PRIOR_ROWS * prior
        return (counts / counts.sum(-1, keepdim=True)).clamp_min(1e-4)

    def update(self, rows: Rows, gradient: Tensor) -> None:
        self._pending = True
        seen = self.posterior(rows).T @ rows.targets.flatten(1)  # [C, K · C]
        self._new += seen.unflatten(1, self._new.shape[::2]).transpose(0, 1).to(self._new)

    def commit(self) -> None:
        if not self._pending:
            return  # nothing was seen, nothing is forgotten
        self._pending, self._log_p, self._last = False, None, None
        self.counts.mul_(self.forgetting).add_(self._new)
        self._new.zero_()

    def state(self) -> Tensors:
        return {"confusion": self.counts}

    def load_state(self, state: Tensors) -> None:
        super().load_state(state)
        self._log_p = self._last = None
