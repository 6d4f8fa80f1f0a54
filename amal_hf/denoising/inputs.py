"""What method "denoise" makes of a trainer's rows before training: posterior, clean rows to train on, levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging

from amal_hf import _checks
from amal_hf._progress import no_bars
from amal_hf.data.columns import label_column
from amal_hf.denoising.assertions import Assertions, read_assertions
from amal_hf.denoising.prepare import CLEAN_LABEL, PROBE, add_posterior, clean_share, with_clean_rows
from amal_hf.denoising.teacher_experts import adjusted_balanced_accuracy, named_by
from amal_hf.denoising.text_reader import open_reader
from amal_hf.labeling.checks import warn_order
from amal_hf.losses import CrossEntropy, Loss, LossStack

logger = logging.get_logger(__name__)

ADDED: dict[str, Loss] = {"probe": CrossEntropy(PROBE), "clean": CrossEntropy(CLEAN_LABEL)}
"""Sources beside the user's: what the features say, and the clean rows' classes."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready for training by method "denoise".

    Args:
        train: the user's rows with their posterior, and behind them the clean rows, as often as they are to be seen.
        clean: the clean rows with theirs.
        levels: start weight of each source, `[K]`.
    """

    train: Dataset
    clean: Dataset
    levels: list[float]


def prepare_rows(trainer: Any) -> Prepared:
    """The rows of an `AMALTrainer` with what the clean rows know of them.

    Raises:
        ValueError: rows that cannot be indexed, no tokenizer, clean rows of one class.
    """
    train, clean, args = trainer.train_dataset, trainer.clean_dataset, trainer.args
    for name, rows in (("train_dataset", train), ("clean_dataset", clean)):
        advice = "Take a datasets.Dataset, or set method='trust'."
        _checks.of_type(name, rows, Dataset, "rows that can be indexed, for method 'denoise'", advice)
    tokenizer = trainer.processing_class
    if not callable(getattr(tokenizer, "pad", None)):
        raise ValueError(
            f"`processing_class`: method 'denoise' expects a tokenizer, found {type(tokenizer).__name__}. Pass the "
            "student's, or set method='trust'."
        )
    num_classes, labels = trainer.model.config.num_labels, torch.as_tensor(clean[label_column(clean)][:])
    sources = read_assertions(trainer.stack.losses, train, clean, num_classes, trainer.data_collator.sources)
    _warn_copies(
        {name: (trainer.stack.names[trainer.stack.slices[name]], pair[0]) for name, pair in sources.votes.items()}
    )
    for name, named in _named(sources).items():
        covered = named >= 0
        right = int((named == labels[:, None])[covered].sum())
        warn_order(right, int(covered.sum()), num_classes, f"losses[{name!r}]")
    model = trainer.accelerator.unwrap_model(trainer.model).to(args.device)
    reader = open_reader(trainer.settings, model, tokenizer, train, clean)
    train, judged = add_posterior(train, clean, labels, num_classes, sources, reader, args.text_columns)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    seen = args.max_steps * batch if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(train))
    votes_only = not sources.labels and not sources.distributions
    share = clean_share(len(clean), len(train), seen, votes_only=votes_only)
    with no_bars():
        rows = with_clean_rows(train, judged, labels, num_classes, share)
    return Prepared(rows, judged, _levels(trainer.stack, sources, labels, [*ADDED]))


def _warn_copies(blocks: Mapping[str, tuple[Sequence[str], torch.Tensor]]) -> None:
    """Warn of functions that say the same on every row: source -> their names and votes `[N, k]`."""
    for name, (functions, votes) in blocks.items():
        first: dict[bytes, str] = {}
        columns = [column.contiguous().numpy().tobytes() for column in votes.unbind(1)]
        copies = [(first.setdefault(named, own), own) for named, own in zip(columns, functions, strict=True)]
        if twice := [f"{own} as {other}" for other, own in copies if other != own]:
            logger.warning(
                f"`losses[{name!r}]`: sources that say the same on every row count as one: {twice[:5]}. Leave out the "
                "copies."
            )


def _named(sources: Assertions) -> dict[str, torch.Tensor]:
    """The classes that each source names on the clean rows, `[M, k]`; -1 none."""
    distributions = {name: named_by(clean)[:, None] for name, (_, clean) in sources.distributions.items()}
    return {name: clean for name, (_, clean) in sources.votes.items()} | distributions


def _levels(stack: LossStack, sources: Assertions, labels: torch.Tensor, added: list[str]) -> list[float]:
    """Start weight of each source: how much better than chance a distribution names the clean rows, 1 of all others."""
    start = [1.0] * (len(stack) + len(added))
    for name, (_, clean) in sources.distributions.items():
        loss, _, column = name.partition("/")
        block = stack.slices[name] if name in stack.slices else stack.slices[loss]
        at = block.start + (int(column) if name not in stack.slices else 0)
        start[at] = adjusted_balanced_accuracy(named_by(clean), labels)
    return start
