"""A run's teachers: fine-tuned where they have no head yet, and read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from amal_hf._files import check_output, replaced_folder, write_json
from amal_hf._progress import name_bars
from amal_hf.config import AMALConfig
from amal_hf.losses import CrossEntropy
from amal_hf.models import TeachConfig, Teacher, teach_splits
from amal_hf.models.student import Config, ModelConfig, load_student
from amal_hf.models.teacher_cache import described_in, text_hash
from amal_hf.trainer import AMALTrainer

logger = logging.get_logger(__name__)

RECORD = "fine_tuned.json"
"""Beside a teacher that was fine-tuned here: all that it depends on."""
SETTINGS = ("weight_decay", "optim", "lr_scheduler_type", "max_grad_norm", "bf16", "fp16", "seed", "max_length")
MACHINE = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "text_columns",
    "use_cpu", "disable_tqdm", "logging_steps", "dataloader_pin_memory", "dataloader_num_workers",
)  # fmt: skip
"""Of a run's settings, what its teachers are fine-tuned with as well."""


def add_teachers(parts: Mapping[str, Dataset], config: Config, args: AMALConfig) -> tuple[dict[str, Dataset], Config]:
    """The training and the clean rows with the teachers' logits, columns `NAME_logits` `[C]`.

    Args:
        parts: `train`, with a `label` only where it is a source, `clean` (the clean rows), and any other split.
        config: as `find_models` returns it.
        args: of the run; teachers read the same text columns, to the same length, in the same precision.

    Returns:
        parts with the columns, and the settings with the folders of the teachers that were fine-tuned.

    Raises:
        ValueError: as `teach_splits`; an encoder without a head, and no labels to fine-tune it on.
    """
    ready = []
    for name, called in zip(config.teachers, config.teacher_names, strict=True):
        opened, folder = Teacher.open(name, headless=True), Path(args.output_dir) / "teacher"
        if not opened.is_classifier:
            folder = folder if len(config.teachers) == 1 else folder / called
            name = _fine_tuned(opened, parts["train"], parts["clean"].features["label"].names, config, args, folder)
        ready.append(name)
    reading = TeachConfig(
        text_columns=args.text_columns,
        splits=["clean", "train"],  # the clean rows say the task and its classes: training rows may have no label
        names=config.teacher_names,
        max_length=args.max_length,
        batch_size=args.per_device_eval_batch_size,
        bf16=args.bf16,
        use_cpu=args.use_cpu,
    )
    taught = teach_splits({name: parts[name] for name in reading.splits}, ready, reading)
    return {**parts, **taught}, replace(config, teachers=ready)


def _fine_tuned(
    encoder: Teacher, rows: Dataset, classes: Sequence[str], config: ModelConfig, args: AMALConfig, folder: Path
) -> str:
    """`folder`, with a classifier made of the encoder and of the rows' labels: the one that is there, if it was."""
    labels = rows["label"][:] if "label" in rows.column_names else []
    labelled = rows.select([i for i, label in enumerate(labels) if label is not None])
    if not len(labelled):
        raise ValueError(
            f"`teacher`: expected training labels to fine-tune {encoder.name!r} on, an encoder without a trained head "
            f"({encoder.config.architectures}), found none that are a source. Set train_on_labels, or name a "
            "fine-tuned classifier."
        )
    labelled = labelled.select_columns([*args.text_columns, "label"])
    made_of = {
        "encoder": encoder.fingerprint,
        "rows": text_hash(labelled),
        "classes": list(classes),
        "epochs": config.teacher_epochs,
        "learning_rate": config.teacher_learning_rate,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **{name: getattr(args, name) for name in SETTINGS},
    }
    record = folder / RECORD
    if described_in(record) == made_of:
        logger.warning(f"`teacher`: {encoder.name!r} was fine-tuned on these rows before and is read from {folder}.")
        return str(folder)
    check_output(folder, "train", {"teacher": str(encoder.folder)})
    logger.warning(
        f"`teacher`: {encoder.name!r} has no trained head: it is fine-tuned on {len(labelled)} training labels for "
        f"{config.teacher_epochs:g} epochs first, and kept in {folder}."
    )
    set_seed(args.seed)
    model, tokenizer = load_student(str(encoder.folder), classes), encoder.tokenizer()
    trainer = fine_tune(model, labelled, tokenizer, args, config.teacher_epochs, config.teacher_learning_rate)
    if trainer.is_world_process_zero():
        with replaced_folder(folder, "train") as scratch:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(scratch / "made")
            trainer.processing_class.save_pretrained(scratch / "made")
            write_json(scratch / "made" / RECORD, made_of)
    PartialState().wait_for_everyone()
    return str(folder)


def fine_tune(
    model: PreTrainedModel, rows: Dataset, tokenizer: Any, args: AMALConfig, epochs: float, learning_rate: float
) -> AMALTrainer:
    """Train a classifier on nothing but the `label` of rows; as `args` say where that is no matter of mixing.

    Returns:
        the trainer, which has trained `model`.
    """
    settings = AMALConfig(
        args.output_dir,
        method="fixed",
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        log_weights=False,
        save_strategy="no",
        report_to="none",
        **{name: getattr(args, name) for name in (*SETTINGS, *MACHINE)},
    )
    losses = {"label": CrossEntropy("labels")}
    trainer = AMALTrainer(model=model, args=settings, losses=losses, train_dataset=rows, processing_class=tokenizer)
    name_bars(trainer, "Fine-tuning")
    trainer.train()
    return trainer
