"""`Lookahead`, the abstract class: D `[N, K + C + J]` of a batch along the clean rows' direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from amal_hf._types import Outputs, Tensors
from amal_hf.metagrad import RNGState, VirtualStep
from amal_hf.metagrad.clean_features import centred_unit

Encode = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Positions of clean rows -> the model's inputs, on its device."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A training batch before its forward.

    Args:
        inputs: the model's inputs.
        noise: random state at the start of the training forward.
        losses_of: outputs -> `[N, K + C + J]`, the sources and then the virtual ones; K = 0 where λ reads no losses.
        along_of: outputs and the logits' tangent `[N, C]` -> D of `losses_of`, where there is a closed form, or None.
        lookahead: the virtual step.
        num_rows: N of (E1), the effective batch over processes and accumulation.
        due: a lookahead is due at this optimizer step.
        new, last: this is the first, the last micro-batch of the optimizer step.
        sources: K where D of the sources is asked for, 0 where that of the classes is enough.
        temperatures: J.
        summed: gradients of this process -> their sum over all processes.
    """

    inputs: Mapping[str, Tensor]
    noise: RNGState
    losses_of: Callable[[Outputs], Tensor]
    lookahead: VirtualStep
    num_rows: int
    due: bool = True
    new: bool = True
    last: bool = True
    sources: int = 0
    temperatures: int = 0
    along_of: Callable[[Outputs, Tensor], Tensor | None] = lambda outputs, tangent: None
    summed: Callable[[Tensors], Tensors] = dict


@dataclass(frozen=True, kw_only=True)
class Step(Batch):
    """A training batch after its forward.

    Args:
        outputs: the training forward's outputs, with their graph.
        weights: λ as it is, `[N, K]`; read where the lookahead's gradient is weighted with it.
        device: where D is asked for; `losses_of` takes outputs there as well.
    """

    outputs: Outputs
    weights: Tensor
    device: torch.device = torch.device("cpu")

    @property
    def padded_weights(self) -> Tensor:
        """λ `[N, K + C + J]`, where the outputs are: virtual sources weigh nothing."""
        padded = F.pad(self.weights, (0, self.outputs.logits.shape[-1] + self.temperatures))
        return padded.to(self.outputs.logits.device)


class Lookahead(ABC):
    """From a training batch to D `[N, K + C + J]` and the length of v."""

    inverse_temperature: Tensor = torch.tensor(4.0)
    """τ, how far the class gradient is believed, in nats; fitted on the clean rows where their features are at hand,
    and 0 where there is no class gradient."""

    def capture_features(self) -> AbstractContextManager[Any]:
        """Context in which the training forward runs."""
        return nullcontext()

    def prepare(self, batch: Batch) -> None:
        """Before the training forward: what needs none of its graph is done while that takes no memory."""

    @abstractmethod
    def directional_derivatives(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """D along v, `[N, K + C + J]`, and ‖v‖; None where there is no direction for this step."""

    @abstractmethod
    def state(self) -> Tensors:
        """What must survive a checkpoint."""

    @abstractmethod
    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned."""


class MetaSampler:
    """Which clean rows the j-th lookahead encodes: shuffled passes, a function of (seed, j)."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, min(batch_size, num_rows), seed

    def __call__(self, lookahead: int) -> list[int]:
        start = lookahead * self.batch_size
        picked: list[int] = []
        while len(picked) < self.batch_size:
            lap, offset = divmod(start + len(picked), self.num_rows)
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed * 100_003 + lap))
            picked += order[offset : offset + self.batch_size - len(picked)].tolist()
        return picked


def length_of(direction: Tensors) -> Tensor:
    """‖v‖, a scalar, in float32."""
    return get_total_norm([v.float() for v in direction.values()])


def split_along(along: Tensor, length: Tensor, step: Step, scale: str) -> tuple[Tensor, Tensor]:
    """D `[N, K + C + J]` -> ∂V/∂λ `[N, K]` (raw: as in E1; unit: per unit of ‖v‖), and the class gradient `[N, C]`."""
    widths = step.weights.shape[1], step.outputs.logits.shape[1], step.temperatures
    sources, classes, _ = along.split(widths, dim=1)
    class_gradient = centred_unit(classes).nan_to_num(0.0, 0.0, 0.0)  # a direction that overflowed: no weight moves
    if not sources.shape[1]:
        return sources, class_gradient
    gradient = -sources / step.num_rows if scale == "raw" else -sources / length.clamp_min(1e-30)
    return gradient.nan_to_num(0.0, 0.0, 0.0), class_gradient
