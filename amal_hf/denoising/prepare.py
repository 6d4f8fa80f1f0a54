"""Posterior and probe as columns of the rows `[N, C]`: what the trainer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, concatenate_datasets
from torch import Tensor
from transformers.utils import logging

from amal_hf._types import ROW_ID
from amal_hf.denoising.assertions import Assertions
from amal_hf.denoising.experts import (
    Expert,
    NaiveBayesVotes,
    Probe,
    class_shares,
    fit_stacking_weights,
    log_linear_pool,
    votes_weight,
)
from amal_hf.denoising.label_noise import LabelNoise
from amal_hf.denoising.neighbours import CrossFittedRidge
from amal_hf.denoising.row_features import RowFeatures
from amal_hf.denoising.teacher_experts import named_by, of_teacher

logger = logging.get_logger(__name__)

LOG_POSTERIOR, PROBE, CLEAN_LABEL = "amal_log_posterior", "amal_probe", "amal_clean_label"
"""Columns: log π `[N, C]`; the features' probabilities `[N, C]`; the class of a clean row, -100 on the others."""

VISITS = 10  # of a clean row in a run, where only votes cover the others
SURE = 20.0  # nats between the class of a clean row and the others
LEVEL = 0.5  # weight of a distribution before the clean rows have judged it


def add_posterior(
    train: Dataset,
    clean: Dataset,
    labels: Tensor,
    num_classes: int,
    sources: Assertions,
    encode: Callable[[Dataset], Tensor],
    text_columns: Sequence[str] = ("text",),
) -> tuple[Dataset, Dataset]:
    """Log-probabilities of every row's class, `[N, C]`, and those of the features alone, as two new columns.

    Args:
        train: rows to be judged, `[N]`.
        clean: a few rows whose class is known, `[M]`.
        labels: their classes `[M]`.
        num_classes: C.
        sources: what the sources assert of both.
        encode: rows -> features `[N, H]` of unit length.
        text_columns: by which a clean row is found to stand there twice.

    Returns:
        train and clean (leave-one-out) with the columns; everything else as it was.

    Raises:
        ValueError: clean rows of a single class.

    References:
        Wolpert (1992), section 2; Saerens, Latinne, Decaestecker (2002), equation 2.2; Dawid & Skene (1979), section 3.
    """
    if len(labels.unique()) < 2:
        raise ValueError(
            f"`clean_dataset`: expected rows of at least 2 of the {num_classes} classes, found "
            f"{len(labels.unique())}. Label a few rows of every class (10 per class help already)."
        )
    once, place = _each_text_once(clean, labels, text_columns)
    about, clean_about = (
        RowFeatures(
            encode(rows),
            {name: pair[side] for name, pair in sources.votes.items()},
            {name: pair[side] for name, pair in sources.distributions.items()},
        )
        for side, rows in enumerate((train, clean))
    )
    model = LabelModel(about, clean_about[once], labels[once], num_classes, [*sources.labels.values()])
    parts = []
    for rows, log_odds, probe in zip((train, clean), *model.fit(), strict=True):
        at = torch.arange(len(rows)) if rows is train else place
        rows = _with_column(rows, LOG_POSTERIOR, log_odds.log_softmax(1).float()[at].numpy())
        parts.append(_with_column(rows, PROBE, probe.softmax(1).float()[at].numpy()))
    return parts[0], parts[1]


class LabelModel:
    """Experts about the class of each row, stacked by the clean rows: posterior log-odds `[N, C]`.

    Args:
        about, clean: the training rows' and the clean rows' features and sources.
        labels: classes of the clean rows, `[M]`.
        num_classes: C.
        noisy: labels that the clean rows cannot judge, each `[N]`, -1 none.
    """

    def __init__(
        self, about: RowFeatures, clean: RowFeatures, labels: Tensor, num_classes: int, noisy: Sequence[Tensor]
    ) -> None:
        self.about, self.clean, self.labels, self.num_classes = about, clean, labels, num_classes
        self.noisy = [given for given in noisy if (given >= 0).any()]
        self.neighbours = CrossFittedRidge(about.features, clean.features, labels)
        self.label_experts = [self.neighbours.label_expert(given, num_classes) for given in self.noisy]
        self.copies = {name: votes_weight(votes) for name, votes in about.votes.items()}

    def fit(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Log-odds of the training and (out of fold) of the clean rows: of all experts, and of the features' alone."""
        looking, others = self._experts(torch.arange(len(self.labels)), [*self.about.logits])
        if self.neighbours.can_leave_out:
            looking.append(self.neighbours.posterior_expert(self._believe))
            for name in self.about.logits:
                named, clean_named = (named_by(rows.logits[name]) for rows in (self.about, self.clean))
                without = partial(self._believe, teachers=())
                others.append(self.neighbours.teacher_reliability_expert(named, clean_named, self.num_classes, without))
        stacked = fit_stacking_weights(looking + others, self.labels)
        every, seen = log_linear_pool(stacked), log_linear_pool(stacked[: len(looking)])
        clean = every.oof_log_odds + class_shares(every.train_log_odds).log()
        return (self._with_labels(every.train_log_odds), clean), (seen.train_log_odds, seen.oof_log_odds)

    def _experts(self, rows: Tensor, teachers: Sequence[str]) -> tuple[list[Expert], list[Expert]]:
        """The experts that these clean rows judge: those that read features, and those that do not."""
        clean, truth = self.clean[rows], self.labels[rows]
        probe = Probe.fit(clean.features, truth, self.num_classes)
        looking, others = [Expert(probe(self.about.features), probe.oof_log_odds, 0.0)], []  # it must earn its weight
        looking += [replace(each, oof_log_odds=each.oof_log_odds[rows]) for each in self.label_experts]
        for name, votes in clean.votes.items():
            counted = NaiveBayesVotes.count(votes, truth, self.num_classes, self.copies[name])
            others.append(Expert(counted(self.about.votes[name]), counted.oof_log_odds, 1.0))
        return looking, others + [
            e for name in teachers for e in of_teacher(name, self.about, clean, truth, self.num_classes)
        ]

    def _believe(self, rows: Tensor, teachers: Sequence[str] | None = None) -> Tensor:
        """π `[N, C]`, as these clean rows alone have it."""
        looking, others = self._experts(rows, [*self.about.logits] if teachers is None else teachers)
        pooled = log_linear_pool(fit_stacking_weights(looking + others, self.labels[rows]))
        return self._with_labels(pooled.train_log_odds).softmax(1)

    def _with_labels(self, log_odds: Tensor) -> Tensor:
        """Log-odds `[N, C]` of the experts, with the classes' shares and the labels that clean rows cannot judge."""
        log_odds = log_odds + class_shares(log_odds).log()
        return log_odds + sum(LabelNoise.fit(log_odds, given)(given) for given in self.noisy)


def _each_text_once(clean: Dataset, labels: Tensor, text_columns: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Positions of the first row of every text, and where among these each clean row's text stands.

    A text that stands there twice would be left out and answered by its copy.
    """
    columns = [c for c in text_columns if c in clean.column_names] or ["input_ids"]
    texts = zip(*([" ".join(str(text).casefold().split()) for text in clean[c][:]] for c in columns), strict=True)
    seen: dict[tuple[str, ...], int] = {}
    first: list[int] = []
    place: list[int] = []
    for i, text in enumerate(texts):
        if text not in seen:
            seen[text] = len(first)
            first.append(i)
        place.append(seen[text])
    if len(first) < len(place):
        differ = sum(int(labels[first[at]]) != int(labels[i]) for i, at in enumerate(place))
        logger.warning(
            f"`clean_dataset`: {len(place) - len(first)} of {len(place)} rows repeat another's text, {differ} of them "
            "with another class; each text counts once, with its first class."
        )
    return torch.tensor(first), torch.tensor(place)


def clean_share(clean_rows: int, train_rows: int, rows_seen: int = 0, votes_only: bool = False) -> float:
    """The share of clean rows in a run.

    Where labels or teachers cover the training rows, every row is seen as often, clean or not: more of the clean
    ones costs the others their turn. Where only votes do, which leave rows out and err together, each clean row is seen
    about ten times in a run that sees `rows_seen` rows, within 1/4 to 3/4.

    Example:
        >>> clean_share(100, 900)
        0.1
        >>> clean_share(60, 900, 7680, votes_only=True), clean_share(500, 900, 7680, votes_only=True)
        (0.25, 0.6510416666666666)
    """
    if not votes_only:
        return clean_rows / (clean_rows + train_rows)
    return min(max(VISITS * clean_rows / rows_seen, 0.25), 0.75)


def with_clean_rows(train: Dataset, clean: Dataset, labels: Tensor, num_classes: int, share: float = 0.25) -> Dataset:
    """The rows and, so often that they are `share` of all, the clean rows; `amal_clean_label` `[N]` says which.

    Args:
        train: rows with the columns of `add_posterior`; their `label`, if any, is left alone and not read.
        clean: rows with the same columns.
        labels: their classes, `[M]`.
        num_classes: C.
        share: of all rows, in (0, 1).

    Returns:
        the rows with a column `amal_clean_label`: the class of a clean row, -100 on the others. The `log_posterior` of
        a clean row is its class; its `row_id`, where the rows have one, is new.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"`share`: expected a number between 0 and 1, found {share!r}. 0.25 is usual.")
    times = max(1, round(share / (1 - share) * len(train) / len(clean)))
    truth = labels.numpy()
    sure = SURE * np.eye(num_classes, dtype=np.float32)[truth]
    sure -= np.log(np.exp(sure).sum(1, keepdims=True))
    added = _with_column(_with_column(clean, LOG_POSTERIOR, sure), CLEAN_LABEL, truth)
    shared = [c for c in train.column_names if c in {*added.column_names} - {ROW_ID}]
    rows = _with_column(train, CLEAN_LABEL, np.full(len(train), -100))
    added = added.select_columns([*shared, CLEAN_LABEL]).select(np.tile(np.arange(len(added)), times))
    if ROW_ID in train.column_names:
        added = added.add_column(ROW_ID, max(train[ROW_ID][:]) + 1 + np.arange(len(added)))
    return concatenate_datasets([rows, added.cast(Features({c: rows.features[c] for c in added.column_names}))])


def without_clean_rows(train: Any) -> Any:
    """The rows that `with_clean_rows` did not add; a data set without such a column as it is."""
    if not isinstance(train, Dataset) or CLEAN_LABEL not in train.column_names:
        return train
    return train.select(np.flatnonzero(np.asarray(train[CLEAN_LABEL][:]) == -100))


def _with_column(rows: Dataset, name: str, values: np.ndarray) -> Dataset:
    rows = rows.remove_columns([name]) if name in rows.column_names else rows
    if values.ndim == 1:
        return rows.add_column(name, values)
    flat = pa.array(values.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]).cast(pa.list_(flat.type))
    return concatenate_datasets([rows, Dataset(pa.table({name: column}))], axis=1)
