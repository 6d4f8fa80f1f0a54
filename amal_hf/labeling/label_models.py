"""One distribution over classes from all votes on a row: majority vote, Snorkel's label model, CAGE.

A posterior is `[N, C]`. On a row that no function votes on it is NaN, which `CrossEntropy`, `Distillation` and
`Agreement` read as "says nothing": a label model would return its prior there.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from snorkel.labeling.model import LabelModel

from amal_hf import _checks
from amal_hf.labeling.cage import CAGE
from amal_hf.labeling.checks import VoteWarning
from amal_hf.losses import ABSTAIN, MajorityVote

COLUMNS = {"majority": "majority", "snorkel": "label_model", "cage": "cage"}
"""Label models by name, and the column each fills."""

LEAST_FUNCTIONS = 3  # Snorkel's, to tell their accuracies apart
PER_PAIR = 8 + 4  # bytes for every two of its indicators (function, class): moments in float64, and in float32
Posterior = Callable[[np.ndarray], np.ndarray]


def majority_vote(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Distribution of votes on a row, ties share.

    Args:
        votes: `[N, M]`, -1 abstains.
        num_classes: C.

    Returns:
        `[N, C]`, float32; NaN where no function votes.

    Example:
        >>> majority_vote(np.array([[0, 1, 1], [0, 1, -1], [-1, -1, -1]]), 2)  # [N, C]
        array([[0. , 1. ], [0.5, 0.5], [nan, nan]], dtype=float32)
    """
    given = torch.as_tensor(np.asarray(votes).astype(np.int64))
    return _covered(MajorityVote("votes").target({"votes": given}, num_classes).numpy(), votes)


def label_model(votes: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Posterior of Snorkel's `LabelModel`, fitted on the rows that some function votes on.

    Args:
        votes: `[N, M]`, -1 abstains; M ≥ 3.
        num_classes: C.
        seed: of its start; the random state outside is left as it was.

    Returns:
        `[N, C]`, float32; NaN where no function votes.

    Raises:
        ValueError: fewer than three functions, or no votes at all.

    Example:
        >>> votes = np.array([[0, 0, -1], [1, 1, 1], [1, 1, 0], [-1, -1, -1]])
        >>> label_model(votes, 2).argmax(1)[:3]  # [N, C]
        array([0, 1, 1])

    References:
        Ratner et al. (2019), "Training Complex Models with Multi-Task Weak Supervision", arXiv 1810.02840.
    """
    return fit("snorkel", votes, num_classes, seed)(votes)


def fit(name: str, votes: np.ndarray, num_classes: int, seed: int = 0) -> Posterior:
    """A label model fitted on `votes` `[N, M]`: votes `[n, M]` -> posterior `[n, C]`.

    Snorkel's sees the covered rows only; CAGE all, since in its model silence too is a vote.

    Args:
        name: "majority", "snorkel" or "cage".

    Raises:
        ValueError: unknown name, too few functions, or no votes at all.
    """
    check_models([name], np.shape(votes)[1], num_classes)
    if name == "majority":
        return partial(majority_vote, num_classes=num_classes)
    votes = np.asarray(votes)
    covered = votes[(votes != ABSTAIN).any(1)].astype(np.int64)
    if not len(covered):
        raise ValueError(
            "`votes`: expected a vote on some row to fit a label model to, found none. Mend the functions, or choose "
            "label_models='majority'."
        )
    with _random_state_kept():
        if name == "snorkel":
            snorkel = LabelModel(cardinality=num_classes, verbose=False)
            snorkel.fit(covered, seed=seed, progress_bar=False)
            return lambda given: _covered(snorkel.predict_proba(given.astype(np.int64)), given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VoteWarning)  # `label_splits` says it by name
            cage = CAGE.fit(votes.astype(np.int64), num_classes, seed=seed)
        return lambda given: _covered(cage.posterior(given.astype(np.int64)).detach().numpy(), given)


def check_models(names: Sequence[str], functions: int, num_classes: int = 0) -> None:
    """Label models that can be fitted to so many functions and classes (0: not known yet).

    Raises:
        ValueError: unknown name, too few functions, or more memory than is free.
    """
    for name in names:
        _checks.one_of("label_models", name, COLUMNS)
    if "snorkel" in names and functions < LEAST_FUNCTIONS:
        raise ValueError(
            f"`label_models`: expected at least {LEAST_FUNCTIONS} labeling functions for 'snorkel', found {functions}. "
            "Choose among the others: --label_models majority,cage."
        )

    needed, free = PER_PAIR * (functions * num_classes) ** 2, psutil.virtual_memory().available
    if "snorkel" in names and needed > free:
        raise ValueError(
            f"`label_models`: expected at most the {free / 2**30:.1f} GiB that are free, found that 'snorkel' takes "
            f"{needed / 2**30:.1f} GiB for {functions} functions and {num_classes} classes. Choose among the others: "
            "--label_models majority,cage."
        )


def accuracy(posterior: np.ndarray, gold: np.ndarray) -> tuple[float, int]:
    """How many rows of `[N, C]` are right and how many are judged: those covered, with a gold class `[N]` ≥ 0.

    A row whose best classes tie counts by the chance to pick the right one.
    """
    rows = ~np.isnan(posterior).any(1) & (gold >= 0)
    best = posterior[rows] == posterior[rows].max(1, keepdims=True, initial=0.0)
    right = best[np.arange(rows.sum()), gold[rows]] / best.sum(1)
    return float(right.sum()), int(rows.sum())


def _covered(posterior: Any, votes: np.ndarray) -> np.ndarray:
    posterior = np.asarray(posterior, np.float32)
    return np.where((np.asarray(votes) != ABSTAIN).any(1)[:, None], posterior, np.float32(np.nan))


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Snorkel seeds the three global generators: put them back."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
