"""What the processes of a launch tell one another, each row once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from amal_hf._types import Tensors
from amal_hf.mixing import Rows


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
    """Rows and gradient `[N, K]` of every process, each row once, the same on every process."""
    columns = {name: t for name, t in vars(rows).items() if t.dim() > 0 and name != "index"}
    index, *every = everyones(accelerator, rows.index, *columns.values(), gradient)
    return replace(rows, index=index, **dict(zip(columns, every[:-1], strict=True))), every[-1]


def everyones(accelerator: Accelerator, index: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """What every process knows of its rows, each row once: accelerate repeats rows to even out the last batch.

    Args:
        index: position of each row in the training set, `[N]`; -1 for rows of a stream, which all count.
        columns: tensors `[N, ...]`.

    Returns:
        `index` and `columns`, longer: one message holds them all.
    """
    if accelerator.num_processes > 1:
        index, *gathered = _gathered(accelerator, index, columns)
        columns = tuple(gathered)
    order = torch.arange(len(index))
    _, inverse = index.unique(return_inverse=True)
    first = torch.full_like(order, len(order)).scatter_reduce(0, inverse, order, "amin")[inverse]
    kept = (index < 0) | (first == order)
    return (index, *columns) if kept.all() else (index[kept], *(c[kept.to(c.device)] for c in columns))


def _gathered(accelerator: Accelerator, index: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
    dtype = torch.float32
    for column in columns:
        dtype = torch.promote_types(dtype, column.dtype)
    # a position is whole in two float32 numbers, and a row that only pads has no 1 behind them
    place = torch.stack([index.div(2**20, rounding_mode="floor"), index.remainder(2**20), torch.ones_like(index)], 1)
    parts = [t.to(accelerator.device, dtype).flatten(1) for t in (place, *(c[:, None] for c in columns))]
    mine = torch.cat(parts, 1)
    every = accelerator.gather(accelerator.pad_across_processes(mine))
    place, *parts = every[every[:, 2] == 1].split([3, *(c[0].numel() for c in columns)], dim=1)
    index = (place[:, 0].double() * 2**20 + place[:, 1].double()).long().cpu()
    return [index, *(p.reshape(-1, *c.shape[1:]).to(c) for p, c in zip(parts, columns, strict=True))]
