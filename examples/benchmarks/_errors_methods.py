"""Methods of `label_errors.py`: each is `(rows, seed) -> suspicion [N]`, high where the label is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _errors_data import Labelled
from _rule_vectors import cross_validated, logits
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from amal_hf.denoising import LOG_POSTERIOR, add_posterior
from amal_hf.denoising.assertions import Assertions

FOLDS = 5


def ours(rows: Labelled, seed: int) -> np.ndarray:
    """1 minus the corrected label's probability of the given class; the label is a source of unknown noise."""
    vectors = {id(rows.train): rows.vectors, id(rows.clean): rows.clean_vectors}
    judged, _ = add_posterior(
        rows.train,
        rows.clean,
        torch.as_tensor(rows.clean_labels),
        len(rows.classes),
        Assertions(labels={"label": torch.as_tensor(rows.given)}),
        lambda asked: torch.as_tensor(vectors[id(asked)]),
    )
    return 1 - _of_given(np.exp(np.asarray(judged[LOG_POSTERIOR][:])), rows.given)


def cleanlab(clean: bool) -> Callable[[Labelled, int], np.ndarray]:
    """cleanlab's label quality, of out-of-sample probabilities: 5 folds, logistic regression on the same vectors.

    Args:
        clean: the clean rows are among the training rows of every fold.
    """

    def method(rows: Labelled, seed: int) -> np.ndarray:
        extra = slice(None) if clean else slice(0)
        said = np.zeros((len(rows.given), len(rows.classes)))
        cut = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fit, judge in cut.split(rows.vectors, rows.given):
            model = LogisticRegression(max_iter=1000).fit(
                np.concatenate([rows.vectors[fit], rows.clean_vectors[extra]]),
                np.concatenate([rows.given[fit], rows.clean_labels[extra]]),
            )
            said[judge] = softmax(logits(model, rows.vectors[judge], len(rows.classes)), axis=1)
        return _suspicion(rows.given, said)

    return method


def of_clean_rows(rows: Labelled, seed: int) -> np.ndarray:
    """cleanlab's label quality, of the probabilities of a model that saw the clean rows alone."""
    model = cross_validated(rows.clean_vectors, rows.clean_labels, seed)
    return _suspicion(rows.given, softmax(logits(model, rows.vectors, len(rows.classes)), axis=1))


def _suspicion(given: np.ndarray, said: np.ndarray) -> np.ndarray:
    from cleanlab.rank import get_label_quality_scores

    return 1 - get_label_quality_scores(given, said)


def _of_given(said: np.ndarray, given: np.ndarray) -> np.ndarray:
    return said[np.arange(len(given)), given]


@dataclass(frozen=True)
class Method:
    """`run` on rows; `clean`: it reads clean rows, so that every budget is another run."""

    run: Callable[[Labelled, int], np.ndarray]
    clean: bool = True


METHODS = {
    "amal_hf": Method(ours),
    "cleanlab": Method(cleanlab(clean=False), clean=False),
    "cleanlab, clean rows too": Method(cleanlab(clean=True)),
    "cleanlab, clean rows alone": Method(of_clean_rows),
}
