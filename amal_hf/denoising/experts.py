"""The experts: log-odds from features and from votes, each also of the clean rows themselves, leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from amal_hf.metagrad import ridge_leave_one_out

RIDGE = 0.5  # relative to the mean diagonal: from 0.1 to 3 the corrected labels differ by less than a point
SPAN = 2.0  # nats: mean length of what the probe says at w = 1
PRECISION, ROWS = 0.8, 20.0  # before anything is counted a vote is right 4 times of 5, as if 20 rows were seen
CHUNK = 8192  # rows with dense votes at a time
PULL, MOST = 3.0, 6.0  # how many rows the weight from before is worth, and the bound of w


def balanced(labels: Tensor, num_classes: int) -> Tensor:
    """Weights `[M]`, sum 1, that give every class present the same share."""
    truth = F.one_hot(labels, num_classes).double()
    counts = truth.sum(0)
    return (truth / counts.clamp_min(1)).sum(1) / (counts > 0).sum()


def centred(scores: Tensor) -> Tensor:
    """Minus the mean over classes, `[N, C]`."""
    return scores - scores.mean(1, keepdim=True)


@dataclass(frozen=True)
class Expert:
    """Log-odds of every row's class from one kind of input, `[N, C]` in nats.

    Args:
        train_log_odds: of the training rows, `[N, C]` in nats, centred or not.
        oof_log_odds: of each clean row without having seen it, `[M, C]`.
        prior_weight: its weight before the clean rows have judged it.
    """

    train_log_odds: Tensor
    oof_log_odds: Tensor
    prior_weight: float


@dataclass(frozen=True)
class Probe:
    """Ridge regression from features to classes.

    Args:
        coefficients: `[H + 1, C]`, the bias last.
        oof_log_odds: of each clean row from the others, `[M, C]`, in nats, centred.
        scale: nats per unit of regression.

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [0.9, 0.0], [0.1, 1.0], [0.0, 0.9]])
        >>> probe = Probe.fit(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> probe(features).argmax(1)  # shape: [4]
        tensor([0, 0, 1, 1])

    References:
        Hoerl & Kennard (1970), equation 2.1; Allen (1974), PRESS.
    """

    coefficients: Tensor
    oof_log_odds: Tensor
    scale: float

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int) -> Probe:
        """From the clean rows' features `[M, H]` and classes `[M]`; every class has the same share."""
        truth = F.one_hot(labels, num_classes).double()
        shares = balanced(labels, num_classes)[:, None]
        coefficients, oof_log_odds = ridge_leave_one_out(design(features), shares, truth - 1 / num_classes, RIDGE)
        oof_log_odds = centred(oof_log_odds)
        scale = SPAN / float(oof_log_odds.norm(dim=1).mean().clamp_min(1e-30))
        return cls(coefficients, scale * oof_log_odds, scale)

    def __call__(self, features: Tensor) -> Tensor:
        """Log-odds `[N, C]` in nats, centred, of rows with `features` `[N, H]`."""
        return centred(self.scale * design(features) @ self.coefficients)


@dataclass(frozen=True)
class NaiveBayesVotes:
    r"""Naive Bayes over votes: $E_{ic} = m_i^{-1/2} \sum_{j:\,\Lambda_{ij}=s} \log\big(C\,P_j(c \mid s)\big)$.

    $P_j(c \mid s)$, the class of a row on which function j votes s, is counted on clean rows (every class with the
    same share) and shrunk towards the function's overall rate of being right. Abstaining counts for nothing. The factor
    $m_i^{-1/2}$, where $m_i$ functions vote, tempers the product, since functions are not independent.

    Args:
        log_odds: log(C · P_j(c | s)), `[K, C true, C asserted]`, in nats.
        oof_log_odds: of each clean row, counted on the others, `[M, C]`.

    Example:
        >>> votes = torch.tensor([[0, -1], [0, 1], [1, 1], [0, 1]])
        >>> precision = NaiveBayesVotes.count(votes, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> precision(torch.tensor([[0, -1], [-1, 1], [-1, -1]])).argmax(1)  # shape: [3]
        tensor([0, 1, 0])

    References:
        Dawid & Skene (1979), section 3, with the classes of the clean rows known.
    """

    log_odds: Tensor
    oof_log_odds: Tensor
    weight: Tensor

    @classmethod
    def count(cls, votes: Tensor, labels: Tensor, num_classes: int, weight: Tensor | None = None) -> NaiveBayesVotes:
        """From the clean rows' votes `[M, K]`, -1 abstains, and classes `[M]`; `weight` `[K]` of each function."""
        weight = torch.ones(votes.shape[1], dtype=torch.double) if weight is None else weight
        asserted = one_hot(votes, num_classes)
        truth = F.one_hot(labels, num_classes).double() * (balanced(labels, num_classes) * len(labels))[:, None]
        counts = torch.einsum("mc,mks->kcs", truth, asserted)
        oof_log_odds = [
            torch.einsum("kcs,ks,k->c", _log_odds(counts - torch.einsum("c,ks->kcs", ours, its)), its, weight)
            for ours, its in zip(truth, asserted, strict=True)
        ]
        return cls(_log_odds(counts), torch.stack(oof_log_odds) * _tempered(votes, weight), weight)

    def __call__(self, votes: Tensor) -> Tensor:
        """Log-odds `[N, C]` in nats of rows with `votes` `[N, K]`; zeros where nobody votes."""
        weighted, num_classes = self.log_odds * self.weight[:, None, None], self.log_odds.shape[1]
        parts = [torch.einsum("kcs,nks->nc", weighted, one_hot(some, num_classes)) for some in votes.split(CHUNK)]
        return torch.cat(parts) * _tempered(votes, self.weight)


def fit_weights(oof_log_odds: Sequence[Tensor], labels: Tensor, prior_weights: Sequence[float]) -> Tensor:
    """w `[E]` in [0, 6]: how far each expert is believed, by the likelihood of the clean rows' classes.

    Args:
        oof_log_odds: of each of E experts, of each clean row without having seen it, `[M, C]`, in nats.
        labels: their classes `[M]`; every class weighs the same.
        prior_weights: w of each without clean rows, as if three of them had voted for it.

    References:
        Wolpert (1992), stacked generalization, section 2.
    """
    log_odds, truth, prior = torch.stack([*oof_log_odds], 1).numpy(), labels.numpy(), np.asarray(prior_weights)
    pull = PULL / len(truth)  # few rows cannot make an expert certain
    shares = balanced(labels, log_odds.shape[2]).numpy()
    rows = np.arange(len(truth))

    def cost(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = np.einsum("mec,e->mc", log_odds, w)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        residual = p - np.eye(p.shape[1])[truth]
        likelihood = -(shares * np.log(p[rows, truth] + 1e-30)).sum()
        slope = np.einsum("m,mec,mc->e", shares, log_odds, residual)
        return likelihood + pull * ((w - prior) ** 2).sum(), slope + 2 * pull * (w - prior)

    found = minimize(cost, prior, jac=True, method="L-BFGS-B", bounds=[(0, MOST)] * len(prior))
    return torch.from_numpy(found.x)


def fit_stacking_weights(experts: Sequence[Expert], labels: Tensor) -> list[Expert]:
    """The experts, each times its stacking weight (`fit_weights`)."""
    weights = fit_weights([e.oof_log_odds for e in experts], labels, [e.prior_weight for e in experts])
    return [
        replace(e, train_log_odds=w * e.train_log_odds, oof_log_odds=w * e.oof_log_odds)
        for w, e in zip(weights, experts, strict=True)
    ]


def log_linear_pool(experts: Sequence[Expert]) -> Expert:
    """The sum of the experts' log-odds, as one expert."""
    train = torch.stack([e.train_log_odds for e in experts]).sum(0)
    return Expert(train, torch.stack([e.oof_log_odds for e in experts]).sum(0), 1.0)


def class_shares(log_odds: Tensor, rounds: int = 5, smoothing: float = 0.02) -> Tensor:
    """b `[C]`: the classes' shares among rows with `log_odds` `[N, C]`, by EM from equal shares, half-way.

    The square root of what EM finds: it takes a bias of the experts for a share, and amplifies it.

    Args:
        rounds: EM steps.
        smoothing: rows added to every class, as a share of N: no class vanishes.

    References:
        Saerens, Latinne, Decaestecker (2002), equation 2.2.
    """
    shares = log_odds.new_full((log_odds.shape[1],), 1 / log_odds.shape[1])
    for _ in range(rounds):
        counts = (log_odds + shares.log()).softmax(1).sum(0) + smoothing * len(log_odds)
        shares = counts / counts.sum()
    halved = shares.sqrt()
    return halved / halved.sum()


def design(features: Tensor) -> Tensor:
    """`[N, H + 1]` in double precision, the bias last."""
    return torch.cat([features, torch.ones_like(features[:, :1])], 1).double()


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """`[..., C]` of classes `[...]`, zeros where there is none (-1)."""
    return F.one_hot(classes.clamp_min(0), num_classes).double() * (classes >= 0)[..., None]


def votes_weight(votes: Tensor, sharpest: int = 8, rows: int = 4096) -> Tensor:
    r"""Weight of each function, `[K]` in (0, 1]: one over how many functions vote the same, itself counted.

    $$u_j = 1 \Big/ \sum_k \max(0, \kappa_{jk})^8$$

    with Cohen's κ of two functions' votes, abstaining counted as a class: 1 for a copy, and next to nothing for two
    that are right on the same 80 % of rows.

    Args:
        votes: `[N, K]`, -1 abstains; at most `rows` of them, evenly spread, are looked at.

    References:
        Cohen (1960), equation 1.
    """
    if len(votes) > rows:
        votes = votes[torch.linspace(0, len(votes) - 1, rows).long()]
    indicators = F.one_hot(votes + 1, int(votes.max()) + 2).double()  # [N, K, C + 1]
    flat = indicators.transpose(0, 1).flatten(1)
    same = flat @ flat.T / len(votes)
    shares = indicators.mean(0)
    chance = shares @ shares.T
    kappa = ((same - chance) / (1 - chance).clamp_min(1e-9)).clamp(0, 1)
    kappa = torch.where((1 - chance) < 1e-9, 0.0, kappa).fill_diagonal_(1.0)
    return 1 / kappa.pow(sharpest).sum(1)


def _tempered(votes: Tensor, weight: Tensor) -> Tensor:
    """One over the root of the number of functions that vote, copies counted once, `[N, 1]`."""
    return ((votes >= 0) * weight).sum(1, keepdim=True).clamp_min(1).double() ** -0.5


def _log_odds(counts: Tensor) -> Tensor:
    """log(C · P(c | s)) from counts `[K, C true, C asserted]`, with the priors of this module."""
    num_classes = counts.shape[-1]
    hits = counts.diagonal(dim1=1, dim2=2).sum(-1) + PRECISION * ROWS
    right = (hits / (counts.sum((1, 2)) + ROWS))[:, None, None]
    same = torch.eye(num_classes, dtype=torch.double)
    prior = same * right + (1 - same) * (1 - right) / max(num_classes - 1, 1)
    precision = (counts + ROWS * prior) / (counts.sum(1, keepdim=True) + ROWS)
    return (num_classes * precision).clamp_min(1e-3).log()
