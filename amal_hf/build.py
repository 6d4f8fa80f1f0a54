"""From settings to the parts of a run: the lookahead and its estimator, the mixing, the virtual step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import SGD as TorchSGD
from torch.optim import Adam as TorchAdam
from torch.optim import AdamW as TorchAdamW
from transformers.utils import logging

from amal_hf.config import AMALConfig
from amal_hf.denoising import CLEAN_LABEL
from amal_hf.lookahead import FORWARD_MODE_ATTENTION, Encode, FullModelLookahead, HeadLookahead, Lookahead, MetaSampler
from amal_hf.lookahead.probe import has_kinks, without_forward_mode
from amal_hf.losses import CrossEntropy, Distillation, LabelingFunctions, LossStack, MajorityVote
from amal_hf.metagrad import (
    AdamStep,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    MetaGradient,
    NoStep,
    SGDStep,
    VirtualStep,
    head_or_reason,
    trainable,
)
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.mixing import Corrected, Fixed, MetaWeightNet, Mixing, Reweight, Shared, Table, Trust, WeightNetwork

logger = logging.get_logger(__name__)

NAMING = (CrossEntropy, LabelingFunctions, MajorityVote)
"""Losses that name a class."""


def make_lookahead(
    model: nn.Module,
    labels: Tensor,
    encode: Encode,
    inputs: Mapping[str, Tensor],
    args: AMALConfig,
    precision: str,
    task: str = SINGLE_LABEL,
    optimizer: torch.optim.Optimizer | None = None,
) -> Lookahead:
    """How D is computed for this model, logged with the reason.

    Args:
        labels: class of every clean row, `[M]`; its numbers, `[M]` or `[M, C]`, for another `task`.
        inputs: any batch of the model's inputs; finds the head.
        task: what V measures.
        optimizer: of the run; None, it moves every trainable parameter.

    Raises:
        ValueError: the head's derivative is asked for and no trainable linear layer makes the logits, or the optimizer
            does not move it.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    sampler = MetaSampler(len(labels), args.meta_batch_size, seed)
    if args.lookahead_params == "head":
        groups = [] if optimizer is None else optimizer.param_groups
        ids = {id(p) for group in groups for p in group["params"]}
        moved = {name for name, p in model.named_parameters() if id(p) in ids}  # a forward under FSDP2 makes others
        head = head_or_reason(model, {name: value[:2] for name, value in inputs.items()})
        if isinstance(head, str):
            raise ValueError(
                "`lookahead_params`: 'head' expects a trainable linear layer that makes the logits, found none in "
                f"{type(model).__name__}: {head}. Set lookahead_params='all'."
            )
        if groups and head.weight not in moved:
            raise ValueError(
                f"`optimizers`: expected an optimizer that moves the head, whose direction lookahead_params='head' "
                f"takes; found {head.weight} in none of its {len(groups)} groups. Add it to the optimizer, or set "
                "lookahead_params='all'."
            )
        logger.info(f"meta-gradient: closed form on the head ({head.weight}), as lookahead_params='head' asks")
        return HeadLookahead(model, head, labels, encode, sampler, args, task)
    estimator, why = choose_estimator(
        args.estimator,
        getattr(getattr(model, "config", None), "_attn_implementation", "eager"),
        bool(args.gradient_checkpointing or getattr(model, "is_activation_checkpointing", False)),
        precision,
    )
    few = {name: value[:2] for name, value in inputs.items()}
    if isinstance(estimator, ForwardMode) and (missing := without_forward_mode(model, few)) is not None:
        if args.estimator == "forward":
            raise ValueError(
                f"`estimator`: 'forward' expects a forward-mode rule of every operation, found that "
                f"{type(model).__name__} has none: {missing}. Set estimator='difference' or 'auto'."
            )
        estimator, why = FiniteDifference(), f"forward mode was tried: {missing}"
    if isinstance(estimator, FiniteDifference):
        estimator = FiniteDifference(kinks=has_kinks(model, few))
    logger.info(f"meta-gradient: {type(estimator).__name__} on all trainable parameters: {why}")
    return FullModelLookahead(model, estimator, labels, encode, sampler, task)


def choose_estimator(name: str, attention: str, checkpointing: bool, precision: str) -> tuple[MetaGradient, str]:
    """The estimator of the *whole network's* derivative, and why, as far as settings tell. All compute the same one.

    Args:
        name: `AMALConfig.estimator`.
        attention: the model's attention implementation.
        checkpointing: gradient (activation) checkpointing is on.
        precision: "no", "bf16" or "fp16".

    Example:
        >>> choose_estimator("auto", "sdpa", False, "no")
        (ForwardMode(), "attention 'sdpa' has a forward-mode rule on the MATH kernel")
        >>> type(choose_estimator("auto", "flash_attention_2", False, "no")[0]).__name__
        'FiniteDifference'
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


def make_mixing(args: AMALConfig, stack: LossStack, num_classes: int, num_rows: int | None) -> Mixing:
    """The mixing that `args` describe for these sources. `mixing_start`: one number, [primary, others], or one each."""
    given, k = torch.tensor(args.mixing_start, dtype=torch.float32), len(stack)
    start = given if len(given) == k else torch.cat([given[:1], given[-1:].expand(k - 1)])
    clamp = (args.clamp[0], args.clamp[1])
    if args.mixing == "fixed":
        return Fixed(start)
    if args.mixing == "trust":
        return Trust(k, num_classes, start)
    if args.mixing == "corrected":
        teachers = stack.positions(lambda loss: isinstance(loss, Distillation))
        # a clean row's class is nobody's claim: it yields to no teacher
        naming = stack.positions(lambda loss: isinstance(loss, NAMING) and loss.columns != (CLEAN_LABEL,))
        return Corrected(start, teachers, naming)
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
    return Table(num_rows or 0, start, constraint, args.mixing_lr, clamp, getattr(torch, args.table_dtype))


def make_virtual_step(name: str, optimizer: torch.optim.Optimizer | None, model: nn.Module, lr: float) -> VirtualStep:
    """The virtual step `AMALConfig.lookahead` names: it moves what the optimizer moves, each parameter at its group's
    rate, and leaves the others where they are.

    Args:
        optimizer: of the run, wrapped or not, in its present state; None before there is one.
        model: whose trainable parameters are asked for by name.
        lr: rate of every parameter where there is no optimizer.

    Raises:
        ValueError: "optimizer" with an optimizer that is neither SGD nor Adam(W).
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    groups = [] if optimizer is None else optimizer.param_groups
    for module in model.modules():
        if isinstance(module, FSDPModule):  # since a forward it may hold other parameters than the optimizer's
            module.reshard()
    if name == "none" and not _moves_apart(groups, model):
        return NoStep()
    params = trainable(model)
    group_of = {id(p): group for group in groups for p in group["params"]}
    group = {k: group_of.get(id(p), STAYS if groups else {"lr": lr}) for k, p in params.items()}
    rates = {k: float(g["lr"]) for k, g in group.items()}
    if name == "none":
        largest = max(rates.values())
        return NoStep({k: rate / largest for k, rate in rates.items()})
    if name == "sgd":
        return SGDStep(rates)

    def each(key: str, default: Any) -> Any:
        return {k: g.get(key, default) for k, g in group.items()}

    common: Any = {"lr": rates, "weight_decay": each("weight_decay", 0.0), "maximize": each("maximize", False)}
    if isinstance(optimizer, TorchSGD):
        return SGDStep(
            **common,
            **{key: each(key, 0.0) for key in ("momentum", "dampening", "nesterov")},
            buffers={k: optimizer.state[p].get("momentum_buffer") for k, p in params.items() if p in optimizer.state},
        )
    if not isinstance(optimizer, TorchAdam):  # AdamW is one
        raise ValueError(
            f"`lookahead`: {name!r} knows Adam, AdamW and SGD, found {type(optimizer).__name__}. "
            "Set lookahead='sgd' or 'none', or choose optim='adamw_torch'."
        )
    decoupled = each("decoupled_weight_decay", isinstance(optimizer, TorchAdamW))
    return AdamStep(
        **common,
        state={k: optimizer.state[p] for k, p in params.items() if p in optimizer.state},
        betas=each("betas", (0.9, 0.999)),
        eps=each("eps", 1e-8),
        coupled={k: not without for k, without in decoupled.items()},
        exact=name == "optimizer-exact",
    )


STAYS: dict[str, Any] = {"lr": 0.0}
"""Group of a parameter that the optimizer does not move."""


def _moves_apart(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> bool:
    """Whether parameters have different rates, or none: the direction must know of it. Zero rates do not count."""
    moved = {id(p) for group in groups for p in group["params"]}
    rates = {float(group["lr"]) for group in groups if group["params"]}
    if not any(rates):
        return False
    return len(rates) > 1 or any(p.requires_grad and id(p) not in moved for p in model.parameters())
