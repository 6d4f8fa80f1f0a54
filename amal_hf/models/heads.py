"""A student that shows its hidden layers, so that `Hint` and `Relation`, which own no model, can compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from amal_hf._types import Outputs
from amal_hf.models.pooling import check_layers, pooled_layers

HINTS, MODULE = "hints", "hint_head"


class HintHead(nn.Module):
    """Pools the student's hidden states and brings them to the teacher's width.

    Args:
        layers: of the student: 0 the embeddings, i what layer i puts out, -1 the last.
        width: H of the student.
        to: width of the teacher; None: no projection, the features are shown as they are.
    """

    def __init__(self, layers: Sequence[int], width: int, to: int | None) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.projections = nn.ModuleList(nn.Linear(width, to) for _ in layers) if to else None

    def forward(self, hidden_states: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Hidden states of all layers, each `[N, T, H]` -> `[N, L, to]`."""
        pooled = pooled_layers(hidden_states, mask, self.layers)
        if self.projections is None:
            return pooled
        return torch.stack([project(pooled[:, i]) for i, project in enumerate(self.projections)], 1)


def add_hint_head(student: PreTrainedModel, layers: Sequence[int], to: int | None = None) -> PreTrainedModel:
    """Let the student return `hints` `[N, L, to]` beside its logits while it trains; in eval mode nothing changes.

    The projections (one per layer) are parameters of the student: the optimizer moves them, checkpoints keep them, and
    the meta-gradient sees them. `remove_hint_head` takes them off before the student is handed on.

    Args:
        student: any model whose forward knows `output_hidden_states`.
        layers: whose features are shown; 0 the embeddings, i what layer i puts out, -1 the last.
        to: width of the teacher's features, for `Hint`; None: no projection (equal widths, or `Relation`).

    Returns:
        the same student.

    Raises:
        ValueError: no such layer, or the student has a hint head already.
    """
    if hasattr(student, MODULE):
        raise ValueError("`student`: expected one without a hint head, found one. Call `remove_hint_head` first.")
    check_layers(layers, student.config.num_hidden_layers)
    head = HintHead(layers, student.config.hidden_size, to).to(student.device, student.dtype)
    student.add_module(MODULE, head)
    student.register_forward_pre_hook(_ask, with_kwargs=True)
    student.register_forward_hook(_show, with_kwargs=True)
    return student


def remove_hint_head(student: PreTrainedModel) -> PreTrainedModel:
    """The student as it was before `add_hint_head`; its logits `[N, C]` stay the same."""
    if hasattr(student, MODULE):
        delattr(student, MODULE)
        for kind, ours in (("_forward_pre_hooks", _ask), ("_forward_hooks", _show)):
            hooks = getattr(student, kind)
            for key in [key for key, hook in hooks.items() if hook is ours]:
                del hooks[key], getattr(student, f"{kind}_with_kwargs")[key]
    return student


# Functions of the module, not methods bound to a student: a deep copy of the student then shows its own layers.


def _ask(student: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "output_hidden_states": True} if student.training else kwargs


def _show(student: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    if not student.training:
        return outputs
    hints = getattr(student, MODULE)(outputs.hidden_states, kwargs.get("attention_mask"))
    # the hidden states of all tokens are not carried along: a lookahead differentiates all that is returned
    return Outputs({k: v for k, v in outputs.items() if k != "hidden_states"} | {HINTS: hints})
