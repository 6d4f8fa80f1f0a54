"""The one abstract class of this axis: a source of supervision as a pure, unreduced loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amal_hf._types import Batch, Outputs, RowFunction


class Loss(ABC):
    """A source (or a block of `k` sources) of supervision: `(outputs, batch) -> [N]` or `[N, k]`.

    A loss owns no model, reduces nothing, and is 0 with a finite gradient wherever its mask is
    False.

    Example:
        >>> import torch
        >>> from amal_hf import CrossEntropy, Outputs
        >>> batch = {"labels": torch.tensor([0, -100])}
        >>> loss = CrossEntropy()
        >>> loss(Outputs(logits=torch.zeros(2, 4)), batch)  # shape: [2]
        tensor([1.3863, 0.0000])
        >>> loss.mask(batch)  # shape: [2]
        tensor([ True, False])
    """

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Dataset columns this loss reads from the batch."""

    @property
    def vote_columns(self) -> tuple[str, ...]:
        """Those of its columns that hold votes: lists of whole numbers, of which -1 abstains."""
        return ()

    @abstractmethod
    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Per-row losses, in nats. Shape `[N]`, or `[N, k]` for a block of `k` sources."""

    @abstractmethod
    def mask(self, batch: Batch) -> Tensor:
        """True where the source covers the row. Shape as `__call__`'s."""

    def target(self, batch: Batch, num_classes: int) -> Tensor | None:
        """The class distribution the source asserts, `[N, C]` or `[N, k, C]`; None if it has none."""
        return None

    def soft_target(self, batch: Batch, num_classes: int) -> tuple[float, Tensor] | None:
        r"""T and q `[N, C]` or `[N, k, C]`, where the loss is $-T^2 \sum_c q_{ic} \log\mathrm{softmax}(z_i/T)_c$ and a
        number that no parameter moves; None where it is not."""
        return None

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor | None:
        """The losses' derivative where the logits move along `tangent` `[N, C]`, in closed form. Shape as `__call__`'s;
        None where there is none: it is then derived, for all sources."""
        return None

    def sources(self, name: str, example: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the columns of `[N, K]` this loss fills, given one row of the dataset."""
        return (name,)


@dataclass(frozen=True)
class FunctionLoss(Loss):
    """Any user function `(outputs, batch) -> [N]` as a source that covers every row.

    Args:
        function: pure function of the model's outputs and the batch; returns `[N]`, in nats.
        columns: dataset columns it reads.

    Raises:
        ValueError: if the function returns anything but one finite-shaped number per row.
    """

    function: RowFunction
    columns: tuple[str, ...] = ()  # a field stands in for the property

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        rows = self.function(outputs, batch)
        expected = (outputs.logits.shape[0],)
        if not isinstance(rows, Tensor) or tuple(rows.shape) != expected:
            found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"`losses`: the function {getattr(self.function, '__name__', self.function)!r} must return one "
                f"loss per row, shape {expected}; found {found}. Return the unreduced loss: do not average it."
            )
        return rows

    def mask(self, batch: Batch) -> Tensor:
        rows = next(iter(batch.values()))
        return torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)


def promised(loss: Loss, name: str) -> bool:
    """Whether `name` belongs to the very `__call__` that the loss has: not so where a subclass has one of its own.

    Example:
        >>> class Doubled(FunctionLoss):
        ...     def __call__(self, outputs, batch):
        ...         return 2 * super().__call__(outputs, batch)
        >>> promised(FunctionLoss(len), "mask"), promised(Doubled(len), "mask")
        (True, False)
    """
    kinds = type(loss).__mro__
    defined = {each: next(i for i, kind in enumerate(kinds) if each in vars(kind)) for each in (name, "__call__")}
    return defined[name] <= defined["__call__"]


def expected_tangent(logits: Tensor, tangent: Tensor) -> Tensor:
    r"""$\langle \mathrm{softmax}(z_i), \dot z_i\rangle$, `[N]`: how $\log\sum_c e^{z_{ic}}$ moves."""
    return (logits.softmax(-1) * tangent).sum(-1)
