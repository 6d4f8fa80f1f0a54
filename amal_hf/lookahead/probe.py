"""A forward, tried once on a few rows before its derivative is chosen: rules of forward mode, and kinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from amal_hf.metagrad import PureModel, float32_copies, trainable

KINKED = ("relu", "relu_", "threshold", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "hardtanh", "hardswish",
          "hardsigmoid", "relu6")  # fmt: skip
LARGEST = 0.1  # departure of a derivative from the difference, beyond which it is no derivative of that forward


def without_forward_mode(model: nn.Module, inputs: Mapping[str, Tensor]) -> str | None:
    """Why `torch.func.jvp` cannot differentiate the logits of these rows; None where it can.

    An operation without a rule raises; one that hides from autograd gives a derivative that a difference does not see.
    Parameters, gradients, buffers, mode and random state stay as they are.
    """
    pure, params = PureModel(model, inputs, training=True), float32_copies(trainable(model))
    logits = lambda p: pure(p).logits.float()  # noqa: E731
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            along = jvp(logits, (params,), (params,))[1]
            ahead, behind = (logits({k: (1 + by) * p for k, p in params.items()}) for by in (STEP, -STEP))
    except (RuntimeError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0]
    difference = (ahead - behind) / (2 * STEP)
    apart, size = (along - difference).norm().item(), difference.norm().item()
    if not apart <= LARGEST * max(size, along.norm().item()) + 1e-3:
        return f"forward mode departs from a difference of the logits by {apart:.2g} of {size:.2g}"
    return None


STEP = 1e-4  # share of every parameter


class _Operations(TorchDispatchMode):
    """Names of the operations that were run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def has_kinks(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether activations that are not smooth (ReLU and its kin) are among the operations of the forward `[N, C]`."""
    with torch.no_grad(), _Operations() as seen:
        PureModel(model, inputs, training=True)({})
    return bool(seen.names & {*KINKED})
