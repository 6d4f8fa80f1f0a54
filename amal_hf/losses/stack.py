"""Side by side: named losses become one matrix `[N, K]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from amal_hf._types import Batch, Outputs, RowFunction
from amal_hf.losses.base import FunctionLoss, Loss, expected_tangent, promised
from amal_hf.losses.temperature import Temperatures


@dataclass(frozen=True)
class SoftTargets:
    r"""All sources of a batch as one target for each temperature, $T_{ic} = \sum_k \lambda_{ik} q_{ikc}$.

    Args:
        targets: temperature -> `[N, C]`, times the temperature's square.
        constant: what no parameter moves, `[N]`, in nats; None: nothing.
    """

    targets: dict[float, Tensor]
    constant: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Σ_k λ_ik ℓ_ik of every row, `[N]`, in nats, at logits `[N, C]`."""
        rows = self.constant
        for heat, target in self.targets.items():
            scaled = logits if heat == 1 else logits / heat
            part = (target.to(logits) * scaled.log_softmax(-1)).sum(-1)
            rows = -part if rows is None else rows.to(logits) - part
        assert rows is not None
        return rows


@dataclass(frozen=True)
class SoftSources:
    r"""The sources of a batch as distributions $q_{ik}$, before their weights are known.

    Args:
        targets: temperature -> columns `[k]` of `[N, K]` (None: all), and q `[N, k, C]` of these, times the
            temperature's square.
        constant: what no parameter moves, `[N, K]`, in nats; None: nothing.
    """

    targets: dict[float, tuple[Tensor | None, Tensor]]
    constant: Tensor | None = None

    def fold(self, weights: Tensor) -> SoftTargets:
        """One soft target for each temperature, Σ_k λ_ik q_ik, of weights λ `[N, K]`."""
        targets = {}
        for heat, (columns, target) in self.targets.items():
            own = weights if columns is None else weights[:, columns]
            targets[heat] = (own[:, :, None] * target.to(weights)).sum(1)
        return SoftTargets(targets, None if self.constant is None else (self.constant.to(weights) * weights).sum(-1))


class LossStack:
    """All sources of a run: `(outputs, batch) -> [N, K]`, and the mask `[N, K]` beside it.

    Args:
        losses: name -> `Loss`, or any function `(outputs, batch) -> [N]`. The first is column 0.
        example: one row of the training set; blocks such as `LabelingFunctions` read their width
            from it.

    Raises:
        ValueError: no losses given.

    Example:
        >>> from amal_hf import CrossEntropy, LabelingFunctions
        >>> stack = LossStack({"label": CrossEntropy(), "rules": LabelingFunctions()}, {"weak_labels": [0, 1]})
        >>> stack.names
        ('label', 'rules/0', 'rules/1')
        >>> batch = {"labels": torch.tensor([1]), "weak_labels": torch.tensor([[0, -1]])}
        >>> stack(Outputs(logits=torch.zeros(1, 2)), batch)  # shape: [1, 3]
        tensor([[0.6931, 0.6931, 0.0000]])
        >>> stack.mask(batch)  # shape: [1, 3]
        tensor([[ True,  True, False]])
    """

    def __init__(self, losses: Mapping[str, Loss | RowFunction], example: Mapping[str, Any]) -> None:
        if not losses:
            raise ValueError('`losses`: expected at least one source, found none. Pass e.g. {"label": CrossEntropy()}.')
        self.losses = {name: loss if isinstance(loss, Loss) else FunctionLoss(loss) for name, loss in losses.items()}
        blocks = {name: loss.sources(name, example) for name, loss in self.losses.items()}
        self.names: tuple[str, ...] = tuple(source for block in blocks.values() for source in block)
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(c for each in self.losses.values() for c in each.columns))
        self.slices: dict[str, slice] = {}
        start = 0
        for name, block in blocks.items():
            self.slices[name] = slice(start, start + len(block))
            start += len(block)
        self.temperatures = Temperatures(self.losses, {name: block.start for name, block in self.slices.items()})

    def position(self, kind: type[Loss]) -> int | None:
        """Column of the first loss of a kind; None: there is none."""
        return next(iter(self.positions(lambda loss: isinstance(loss, kind))), None)

    def positions(self, which: Callable[[Loss], bool]) -> list[int]:
        """Columns of all losses for which `which` is true."""
        blocks = (self.slices[name] for name, loss in self.losses.items() if which(loss))
        return [column for block in blocks for column in range(block.start, block.stop)]

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        batch = self.temperatures.into(batch)
        return torch.cat([_as_block(loss(outputs, batch)) for loss in self.losses.values()], dim=1)

    def mask(self, batch: Batch) -> Tensor:
        """True where source k covers row i. Shape `[N, K]`."""
        return torch.cat([_as_block(loss.mask(batch)) for loss in self.losses.values()], dim=1)

    def with_classes(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The sources and, behind them, virtual ones: −log p_c of each class, and ∂ℓ/∂log T of each of the J
        temperatures that are learned. Shape `[N, K + C + J]`."""
        slopes = self.temperatures.slopes(outputs, batch)
        return torch.cat([self(outputs, batch), class_losses(outputs), slopes], dim=1)

    def along(self, outputs: Outputs, tangent: Tensor, batch: Batch) -> Tensor | None:
        """The derivative of `with_classes` where the logits move along `tangent` `[N, C]`, in closed form; None where a
        loss has none."""
        blocks = []
        for loss in self.losses.values():
            found = loss.along(outputs, tangent, batch) if promised(loss, "along") else None
            if found is None:
                return None
            blocks.append(_as_block(found))
        classes = expected_tangent(outputs.logits, tangent)[:, None] - tangent
        return torch.cat([*blocks, classes], dim=1)

    @cached_property
    def folds(self) -> bool:
        """Whether every source is a cross-entropy to a class distribution, so that one soft target stands for all."""
        own = all(promised(loss, "soft_target") for loss in self.losses.values())
        return own and all(type(loss).soft_target is not Loss.soft_target for loss in self.losses.values())

    def soft_sources(self, batch: Batch, num_classes: int) -> SoftSources | None:
        """What each source asserts, by temperature; None where a source is no cross-entropy."""
        by: dict[float, list[tuple[list[int], Tensor]]] = {}
        constant: Tensor | None = None
        for name, loss in self.losses.items():
            found = loss.soft_target(batch, num_classes) if self.folds else None
            if found is None:
                return None
            heat, target = found
            target, own = target.reshape(len(target), -1, num_classes), self.slices[name]
            target = target if target.is_floating_point() else target.float()
            by.setdefault(heat, []).append(([*range(own.start, own.stop)], target * heat**2))
            if getattr(loss, "kind", None) == "kl":  # what KL(p ‖ q) has beside the cross-entropy: −H(p)
                constant = target.new_zeros(len(target), len(self)) if constant is None else constant
                constant[:, own] = -(heat**2) * torch.special.entr(target).sum(-1)
        targets = {}
        for heat, blocks in by.items():
            columns = torch.tensor([column for block, _ in blocks for column in block], device=blocks[0][1].device)
            targets[heat] = None if len(by) == 1 else columns, torch.cat([target for _, target in blocks], 1)
        return SoftSources(targets, constant)

    def targets(self, batch: Batch, num_classes: int) -> Tensor:
        """The class distribution each source asserts, `[N, K, C]`; zeros where it has none."""
        blocks = []
        for name, loss in self.losses.items():
            target = loss.target(batch, num_classes)
            if target is None:
                mask = _as_block(loss.mask(batch))
                target = torch.zeros(*mask.shape, num_classes, device=mask.device)
            width = self.slices[name].stop - self.slices[name].start
            blocks.append(target.float().reshape(len(target), width, num_classes))
        return torch.cat(blocks, dim=1)


def class_losses(outputs: Outputs) -> Tensor:
    """−log p_c of each class as a virtual source, `[N, C]`, in nats."""
    return -outputs.logits.log_softmax(-1)


def _as_block(rows: Tensor) -> Tensor:
    return rows if rows.dim() == 2 else rows[:, None]
