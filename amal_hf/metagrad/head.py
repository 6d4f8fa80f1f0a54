"""The final linear layer of a classifier, found by what it computes rather than by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amal_hf._types import Tensors
from amal_hf.metagrad.functional import RNGState, in_mode, model_outputs, whole


@dataclass(frozen=True)
class Head:
    """A linear layer whose output is the model's logits.

    Args:
        module: the layer.
        weight, bias: its parameters' names in the model; `bias` is None where there is none.
    """

    module: nn.Linear
    weight: str
    bias: str | None

    @property
    def names(self) -> tuple[str, str | None]:
        return self.weight, self.bias

    def params(self) -> Tensors:
        """`weight` `[C, H]` and `bias` `[C]`, by their names in the model; whole, also where FSDP2 splits them."""
        found = {self.weight: whole(self.module.weight)}
        if self.bias is not None:
            found[self.bias] = whole(self.module.bias)
        return found

    def logits(self, params: Tensors, features: Tensor) -> Tensor:
        """`features` `[N, H]` -> logits `[N, C]`."""
        return F.linear(features, params[self.weight], params[self.bias] if self.bias else None)


class HeadTap:
    """While open, keeps what enters the head: features `[N, H]` of the last forward, detached."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._seen: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> HeadTap:
        self._handle = self.head.module.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen = args[0].detach(), output.detach()

    def features(self, logits: Tensor) -> Tensor:
        """Features `[N, H]` behind `logits` `[N, C]`; a decoder's `[N, T, H]` is pooled as the model pooled it.

        Raises:
            RuntimeError: no forward has passed the head, or its output is not where the logits come from.
        """
        if self._seen is None:
            raise RuntimeError("the head was not called during the forward")
        features, output = self._seen
        if output.data_ptr() == logits.data_ptr() and output.shape == logits.shape:
            return features.to(self.head.module.weight.dtype)  # the very logits: nothing to look up
        pooled = _pool(features, output, logits)
        if pooled is None:
            raise RuntimeError(f"the output of {self.head.weight!r} is not where the logits come from")
        return pooled.to(self.head.module.weight.dtype)


def _pool(features: Tensor, output: Tensor, logits: Tensor) -> Tensor | None:
    logits = logits.detach().to(output.dtype)
    if output.shape == logits.shape and torch.equal(output, logits):
        return features
    if output.dim() == 3 and output.shape[0] == logits.shape[0] and output.shape[2] == logits.shape[1]:
        same = (output == logits[:, None]).all(-1)  # [N, T]
        if same.any(1).all():
            return features[torch.arange(len(features), device=features.device), same.int().argmax(1)]
    return None


def find_head(model: nn.Module, inputs: Mapping[str, Any]) -> Head | None:
    """The trainable linear layer that produces the logits `[N, C]` of `model(**inputs)`, or None.

    One forward in eval mode finds it on every architecture: `classifier`, `classifier.out_proj`,
    `logits_proj`, a decoder's `score`, the active copy of a PEFT head.
    """
    found = head_or_reason(model, inputs)
    return found if isinstance(found, Head) else None


def head_or_reason(model: nn.Module, inputs: Mapping[str, Any]) -> Head | str:
    """The layer that puts out the logits `[N, C]`, as `find_head` has it, or why there is none."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.pop(module, None)
            seen[module] = args[0], output

    handles = [
        m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Linear) or not [*m.children()]
    ]
    try:
        noise = RNGState(next(model.parameters()).device)
        with in_mode(model, training=False), torch.no_grad(), noise.replayed():
            logits = model_outputs(model(**inputs)).logits
    finally:
        for handle in handles:
            handle.remove()
    names = {id(p): name for name, p in model.named_parameters()}
    where = {module: name for name, module in model.named_modules()}
    reason = f"no layer of {type(model).__name__} puts out the logits as they are"
    for module, (features, output) in reversed(seen.items()):  # what is called last stands nearest to the logits
        if _pool(features, output, logits) is None:
            continue
        # by its forward: FSDP2 makes a subclass of the layers that it splits
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            reason = f"the logits come from {where[module]!r}, a {type(module).__name__} and no plain linear layer"
        elif not module.weight.requires_grad:
            reason = f"the logits come from {where[module]!r}, which is frozen"
        else:
            bias = names[id(module.bias)] if module.bias is not None else None
            return Head(module, names[id(module.weight)], bias)
    return reason
