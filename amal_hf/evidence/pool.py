"""Rows alike, asked about one another: what all that is known of them says through the encoder's eyes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amal_hf.evidence.experts import SPAN, centred

RIDGE = 3e-3  # relative to the mean diagonal: from 1e-3 to 1e-2 corrected labels differ by half a point
FOLDS = 5
CHUNK = 8192  # rows in double precision at a time


def pool(
    train: Tensor, clean: Tensor, labels: Tensor, believe: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor] | None:
    r"""Ridge regression from features to what is believed of the training rows; every row is answered without its own.

    $$W = \arg\min \tfrac1N \textstyle\sum_i \lVert W h_i - (\pi_i - \bar\pi)\rVert^2
      + \rho\,\overline{\lVert h\rVert^2}\,\lVert W\rVert^2, \qquad E_i \propto W h_i$$

    Thousands of rows that labels, votes and teachers speak about, wrongly as may be, say more of a row like them than
    ten clean rows a class. What is believed of a training row comes from the other folds. How far the pool can be
    believed is found on the clean rows, and they have had their say in π: so each fold of them is answered from what is
    believed without it.

    Args:
        train, clean: features `[N, H]` and `[M, H]`.
        labels: classes of the clean rows, `[M]`.
        believe: positions of clean rows -> π `[N, C]`, what follows for the training rows from these clean rows alone.

    Returns:
        what the pool says of the training rows, `[N, C]`, and of the clean rows, `[M, C]`, in nats, centred; None where
        a class has a single clean row, so that nothing can be believed without it.

    References:
        Wolpert (1992), stacked generalization; Blum & Mitchell (1998), two views that teach each other.
    """
    counts = labels.bincount()
    if counts[counts > 0].min() < 2:
        return None
    turn, dealt = torch.arange(len(train)) % FOLDS, _dealt(labels)
    gram = _products(train, None, turn)
    everybody = torch.arange(len(labels))
    believed = believe(everybody)
    unseen = believed.new_zeros(len(labels), believed.shape[1])
    for k in dealt.unique():
        without = _products(train, _about_mean(believe(everybody[dealt != k])), turn)
        unseen[dealt == k] = _design(clean[dealt == k]) @ _solved(gram.sum(0), without.sum(0))
    moment = _products(train, _about_mean(believed), turn)
    told = torch.zeros_like(believed)
    for k in range(FOLDS):
        told[turn == k] = _design(train[turn == k]) @ _solved(gram.sum(0) - gram[k], moment.sum(0) - moment[k])
    told, unseen = centred(told), centred(unseen)
    scale = SPAN / float(unseen.norm(dim=1).mean().clamp_min(1e-30))
    return scale * told, scale * unseen


def _dealt(labels: Tensor) -> Tensor:
    """Fold of each clean row, `[M]`: every class is dealt out in turn."""
    fold = torch.empty_like(labels)
    for c in labels.unique():
        rows = (labels == c).nonzero()[:, 0]
        fold[rows] = (torch.arange(len(rows)) + c) % FOLDS
    return fold


def _design(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[:, :1])], 1).double()


def _about_mean(believed: Tensor) -> Tensor:
    return believed - believed.mean(0)


def _products(features: Tensor, targets: Tensor | None, turn: Tensor) -> Tensor:
    """By fold of rows, Σ h hᵀ `[FOLDS, H + 1, H + 1]`; with targets `[N, C]` Σ h tᵀ, `[FOLDS, H + 1, C]`."""
    found = []
    for rows in torch.arange(len(features)).split(CHUNK):
        design = _design(features[rows])
        other = design if targets is None else targets[rows]
        found.append(torch.stack([design[turn[rows] == k].T @ other[turn[rows] == k] for k in range(FOLDS)]))
    return torch.stack(found).sum(0)


def _solved(gram: Tensor, moment: Tensor) -> Tensor:
    """(Σ h hᵀ + ρ mean‖h‖² I)⁻¹ Σ h tᵀ, `[H + 1, C]`."""
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), moment)
