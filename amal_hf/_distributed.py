"""What the processes of a launch exchange: gathered rows and summed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.mixing import Rows

PADDED = -2
"""In the place of a position: the row only evens out the last batch of an epoch (`amal_hf._window.PADDING`)."""


def summed(accelerator: Accelerator, gradients: Tensors) -> Tensors:
    """The sum of every process's gradients, in one message."""
    if accelerator.num_processes == 1:
        return gradients
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients.values()]), "sum")
    parts = flat.split([g.numel() for g in gradients.values()])
    return {name: part.view_as(g) for part, (name, g) in zip(parts, gradients.items(), strict=True)}


def everyones_sum(accelerator: Accelerator, counted: Tensor) -> Tensor:
    """The sum of what every process counted on the CPU."""
    if accelerator.num_processes == 1:
        return counted
    return accelerator.reduce(counted.to(accelerator.device), "sum").cpu()


def of_all_processes(accelerator: Accelerator, rows: Rows, gradient: Tensor) -> tuple[Rows, Tensor]:
    """Rows and gradient `[N, K]` of every process, without padding, the same on every process."""
    if accelerator.num_processes == 1:
        return rows, gradient
    columns = {name: t for name, t in vars(rows).items() if t.dim() > 0 and name != "index"}
    index, *every = everyones(accelerator, rows.index, *columns.values(), gradient)
    return replace(rows, index=index, **dict(zip(columns, every[:-1], strict=True))), every[-1]


def everyones(accelerator: Accelerator, index: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Columns `[N, ...]` of the rows of every process, in the order of the processes: a row that is drawn twice stands
    there twice; one by which accelerate evens out the last batch does not.

    Args:
        index: position of each row in the training set, `[n]`; -1 for rows of a stream, `PADDED` for padding.
        columns: tensors `[n, ...]`.

    Returns:
        `index` `[N]` and `columns`: one message holds them all.
    """
    if accelerator.num_processes == 1:  # accelerate evens out nothing
        return (index, *columns)
    kept = index != PADDED
    if not kept.all():
        index, columns = index[kept], tuple(c[kept.to(c.device)] for c in columns)
    return tuple(_gathered(accelerator, index, columns))


def first_of_each(index: Tensor) -> Tensor:
    """True where a position stands for the first time, bool `[N]`; -1, a row of a stream, is always new.

    Example:
        >>> first_of_each(torch.tensor([7, 2, 7, -1, -1]))
        tensor([ True,  True, False,  True,  True])
    """
    order = torch.arange(len(index), device=index.device)
    _, inverse = index.unique(return_inverse=True)
    first = torch.full_like(order, len(order)).scatter_reduce(0, inverse, order, "amin")[inverse]
    return (index < 0) | (first == order)


def _gathered(accelerator: Accelerator, index: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    dtype = torch.float32
    for column in columns:
        dtype = torch.promote_types(dtype, column.dtype)
    # a position is whole in two float32 numbers, and a row that only pads has no 1 behind them
    place = torch.stack([index.div(2**20, rounding_mode="floor"), index.remainder(2**20), torch.ones_like(index)], 1)
    parts = [t.to(accelerator.device, dtype).reshape(len(t), t.shape[1:].numel()) for t in (place, *columns)]
    own = torch.cat(parts, 1)
    every = accelerator.gather(accelerator.pad_across_processes(own))
    place, *parts = every[every[:, 2] == 1].split([3, *(c.shape[1:].numel() for c in columns)], dim=1)
    index = (place[:, 0].double() * 2**20 + place[:, 1].double()).long().cpu()
    return [index, *(p.reshape(len(p), *c.shape[1:]).to(c) for p, c in zip(parts, columns, strict=True))]
