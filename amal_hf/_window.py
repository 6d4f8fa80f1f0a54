"""The micro-batches of one optimizer step, over all processes: how many rows they hold, and which are only padding."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

PADDING = "row_is_padding"
"""Column of a batch, bool `[n]`: the row is a repetition, by which accelerate evens out the last batch of an epoch. A
batch without such rows has no such column."""


@dataclass(frozen=True)
class Window:
    """N, the number of rows of one optimizer step, over its micro-batches and over all processes, padding not counted.

    Args:
        num_rows: N of the loss and of (E1).
        processes: how many processes' gradients are averaged afterwards.

    Example:
        >>> window = Window(num_rows=26)  # one micro-batch has 16 of them, the other 10
        >>> (window.mean(torch.ones(16)) + window.mean(torch.ones(10))).item()
        1.0
    """

    num_rows: int
    processes: int = 1

    def mean(self, losses: Tensor) -> Tensor:
        """A scalar, which summed over the micro-batches and averaged over the processes is the mean over the N rows.

        Args:
            losses: weighted losses of this micro-batch's rows, `[n]`; 0 for padding.
        """
        return losses.sum() * (self.processes / max(self.num_rows, 1))

    @classmethod
    def of(
        cls, accelerator: Accelerator, batches: Sequence[MutableMapping[str, Any]], data_parallel: int | None = None
    ) -> Window:
        """The window of these micro-batches, the last of which has just been drawn from the data loader.

        Writes the column `PADDING` into that one where it holds such rows.

        Args:
            batches: this process' micro-batches.
            data_parallel: how many processes have rows of their own; all of them by default, fewer under tensor,
                context or sequence parallelism.
        """
        processes = accelerator.num_processes if data_parallel is None else data_parallel
        rows = sum(find_batch_size(batch) for batch in batches)
        if processes == 1:
            return cls(rows)
        shard, loader = _shard(accelerator), accelerator.gradient_state.active_dataloader
        if not isinstance(loader, DataLoaderDispatcher) and (
            shard is None or not (shard.even_batches or shard.drop_last)
        ):
            every = accelerator.reduce(torch.tensor(rows, device=accelerator.device), "sum")  # each has its own number
            return cls(int(every) * processes // accelerator.num_processes, processes)
        padding = 0
        if batches and accelerator.gradient_state.end_of_dataloader:
            width = find_batch_size(batches[-1])
            padding = -loader.remainder % processes if shard is None else _padding(shard)
            index = accelerator.process_index if shard is None else shard.process_index
            place = index * width + torch.arange(width)
            if (repeated := place >= processes * width - padding).any():
                batches[-1][PADDING] = repeated
        return cls(rows * processes - padding, processes)


def _shard(accelerator: Accelerator) -> BatchSamplerShard | None:
    """What deals the batches of the data loader in use to the processes; a resumed run wraps it."""
    sampler = getattr(accelerator.gradient_state.active_dataloader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, BatchSamplerShard):
        sampler = getattr(sampler, "batch_sampler", None)
    return sampler


def _padding(shard: BatchSamplerShard) -> int:
    """Number of rows by which the last batches of an epoch, all processes' together, are filled up."""
    drawn = getattr(shard.batch_sampler, "sampler", None)
    if shard.drop_last or not shard.even_batches or shard.batch_size is None or not hasattr(drawn, "__len__"):
        return 0
    return -len(drawn) % (shard.batch_size * (1 if shard.split_batches else shard.num_processes))
