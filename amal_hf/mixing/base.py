"""The one abstract class of this axis: where the weights `[N, K]` come from and how they learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from amal_hf._types import Tensors


@dataclass(frozen=True)
class Rows:
    """What a mixing may look at for the rows of a batch; everything detached, and beside one another.

    `index` is on the CPU, the others are where the batch is.

    Args:
        index: position of each row in the training set, `[N]`.
        losses: `[N, K]`, in nats; zeros where λ is asked for before the forward, or reads no losses.
        mask: `[N, K]`, True where source k covers row i.
        targets: class distribution each source asserts, `[N, K, C]`; zeros where it has none.
        class_gradient: −∂V/∂q, `[N, C]`: which class the clean rows would rather have as the row's soft label
            (docs/method.md (E2)), centred over classes, its length τ in nats how far that can be believed;
            zeros before the first lookahead.
        log_posterior: log-probabilities of the row's class known before training, `[N, C]`; zeros where there is no
            such column.
    """

    index: Tensor
    losses: Tensor
    mask: Tensor
    targets: Tensor
    class_gradient: Tensor
    log_posterior: Tensor = field(default_factory=lambda: torch.zeros(()))


class Mixing(ABC):
    """Weights λ for the rows of a batch, and their update from the meta-gradient.

    The trainer calls `update` and then `weights` for every micro-batch, and `commit` once after
    the last micro-batch of an optimizer step. What rows share may change only in `commit`, so that
    1 × 16 rows and 4 × 4 rows give the same weights.
    """

    learns: bool = True
    """False where `update` does nothing, so that no lookahead is paid for."""

    reads: Literal["columns", "class_gradient", "losses"] = "losses"
    """What λ is computed from: "columns" alone, before the forward; columns and `class_gradient`, so that no source's
    loss is computed between two logs; or losses `[N, K]` and their gradient as well."""

    per_row: bool = False
    """True where every row of the training set has an entry of its own: needs a map-style data set."""

    @abstractmethod
    def weights(self, rows: Rows) -> Tensor:
        """λ, `[N, K]`; 0 where masked."""

    def used(self, weights: Tensor) -> Tensor:
        """λ of the loss, `[N, K]`: the weights as they are, unless sources assert the same twice."""
        return weights

    def update(self, rows: Rows, gradient: Tensor) -> None:
        """Move the weights against `gradient`, a positive multiple of ∂V/∂λ, `[N, K]`; `[N, 0]` where λ reads no
        losses."""

    def commit(self) -> None:
        """Let what was seen since the last optimizer step take effect."""

    def state(self) -> Tensors:
        """Everything that was learned, as tensors for safetensors."""
        return {}

    def load_state(self, state: Tensors) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: a tensor is missing or has another shape: other rows, losses or mixing.
        """
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"`resume_from_checkpoint`: expected {name!r} of shape {tuple(tensor.shape)}, found {found}. "
                    "The checkpoint belongs to another data set, list of losses or mixing."
                )
            with torch.no_grad():
                tensor.copy_(state[name])
