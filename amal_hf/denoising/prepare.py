"""Evidence as columns: the trainer reads them and asks nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset, Features, concatenate_datasets
from datasets.utils import tqdm
from torch import Tensor, nn

from amal_hf import _checks
from amal_hf._types import ROW_ID
from amal_hf.denoising.experts import (
    Expert,
    NaiveBayesVotes,
    Probe,
    class_shares,
    fit_stacking_weights,
    log_linear_pool,
)
from amal_hf.denoising.label_noise import LabelNoise
from amal_hf.denoising.neighbours import CrossFittedRidge
from amal_hf.denoising.row_features import RowFeatures, logits_of, votes_of
from amal_hf.denoising.teacher_experts import named_by, of_teacher

LOG_POSTERIOR, PROBE, GOLD = "evidence", "probe", "gold"
"""log π `[N, C]`; the probe's probabilities `[N, C]`; the class of a clean row, -100 on the others."""

AT_ONCE = 2048  # rows in tokens
VISITS = 10  # of a clean row in a run, where only votes speak about the others
SURE = 20.0  # nats between the class of a gold row and the others


def add_posterior(
    train: Dataset,
    clean: Dataset,
    model: nn.Module,
    tokenizer: Any,
    *,
    votes: str = "weak_labels",
    opinions: Sequence[str] = (),
    label: str = "",
    text_columns: Sequence[str] = ("text",),
    max_length: int = 128,
    bf16: bool = False,
) -> tuple[Dataset, Dataset]:
    """Add the columns `log_posterior` and `probe` to the rows and, leave-one-out, to the clean rows.

    Args:
        train: rows to be judged, `[N]`.
        clean: a few rows with a `label` (a `ClassLabel`), and with the columns below where they have them.
        model: the student before training; only its encoder is read.
        votes: column of votes, -1 abstains ("", or absent from `train`: none).
        opinions: columns of teachers' logits or log-probabilities, in the order of the classes; null abstains.
        label: column of `train` with a class that may be wrong, -100 or null: none ("": nobody has labelled them).
        max_length: tokens kept per row.
        bf16: run the encoder under bfloat16 autocast.

    Returns:
        train and clean with both columns; everything else as it was.

    Raises:
        ValueError: clean rows of a single class, or without a column of `opinions`.

    References:
        Wolpert (1992), section 2; Saerens, Latinne, Decaestecker (2002), equation 2.2; Dawid & Skene (1979), section 3.
    """
    num_classes = clean.features["label"].num_classes
    labels = torch.as_tensor(clean["label"][:])
    if len(labels.unique()) < 2:
        raise ValueError(
            f"`clean`: expected rows of at least 2 of the {num_classes} classes, found {len(labels.unique())}. "
            "Label a few rows of every class (10 per class help already)."
        )
    _checks.columns("clean", clean.column_names, {"opinions": list(opinions)})
    width = len(next((v for v in train[votes] if v is not None), [])) if votes in train.column_names else 0
    features = mean_pooled(model, tokenizer, text_columns, max_length, bf16)
    about, clean_about = (
        RowFeatures(
            features(rows),
            votes_of(votes, rows, width),
            {column: logits_of(column, rows, num_classes) for column in opinions},
        )
        for rows in (train, clean)
    )
    said = torch.as_tensor([-1 if y is None else y for y in train[label]]) if label else None
    said = None if said is None or (said < 0).all() else said
    pool = CrossFittedRidge(about.features, clean_about.features, labels)
    labelled = None if said is None else pool.labels(said, num_classes)

    def experts_of(rows: Tensor, teachers: Sequence[str] = opinions) -> tuple[list[Expert], list[Expert]]:
        """Those whom these clean rows judge: who look at features, and who do not."""
        mine, truth = clean_about[rows], labels[rows]
        probe = Probe.fit(mine.features, truth, num_classes)
        looking, others = [Expert(probe(about.features), probe.oof_log_odds, 0.0)], []  # it must earn its weight
        if labelled is not None:
            looking.append(replace(labelled, oof_log_odds=labelled.oof_log_odds[rows]))
        if width:
            precision = NaiveBayesVotes.count(mine.votes, truth, num_classes)
            others.append(Expert(precision(about.votes), precision.oof_log_odds, 1.0))
        return looking, others + [e for t in teachers for e in of_teacher(t, about, mine, truth, num_classes)]

    def believe(rows: Tensor, teachers: Sequence[str] = opinions) -> Tensor:
        """π `[N, C]`, as these clean rows alone have it."""
        looking, others = experts_of(rows, teachers)
        return _with_label(log_linear_pool(fit_stacking_weights(looking + others, labels[rows])).told, said).softmax(1)

    looking, others = experts_of(torch.arange(len(labels)))
    if pool.can_leave_out:
        looking.append(pool.posterior_expert(believe))
        for column in opinions:
            named, clean_named = (named_by(rows.logits[column]) for rows in (about, clean_about))
            others.append(
                pool.teacher_reliability_expert(named, clean_named, num_classes, partial(believe, teachers=()))
            )
    heard = fit_stacking_weights(looking + others, labels)
    said_by_all, seen = log_linear_pool(heard), log_linear_pool(heard[: len(looking)])
    log_posterior = _with_label(said_by_all.told, said), said_by_all.oof_log_odds + class_shares(said_by_all.told).log()
    parts = []
    for rows, log_odds, probe in zip((train, clean), log_posterior, (seen.told, seen.oof_log_odds), strict=True):
        rows = _with_column(rows, LOG_POSTERIOR, log_odds.log_softmax(1).float().numpy())
        parts.append(_with_column(rows, PROBE, probe.softmax(1).float().numpy()))
    return parts[0], parts[1]


def gold_share(clean_rows: int, train_rows: int, rows_seen: int = 0, votes_only: bool = False) -> float:
    """The share of clean rows in a run.

    Where labels or teachers speak about the training rows, every row is seen as often, clean or not: more of the clean
    ones costs the others their turn. Where only votes do, which leave rows out and err together, each clean row is seen
    about ten times in a run that sees `rows_seen` rows, within 1/4 to 3/4.

    Example:
        >>> gold_share(100, 900)
        0.1
        >>> gold_share(60, 900, 7680, votes_only=True), gold_share(500, 900, 7680, votes_only=True)
        (0.25, 0.6510416666666666)
    """
    if not votes_only:
        return clean_rows / (clean_rows + train_rows)
    return min(max(VISITS * clean_rows / rows_seen, 0.25), 0.75)


def with_gold(train: Dataset, clean: Dataset, share: float = 0.25) -> Dataset:
    """The rows and, so often that they are `share` of all, the clean rows; `gold` `[N]` says which.

    Args:
        train: rows with the columns of `add_posterior`; their `label`, if any, is left alone and not read.
        clean: rows with `label` and the same columns.
        share: of all rows, in (0, 1).

    Returns:
        the rows with a column `gold`: the class of a clean row, -100 on the others. The `log_posterior` of a clean row
        is its class; its `row_id`, where the rows have one, is new.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"`share`: expected a number between 0 and 1, found {share!r}. 0.25 is usual.")
    times = max(1, round(share / (1 - share) * len(train) / len(clean)))
    labels = np.asarray(clean["label"][:])
    sure = SURE * np.eye(clean.features["label"].num_classes, dtype=np.float32)[labels]
    sure -= np.log(np.exp(sure).sum(1, keepdims=True))
    gold = _with_column(_with_column(clean, LOG_POSTERIOR, sure), GOLD, labels)
    shared = [c for c in train.column_names if c in gold.column_names and c != ROW_ID]
    rows = _with_column(train, GOLD, np.full(len(train), -100))
    gold = gold.select_columns([*shared, GOLD]).select(np.tile(np.arange(len(gold)), times))
    if ROW_ID in train.column_names:
        gold = gold.add_column(ROW_ID, max(train[ROW_ID][:]) + 1 + np.arange(len(gold)))
    return concatenate_datasets([rows, gold.cast(Features({c: rows.features[c] for c in gold.column_names}))])


def without_gold(train: Any) -> Any:
    """The rows that `with_gold` did not add; a data set without such a column as it is."""
    if not isinstance(train, Dataset) or GOLD not in train.column_names:
        return train
    return train.select(np.flatnonzero(np.asarray(train[GOLD][:]) == -100))


def mean_pooled(
    model: nn.Module, tokenizer: Any, text_columns: Sequence[str], max_length: int, bf16: bool
) -> Callable[[Dataset], Tensor]:
    """rows -> features `[N, H]` of unit length: the encoder's last hidden states, mean over tokens.

    Every process of a launch encodes its share of the rows, and has the features of all.
    """
    device, here = next(model.parameters()).device, PartialState()
    encoder = getattr(model, "base_model", model)

    def features(rows: Dataset) -> Tensor:
        share = -(-len(rows) // here.num_processes)
        # the last rows again where they do not go round: every process gathers as many
        mine = (share * here.process_index + np.arange(share)).clip(max=len(rows) - 1)
        starts = tqdm(range(0, share, AT_ONCE), desc="Weighing evidence", disable=not here.is_main_process)
        found = torch.cat([encoded(rows.select(mine[start : start + AT_ONCE])) for start in starts])
        return gather(found.to(here.device)).cpu()[: len(rows)]

    @torch.no_grad()
    def encoded(rows: Dataset) -> Tensor:
        texts = (rows[c][:] for c in text_columns)
        tokens = tokenizer(*texts, truncation=True, max_length=max_length)
        order = np.argsort([len(ids) for ids in tokens["input_ids"]])
        found: list[Tensor] = [torch.empty(0)] * len(order)
        mode = model.training
        model.eval()
        for start in range(0, len(order), 128):
            batch = [int(i) for i in order[start : start + 128]]
            picked = {name: [values[i] for i in batch] for name, values in tokens.items()}
            inputs = tokenizer.pad(picked, return_tensors="pt").to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                states = encoder(**inputs)[0].float()
            mask = inputs["attention_mask"][..., None].float()
            pooled = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu()
            for i, row in zip(batch, pooled, strict=True):
                found[i] = row
        model.train(mode)
        return torch.stack(found)

    return features


def _with_label(log_odds: Tensor, said: Tensor | None) -> Tensor:
    """What experts say, `[N, C]`, and how frequent the classes are, and the rows' labels."""
    log_odds = log_odds + class_shares(log_odds).log()
    return log_odds if said is None else log_odds + LabelNoise.fit(log_odds, said)(said)


def _with_column(rows: Dataset, name: str, values: np.ndarray) -> Dataset:
    rows = rows.remove_columns([name]) if name in rows.column_names else rows
    return rows.add_column(name, list(values))
