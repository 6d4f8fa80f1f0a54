r"""SPEAR's seven losses: those of the student as sources, those of CAGE as functions of its parameters.

====  ============================  ==================================================================
L1    CE(f, gold)                   `CrossEntropy("gold")`
L2    H(f), unlabelled rows         `Unlabelled(Entropy(), "gold")`
L3    CE(f, argmax P(y | l))        `Unlabelled(PosteriorLabel("cage"), "gold")`
L4    −log P(y | l), gold rows      `labelled_likelihood`
L5    −log Σ_y P(y, l)              `vote_likelihood`
L6    KL(f ‖ P(y | l))              `Agreement("cage")`; of CAGE's parameters, `posterior_divergence`
L7    quality guide                 `quality_guide`
====  ============================  ==================================================================

"gold" is a column of classes, missing where a row has none; "cage" a posterior `[N, C]`. `FromVotes` reads the
posterior from the votes as a label model has it at present, not as a column has kept it.

References:
    Maheshwari et al. (2021), "Semi-Supervised Data Programming with Subset Selection", arXiv 2008.09887, section 3;
    Chatterjee, Ramakrishnan, Sarawagi (2020), "Robust Data Programming with Precision-guided Labeling Functions".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf._types import Batch, Outputs
from amal_hf.losses.base import Loss
from amal_hf.losses.labeling import ABSTAIN


def cage_log_joint(theta: Tensor, fires: Tensor) -> Tensor:
    r"""CAGE's joint probability of class and votes.

    $$\log P(y, l) = \sum_j \theta_{yj} l_j - \log Z, \qquad Z = \sum_y \prod_j (1 + e^{\theta_{yj}})$$

    Args:
        theta: `[C, J]`.
        fires: `[N, J]`, 1 where indicator j fires, else 0.

    Returns:
        `[N, C]`, in nats.

    Example:
        >>> cage_log_joint(torch.zeros(2, 1), torch.ones(1, 1)).exp()  # Z = 2 + 2; shape: [1, 2]
        tensor([[0.2500, 0.2500]])

    References:
        Chatterjee et al. (2020), equations 1 and 4.
    """
    return torch.einsum("nj,yj->ny", fires.to(theta), theta) - F.softplus(theta).sum(1).logsumexp(0)


def labelled_likelihood(log_joint: Tensor, gold: Tensor) -> Tensor:
    r"""SPEAR's L4: $-\log P(y_i \mid l_i)$ on rows with a class.

    Args:
        log_joint: $\log P(y, l_i)$, `[N, C]`.
        gold: class `[N]`; negative where there is none.

    Returns:
        `[N]`, in nats; 0 where the row has no class.

    Example:
        >>> labelled_likelihood(torch.tensor([[0.1, 0.3], [0.2, 0.2]]).log(), torch.tensor([0, -100]))  # shape: [2]
        tensor([1.3863, 0.0000])
    """
    log_p = log_joint.log_softmax(1).gather(1, gold.clamp_min(0)[:, None])[:, 0]
    return torch.where(gold >= 0, -log_p, 0.0)


def vote_likelihood(log_joint: Tensor) -> Tensor:
    r"""SPEAR's L5: $-\log \sum_y P(y, l_i)$. With L4 on a row of gold it makes $-\log P(y_i, l_i)$.

    Args:
        log_joint: $\log P(y, l_i)$, `[N, C]`.

    Returns:
        `[N]`, in nats.

    Example:
        >>> vote_likelihood(torch.tensor([[0.1, 0.3]]).log())  # shape: [1]
        tensor([0.9163])

    References:
        Chatterjee et al. (2020), equation 6.
    """
    return -log_joint.logsumexp(1)


def posterior_divergence(logits: Tensor, log_joint: Tensor) -> Tensor:
    r"""SPEAR's L6 with a gradient on both sides: $\mathrm{KL}(f_i \,\|\, P(y \mid l_i))$, the student first.

    Args:
        logits: the student's, `[N, C]`; detach them for a step of the label model alone.
        log_joint: $\log P(y, l_i)$ of the same rows in the same order, `[N, C]`.

    Returns:
        `[N]`, in nats.

    Example:
        >>> posterior_divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))  # shape: [1]
        tensor([0.1109])
    """
    log_f = logits.to(log_joint.dtype).log_softmax(1)
    return (log_f.exp() * (log_f - log_joint.log_softmax(1))).sum(1)


def quality_guide(theta: Tensor, classes: Tensor, quality: Tensor) -> Tensor:
    r"""SPEAR's L7: hold each indicator's precision near what its author believes.

    $$-\big[a_j \log p_j + (1 - a_j)\log(1 - p_j)\big], \qquad
      p_j = P(y = k_j \mid l_j = 1) \propto \sigma(\theta_{k_j j}) \prod_i (1 + e^{\theta_{k_j i}})$$

    Args:
        theta: `[C, J]`.
        classes: $k_j$, the class that indicator j votes for, `[J]`.
        quality: $a_j$ in [0, 1], `[J]`.

    Returns:
        `[J]`, in nats: one term an indicator.

    Example:
        >>> quality_guide(torch.zeros(2, 1), torch.tensor([0]), torch.tensor([0.9]))  # p = 1/2; shape: [1]
        tensor([0.6931])

    References:
        Chatterjee et al. (2020), equation 9.
    """
    log_p = (F.logsigmoid(theta) + F.softplus(theta).sum(1, keepdim=True)).log_softmax(0)
    own = F.one_hot(classes, len(theta)).T.bool()  # [C, J]
    right = log_p.masked_fill(~own, -torch.inf).logsumexp(0)
    wrong = log_p.masked_fill(own, -torch.inf).logsumexp(0)
    return -(quality * right + (1 - quality) * wrong)


@dataclass(frozen=True)
class PosteriorLabel(Loss):
    r"""Cross-entropy to the likeliest class of a posterior (SPEAR's L3).

    $$\ell_i = -\log \mathrm{softmax}(z_i)_{c_i}, \qquad c_i = \arg\max_c P_{ic}$$

    Args:
        column: posterior `[N, C]`; a row of NaN is not covered, and neither is one whose best classes tie.

    Returns:
        `[N]`, in nats; 0 where the posterior names no class.

    Example:
        >>> batch = {"cage": torch.tensor([[0.9, 0.1], [0.5, 0.5]])}
        >>> PosteriorLabel("cage")(Outputs(logits=torch.tensor([[1.0, 0.0], [1.0, 0.0]])), batch)  # shape: [2]
        tensor([0.3133, 0.0000])

    References:
        Maheshwari et al. (2021), section 3.
    """

    column: str = "posterior"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def mask(self, batch: Batch) -> Tensor:
        posterior = batch[self.column]
        return (posterior == posterior.amax(-1, keepdim=True)).sum(-1) == 1  # NaN equals nothing

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        best = torch.where(self.mask(batch), batch[self.column].argmax(-1), -100)
        return F.cross_entropy(outputs.logits, best, reduction="none", ignore_index=-100)

    def target(self, batch: Batch, num_classes: int) -> Tensor:
        return F.one_hot(batch[self.column].argmax(-1), num_classes) * self.mask(batch)[:, None].float()


@dataclass(frozen=True)
class Unlabelled(Loss):
    r"""Another loss on the rows without a gold class alone.

    $$\ell_i = \mathbb{1}[\text{gold}_i\ \text{missing}]\; \ell^{\text{inner}}_i$$

    Args:
        loss: any loss of one source.
        gold: column of classes `[N]`; negative (missing) where a row has none.

    Returns:
        `[N]`, in nats; 0 on rows with a gold class.

    Example:
        >>> from amal_hf.losses import Entropy
        >>> batch = {"gold": torch.tensor([1, -100])}
        >>> Unlabelled(Entropy(), "gold")(Outputs(logits=torch.zeros(2, 2)), batch)  # shape: [2]
        tensor([0.0000, 0.6931])

    References:
        SPEAR's L2 and L3 are of unlabelled rows: Maheshwari et al. (2021), section 3.
    """

    loss: Loss
    gold: str = "gold"

    @property
    def vote_columns(self) -> tuple[str, ...]:
        return self.loss.vote_columns

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.loss.columns, self.gold)

    def mask(self, batch: Batch) -> Tensor:
        return self.loss.mask(batch) & (batch[self.gold] < 0)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        return torch.where(batch[self.gold] < 0, self.loss(outputs, batch), 0.0)

    def target(self, batch: Batch, num_classes: int) -> Tensor | None:
        target = self.loss.target(batch, num_classes)
        return None if target is None else target * (batch[self.gold] < 0)[:, None]


@dataclass(frozen=True)
class FromVotes(Loss):
    r"""A loss of a posterior that is worked out from the row's votes, at the time it is asked for.

    $$\ell_i = \ell^{\text{inner}}\big(z_i, P(y \mid l_i)\big)$$

    Args:
        loss: a loss that reads one posterior column: `Agreement`, `PosteriorLabel`, or `CrossEntropy` to all of it.
        posterior: votes `[N, M]` -> posterior `[N, C]`.
        votes: column of votes `[N, M]`, -1 abstains.

    Returns:
        `[N]`, in nats; 0 where no function votes.

    Raises:
        ValueError: `loss` reads anything but one column.

    Example:
        >>> from amal_hf.losses import Agreement
        >>> batch = {"weak_labels": torch.tensor([[0, -1], [-1, -1]])}
        >>> certain = lambda votes: torch.tensor([[0.75, 0.25]]).expand(len(votes), 2)
        >>> FromVotes(Agreement("cage"), certain)(Outputs(logits=torch.zeros(2, 2)), batch)  # shape: [2]
        tensor([0.1438, 0.0000])
    """

    loss: Loss
    posterior: Callable[[Tensor], Tensor]
    votes: str = "weak_labels"

    def __post_init__(self) -> None:
        if len(self.loss.columns) != 1:
            raise ValueError(
                f"`loss`: expected one that reads a posterior column alone, found that it reads {self.loss.columns}. "
                "Wrap in this order: Unlabelled(FromVotes(loss, ...))."
            )

    @property
    def vote_columns(self) -> tuple[str, ...]:
        return (self.votes,)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.votes,)

    def _with_posterior(self, batch: Batch) -> dict[str, Tensor]:
        votes = batch[self.votes]
        covered = (votes != ABSTAIN).any(1, keepdim=True)
        (column,) = self.loss.columns
        return {**batch, column: torch.where(covered, self.posterior(votes), torch.nan)}

    def mask(self, batch: Batch) -> Tensor:
        return self.loss.mask(self._with_posterior(batch))

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.loss(outputs, self._with_posterior(batch))

    def target(self, batch: Batch, num_classes: int) -> Tensor | None:
        return self.loss.target(self._with_posterior(batch), num_classes)
