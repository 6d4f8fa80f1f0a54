"""Weights from a corrected label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amal_hf.mixing.base import Mixing, Rows


class Corrected(Mixing):
    r"""Trust a source as far as the row's corrected label agrees with what it asserts.

    $$\lambda_{ik} = \sum_c \pi_{ic}\, q_{ikc}$$

    with π the posterior of the label model (`amal_hf.denoising`). Learns nothing by itself, so no lookahead is paid
    for: the clean rows were asked before the student could memorise them, so that they can be trained on as well.

    A teacher's distribution teaches a student more than the one class that anybody else names (Hinton et al., 2015),
    so the others count in the loss as far as no teacher is believed, and teachers share what the best of them is worth:

    $$\tilde\lambda_{it} = \lambda_{it}\, \frac{m_i}{\sum_s \lambda_{is}}, \qquad
      \tilde\lambda_{ik} = \lambda_{ik}\,(1 - m_i), \qquad m_i = \max_s \lambda_{is} \quad\text{(s, t: teachers)}$$

    Args:
        start: level of each source, `[K]`: its weight where the corrected label gives all to what it asserts, and
            everywhere if it asserts no class (entropy, user functions).
        teachers: positions of the teachers.
        yielding: positions of the sources that name a class which a teacher may have named better.

    Example:
        >>> corrected = Corrected(torch.ones(2))
        >>> rows = Rows(
        ...     index=torch.tensor([0]), losses=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
        ...     targets=torch.eye(3)[[0, 1]][None],  # source 0 asserts class 0, source 1 asserts class 1
        ...     class_gradient=torch.zeros(1, 3), log_posterior=torch.tensor([[0.9, 0.05, 0.05]]).log(),
        ... )
        >>> corrected.weights(rows)  # shape: [1, 2]
        tensor([[0.9000, 0.0500]])
        >>> Corrected(torch.ones(2), teachers=[0], yielding=[1]).used(torch.tensor([[0.9, 0.05]]))  # shape: [1, 2]
        tensor([[0.9000, 0.0050]])

    References:
        docs/method.md (E2), the soft label's meta-gradient, with the head taken to its end.
    """

    learns = False
    reads = "columns"

    def __init__(self, start: Tensor, teachers: Sequence[int] = (), yielding: Sequence[int] = ()) -> None:
        self.start, self.teachers, self.yielding = start, list(teachers), list(yielding)

    def weights(self, rows: Rows) -> Tensor:
        posterior = self.posterior(rows)
        believed = torch.einsum("nc,nkc->nk", posterior, rows.targets)
        # a teacher that is unsure is not half wrong: it is believed as far as the class that it names
        named = rows.targets[:, self.teachers].argmax(-1)
        believed[:, self.teachers] = posterior.gather(1, named)
        asserts = rows.targets.sum(-1) > 0
        return torch.where(asserts, believed, 1.0) * self.start.to(believed) * rows.mask

    def used(self, weights: Tensor) -> Tensor:
        if not self.teachers:
            return weights
        theirs = weights[:, self.teachers]
        most = theirs.amax(1, keepdim=True)
        used = weights.clone()
        used[:, self.teachers] = theirs * most / theirs.sum(1, keepdim=True).clamp_min(1e-12)
        used[:, self.yielding] *= 1 - most
        return used

    def posterior(self, rows: Rows) -> Tensor:
        """π, `[N, C]`: the corrected label of each row."""
        return rows.log_posterior.softmax(-1)
