"""A label that may be wrong, as one more expert: how often, nobody has counted, so the other experts say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amal_hf.denoising.experts import PRECISION, ROWS, one_hot

TEMPER = 0.5**0.5  # teachers learned from the same labels: what both say has been said less than twice
ROUNDS = 10


@dataclass(frozen=True)
class LabelNoise:
    r"""P(said | true) of the rows' labels, and what a label says of its row: $E_{ic} = \log P(y_i \mid c) / \sqrt 2$.

    Clean rows have no noisy label beside the true one, so P cannot be counted there. It is counted on all rows, each
    standing for the classes that the other experts and, from the second round on, its label give it (EM), and shrunk
    towards the label's overall rate of being right.

    Args:
        log_p: log P(said | true), `[C true, C said]`.

    Example:
        >>> log_odds = 9.0 * torch.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]]  # what the others are sure of
        >>> said = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])  # one label of class 0 is wrong
        >>> noise = LabelNoise.fit(log_odds, said)
        >>> bool(noise.log_p[0, 1] > noise.log_p[1, 0])
        True
        >>> noise(torch.tensor([0, -1])).abs().sum(1) > 0  # an absent label says nothing; of [2, 2]
        tensor([ True, False])

    References:
        Dawid & Skene (1979), section 3, with one annotator beside what is known.
    """

    log_p: Tensor

    @classmethod
    def fit(cls, log_odds: Tensor, said: Tensor) -> LabelNoise:
        """From what the others say, `[N, C]` in nats, and the labels `[N]`, -100 or -1 where there is none."""
        num_classes = log_odds.shape[1]
        same = torch.eye(num_classes, dtype=log_odds.dtype)
        labels = one_hot(said, num_classes).to(log_odds)
        noise = cls(torch.zeros_like(same))
        for _ in range(ROUNDS):
            counts = (log_odds + noise(said)).softmax(1).T @ labels
            right = (counts.trace() + PRECISION * ROWS) / (counts.sum() + ROWS)
            prior = same * right + (1 - same) * (1 - right) / max(num_classes - 1, 1)
            shrunk = (counts + ROWS * prior) / (counts.sum(1, keepdim=True) + ROWS)
            noise = cls(shrunk.clamp_min(1e-4).log())
        return noise

    def __call__(self, said: Tensor) -> Tensor:
        """What the labels `[N]` say, `[N, C]` in nats."""
        return TEMPER * self.log_p.T[said.clamp_min(0)] * (said >= 0)[:, None]
