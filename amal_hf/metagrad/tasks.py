r"""What V measures on the clean rows, by the task of the head.

=============================  ======================================  ============================
task (`config.problem_type`)   V, a mean over the clean rows           their labels
=============================  ======================================  ============================
`single_label_classification`  cross-entropy, in nats                  classes `[M]`
`multi_label_classification`   sigmoid cross-entropy, mean over C      0 or 1 (or between), `[M, C]`
`regression`                   squared error, mean over C              numbers, `[M]` or `[M, C]`
=============================  ======================================  ============================

Everything else about the lookahead is the same: $D_{ik} = \langle \nabla\ell_{ik}, v\rangle$ with v = ∇V, and the
head's closed form needs only ∂ℓ/∂logits.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TASKS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def clean_loss(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """V, the student's mean loss on the clean rows, a scalar; the loss the model itself is evaluated by.

    Args:
        task: one of `TASKS`.
        logits: `[M, C]`.
        labels: classes `[M]`, or numbers `[M, C]` (or `[M]` where C = 1).

    Returns:
        nats, or squared units of the labels.

    Example:
        >>> import torch
        >>> clean_loss(REGRESSION, torch.tensor([[3.0], [0.0]]), torch.tensor([1.0, 0.0]))  # shape: []
        tensor(2.)
    """
    if task == SINGLE_LABEL:
        return F.cross_entropy(logits, labels)
    labels = labels.to(logits).view_as(logits)
    return F.mse_loss(logits, labels) if task == REGRESSION else F.binary_cross_entropy_with_logits(logits, labels)
