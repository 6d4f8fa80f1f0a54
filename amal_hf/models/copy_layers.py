"""A student made of its teacher's embeddings, some of its layers, and its head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from amal_hf._types import Tensors
from amal_hf.models.class_order import class_order


def student_from_teacher(
    name: str, layers: Sequence[int] | None, classes: Sequence[str] | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A classifier of the teacher's architecture with only the chosen layers, every other weight copied.

    Works where an encoder keeps its layers in one list, as BERT, MiniLM, RoBERTa, DistilBERT, DeBERTa-v2 and
    ModernBERT do. What the layers share (ALBERT) cannot be chosen from.

    Args:
        name: folder or Hub name of the teacher, or of any encoder (then the head is new).
        layers: which layers, counted from 0, in their order: [0, 2, 4] of six. None: all.
        classes: the student's classes. Those of the teacher: its head is copied, rows in this order; others: the head
            is new. None: the teacher's.
        trust_remote_code: whether code that comes with the teacher may run.

    Returns:
        the student, in float32. `output.logits` is `[N, C]`.

    Raises:
        FileNotFoundError: no such folder, and no such name on the Hub.
        ValueError: no such layers, or no list of layers.
    """
    try:
        teacher, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"`teacher`: expected a folder with safetensors or a name on the Hub, found {name!r}: {error}"
        ) from error
    path, chosen = choose_layers(name, teacher, layers)
    order = _head_order(name, teacher, classes, trained=not report["missing_keys"])
    student = _empty(teacher, chosen, classes)
    _copy(_renumbered(teacher.state_dict(), path, chosen), student, find_class_layer(teacher), order)
    return student


def choose_layers(name: str, model: PreTrainedModel, layers: Sequence[int] | None) -> tuple[str, list[int]]:
    """Where a model keeps its layers, and which of them are chosen; a model without weights will do.

    Args:
        name: of the model, for messages.
        layers: as for `student_from_teacher`.

    Raises:
        ValueError: no such layers, or no list of layers.
    """
    path = find_layers(model)
    count = len(model.get_submodule(path))
    chosen = list(range(count)) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < count:
        raise ValueError(
            f"`layers`: expected different numbers from 0 to {count - 1}, in order, for the {count} layers of {name!r} "
            f"({path}), found {chosen}."
        )
    return path, chosen


def find_layers(model: PreTrainedModel) -> str:
    """Name of the list that holds the encoder's layers: as long as the configuration says there are layers.

    Raises:
        ValueError: there is none, e.g. because layers share their weights.
    """
    count = getattr(model.config, "num_hidden_layers", 0)
    lists = {
        path: sum(p.numel() for p in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if not lists:
        raise ValueError(
            f"`layers`: expected a model that keeps its {count} layers in a list, found none in {type(model).__name__}"
            ". Name a smaller pretrained model as the student instead."
        )
    return max(lists, key=lambda path: lists[path])


def _head_order(name: str, teacher: Any, classes: Sequence[str] | None, trained: bool) -> list[int] | None:
    """Rows of the teacher's head in the order of `classes`; None: the student's head is new."""
    if not trained:
        return None
    config = teacher.config
    if classes is None:
        return list(range(config.num_labels))
    try:
        return class_order(name, config.id2label, classes)
    except ValueError:
        return None  # a student may learn other classes than its teacher's; its head then starts anew


def _empty(teacher: Any, layers: Sequence[int], classes: Sequence[str] | None) -> PreTrainedModel:
    config = deepcopy(teacher.config)
    count = config.num_hidden_layers
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list) and len(value) == count:  # ModernBERT's `layer_types`
            setattr(config, key, [value[i] for i in layers])
    config.num_hidden_layers, config.name_or_path = len(layers), ""  # it is no part of a checkpoint any more
    if classes is not None:
        config.id2label = dict(enumerate(classes))
        config.label2id = {label: i for i, label in config.id2label.items()}
    attention = getattr(teacher.config, "_attn_implementation", None)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, attn_implementation=attention)


def _renumbered(weights: Tensors, path: str, layers: Sequence[int]) -> Tensors:
    """The teacher's weights under the student's names: without the layers that were not chosen."""
    places, kept = {f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(layers)}, {}
    for name, tensor in weights.items():
        if not name.startswith(f"{path}."):
            kept[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{path}.").partition(".")
        if f"{path}.{number}" in places:
            kept[f"{places[f'{path}.{number}']}.{rest}"] = tensor
    return kept


def find_class_layer(model: Any) -> str | None:
    """Name of the last linear layer, outside the encoder, that puts out one number per class."""
    inside = f"{model.base_model_prefix}."
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    outside = [name for name in linears if not name.startswith(inside)]
    return outside[-1] if outside else None


def _copy(weights: Tensors, student: PreTrainedModel, head: str | None, order: Sequence[int] | None) -> None:
    """Load `weights` into the student; `head`'s rows in `order`, or not at all."""
    for name in {f"{head}.weight", f"{head}.bias"} & set(weights):
        rows = weights.pop(name)
        if order is not None:
            weights[name] = rows[list(order)]
    found = student.load_state_dict(weights, strict=False)
    new = [name for name in found.missing_keys if head is None or not name.startswith(f"{head}.")]
    if new:
        raise ValueError(f"`layers`: expected all of the student in its teacher, found nothing for {new[:5]}.")
    if found.unexpected_keys:
        # ModernBERT's first layer has no norm before its attention: another layer in its place loses its own
        warnings.warn(
            f"`layers`: {found.unexpected_keys} have no place in the student and are left out. Keep layer 0.",
            UserWarning,
            stacklevel=3,
        )
