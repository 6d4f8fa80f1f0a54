r"""How far one prediction is from another, a number per row: pure functions of two rows of logits.

All take the teacher's logits t and the student's z, both `[N, C]` and already divided by the temperature,
and return `[N]`. With $p = \mathrm{softmax}(t)$ and $q = \mathrm{softmax}(z)$:

===================  ==========================================================  =========================
`kl`                 $\sum_c p_c (\log p_c - \log q_c)$                          covers what the teacher does
`reverse_kl`         $\sum_c q_c (\log q_c - \log p_c)$                          keeps to the teacher's modes
`jensen_shannon`     mean KL of p and q to their middle                          bounded by log 2
`bernoulli_kl`       mean over classes of the KL of $\sigma(t_c)$, $\sigma(z_c)$ classes that do not compete
`squared`            mean over classes of $(z_c - t_c)^2$                        logits, or a regression
===================  ==========================================================  =========================

A teacher's logit of −∞ (or the lowest float) rules a class out; every value and gradient stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

RULED_OUT = -100.0
"""log p below which a float32 probability is 0: what a class costs that the teacher rules out."""


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ q), `[N]`, in nats."""
    return _kl(F.log_softmax(teacher, -1), F.log_softmax(student, -1))


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ p), `[N]`, in nats."""
    return _kl(F.log_softmax(student, -1), F.log_softmax(teacher, -1).clamp_min(RULED_OUT))


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, `[N]`, in nats."""
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def bernoulli_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over classes of KL(Bernoulli(σ(t_c)) ‖ Bernoulli(σ(z_c))), `[N]`, in nats."""
    yes = _terms(F.logsigmoid(teacher), F.logsigmoid(student))
    no = _terms(F.logsigmoid(-teacher), F.logsigmoid(-student))
    return (yes + no).mean(-1)


def squared(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over classes of (z_c − t_c)², `[N]`, in squared logits."""
    return (student - teacher).square().mean(-1)


def _terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p − log q), `[N, C]`; 0 where p is 0."""
    p = log_p.exp()
    return p * torch.where(p > 0, log_p - log_q, 0.0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _terms(log_p, log_q).sum(-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": jensen_shannon,
    "sigmoid": bernoulli_kl,
    "mse": squared,
}
