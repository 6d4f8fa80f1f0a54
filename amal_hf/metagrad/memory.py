r"""Clean rows as the head sees them, kept between lookaheads.

A meta step encodes only a few clean rows; the memory keeps the features of all of them, each as
fresh as its last visit. V is then the loss of *all* clean rows, at no further forward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Tensors
from amal_hf.metagrad.head import Head


class CleanMemory:
    """Features `[M, H]` and classes `[M]` of the meta rows.

    Args:
        labels: class of every meta row, `[M]`.
        num_classes: C.
        width: H, the head's input size.
    """

    def __init__(self, labels: Tensor, num_classes: int, width: int) -> None:
        self.labels, self.num_classes = labels, num_classes
        self.features = torch.zeros(len(labels), width, device=labels.device)

    def remember(self, rows: Tensor, features: Tensor) -> None:
        """Replace the features of `rows` `[B]` by `features` `[B, H]`."""
        self.features[rows] = features.to(self.features)

    def loss(self, head: Head, params: Tensors, rows: Tensor | None = None) -> Tensor:
        """V: mean cross-entropy of the head `params` on the clean rows (or a subset), in nats."""
        pick = slice(None) if rows is None else rows
        weight = params[head.weight]
        return F.cross_entropy(head.logits(params, self.features[pick].to(weight)), self.labels[pick])

    def probe(self, ridge: float) -> Tensor:
        r"""The step a head *retrained from zero* on the clean rows would take first, in Newton's metric.

        $$v = \big(\tilde H^\top S \tilde H + \rho\,\bar d\, I\big)^{-1}
              \tilde H^\top S \big(\tfrac1C \mathbf 1 - Y\big)$$

        with $\tilde H$ the features and a column of ones, Y the one-hot classes, S giving every class
        the same share whatever its number of clean rows, and $\bar d$ the mean diagonal. The
        one-step lookahead asks what helps *now*, and answers with the source of the largest
        residual; this asks what a head would learn in the end.

        Args:
            ridge: ρ, relative to the mean diagonal.

        Returns:
            v, `[H + 1, C]`, the last row for the bias.

        References:
            The exact least-squares solution is ridge regression (Hoerl & Kennard, 1970, equation 2.1);
            the implicit gradient of METHODS section 1 in the limit J → ∞ for a squared loss.
        """
        ones = torch.ones(len(self.labels), 1, device=self.features.device)
        design = torch.cat([self.features, ones], 1).double()
        truth = F.one_hot(self.labels, self.num_classes).double()
        counts = truth.sum(0)
        share = (truth / counts.clamp_min(1)).sum(1, keepdim=True) / (counts > 0).sum()  # each class weighs the same
        gram = design.T @ (share * design)
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        return torch.linalg.solve(gram, design.T @ (share * (1 / self.num_classes - truth))).float()

    def blend(self, head: Head, present: Tensors, probe_weight: float, ridge: float = 1.0) -> Tensors:
        """v = (1 − w) · present + w · probe, each scaled to move the clean rows' logits by one unit RMS.

        Args:
            present: ∇V at the student (or after its lookahead), shapes as the head's parameters.
            probe_weight: w in [0, 1]; 0 returns `present` as it is.
        """
        if probe_weight == 0:
            return present
        probe = self.probe(ridge)
        as_params = {head.weight: probe[:-1].T}
        if head.bias is not None:
            as_params[head.bias] = probe[-1]
        sizes = [self._moves(head, v) for v in (present, as_params)]
        shares = (1 - probe_weight, probe_weight)
        scale = [w / size if size > 0 else 0.0 for w, size in zip(shares, sizes, strict=True)]
        return {k: scale[0] * present[k] + scale[1] * as_params[k].to(present[k]) for k in present}

    def _moves(self, head: Head, direction: Tensors) -> float:
        moved = head.logits(direction, self.features.to(direction[head.weight]))
        return float((moved - moved.mean(1, keepdim=True)).square().mean().sqrt())
