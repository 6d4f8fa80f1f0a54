"""At the door: every check that needs more than one argument at once, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset as TorchDataset
from transformers.training_args import OptimizerNames
from transformers.utils import is_bitsandbytes_available, is_torchao_available, logging

from amal_hf import _checks
from amal_hf._types import ROW_ID
from amal_hf.config import AMALConfig
from amal_hf.data.columns import LABEL_ALIASES, LABELS
from amal_hf.data.overlap import guard_splits
from amal_hf.denoising import without_clean_rows
from amal_hf.denoising.text_reader import check_reader
from amal_hf.losses import LabelingFunctions, Loss, LossStack, MajorityVote
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.methods import WITHOUT_CLASSES
from amal_hf.mixing import Corrected, Mixing, Trust

logger = logging.get_logger(__name__)


def validate_inputs(
    args: Any, model: Any, losses: Any, splits: Mapping[str, Any], mixing: Any, others: Mapping[str, Any]
) -> tuple[LossStack, dict[str, Any]]:
    """The sources as a stack, and a training row without missing values, after every check that needs no trainer.

    Args:
        model: the student, or the function that makes it.
        splits: train, clean and eval, each a data set or nothing.

    Raises:
        ValueError: something is not as it must be, with what was expected and found.
        OSError: `output_dir` cannot be written.
    """
    check_arguments(args, model, losses, splits, mixing)
    check_loss_is_ours(args, others)
    args = args.resolved()
    example = first_row(splits["train"])
    check_stream(splits["train"], example, args.text_columns)
    check_columns(example, losses)
    stack = LossStack(losses, example)
    check_sources(args, stack, example, splits["clean"], mixing)
    if args.mixing == "corrected" and mixing is None:
        check_reader(args, example)
    guard_splits({**splits, "train": without_clean_rows(splits["train"])}, args.text_columns, args.strict)
    return stack, example


def check_arguments(args: Any, model: Any, losses: Any, splits: Mapping[str, Any], mixing: Any) -> None:
    """Every argument of the trainer is of its kind; before anything is looked up in one."""
    if isinstance(model, nn.Module) or not callable(model):
        advice = "Load one with AutoModelForSequenceClassification.from_pretrained, or pass `model_init`."
        _checks.of_type("model", model, nn.Module, "a model", advice)
        if not isinstance(getattr(getattr(model, "config", None), "num_labels", None), int):
            raise ValueError(
                f"`model`: expected a classifier whose config has `num_labels`, found {type(model).__name__} without. "
                "Load it with AutoModelForSequenceClassification, or give it one: model.config = "
                "PretrainedConfig(num_labels=...)."
            )
    _checks.of_type("losses", losses, Mapping, "a mapping", 'Name the sources, e.g. {"label": CrossEntropy()}.')
    for name, loss in losses.items():
        if not callable(loss) or isinstance(loss, type):
            raise ValueError(
                f"`losses`: expected a Loss or a function for {name!r}, found {loss!r}. Make one, e.g. CrossEntropy()."
            )
    _checks.of_type("mixing", mixing, (Mixing, type(None)), "a Mixing", "Name a known one in AMALConfig(mixing=...).")
    advice = "Of a DatasetDict take a split, of a list make one with Dataset.from_list."
    for name, split in splits.items():
        each = split if name == "eval" and isinstance(split, dict) else {name: split}
        kinds = (Dataset, type(None)) if name != "train" else (Dataset, IterableDataset, TorchDataset, type(None))
        for one in each.values():
            _checks.of_type(f"{name}_dataset", one, kinds, "one datasets.Dataset", advice)
            _one_label(f"{name}_dataset", getattr(one, "column_names", None) or ())
    settings = args.resolved()
    for name in ("meta_every", "meta_batch_size", "refresh_every", "refresh_repeats", "max_length"):
        _checks.whole(name, getattr(settings, name))
    _checks.finite("mixing_start", settings.mixing_start)
    _checks.finite("clamp", settings.clamp)
    if isinstance(args.text_columns, str) or not all(isinstance(each, str) for each in args.text_columns):
        raise ValueError(
            f"`text_columns`: expected a list of column names, found {args.text_columns!r}. Write it as ['text']."
        )
    optim = OptimizerNames(args.optim).value
    package = "torchao" if optim in ("adamw_torch_4bit", "adamw_torch_8bit") else "bitsandbytes"
    there = is_torchao_available() if package == "torchao" else is_bitsandbytes_available()
    if any(part in optim for part in ("bnb", "4bit", "8bit", "paged", "lion", "ademamix")) and not there:
        raise ValueError(
            f"`optim`: expected the package {package} for {optim!r}, found none that runs here. "
            f"Do pip install {package}, or set optim='adamw_torch'."
        )
    _checks.writable("output_dir", args.output_dir)


def first_row(dataset: Any) -> dict[str, Any]:
    """A row of the training set without missing values, its label column called `labels`.

    Raises:
        ValueError: there is none; or a column has no value at all, or two are the label.
    """
    example = next(iter(dataset), None) if dataset is not None else None
    if example is None:
        raise ValueError("`train_dataset`: expected at least one row, found none. Pass the rows to train on.")
    _one_label("train_dataset", example)
    if isinstance(dataset, Dataset):  # where the row misses a value, the first one there is
        missing = [name for name, value in example.items() if value is None]
        example |= {name: next((v for v in dataset[name] if v is not None), None) for name in missing}
    return {LABELS if name in LABEL_ALIASES else name: value for name, value in example.items()}


def check_stream(train: Any, example: Mapping[str, Any], text_columns: Collection[str]) -> None:
    """A stream's rows are ready to be trained on: nothing reads its texts, or the names of its classes.

    Raises:
        ValueError: texts without tokens, or a class by name.
    """
    if isinstance(train, Dataset):
        return
    advice = "Take a datasets.Dataset, or make them with train_dataset.map(...)"
    if "input_ids" not in example and {*text_columns} & {*example}:
        raise ValueError(
            "`train_dataset`: expected tokens (`input_ids`) in a stream, found texts among "
            f"{_checks.few(sorted(example))}. {advice}."
        )
    if isinstance(label := example.get(LABELS), str):
        raise ValueError(f"`train_dataset`: expected the index of a class in a stream, found {label!r}. {advice}.")


def _one_label(argument: str, names: Collection[str]) -> None:
    if len(both := [name for name in (LABELS, *LABEL_ALIASES) if name in names]) > 1:
        raise ValueError(f"`{argument}`: expected one column of labels, found {both}. Remove or rename the others.")


def check_columns(example: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
    """The columns the losses read are there, lists where they must be, and not empty in every row.

    Raises:
        ValueError: naming the column.
    """
    known = {name: loss for name, loss in losses.items() if isinstance(loss, Loss)}
    _checks.columns("train_dataset", example, {name: loss.columns for name, loss in known.items()})
    for name, loss in known.items():
        for column in loss.columns:
            if example[column] is None:
                raise ValueError(
                    f"`train_dataset`: expected values in column {column!r}, which source {name!r} reads; found None "
                    "in every row. Fill it, or drop the source."
                )
            if isinstance(loss, (LabelingFunctions, MajorityVote)) and np.ndim(example[column]) != 1:
                raise ValueError(
                    f"`train_dataset`: expected a list of votes in column {column!r}, found {example[column]!r}. "
                    "Write a single function's votes as lists of one, [vote]."
                )


def check_sources(
    args: AMALConfig, stack: LossStack, example: Mapping[str, Any], clean: Any, mixing: Mixing | None
) -> None:
    """Columns, start values and clean rows are there.

    Args:
        example: a training row without missing values.
        clean: the clean rows, if any.
        mixing: a mixing given in place of `args.mixing`.

    Raises:
        ValueError: something is missing, with what was expected and found.
    """
    _checks.columns("train_dataset", example, {name: loss.columns for name, loss in stack.losses.items()})
    _checks.start_values(args.mixing_start, stack.names)
    if twice := sorted({name for name in stack.names if stack.names.count(name) > 1 or name == ROW_ID}):
        raise ValueError(
            f"`losses`: expected names of their own for all sources, none of them {ROW_ID!r}; found {twice} taken. "
            "Rename one."
        )
    learns = args.mixing not in ("fixed", "corrected") if mixing is None else mixing.learns
    if (learns or (args.mixing == "corrected" and mixing is None)) and (clean is None or len(clean) == 0):
        raise ValueError(
            f"`clean_dataset`: expected clean rows that steer the weights, found none with method {args.method!r}. "
            "Hold out a few labelled rows (10 per class help already), or set method='fixed'."
        )
    if args.mixing == "corrected" and mixing is None and (taken := sorted({"probe", "clean"} & {*stack.losses})):
        raise ValueError(
            f"`losses`: expected names other than 'probe' and 'clean', two sources that method 'denoise' adds; found "
            f"{taken}. Rename them."
        )
    if len(stack.temperatures) and not (learns and args.refresh == "step"):
        raise ValueError(
            f"`temperature`: 'learned' expects a lookahead in the training step that can move it, found none with "
            f"method {args.method!r}. Set a number, or a method that looks ahead: 'trust', 'amal-step' or 'alm-kd'."
        )


def check_loss_is_ours(args: AMALConfig, others: Mapping[str, Any]) -> None:
    """Nothing is given that would change the loss of evaluation, and not that of training.

    Raises:
        ValueError: naming what is in the way, and what to use instead.
    """
    if others.get("compute_loss_func") is not None:
        raise ValueError(
            "`compute_loss_func`: expected none, found a function: AMALTrainer's loss is the mixture of `losses`. Give "
            "the function there, as a source: `(outputs, batch) -> [N]`."
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor`: expected 0, found {args.label_smoothing_factor}, which sources do not read. "
            "Set it in the source: CrossEntropy(label_smoothing=...)."
        )


def check_launch(trainer: Any, mixing: Mixing, counted: bool) -> None:
    """The way of launching and the task are such that this mixing can learn; fixed weights run wherever `Trainer` runs.

    Args:
        trainer: a `Trainer` that has its accelerator and task.
        counted: whether the training set can be indexed.

    Raises:
        ValueError: naming what is in the way, and what to use instead.
    """
    args = trainer.settings
    if mixing.per_row and not counted:
        raise ValueError(
            "`train_dataset`: expected rows that can be indexed, to keep a weight for each; found a stream "
            f"({type(trainer.train_dataset).__name__}). Use method='trust', 'shared' or 'fixed'."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"`nn.DataParallel`: expected one device per process, found {args.n_gpu} in one. "
            "Start with `accelerate launch` or `torchrun`."
        )
    if not counted:
        logger.info("`train_dataset` is a stream: weights are found for each batch anew, and none are kept by row")
    if trainer.task != SINGLE_LABEL:
        _check_without_classes(trainer.task, args, mixing)
    in_parts = by_fsdp2(trainer)
    if not mixing.learns:
        return
    if args.gradient_accumulation_steps > 1 and (args.lookahead != "none" or args.center):
        logger.info("`gradient_accumulation_steps`: the first micro-batch stands for its step in θ′ and in the centre")
    split = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1
    ways = {
        "fsdp": trainer.is_fsdp_enabled and not in_parts,
        "deepspeed": trainer.is_deepspeed_enabled,
        "parallelism_config": split,
    }
    for name in (name for name, found in ways.items() if found):
        raise ValueError(
            f"`{name}`: expected whole rows on every process, and parameters that the lookahead can put together; "
            f"found them split by {name}. Use FSDP2 (fsdp=True), or plain data parallelism (`accelerate launch "
            "--num_processes N`) with bf16, gradient checkpointing or LoRA; or set method='fixed'."
        )
    reads = {"lookahead_params": ("head", args.lookahead_params), "lookahead": ("none", args.lookahead)}
    for name, (instead, found) in reads.items():
        if in_parts and found in ("all", "optimizer", "optimizer-exact"):
            raise ValueError(
                f"`{name}`: {found!r} expects every parameter and the optimizer's state whole on every process, found "
                f"them split by FSDP2. Set {name}={instead!r}, or use plain data parallelism."
            )


def by_fsdp2(trainer: Any) -> bool:
    """Whether each process holds a part of every parameter, by Accelerate's FSDP2 or by `distributed_config`."""
    by_accelerate = trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 2
    return by_accelerate or any(isinstance(p, DTensor) for p in trainer.model.parameters())


def _check_without_classes(task: str, args: AMALConfig, mixing: Mixing) -> None:
    """Nothing is asked for that believes in one class a row."""
    found = f"expected a model with one class a row, found one for {task}."
    if isinstance(mixing, (Trust, Corrected)):
        raise ValueError(
            f"`method`: {args.method!r} lets sources compete with the classes they name; {found} Set "
            f"method={WITHOUT_CLASSES!r}."
        )
    if args.probe_weight > 0:
        raise ValueError(f"`probe_weight`: {args.probe_weight} retrains a head of classes; {found} Leave it out.")
