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
        pooled = _pool(*self._seen, logits)
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
    """The trainable linear layer that produces the logits of `model(**inputs)`, or None.

    One forward in eval mode finds it on every architecture: `classifier`, `classifier.out_proj`,
    `logits_proj`, a decoder's `score`, the active copy of a PEFT head.
    """
    seen: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
    # by its forward: FSDP2 makes a subclass of the layers that it splits
    plain = (m for m in model.modules() if isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward)
    linears = [m for m in plain if m.weight.requires_grad]
    handles = [m.register_forward_hook(lambda m, args, out: seen.update({m: (args[0], out)})) for m in linears]
    try:
        noise = RNGState(next(model.parameters()).device)
        with in_mode(model, training=False), torch.no_grad(), noise.replayed():
            logits = model_outputs(model(**inputs)).logits
    finally:
        for handle in handles:
            handle.remove()
    names = {id(p): name for name, p in model.named_parameters()}
    for module, (features, output) in seen.items():
        if _pool(features, output, logits) is not None:
            bias = names[id(module.bias)] if module.bias is not None else None
            return Head(module, names[id(module.weight)], bias)
    return None
