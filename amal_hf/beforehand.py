"""Before a run of method "denoise": what the clean rows know, asked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel
from transformers.utils import logging

from amal_hf import _checks
from amal_hf._types import RowFunction
from amal_hf.config import DEFAULTS, WITHOUT_CLASSES, AMALConfig
from amal_hf.data.classes import name_classes
from amal_hf.data.columns import LABEL_ALIASES, LABELS, check_labelled, check_said, label_column
from amal_hf.data.validate import check_arguments, check_columns, first_row
from amal_hf.denoising import GOLD, PROBE, add_posterior, adjusted_balanced_accuracy, gold_share, with_gold
from amal_hf.labeling.votes import check_functions
from amal_hf.losses import CrossEntropy, Distillation, LabelingFunctions, Loss, LossStack, MajorityVote
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.tasks import task_of

logger = logging.get_logger(__name__)

ADDED: dict[str, Loss] = {"probe": CrossEntropy(PROBE), "gold": CrossEntropy(GOLD)}
"""Sources of method "denoise", beside the user's."""


def with_evidence(
    *,
    model: PreTrainedModel,
    args: AMALConfig,
    losses: Mapping[str, Loss | RowFunction],
    train_dataset: Dataset,
    clean_dataset: Dataset,
    processing_class: Any,
) -> dict[str, Any]:
    """The arguments of an `AMALTrainer` that follows method "denoise": `AMALTrainer(**with_evidence(...))`.

    The clean rows are asked once, before training, and then trained on as well: every row gains `log_posterior`
    and `probe`, the clean rows stand behind the training rows as often as `gold_share` says, and "probe" and "gold" are
    sources besides. What is weighed are the votes, the teachers' logits and the label that the losses read.

    Args:
        model: the student before training; its encoder reads every row once.
        args: method "denoise", or none given; `text_columns`, `max_length` and `bf16` hold here as well.
        losses: as for `AMALTrainer`.
        train_dataset: rows with their text and the columns of the losses, `[N]`.
        clean_dataset: clean rows with text and `label`, and with the votes and logits where they have them: what a
            source says of them decides how far it is believed.
        processing_class: the tokenizer.

    Returns:
        the same arguments by name; `args`, `losses` and both data sets are new ones.

    Raises:
        ValueError: another method, another task than one class a row, or a column that is missing or says something
            else than it should; before anything is read.
    """
    splits = {"train": train_dataset, "meta": clean_dataset}
    check_arguments(args, model, losses, splits, None)
    args = _following(args)
    _checks.of_type("train_dataset", train_dataset, Dataset, "rows that can be indexed", "Take a datasets.Dataset.")
    _checks.of_type("clean_dataset", clean_dataset, Dataset, "clean rows", "Hold out a few labelled rows.")
    example = first_row(train_dataset)
    check_columns(example, losses)
    sources = LossStack(losses, example).losses
    if (task := task_of(model.config, sources.values(), splits)) != SINGLE_LABEL:
        raise ValueError(
            f"`model`: method 'denoise' lets sources compete with the classes they name; expected a model with one "
            f"class a row, found one for {task}. Pass the arguments to AMALTrainer with method={WITHOUT_CLASSES!r}."
        )
    if not callable(processing_class):
        raise ValueError(f"`processing_class`: expected a tokenizer, found {processing_class!r}. Pass the student's.")
    for name, split in splits.items():
        _checks.columns(f"{name}_dataset", split.column_names, {"text_columns": args.text_columns})
    parts = check_parts({"train": _named(train_dataset), "meta": _with_classes(clean_dataset, model.config)}, sources)
    return add_evidence(model, args, sources, parts["train"], parts["meta"], processing_class)


def check_parts(parts: Mapping[str, Dataset], losses: Mapping[str, Loss]) -> dict[str, Dataset]:
    """The rows of a run, before anything is computed from them: what the sources say is about its classes.

    Args:
        parts: `train` and `meta` (the clean rows), and any other split.
        losses: the sources.

    Returns:
        parts, `train` without a label that no source reads.

    Raises:
        ValueError: a column that is missing, or that says something else than it should.
    """
    train, clean = parts["train"], parts["meta"]
    classes = clean.features["label"].names
    here = [LABELS if name in LABEL_ALIASES else name for name in train.column_names]
    _checks.columns("train_dataset", here, {name: loss.columns for name, loss in losses.items()})
    for loss in losses.values():
        if isinstance(loss, LabelingFunctions):
            check_functions(train, clean, loss.column, classes, loss.names)
    check_said(train, clean, losses.values(), len(classes))
    idle = [c for c in LABEL_ALIASES if c in train.column_names]
    if any(LABELS in loss.columns for loss in losses.values()):
        return dict(parts)
    return {**parts, "train": train.remove_columns(idle)}


def add_evidence(
    model: PreTrainedModel,
    args: AMALConfig,
    losses: Mapping[str, Loss],
    train_dataset: Dataset,
    clean_dataset: Dataset,
    processing_class: Any,
) -> dict[str, Any]:
    """`with_evidence`, of arguments that were checked; rows that have their evidence already are left as they are."""
    given = {"model": model, "args": args, "processing_class": processing_class}
    if args.posterior_column in train_dataset.column_names:
        return {**given, "losses": losses, "train_dataset": train_dataset, "clean_dataset": clean_dataset}
    label = "label" if any(loss.columns == (LABELS,) for loss in losses.values()) else ""
    teachers = [*_teachers(losses).values()]
    votes = [loss.column for loss in losses.values() if isinstance(loss, (LabelingFunctions, MajorityVote))]
    if unheard := [c for c in teachers if c not in clean_dataset.column_names]:
        logger.warning(
            f"`clean_dataset`: {unheard} not found, so that nothing is known of how right these teachers are"
        )
    train, clean = add_posterior(
        train_dataset, clean_dataset, model.to(args.device), processing_class,
        votes=next(iter(votes), ""),
        opinions=[c for c in teachers if c not in unheard],
        label=label,
        text_columns=args.text_columns,
        max_length=args.max_length,
        bf16=args.bf16,
    )  # fmt: skip
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    seen = args.max_steps * batch if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(train))
    sources = {**losses, **ADDED}
    args = copy(args)
    if args.mixing_start == DEFAULTS["mixing_start"]:
        args.mixing_start = levels(sources, train, clean)
    share = gold_share(len(clean), len(train), seen, votes_only=not label and not teachers)
    rows = {"train_dataset": with_gold(train, clean, share), "clean_dataset": clean}
    return {**given, "args": args, "losses": sources, **rows}


def levels(losses: Mapping[str, Loss], train: Dataset, clean: Dataset) -> list[float]:
    """Level of each source, `[K]`, for `AMALConfig.mixing_start`: a teacher's skill on the clean rows, 1 of all others.

    Args:
        losses: the sources.
        train: rows with their columns.
        clean: rows with a `label`, and with the teachers' logits where they have them.
    """
    stack = LossStack(losses, train[0])
    start = [1.0] * len(stack)
    for name, column in _teachers(losses).items():
        if column in clean.column_names:
            start[stack.slices[name].start] = adjusted_balanced_accuracy(column, clean)
    return start


def _teachers(losses: Mapping[str, Loss]) -> dict[str, str]:
    """Losses whose column holds a teacher's logits, and nothing says where they do not hold: name -> column."""
    heard = {name: loss for name, loss in losses.items() if isinstance(loss, Distillation)}
    return {name: loss.column for name, loss in heard.items() if not loss.probabilities and not loss.mask_column}


def _following(args: AMALConfig) -> AMALConfig:
    """The settings with method "denoise", where no other was given."""
    settled = args.following("denoise")
    if settled.mixing != "corrected":
        raise ValueError(
            f"`method`: expected 'denoise', whose evidence this prepares, found {args.method!r} with "
            f"mixing={args.mixing!r}. Leave both out, or pass the arguments to AMALTrainer as they are."
        )
    return settled


def _named(train: Dataset) -> Dataset:
    """The rows with their label, if any, called `label`."""
    column = label_column(train)
    return train if column in (None, "label") else train.rename_column(column, "label")


def _with_classes(clean: Dataset, config: Any) -> Dataset:
    """The clean rows with a column `label` of the model's classes, in the model's order."""
    column = check_labelled(clean)
    rows = clean if column == "label" else clean.rename_column(column, "label")
    names = [config.id2label[i] for i in range(config.num_labels)]
    found = rows.features["label"]
    if getattr(found, "names", None) is None:
        return name_classes(DatasetDict({"meta": rows}), "label", names)["meta"]
    if len(found.names) != len(names):
        raise ValueError(
            f"`clean_dataset`: expected the model's {len(names)} classes in column {column!r}, found "
            f"{len(found.names)}: {found.names}. Load the model with num_labels={len(found.names)}."
        )
    return rows
