"""A run: from splits and settings to a trained model and a folder that explains it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import set_seed

from amal_hf import _checks
from amal_hf._progress import closing_bars, name_bars
from amal_hf._types import LABELS
from amal_hf.commands.baseline import check_measured, measure_baseline, random_states_kept
from amal_hf.commands.settings import ANNOTATORS, DataConfig, source_losses
from amal_hf.config import AMALConfig
from amal_hf.data.classes import name_classes
from amal_hf.data.columns import LABEL_ALIASES, check_asserted, with_row_ids, without_idle
from amal_hf.data.load import load_splits
from amal_hf.data.overlap import guard_splits
from amal_hf.data.split import check_named, check_texts, divided, tested
from amal_hf.denoising.text_reader import check_reader
from amal_hf.door import as_votes
from amal_hf.labeling.formats import votes_from_columns
from amal_hf.labeling.votes import check_functions, check_order
from amal_hf.losses import (
    LabelingFunctions,
    Loss,
)
from amal_hf.metrics import classification_metrics
from amal_hf.models.fine_tune import add_teachers, fine_tune
from amal_hf.models.student import LOGITS, default_model, find_models, load_student, make_student
from amal_hf.run_folder.write import write_run
from amal_hf.trainer import AMALTrainer

__all__ = [
    "DataConfig",
    "default_model",
    "divide",
    "load_student",
    "prepare",
    "source_losses",
    "train_run",
]


def divide(splits: DatasetDict, data: DataConfig, seed: int) -> dict[str, Dataset]:
    """`train`, `clean`, and maybe `selection` and `test`, with a column `label` and the annotators' votes.

    Raises:
        ValueError: a split or column that is not there, labels that are no classes, no clean rows, or other classes
            than the votes count.
    """
    named = {"clean_split": data.clean_split, "selection_split": data.selection_split, "test_split": data.test_split}
    default = data.test_split == "test" and "test" not in splits
    check_named(splits, {**named, "test_split": ""} if default else named)
    if data.train_on_labels and data.label_column not in splits["train"].column_names:
        raise ValueError(
            f"`label_column`: expected {data.label_column!r} in train, whose label is a source, found only "
            f"{sorted(splits['train'].column_names)}. Name the column, or set train_on_labels: false."
        )
    loaded, splits = splits, name_classes(splits, data.label_column, data.classes or None)
    labelled = {name: split for name, split in splits.items() if data.label_column in split.column_names}
    if not labelled:
        raise ValueError(
            f"`label_column`: expected {data.label_column!r} in some split, found none. Name the column of the class."
        )
    for name, split in splits.items():
        if twice := [c for c in (LABELS, *LABEL_ALIASES) if c in split.column_names and c != data.label_column]:
            raise ValueError(
                f"`label_column`: expected labels in {data.label_column!r} of {name!r} alone, found {twice} too. Drop "
                "or rename what is not the label."
            )
    classes = next(iter(labelled.values())).features[data.label_column].names
    if data.votes_column:
        check_order(data.data, loaded, data.label_column, classes)
    if data.label_column != "label":
        splits |= {name: split.rename_column(data.label_column, "label") for name, split in labelled.items()}
    if data.annotators:
        splits = _with_annotators(splits, data.annotators, classes)
    splits = DatasetDict({**splits, "train": with_row_ids(splits["train"])})
    parts = divided(splits, data.clean_split, data.clean_rows, data.selection_split, data.selection_rows, seed)
    test = tested(splits, data.test_split) if data.test_split in splits else None
    return parts if test is None else {**parts, "test": test}


def _with_annotators(splits: DatasetDict, annotators: Sequence[str], classes: Sequence[str]) -> DatasetDict:
    """The splits whose rows were annotated, train above all, with a column of the annotators' votes `[N, M]`."""
    if len({*annotators}) < len(annotators):
        raise ValueError(f"`annotators`: expected every column once, found {list(annotators)}. Drop the repeated ones.")
    _checks.columns("data", splits["train"].column_names, {ANNOTATORS: annotators})
    return DatasetDict(
        {
            name: votes_from_columns(split, annotators, classes, column=ANNOTATORS)
            if {*annotators} <= {*split.column_names}
            else split
            for name, split in splits.items()
        }
    )


def prepare(
    data: DataConfig, args: AMALConfig, sources: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[DataConfig, dict[str, Dataset], dict[str, Loss]]:
    """Everything before `train_run`: models looked up, rows loaded and divided, teachers fine-tuned and read.

    Returns:
        the settings with every teacher in place, the splits with its column, and the losses.

    Raises:
        ValueError, OSError: what is wrong with settings, models or rows; before any model is trained or read.
    """
    data = find_models(data)
    losses = source_losses(data, sources)
    columns = {column for loss in losses.values() for column in loss.columns}
    settings = args.resolved()
    columns |= {*args.text_columns, data.label_column, *data.annotators, settings.reader}
    splits = without_idle(load_splits(data.data), columns)
    if data.teachers:  # which may take hours to read
        check_reader(settings, splits["train"].column_names)
    parts = check_texts(divide(splits, data, args.seed), args.text_columns)
    losses, parts = as_votes(losses, parts, parts["clean"].features["label"].names)
    if data.baseline:
        check_measured(parts)
    if not data.teachers:
        return data, parts, losses
    read = {name + LOGITS for name in data.teacher_names}
    parts = check_parts(parts, {name: loss for name, loss in losses.items() if not read & {*loss.columns}})
    parts, data = add_teachers(parts, data, args)
    return data, parts, losses


def check_parts(parts: Mapping[str, Dataset], losses: Mapping[str, Loss]) -> dict[str, Dataset]:
    """The rows of a run, before anything is computed from them: what the sources assert is about its classes.

    Args:
        parts: `train` and `clean` (the clean rows), and any other split.
        losses: the sources.

    Returns:
        parts, `train` without a label that no source reads.

    Raises:
        ValueError: a column that is missing, or that holds something else than it should.
    """
    train, clean = parts["train"], parts["clean"]
    classes = clean.features["label"].names
    here = [LABELS if name in LABEL_ALIASES else name for name in train.column_names]
    _checks.columns("train_dataset", here, {name: loss.columns for name, loss in losses.items()})
    for loss in losses.values():
        if isinstance(loss, LabelingFunctions):
            check_functions(train, clean, loss.column, classes, loss.names)
    check_asserted(train, clean, losses.values(), len(classes))
    idle = [c for c in LABEL_ALIASES if c in train.column_names]
    if any(LABELS in loss.columns for loss in losses.values()):
        return dict(parts)
    return {**parts, "train": train.remove_columns(idle)}


def train_run(
    parts: Mapping[str, Dataset],
    data: DataConfig,
    args: AMALConfig,
    losses: Mapping[str, Loss],
    prepare: Callable[[AMALTrainer], object] = lambda trainer: None,
    command: str = "train",
) -> tuple[AMALTrainer, dict[str, Any]]:
    """Train on `parts` and write the run folder `args.output_dir` (but for the report).

    Where `args.resume_from_checkpoint` names a checkpoint's folder, the run goes on from there.

    Args:
        prepare: called with the trainer before training, e.g. to add callbacks.
        command: whose run it is; it signs the folder.

    Returns:
        the trainer, and the metrics by split.
    """
    classes = parts["clean"].features["label"].names
    parts = check_parts(parts, losses)
    guard_splits(parts, args.text_columns, args.strict, only="test")  # the trainer sees the other pairs
    set_seed(args.seed)
    student, tokenizer = make_student(data, classes)
    trainer = _Finishing(
        model=student,
        args=args,
        losses=losses,
        train_dataset=parts["train"],
        clean_dataset=parts["clean"],
        eval_dataset=parts.get("selection"),
        processing_class=tokenizer,
        compute_metrics=classification_metrics,
    )
    name_bars(trainer)
    prepare(trainer)
    started = time.perf_counter()
    with closing_bars(trainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if data.final_epochs > 0:
        clean = parts["clean"].select_columns([*args.text_columns, "label"])
        fine_tune(trainer.model, clean, tokenizer, args, data.final_epochs, args.learning_rate)
    seconds = time.perf_counter() - started
    baseline = None
    if data.baseline:
        with random_states_kept():
            set_seed(args.seed)
            fresh, _ = make_student(data, classes)
            baseline = measure_baseline(fresh, trainer, parts, losses)
    return trainer, write_run(trainer, parts, seconds, command, baseline)


class _Finishing(AMALTrainer):
    """A trainer that trains no step after its last: gone on from the end of a run, it is where that run was."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        elif self.is_world_process_zero():
            print(f"All {self.state.max_steps} steps were trained before: none is trained now.", flush=True)
