"""What a configuration chooses: the mixing, the lookahead, the meta-gradient and how it is computed (floor 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.optim import SGD as TorchSGD
from torch.optim import Adam as TorchAdam
from torch.utils.data import Dataset as TorchDataset
from transformers.utils import is_bitsandbytes_available, logging

from amal_hf import _checks
from amal_hf._types import ROW_ID, Tensors
from amal_hf.config import AMALConfig
from amal_hf.data import check_columns, first_row, guard_splits
from amal_hf.evidence import without_gold
from amal_hf.losses import LossStack
from amal_hf.metagrad import (
    SGD,
    Adam,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    Lookahead,
    MetaGradient,
    Still,
    find_head,
)
from amal_hf.mixing import Corrected, Fixed, MetaWeightNet, Mixing, Reweight, Shared, Table, Trust, WeightNetwork
from amal_hf.steering import FORWARD_MODE_ATTENTION, Encode, HeadSteering, MetaSampler, NetworkSteering, Steering

logger = logging.get_logger(__name__)


def look_over(
    args: Any, model: Any, losses: Any, splits: Mapping[str, Any], mixing: Any
) -> tuple[LossStack, dict[str, Any]]:
    """The sources as a stack, and a training row without missing values, after every check that needs no trainer.

    Args:
        model: the student, or the function that makes it.
        splits: train, meta and eval, each a data set or nothing.

    Raises:
        ValueError: something is not as it must be, with what was expected and found.
        OSError: `output_dir` cannot be written.
    """
    check_arguments(args, model, losses, splits, mixing)
    example = first_row(splits["train"])
    check_columns(example, losses)
    stack = LossStack(losses, example)
    check_sources(args, stack, example, splits["meta"], mixing)
    guard_splits({**splits, "train": without_gold(splits["train"])}, args.text_columns, args.strict)
    return stack, example


def check_arguments(args: Any, model: Any, losses: Any, splits: Mapping[str, Any], mixing: Any) -> None:
    """Every argument of the trainer is of its kind; before anything is looked up in one."""
    told = "It takes everything TrainingArguments takes."
    _checks.of_type("args", args, AMALConfig, "an AMALConfig", told)
    if isinstance(model, nn.Module) or not callable(model):
        told = "Load one with AutoModelForSequenceClassification.from_pretrained, or pass `model_init`."
        _checks.of_type("model", model, nn.Module, "a model", told)
        if not isinstance(getattr(getattr(model, "config", None), "num_labels", None), int):
            raise ValueError(
                f"`model`: expected a classifier whose config has `num_labels`, found {type(model).__name__} without. "
                "Load it with AutoModelForSequenceClassification."
            )
    _checks.of_type("losses", losses, Mapping, "a mapping", 'Name the sources, e.g. {"label": CrossEntropy()}.')
    for name, loss in losses.items():
        if not callable(loss) or isinstance(loss, type):
            raise ValueError(
                f"`losses`: expected a Loss or a function for {name!r}, found {loss!r}. Make one, e.g. CrossEntropy()."
            )
    _checks.of_type("mixing", mixing, (Mixing, type(None)), "a Mixing", "Name a known one in AMALConfig(mixing=...).")
    told = "Of a DatasetDict take a split, of a list make one with Dataset.from_list."
    for name, split in splits.items():
        each = split if name == "eval" and isinstance(split, dict) else {name: split}
        kinds = (Dataset, type(None)) if name != "train" else (Dataset, IterableDataset, TorchDataset, type(None))
        for one in each.values():
            _checks.of_type(f"{name}_dataset", one, kinds, "one datasets.Dataset", told)
    for name in ("meta_every", "meta_batch_size", "refresh_every", "refresh_repeats", "max_length"):
        _checks.whole(name, getattr(args, name))
    _checks.finite("mixing_start", args.mixing_start)
    _checks.finite("clamp", args.clamp)
    if isinstance(args.text_columns, str) or not all(isinstance(each, str) for each in args.text_columns):
        raise ValueError(
            f"`text_columns`: expected a list of column names, found {args.text_columns!r}. Write it as ['text']."
        )
    if ("bnb" in args.optim or "8bit" in args.optim) and not is_bitsandbytes_available():
        raise ValueError(
            f"`optim`: expected the package bitsandbytes for {str(args.optim)!r}, found none that runs here. "
            "Do pip install bitsandbytes, or set optim='adamw_torch'."
        )
    _checks.writable("output_dir", args.output_dir)


def check_sources(
    args: AMALConfig, stack: LossStack, example: Mapping[str, Any], meta: Any, mixing: Mixing | None
) -> None:
    """Columns, start values and clean rows are there.

    Args:
        example: a training row without missing values.
        meta: the clean rows, if any.
        mixing: a mixing given in place of `args.mixing`.

    Raises:
        ValueError: something is missing, with what was expected and found.
    """
    needed = {name: loss.columns for name, loss in stack.losses.items()}
    _checks.columns("train_dataset", example, needed | {"evidence_column": [*filter(None, [args.evidence_column])]})
    _checks.start_values(args.mixing_start, stack.names)
    if twice := sorted({name for name in stack.names if stack.names.count(name) > 1 or name == ROW_ID}):
        raise ValueError(
            f"`losses`: expected names of their own for all sources, none of them {ROW_ID!r}; found {twice} taken. "
            "Rename one."
        )
    learns = args.mixing not in ("fixed", "corrected") if mixing is None else mixing.learns
    if learns and (meta is None or len(meta) == 0):
        raise ValueError(
            "`meta_dataset`: expected clean rows that steer the weights, found none. Hold out a few labelled "
            "rows (10 per class help already), or set mixing='fixed'."
        )


def check_launch(trainer: Any, mixing: Mixing, counted: bool) -> None:
    """The way of launching is one in which this mixing can learn; what stays fixed runs wherever `Trainer` runs.

    Args:
        trainer: a `Trainer` that has its accelerator.
        counted: whether the training set can be indexed.

    Raises:
        ValueError: naming what is in the way, and what to use instead.
    """
    args = trainer.args
    if mixing.per_row and not counted:
        raise ValueError(
            "`train_dataset`: expected rows that can be indexed, to keep a weight for each; found a stream "
            f"({type(trainer.train_dataset).__name__}). Use mixing='trust', 'shared' or 'fixed'."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"`nn.DataParallel`: expected one device per process, found {args.n_gpu} in one. "
            "Start with `accelerate launch` or `torchrun`."
        )
    if not counted:
        logger.info("`train_dataset` is a stream: weights are found for each batch anew, and none are kept by row")
    if not mixing.learns:
        return
    if args.gradient_accumulation_steps > 1 and (args.lookahead != "none" or args.center):
        logger.info("`gradient_accumulation_steps`: the first micro-batch stands for its step in θ′ and in the centre")
    sharded = {"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.is_deepspeed_enabled}
    split = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1
    for name in (name for name, found in {**sharded, "parallelism_config": split}.items() if found):
        raise ValueError(
            f"`{name}`: expected whole parameters and whole rows on every process, where the lookahead reads them; "
            f"found them split by {name}. Use plain data parallelism (`accelerate launch --num_processes N`) and save "
            "memory by bf16, gradient checkpointing or LoRA; or set mixing='fixed'."
        )


def check_finite(trainer: Any, what: str, value: Any) -> None:
    """A loss or gradient that is no number ends the run before the optimizer moves anything.

    Under fp16 that is the gradient scaler's to see: it skips the step.

    Raises:
        FloatingPointError: naming the sources and rows whose loss is not finite.
    """
    if trainer.accelerator.mixed_precision == "fp16" or torch.as_tensor(value).isfinite().all():
        return
    ids, losses = trainer._seen
    wrong = ~losses.isfinite()
    sources = [name for name, column in zip(trainer.stack.names, wrong.any(0).tolist(), strict=True) if column]
    rows = ids[wrong.any(1)].tolist() if ids is not None else []
    told = f"source(s) {sources} on row_id {rows[:5]}" if sources else "finite losses of every row"
    step = trainer.state.global_step + 1
    raise FloatingPointError(
        f"`losses`: expected a finite {what} at step {step}, found {float(value)} with {told}. "
        "No parameter was moved. Check these rows, lower `learning_rate`, and go on with resume_from_checkpoint=True."
    )


def make_steering(
    model: nn.Module, labels: Tensor, encode: Encode, inputs: Mapping[str, Tensor], args: AMALConfig, precision: str
) -> Steering:
    """How D is computed for this model, logged with the reason.

    Args:
        labels: class of every clean row, `[M]`.
        inputs: any batch of the model's inputs; finds the head.

    Raises:
        ValueError: the head's derivative is asked for and no trainable linear layer makes the logits.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    sampler = MetaSampler(len(labels), args.meta_batch_size, seed)
    if args.lookahead_params == "head":
        head = find_head(model, {name: value[:2] for name, value in inputs.items()})
        if head is None:
            raise ValueError(
                "`lookahead_params`: 'head' expects a trainable linear layer that makes the logits, found none in "
                f"{type(model).__name__}. Set lookahead_params='all'."
            )
        logger.info(f"meta-gradient: closed form on the head ({head.weight}), as lookahead_params='head' asks")
        return HeadSteering(model, head, labels, encode, sampler, args)
    estimator, why = choose_estimator(
        args.estimator,
        getattr(model.config, "_attn_implementation", "eager"),
        bool(args.gradient_checkpointing or getattr(model, "is_activation_checkpointing", False)),
        precision,
    )
    logger.info(f"meta-gradient: {type(estimator).__name__} on all trainable parameters: {why}")
    return NetworkSteering(model, estimator, labels, encode, sampler)


def choose_estimator(name: str, attention: str, checkpointing: bool, precision: str) -> tuple[MetaGradient, str]:
    """The estimator of the *whole network's* derivative, and why. Both choices compute the same derivative.

    Args:
        name: `AMALConfig.estimator`.
        attention: the model's attention implementation.
        checkpointing: gradient (activation) checkpointing is on.
        precision: "no", "bf16" or "fp16".

    Example:
        >>> choose_estimator("auto", "sdpa", False, "no")
        (ForwardMode(), "attention 'sdpa' has a forward-mode rule on the MATH kernel")
        >>> choose_estimator("auto", "flash_attention_2", False, "no")[0]
        FiniteDifference(radius=0.005)
    """
    named: dict[str, MetaGradient] = {
        "forward": ForwardMode(),
        "difference": FiniteDifference(),
        "double": DoubleBackward(),
    }
    if name != "auto":
        return named[name], "asked for by `estimator`"
    if checkpointing:
        return FiniteDifference(), "gradient checkpointing has no forward-mode rule"
    if attention not in FORWARD_MODE_ATTENTION:
        return FiniteDifference(), f"attention {attention!r} has no forward-mode rule"
    if precision != "no":
        return FiniteDifference(), f"under {precision} autocast the differences run in float32"
    return ForwardMode(), f"attention {attention!r} has a forward-mode rule on the MATH kernel"


def make_mixing(
    args: AMALConfig, sources: Sequence[str], num_classes: int, num_rows: int | None, slow: int | None = None
) -> Mixing:
    """The mixing that `args` describe. `mixing_start`: one number, [primary, others], or one per source.

    Args:
        slow: position of the student's slow copy among the sources, if it is one.
    """
    given, k = torch.tensor(args.mixing_start, dtype=torch.float32), len(sources)
    start = given if len(given) == k else torch.cat([given[:1], given[-1:].expand(k - 1)])
    clamp = (args.clamp[0], args.clamp[1])
    if args.mixing == "fixed":
        return Fixed(start)
    if args.mixing == "trust":
        return Trust(k, num_classes, start)
    if args.mixing == "corrected":
        return Corrected(start, slow)
    if args.mixing == "reweight":
        return Reweight(start)
    if args.mixing == "meta-weight-net":
        return MetaWeightNet(k, lr=args.mixing_lr, seed=args.seed)
    if args.mixing == "network":
        return WeightNetwork(k, num_classes, start, lr=args.mixing_lr, seed=args.seed)
    if args.constraint == "simplex":
        start = start / start.sum()
    constraint: Any = args.constraint
    if args.mixing == "shared":
        return Shared(start, constraint, args.mixing_lr, clamp)
    return Table(num_rows or 0, start, constraint, args.mixing_lr, clamp)


def make_lookahead(name: str, optimizer: torch.optim.Optimizer | None, params: Tensors, lr: float) -> Lookahead:
    """The virtual step `AMALConfig.lookahead` names, from the optimizer's present state.

    Raises:
        ValueError: "optimizer" with an optimizer that is neither SGD nor Adam(W).
    """
    if name == "none":
        return Still()
    if name == "sgd":
        return SGD(lr)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if isinstance(optimizer, TorchSGD):
        return SGD(lr)
    if not isinstance(optimizer, TorchAdam):  # AdamW is one
        raise ValueError(
            f"`lookahead`: {name!r} knows Adam, AdamW and SGD, found {type(optimizer).__name__}. "
            "Set lookahead='sgd' or 'none', or choose optim='adamw_torch'."
        )
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {k: group_of[id(p)] for k, p in params.items()}
    first = next(iter(groups.values()))
    decoupled = first.get("decoupled_weight_decay", True)
    return Adam(
        lr={k: float(g["lr"]) for k, g in groups.items()},
        state={k: optimizer.state.get(p, {}) for k, p in params.items()},
        betas=first["betas"],
        eps=first["eps"],
        weight_decay={k: g["weight_decay"] if decoupled else 0.0 for k, g in groups.items()},
        exact=name == "optimizer-exact",
    )
