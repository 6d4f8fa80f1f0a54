"""`CrossFittedRidge`: what is asserted of rows alike, through the encoder's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amal_hf.denoising.experts import SPAN, Expert, centred, design, one_hot

RIDGE = 3e-3  # relative to the mean diagonal: from 1e-3 to 1e-2 corrected labels differ by half a point
FOLDS = 5
LOUDER = 4.0  # at most so much more is said of training rows than of clean ones, in the mean
CHUNK = 8192  # rows in double precision at a time
Believe = Callable[[Tensor], Tensor]
"""Positions of clean rows -> what follows for the training rows from these clean rows alone, `[N, D]`."""


class CrossFittedRidge:
    r"""Ridge regression from features to what is asserted of the training rows; every row is answered without its own.

    $$W = \arg\min \tfrac1N \textstyle\sum_i \lVert W h_i - (t_i - \bar t)\rVert^2
      + \rho\,\overline{\lVert h\rVert^2}\,\lVert W\rVert^2, \qquad a_i = W h_i$$

    Thousands of rows that labels, votes and teachers cover, wrongly as may be, tell more of a row like them than
    ten clean rows a class. A training row is answered from the other folds. How far it can be believed is found
    on the clean rows, and t may depend on them: so each fold of them is answered from t without it.

    Args:
        train, clean: features `[N, H]` and `[M, H]`.
        labels: classes of the clean rows, `[M]`.

    References:
        Wolpert (1992), stacked generalization; Blum & Mitchell (1998), two views that teach each other.
    """

    def __init__(self, train: Tensor, clean: Tensor, labels: Tensor) -> None:
        self.train, self.clean = train, clean
        self.turn, self.dealt = torch.arange(len(train)) % FOLDS, _dealt(labels)
        self.gram = _products(train, None, self.turn)
        counts = labels.bincount()
        self.can_leave_out = int(counts[counts > 0].min()) > 1
        """False where a class has a single clean row: nothing can be believed without it."""

    def answers(self, believe: Believe) -> tuple[Tensor, Tensor]:
        """a of the training rows, `[N, D]`, and of the clean rows, `[M, D]`, for t = `believe(clean rows)` `[N, D]`."""
        everybody = torch.arange(len(self.clean))
        targets = believe(everybody)
        unseen = targets.new_zeros(len(self.clean), targets.shape[1])
        for k in self.dealt.unique():
            without = self._moments(believe(everybody[self.dealt != k]))
            unseen[self.dealt == k] = design(self.clean[self.dealt == k]) @ _solved(self.gram.sum(0), without.sum(0))
        moments, answered = self._moments(targets), torch.zeros_like(targets)
        for k in range(FOLDS):
            others = _solved(self.gram.sum(0) - self.gram[k], moments.sum(0) - moments[k])
            answered[self.turn == k] = design(self.train[self.turn == k]) @ others
        return answered, unseen

    def posterior_expert(self, believe: Believe) -> Expert:
        """What is believed of rows alike; `believe`: -> π `[N, C]`."""
        answered, unseen = self.answers(believe)
        return of_usual_length(centred(answered), centred(unseen))

    def label_expert(self, labels: Tensor, num_classes: int) -> Expert:
        """How rows alike are labelled, for labels `[N]`; negative: none.

        Beside the beliefs, since those repeat what teachers assert wrongly of a whole region, and labels do not.
        """
        given = one_hot(labels, num_classes)
        given[labels < 0] = given[labels >= 0].mean(0)
        return self.posterior_expert(lambda rows: given)

    def teacher_reliability_expert(
        self, named: Tensor, clean_named: Tensor, num_classes: int, believe: Believe
    ) -> Expert:
        r"""For or against the class that a teacher names: whether it is believed on rows alike.

        $$E_{ic} \propto a_i\,\big(\mathbb 1[c = \hat c_i] - \tfrac1C\big), \qquad t_i = \pi_{i\hat c_i}$$

        So a teacher that is wrong on a region weighs little there, and nowhere else.

        Args:
            named, clean_named: class $\hat c$ of the training and the clean rows, `[N]` and `[M]`; -1: none.
            believe: -> π `[N, C]`, to which no teacher contributes.
        """

        def in_named(rows: Tensor) -> Tensor:
            its = believe(rows).gather(1, named.clamp_min(0)[:, None])
            return its.where(named[:, None] >= 0, its[named >= 0].mean().nan_to_num(0.0))

        answered, unseen = self.answers(in_named)
        ours, its = (centred(one_hot(classes, num_classes)) for classes in (named, clean_named))
        return of_usual_length(answered * ours, unseen * its)

    def _moments(self, targets: Tensor) -> Tensor:
        return _products(self.train, targets - targets.mean(0), self.turn)


def of_usual_length(train_log_odds: Tensor, unseen: Tensor) -> Expert:
    """An expert `[N, C]` of usual length; it must earn its weight, and cannot where next to nothing follows for the
    clean rows."""
    here, there = (float(each.norm(dim=1).mean()) for each in (unseen, train_log_odds))
    scale = SPAN / max(here, there / LOUDER) if here > 0 else 0.0
    return Expert(scale * train_log_odds, scale * unseen, 0.0)


def _dealt(labels: Tensor) -> Tensor:
    """Fold of each clean row, `[M]`: every class is dealt out in turn."""
    fold = torch.empty_like(labels)
    for c in labels.unique():
        rows = (labels == c).nonzero()[:, 0]
        fold[rows] = (torch.arange(len(rows)) + c) % FOLDS
    return fold


def _products(features: Tensor, targets: Tensor | None, turn: Tensor) -> Tensor:
    """By fold of rows, Σ h hᵀ `[FOLDS, H + 1, H + 1]`; with targets `[N, C]` Σ h tᵀ, `[FOLDS, H + 1, C]`."""
    found = []
    for rows in torch.arange(len(features)).split(CHUNK):
        ours = design(features[rows])
        other = ours if targets is None else targets[rows]
        found.append(torch.stack([ours[turn[rows] == k].T @ other[turn[rows] == k] for k in range(FOLDS)]))
    return torch.stack(found).sum(0)


def _solved(gram: Tensor, moment: Tensor) -> Tensor:
    """(Σ h hᵀ + ρ mean‖h‖² I)⁻¹ Σ h tᵀ, `[H + 1, C]`."""
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), moment)
