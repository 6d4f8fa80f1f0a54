r"""CAGE: a graphical model of a row's class and of which labeling functions fire on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amal_hf import _checks
from amal_hf.labeling.checks import check_votes
from amal_hf.losses import ABSTAIN, cage_log_joint, labelled_likelihood, quality_guide, vote_likelihood

Quality = float | Sequence[float] | None

START_QUALITY = 0.9  # of a function nobody has vouched for: without it no class has a name
START_NOISE = 0.01  # a quality of 1/C tells no class from another: the start must


@dataclass(frozen=True)
class CAGE:
    r"""Weigh labeling functions by how they agree, with their authors' guess as a guide.

    $$P(y, l) = \frac1Z \prod_j e^{\theta_{yj} l_j}, \qquad Z = \sum_y \prod_j (1 + e^{\theta_{yj}})$$

    $l_j \in \{0, 1\}$ says whether indicator j fires. A function that votes for one class is one indicator; one that
    votes for several is one indicator for each (function, class), as if these were functions of their own.

    A row on which nothing fires has $P(y, 0) = 1/Z$ for every y: its posterior is uniform, as the model says itself.

    Args:
        theta: `[C, J]`, float64.
        functions: the function behind each indicator, `[J]`, in 0..M-1.
        classes: the class each indicator votes for, `[J]`.
        num_functions: M.

    Example:
        >>> votes = [[0, 0, -1], [0, 0, 1], [-1, 1, 1], [1, -1, 1], [-1, -1, -1]]
        >>> CAGE.fit(votes, num_classes=2).posterior(votes).argmax(1)[:4].tolist()  # posterior: [N, C]
        [0, 0, 1, 1]

    References:
        Chatterjee, Ramakrishnan, Sarawagi (AAAI 2020), "Robust Data Programming with Precision-guided Labeling
        Functions", with discrete functions.
    """

    theta: Tensor
    functions: Tensor
    classes: Tensor
    num_functions: int

    @classmethod
    def fit(
        cls,
        votes: Any,
        num_classes: int,
        gold: Any = None,
        quality: Quality = 0.9,
        seed: int = 0,
        *,
        anchor: float = 1e-3,
        steps: int = 500,
    ) -> CAGE:
        r"""Minimise, in float64 and over all rows at once,

        $$\frac1N\sum_i -\log\sum_y P(y, l_i) + \frac1{|G|}\sum_{i\in G} -\log P(y_i \mid l_i)
          + \sum_j \text{guide}_j + \text{anchor}\,\|\theta - \theta^0\|^2$$

        (SPEAR's L5, L4 and L7, as its released code weighs them). $\theta^0$ is the model with a uniform class in which
        every indicator fires as often as it does here and is as right as `quality` says. The anchor is ours: the
        likelihood alone drives parameters to infinity, and classes to clusters that share only their names.

        Args:
            votes: `[N, M]`, -1 abstains: an array, a tensor or lists.
            num_classes: C.
            gold: class `[N]` of the rows where it is known, negative elsewhere, in the order of `votes`.
            quality: how often a function is right where it votes: one number, one a function `[M]`, or None: no guide.
            seed: of the start's noise, which tells classes apart that `quality` does not.
            anchor: 0: maximum likelihood.
            steps: at most so many of L-BFGS.

        Raises:
            ValueError: votes outside -1..C-1, no votes at all, `gold` or `quality` of another length or range.
        """
        matrix = check_votes(votes, num_classes)
        functions, classes = _indicators(matrix)
        known = _checked_gold(gold, len(matrix), num_classes)
        patterns, counts = np.unique(matrix, axis=0, return_counts=True)
        shares = torch.from_numpy(counts / len(matrix))
        believed = per_indicator(quality, matrix.shape[1], functions)
        fires = _fires(torch.from_numpy(patterns), functions, classes)
        theta_0 = _start(shares @ fires, classes, num_classes, believed, seed)
        labelled = _fires(torch.from_numpy(matrix[known.numpy() >= 0]), functions, classes)
        theta = theta_0.clone().requires_grad_()

        def objective() -> Tensor:
            total = (shares * vote_likelihood(cage_log_joint(theta, fires))).sum()
            if len(labelled):
                total = total + labelled_likelihood(cage_log_joint(theta, labelled), known[known >= 0]).mean()
            if believed is not None:
                total = total + quality_guide(theta, classes, believed).sum()
            return total + anchor * (theta - theta_0).square().sum()

        _minimise(objective, theta, steps)
        return cls(theta.detach(), functions, classes, matrix.shape[1])

    def log_joint(self, votes: Any) -> Tensor:
        r"""$\log P(y, l_i)$ of every row and class.

        Args:
            votes: `[N, M]`, -1 abstains. A vote for a class that its function never named in `fit` says nothing.

        Returns:
            `[N, C]`, in nats, float64, on the device of `votes`.

        Raises:
            ValueError: another number of functions, or votes outside -1..C-1.
        """
        votes = votes if isinstance(votes, Tensor) else torch.from_numpy(np.array(votes))
        if votes.dim() != 2 or votes.shape[1] != self.num_functions:
            raise ValueError(
                f"`votes`: expected [rows, {self.num_functions}], one column for each function the model was fitted "
                f"to; found {list(votes.shape)}."
            )
        if votes.numel():
            _checks.votes("votes", int(votes.min()), int(votes.max()), len(self.theta))
        functions, classes = self.functions.to(votes.device), self.classes.to(votes.device)
        return cage_log_joint(self.theta.to(votes.device), _fires(votes, functions, classes))

    def posterior(self, votes: Any) -> Tensor:
        """P(y | l) of every row, `[N, C]`, float64; uniform where nothing fires.

        Args:
            votes: `[N, M]`, as `log_joint` takes them.
        """
        with torch.no_grad():
            return self.log_joint(votes).softmax(1)


def per_indicator(quality: Quality, num_functions: int, functions: Tensor) -> Tensor | None:
    """Quality as one number an indicator, `[J]`; None for none.

    Raises:
        ValueError: another length than the functions', or a number outside [0, 1].
    """
    if quality is None:
        return None
    given = torch.as_tensor(quality, dtype=torch.float64)
    if given.dim() and given.shape != (num_functions,):
        raise ValueError(
            f"`quality`: expected one number, or {num_functions}, one a function; found {list(given.shape)}."
        )
    for number in given.reshape(-1).tolist():
        _checks.between("quality", number, 0.0, 1.0)
    return given.expand(num_functions)[functions]


def _indicators(votes: np.ndarray) -> tuple[Tensor, Tensor]:
    """The (function, class) pairs that occur: functions `[J]` and classes `[J]`."""
    pairs = [(j, int(c)) for j, column in enumerate(votes.T) for c in np.unique(column) if c != ABSTAIN]
    if not pairs:
        raise ValueError("`votes`: expected a vote on some row to fit CAGE to, found none.")
    functions, classes = torch.tensor(pairs).T
    return functions, classes


def _fires(votes: Tensor, functions: Tensor, classes: Tensor) -> Tensor:
    return (votes[:, functions] == classes).double()


def _start(rates: Tensor, classes: Tensor, num_classes: int, believed: Tensor | None, seed: int) -> Tensor:
    """θ⁰ `[C, J]`: P(l_j = 1) is `rates` `[J]`, P(y = k_j | l_j = 1) is `believed`, and P(y) = 1/C."""
    right = torch.full_like(rates, START_QUALITY) if believed is None else believed
    own = F.one_hot(classes, num_classes).T.bool()
    shared = torch.where(own, right, (1 - right) / max(num_classes - 1, 1))
    firing = (num_classes * rates * shared).clamp(1e-6, 0.95)  # of a function surer and busier than a uniform P(y) lets
    noise = torch.randn(firing.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (firing.logit() + START_NOISE * noise).contiguous()


def _checked_gold(gold: Any, rows: int, num_classes: int) -> Tensor:
    if gold is None:
        return torch.full((rows,), -100)
    known = torch.as_tensor(gold)
    if known.shape != (rows,) or known.is_floating_point():
        raise ValueError(
            f"`gold`: expected {rows} whole numbers, the class of each row of `votes` or -100; found {known.dtype} "
            f"of shape {list(known.shape)}."
        )
    if rows and known.max() >= num_classes:
        raise ValueError(f"`gold`: expected classes 0 to {num_classes - 1}, or -100; found {int(known.max())}.")
    return known.long()


def _minimise(objective: Any, theta: Tensor, steps: int) -> None:
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=steps, history_size=50, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
