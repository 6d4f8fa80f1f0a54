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

    def mean(self, losses: Tensor, padding: Tensor | None = None) -> Tensor:
        """A scalar, which summed over the micro-batches and averaged over the processes is the mean over the N rows.

        Args:
            losses: weighted losses of this micro-batch's rows, `[n]`.
            padding: True for rows that do not count, `[n]`; None: all do.
        """
        losses = losses if padding is None else losses * ~padding
        return losses.sum() * (self.processes / max(self.num_rows, 1))

    @classmethod
    def of_one(cls, accelerator: Accelerator, batch: MutableMapping[str, Any], accumulation: int) -> Window:
        """The window of which a batch is one of as many micro-batches of its size, on every process."""
        processes = accelerator.num_processes
        return cls(find_batch_size(batch) * processes * accumulation, processes)

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
        even, padding, index = _last_rows(accelerator)
        if not even:  # each has its own number
            every = accelerator.reduce(torch.tensor(rows, device=accelerator.device), "sum")
            return cls(int(every) * processes // accelerator.num_processes, processes)
        if batches and padding:
            width = find_batch_size(batches[-1])
            padded = index * width + torch.arange(width) >= processes * width - padding
            if padded.any():
                batches[-1][PADDING] = padded.to(accelerator.device)
        return cls(rows * processes - padding, processes)


def _last_rows(accelerator: Accelerator) -> tuple[bool, int, int]:
    """Whether every process has as many rows; by how many rows all processes' last batches together are filled up, 0
    while there are others to come; and which part of them this process has."""
    state, shard = accelerator.gradient_state, _shard(accelerator)
    if shard is not None:
        padding = _padding(shard) if state.end_of_dataloader else 0
        return shard.even_batches or shard.drop_last, padding, shard.process_index
    if isinstance(state.active_dataloader, DataLoaderDispatcher):  # of a stream: cut on one process, dealt to all
        padding = -state.remainder % accelerator.num_processes if state.end_of_dataloader else 0
        return True, padding, accelerator.process_index
    return False, 0, accelerator.process_index


def _shard(accelerator: Accelerator) -> BatchSamplerShard | None:
    """What deals the batches of the data loader in use to the processes; a resumed run wraps it."""
    sampler = getattr(accelerator.gradient_state.active_dataloader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, BatchSamplerShard):
        sampler = getattr(sampler, "batch_sampler", None)
    return sampler


def _padding(shard: BatchSamplerShard) -> int:
    """Number of rows by which the last batches of an epoch, all processes' together, are filled up."""
    drawn: Any = getattr(shard.batch_sampler, "sampler", None)
    if shard.drop_last or not shard.even_batches or shard.batch_size is None or not hasattr(drawn, "__len__"):
        return 0
    return -len(drawn) % (shard.batch_size * (1 if shard.split_batches else shard.num_processes))
