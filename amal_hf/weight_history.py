"""What the weights were, over time and at the end: summaries as JSON, the last weights as tensors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amal_hf._types import Tensors

QUANTILES = (0.1, 0.5, 0.9)
AT_ONCE, KEPT = 64, 10_000
"""Batches whose weights are written into the table of all rows at once; the most that a summary is made of."""


def groups(sources: Sequence[str]) -> dict[str, list[int]]:
    """Sources by the name before "/": a block of labeling functions is one group.

    Example:
        >>> groups(["label", "rules/a", "rules/b"])
        {'label': [0], 'rules': [1, 2]}
    """
    found: dict[str, list[int]] = {}
    for k, name in enumerate(sources):
        found.setdefault(name.split("/")[0], []).append(k)
    return found


def is_logged(trainer: Any) -> bool:
    """Whether the losses of a trainer's next step are shown, source by source: where a log or an epoch ends."""
    args, state, step = trainer.args, trainer.state, trainer.state.global_step + 1
    due = state.logging_steps and step % state.logging_steps == 0
    last, first = trainer.accelerator.gradient_state.end_of_dataloader, step == 1 and args.logging_first_step
    return args.log_weights and bool(due or last or first)


class Stopwatch:
    """Wall-clock inside its `with` blocks, as a share of the time since it was made."""

    def __init__(self) -> None:
        self.seconds, self._made = 0.0, time.perf_counter()

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds += time.perf_counter() - self._entered

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._made

    def share(self) -> float:
        """Between 0 and 1."""
        return self.seconds / max(time.perf_counter() - self._made, 1e-9)


class WeightHistory:
    """Collects losses and weights between logs; keeps a summary per log and every row's last weights.

    Args:
        sources: names of the K sources.
        num_rows: rows of the training set, or None where they are not counted (a stream).
        dtype: of the last weights.
    """

    def __init__(self, sources: Sequence[str], num_rows: int | None, dtype: torch.dtype = torch.float32) -> None:
        self.sources = tuple(sources)
        self._shape, self._dtype = None if num_rows is None else (num_rows, len(self.sources)), dtype
        self.last: Tensor | None = None  # made when there is something to keep
        self.summaries: list[dict[str, Any]] = []
        self._pending: deque[tuple[Tensor, Tensor]] = deque(maxlen=KEPT)
        self._losses: deque[tuple[Tensor, Tensor]] = deque(maxlen=KEPT)
        self._unwritten: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(self, index: Tensor, weights: Tensor, mask: Tensor) -> None:
        """Note a batch: positions `[N]`, and weights and mask `[N, K]`, detached.

        Nothing is computed and no device is waited for until somebody asks, or many batches have come together.
        """
        self._pending.append((weights, mask))
        if self._shape is not None:
            self._unwritten.append((index, weights, mask))
            if len(self._unwritten) >= AT_ONCE:
                self._write()

    def record_losses(self, index: Tensor, losses: Tensor, mask: Tensor) -> None:
        """Note the losses of a batch and where they apply, `[N, K]`, detached."""
        self._losses.append((losses, mask))

    def _write(self) -> None:
        """Every row's last weights, of the batches that came since."""
        batches, self._unwritten = self._unwritten, []
        if not batches:
            return
        last = self._table()
        for index, weights, mask in batches:
            last[index.to(last.device)] = torch.where(mask, weights, float("nan")).to(last)

    def _table(self) -> Tensor:
        if self.last is None:
            assert self._shape is not None
            self.last = torch.full(self._shape, float("nan"), dtype=self._dtype)
        return self.last

    def flush(self, step: int, epoch: float | None) -> dict[str, float]:
        """Summarise what came since the last flush, for `log()`: per group of sources the mean loss (`loss/label`), of
        the steps that computed it, the mean weight (`weight/label`) and its quantiles (`weight/label/q10`)."""
        if not self._pending:
            return {}
        weights, mask = (torch.cat(parts).float().cpu() for parts in zip(*self._pending, strict=True))
        known = [torch.where(mask, losses, float("nan")) for losses, mask in self._losses]
        losses = torch.cat(known).float().cpu() if known else None
        self._pending.clear()
        self._losses.clear()
        logs: dict[str, float] = {}
        summary: dict[str, Any] = {"step": step, "epoch": epoch, "sources": {}}
        for name, columns in groups(self.sources).items():
            covered = mask[:, columns].bool()
            if not covered.any():
                continue
            here = weights[:, columns][covered]
            quantiles = torch.quantile(here[:100_000], torch.tensor(QUANTILES)).tolist()
            if losses is not None and not (here_losses := losses[:, columns]).isnan().all():
                logs[f"loss/{name}"] = here_losses.nanmean().item()
            logs[f"weight/{name}"] = here.mean().item()
            logs.update({f"weight/{name}/q{round(100 * q)}": v for q, v in zip(QUANTILES, quantiles, strict=True)})
            summary["sources"][name] = [here.mean().item(), *quantiles]
        self.summaries.append(summary)
        return logs

    def curves(self) -> dict[str, Any]:
        """The summaries as curves: `step`, `epoch`, and per group `mean`, `q10`, `q50`, `q90` over time."""
        names = list(groups(self.sources))
        nothing = [float("nan")] * 4
        curves: dict[str, Any] = {
            "step": [s["step"] for s in self.summaries],
            "epoch": [s["epoch"] for s in self.summaries],
        }
        for column, key in enumerate(("mean", "q10", "q50", "q90")):
            curves[key] = {n: [s["sources"].get(n, nothing)[column] for s in self.summaries] for n in names}
        return curves

    def last_weights(self) -> Tensor:
        """Every row's last weights, `[rows, K]`; NaN where masked or not visited.

        Raises:
            ValueError: the training set is a stream, whose rows are not counted.
        """
        if self._shape is None:
            raise ValueError(
                "`train_dataset`: expected a data set that can be indexed, found a stream: no weights kept."
            )
        self._write()
        return self._table()

    def load(self, state: Tensors, summaries: list[dict[str, Any]]) -> None:
        """Restore what `state` and `summaries` held; of a row that was not visited then, what is known now stays."""
        self.summaries, self._unwritten = summaries, []
        self._pending.clear()
        self._losses.clear()
        if self._shape is not None and "last_weights" in state:
            now, then = self.last_weights(), state["last_weights"].to(self.last_weights())
            unseen = then.isnan().all(1, keepdim=True)
            now.copy_(torch.where(unseen, now, then))

    def state(self) -> Tensors:
        """Every row's last weights, `[rows, K]` (NaN: masked or not seen); nothing where none were kept."""
        self._write()
        return {} if self.last is None else {"last_weights": self.last}
