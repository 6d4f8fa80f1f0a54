"""What a run of `AMALTrainer` is made of: settings, sources, rows and λ; each trial and each retry has its own."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from amal_hf._types import ROW_ID
from amal_hf.build import make_mixing
from amal_hf.config import AMALConfig
from amal_hf.data.collate import SourceCollator
from amal_hf.data.columns import RowIndex
from amal_hf.denoising import LOG_POSTERIOR
from amal_hf.denoising.inputs import ADDED, Prepared, prepare_rows
from amal_hf.door import Given
from amal_hf.losses import LossStack
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.weigher import Weigher


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    Args:
        settings: `AMALConfig.resolved()`, with what the task and the prepared rows decide.
        prepared: the rows as method "denoise" made them ready; None: it did not yet, or is not the method.
        stack: the K sources; those that the method adds stand last.
        rows: the training set; rows that the method adds stand last.
        weigher: λ `[N, K]` of every batch, as it starts.
    """

    settings: AMALConfig
    prepared: Prepared | None
    stack: LossStack
    rows: Any
    weigher: Weigher


def new_run(trainer: Any, given: Given, training: bool) -> Run:
    """A run as it starts.

    Args:
        trainer: with the rows that were prepared for its runs before.
        given: what it was given.
        training: what the method needs before training is prepared; else it stays as it is.
    """
    settings, prepared = trainer.args.resolved(), trainer.prepared
    losses, rows = given.stack.losses, given.splits["train"]
    if trainer.task != SINGLE_LABEL and trainer.args.probe_weight is None:
        settings.probe_weight = 0.0  # it retrains a head of classes
    denoises = settings.mixing == "corrected" and given.mixing is None
    if denoises and training and prepared is None:
        prepared = prepare_rows(trainer)
    if denoises and prepared is not None:
        losses, rows = losses | ADDED, prepared.train
        if trainer.args.mixing_start is None:
            settings.mixing_start = prepared.levels
    stack, num_classes = LossStack(losses, given.example), trainer.model.config.num_labels
    num_rows = len(rows) if isinstance(rows, Dataset) else None
    weigher = Weigher(
        settings,
        stack,
        deepcopy(given.mixing) or make_mixing(settings, stack, num_classes, num_rows),
        trainer.accelerator,
        RowIndex(None if num_rows is None else rows.with_format("numpy")[ROW_ID][:]),
        num_rows,
        num_classes if trainer.task == SINGLE_LABEL else 0,
        LOG_POSTERIOR if denoises else "",
    )
    return Run(settings, prepared, stack, rows, weigher)


def make_collator(inner: Callable[[list[dict[str, Any]]], Any], given: Given, task: str) -> SourceCollator:
    """Batches of the model's inputs, as `inner` makes them, with the columns of all sources that a run can have."""
    columns = [*given.stack.columns, *(c for loss in ADDED.values() for c in loss.columns), LOG_POSTERIOR, ROW_ID]
    votes = [c for loss in given.stack.losses.values() for c in loss.vote_columns]
    return SourceCollator(inner, columns, given.example, task, votes)
