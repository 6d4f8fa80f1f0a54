"""A label that may be wrong, as one more expert: how often, is estimated from the other experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amal_hf.denoising.experts import PRECISION, ROWS, one_hot

TEMPER = 0.5**0.5  # teachers learned from the same labels: what both assert counts less than twice
ROUNDS = 10


@dataclass(frozen=True)
class LabelNoise:
    r"""P(given | true) of labels, and a label's log-odds for its row: $E_{ic} = \log P(y_i \mid c) / \sqrt 2$.

    Clean rows have no noisy label beside the true one, so P cannot be counted there. It is counted on all rows, each
    standing for the classes that the other experts and, from the second round on, its label give it (EM), and shrunk
    towards the label's overall rate of being right.

    Args:
        log_p: log P(given | true), `[C true, C given]`.

    Example:
        >>> log_odds = 9.0 * torch.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]  # what the others are sure of
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])  # one label of class 0 is wrong
        >>> noise = LabelNoise.fit(log_odds, labels)
        >>> bool(noise.log_p[0, 1] > noise.log_p[1, 0])
        True
        >>> noise(torch.tensor([0, -1])).abs().sum(1) > 0  # an absent label counts for nothing; of [2, 2]
        tensor([ True, False])

    References:
        Dawid & Skene (1979), section 3, with one annotator beside what is known.
    """

    log_p: Tensor

    @classmethod
    def fit(cls, log_odds: Tensor, labels: Tensor) -> LabelNoise:
        """From the others' log-odds, `[N, C]` in nats, and the labels `[N]`, -100 or -1 where there is none."""
        num_classes = log_odds.shape[1]
        same = torch.eye(num_classes, dtype=log_odds.dtype)
        one_hots = one_hot(labels, num_classes).to(log_odds)
        noise = cls(torch.zeros_like(same))
        for _ in range(ROUNDS):
            counts = (log_odds + noise(labels)).softmax(1).T @ one_hots
            right = (counts.trace() + PRECISION * ROWS) / (counts.sum() + ROWS)
            prior = same * right + (1 - same) * (1 - right) / max(num_classes - 1, 1)
            shrunk = (counts + ROWS * prior) / (counts.sum(1, keepdim=True) + ROWS)
            noise = cls(shrunk.clamp_min(1e-4).log())
        return noise

    def __call__(self, labels: Tensor) -> Tensor:
        """Log-odds `[N, C]` in nats from the labels `[N]`."""
        return TEMPER * self.log_p.T[labels.clamp_min(0)] * (labels >= 0)[:, None]
