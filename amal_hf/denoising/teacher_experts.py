"""A teacher as two experts, and how good it is."""

from __future__ import annotations

import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from amal_hf.denoising.experts import Expert, NaiveBayesVotes, centred
from amal_hf.denoising.row_features import RowFeatures


def of_teacher(column: str, about: RowFeatures, clean: RowFeatures, labels: Tensor, num_classes: int) -> list[Expert]:
    """Two experts of a teacher: its logits, and the class it names as a vote, counted on the clean rows.

    The second knows what the first cannot: which classes a teacher that was never shown one calls its rows.
    """
    named = NaiveBayesVotes.count(named_by(clean.logits[column])[:, None], labels, num_classes)
    sure, clean_sure = (centred(rows.logits[column].log_softmax(1)).nan_to_num(0.0) for rows in (about, clean))
    return [
        Expert(sure, clean_sure, 0.5),
        Expert(named(named_by(about.logits[column])[:, None]), named.oof_log_odds, 0.5),
    ]


def adjusted_balanced_accuracy(named: Tensor, labels: Tensor) -> float:
    r"""How much better than chance the classes of the clean rows are named, in [0, 1].

    $$\max\Big(0, \frac{r - 1/C}{1 - 1/C}\Big), \qquad r\text{: recall, mean over the C classes of the clean rows}$$

    Args:
        named: the class named of each clean row, `[M]`; -1 abstains, and is not judged.
        labels: their classes, `[M]`.

    Returns:
        1 where nothing is known against it: it abstains on all but one class.

    Example:
        >>> adjusted_balanced_accuracy(torch.tensor([0, 1, 1, -1]), torch.tensor([0, 0, 1, 1]))
        0.5

    References:
        Youden (1950), index J, for C classes.
    """
    covered = named >= 0
    if len(labels[covered].unique()) < 2:
        return 1.0
    return max(0.0, float(balanced_accuracy_score(labels[covered].numpy(), named[covered].numpy(), adjusted=True)))


def named_by(logits: Tensor) -> Tensor:
    """The class a teacher names, `[N]`; -1 where it abstains."""
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))
