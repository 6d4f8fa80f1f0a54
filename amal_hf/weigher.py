"""λ `[N, K]` of every batch: what it is computed from, how it is held, kept and restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from amal_hf._distributed import PADDED, everyones, everyones_sum, of_all_processes
from amal_hf._types import Outputs, Tensors
from amal_hf._window import PADDING
from amal_hf.config import AMALConfig
from amal_hf.data.columns import RowIndex, weights_dataset
from amal_hf.lookahead import Batch, Lookahead, Step, split_along
from amal_hf.losses import LossStack
from amal_hf.losses.stack import SoftSources, SoftTargets
from amal_hf.mixing import MeanWeight, Mixing, Rows, centred, share
from amal_hf.weight_history import Stopwatch, WeightHistory, groups

KNOWN = "amal_known"
"""Key of a batch: what is known of its rows before the forward."""


@dataclass(frozen=True)
class Known:
    """What is known of the N rows of a batch before the forward.

    Args:
        rows: what the mixing sees of them.
        soft: the sources as distributions, of weights that are yet to come; None where λ is known, or one of them is
            no cross-entropy to a distribution.
        weights: λ `[N, K]`, where it needs nothing of the forward.
        folded: the sources as soft targets, where λ is known.
        shown: the losses of this step are to be logged.
    """

    rows: Rows
    soft: SoftSources | None = None
    weights: Tensor | None = None
    folded: SoftTargets | None = None
    shown: bool = False


class Weigher:
    """Mixing weights λ `[N, K]` of the rows of a batch, and everything that is learned about them.

    Args:
        settings: `AMALConfig.resolved()`.
        stack: the K sources.
        mixing: where λ comes from.
        accelerator: of the run.
        positions: batch -> where its rows stand in the training set.
        num_rows: rows of the training set; None for a stream.
        classes: C where sources compete with the class they name, else 0.
        posterior: column of log-probabilities `[N, C]` known before training; "": none.
    """

    def __init__(
        self,
        settings: AMALConfig,
        stack: LossStack,
        mixing: Mixing,
        accelerator: Accelerator,
        positions: RowIndex,
        num_rows: int | None,
        classes: int,
        posterior: str = "",
    ) -> None:
        self.settings, self.stack, self.mixing, self.accelerator = settings, stack, mixing, accelerator
        self.positions, self.classes, self.posterior = positions, classes, posterior
        self.history = WeightHistory(stack.names, num_rows, getattr(torch, settings.table_dtype))
        self.looks_ahead = mixing.learns and settings.refresh == "step"  # in the training step
        self.lookahead: Lookahead | None = None
        self.clock = Stopwatch()
        self.mean_weight, self._committed, self._asked = MeanWeight(), -1, -1
        self.temperatures = len(stack.temperatures)  # J, those that are learned
        self._shared: list[Any] = [self.mean_weight] if settings.normalize == "mean" else []
        self._shared += [stack.temperatures] if self.temperatures else []
        self._restored: Tensors = {}
        stack.temperatures.restart()

    def look_ahead_by(self, lookahead: Lookahead) -> None:
        """From here on the clean rows are asked by this lookahead."""
        self.lookahead, lookahead.sources = lookahead, self.stack.names
        lookahead.load_state(self._restored)

    def capture_features(self) -> AbstractContextManager[Any]:
        """Context in which the training forward runs: the lookahead's, where there is one."""
        return nullcontext() if self.lookahead is None else self.lookahead.capture_features()

    def read(self, batch: Mapping[str, Any], width: int, shown: bool = True) -> Known:
        """Positions, masks and assertions of a batch's rows, and λ where it needs nothing of the forward.

        Args:
            batch: rows with the sources' columns.
            width: C, outputs of the model.
            shown: the losses of this step are to be logged: they are computed then, beside what is trained on.
        """
        rows = self._rows(batch, width)
        if self.mixing.reads == "losses":
            return Known(rows, shown=shown)
        soft = self.stack.soft_sources(batch, width)
        if self.mixing.reads != "columns" or self.mixing.learns:
            return Known(rows, soft, shown=shown)
        weights = self.weigh(rows)
        return Known(rows, weights=weights, folded=None if soft is None else soft.fold(weights), shown=shown)

    def begin(self, batches: Sequence[MutableMapping[str, Any]], width: int, shown: bool) -> None:
        """An optimizer step begins: what is known of its rows before the forward is written into its micro-batches,
        under `KNOWN`.

        Args:
            batches: the step's, before they are moved to the model's device.
            width, shown: as of `read`.
        """
        if self.settings.normalize == "mean" and not self.mean_weight.known:
            self._count_first(batches, width)
        for batch in batches if self.stack.folds else ():
            batch[KNOWN] = self.read(batch, width, shown)

    def _count_first(self, batches: Sequence[Mapping[str, Any]], width: int) -> None:
        """The mean of Σ_k λ_ik over the rows of the first optimizer step, before it; later steps follow those before.

        Where λ reads losses, it is what λ is where all are 0, and that step sets the mean anew.
        """
        for batch in batches:
            rows = self._rows(batch, width)
            self._count(self.mixing.used(self.mixing.weights(rows).detach()), rows)
        self.mean_weight.commit(partial(everyones_sum, self.accelerator), before=self.mixing.reads == "losses")

    def _rows(self, batch: Mapping[str, Any], width: int) -> Rows:
        """What the mixing sees of a batch before its forward."""
        mask = self.stack.mask(batch)
        nothing, zeros = torch.zeros(len(mask), width, device=mask.device), torch.zeros(mask.shape, device=mask.device)
        targets = self.stack.targets(batch, width) * bool(self.classes)
        posterior, index = batch.get(self.posterior, nothing), self.positions(batch)
        if PADDING in batch:
            index = index.masked_fill(batch[PADDING].to(index.device), PADDED)
        return Rows(index, zeros, mask, targets, class_gradient=nothing, log_posterior=posterior)

    def weigh(self, rows: Rows) -> Tensor:
        """λ as the loss uses it, `[N, K]`; noted in history and running mean."""
        weights = self.mixing.weights(rows).detach()
        if self.settings.log_weights:
            self.history.record(*everyones(self.accelerator, rows.index, weights, rows.mask))
        if self.settings.normalize == "mean":
            self._count(self.mixing.used(weights), rows)
        return self.normalized(weights, rows.mask)

    def _count(self, used: Tensor, rows: Rows) -> None:
        self.mean_weight.count(used if self.accelerator.num_processes == 1 else used[rows.index != PADDED])

    def weighted(
        self, outputs: Outputs, inputs: Mapping[str, Any], batch: Batch | None
    ) -> tuple[Tensor, Tensor | None]:
        """Σ_k λ_ik ℓ_ik of every row, `[N]`, in nats, and the losses `[N, K]` where they were computed.

        Args:
            outputs: of the training forward, with their graph.
            inputs: the rows.
            batch: what the lookahead is asked for them; None: nothing.
        """
        known: Known = inputs.get(KNOWN) or self.read(inputs, outputs.logits.shape[-1])
        losses, rows = None, known.rows
        if known.soft is None and known.folded is None:
            losses = self.stack(outputs, inputs)
            rows = replace(rows, losses=losses.detach().to(rows.losses.device))
        if known.shown and self.settings.log_weights:
            shown = self.stack(Outputs(outputs).detached(), inputs) if losses is None else losses.detach()
            self.history.record_losses(*everyones(self.accelerator, rows.index, shown.to(rows.mask.device), rows.mask))
        if batch is not None:
            rows = self.look_ahead(batch, outputs, rows, inputs)
        if known.folded is not None:
            return known.folded(outputs.logits), None
        weights = (self.weigh(rows) if known.weights is None else known.weights).to(outputs.logits.device)
        if known.soft is not None:
            return known.soft.fold(weights)(outputs.logits), None
        assert losses is not None
        return (weights * losses).sum(1), losses.detach()

    def first_of(self, step: int) -> bool:
        """Whether this is the first time that the clean rows are asked in an optimizer step."""
        before, self._asked = self._asked, step
        return before != step

    def look_ahead(self, batch: Batch, outputs: Outputs, rows: Rows, inputs: Mapping[str, Any]) -> Rows:
        """Ask the clean rows, move the mixing, and return the rows with their class gradient `[N, C]`."""
        assert self.lookahead is not None
        with self.clock:
            asked = batch.lookahead.needs_gradient or batch.temperatures  # else only the shape of λ as it is counts
            weights = (
                self.normalized(self.mixing.weights(rows), rows.mask) if asked else rows.losses[:, : batch.sources]
            )
            if self.accelerator.num_processes > 1:
                weights = weights * (rows.index != PADDED)[:, None].to(weights)
            step = Step(**vars(batch), outputs=outputs, weights=weights, device=weights.device)
            seen = self.lookahead.directional_derivatives(step)
            if seen is None:
                return rows
            along, length = (t.to(step.device) for t in seen)
            if batch.temperatures:
                self.stack.temperatures.accumulate(weights, along, outputs.logits.to(step.device), inputs)
            gradient, class_gradient = split_along(along, length, step, self.settings.mixing_scale)
            scale = self.lookahead.inverse_temperature.to(class_gradient)
            rows = replace(rows, class_gradient=scale * class_gradient)
            every, gradient = of_all_processes(self.accelerator, rows, gradient)
            if self.settings.center and batch.sources:
                gradient = centred(gradient, every.mask, list(groups(self.stack.names).values()))
            self.mixing.update(every, gradient)
            return rows

    def normalized(self, weights: Tensor, mask: Tensor) -> Tensor:
        """λ as the loss uses it, `[N, K]`."""
        weights = self.mixing.used(weights)
        if self.settings.normalize == "row":
            return share(weights, mask)
        return self.mean_weight.held(weights) if self.settings.normalize == "mean" else weights

    def commit(self, step: int) -> None:
        """Once per optimizer step: what its micro-batches showed takes effect."""
        before, self._committed = self._committed, step
        if before == step:
            return
        self.mixing.commit()
        summed: Callable[[Tensor], Tensor] = partial(everyones_sum, self.accelerator)
        for shared in self._shared:
            shared.commit(summed)

    def last_weights(self) -> Dataset:
        """The last λ of every training row: `row_id`, and a column per source (null: it abstains, or was not visited).

        Raises:
            ValueError: none were kept.
        """
        if not self.settings.log_weights:
            raise ValueError("`log_weights`: expected True for `trainer.weights`, found False: none were kept.")
        return weights_dataset(self.positions.ids, self.history.last_weights(), self.stack.names)

    def summary(self, step: int, epoch: float | None) -> dict[str, float]:
        """What is logged of the steps since the last log; the share of time spent on lookaheads; temperatures."""
        logs = self.history.flush(step, epoch)
        return logs | {"meta_time_share": self.clock.share(), **self.stack.temperatures.values()}

    def state_dict(self) -> Tensors:
        """Everything learned, as tensors for safetensors."""
        parts: list[Any] = [self.mixing, self.history, self.stack.temperatures, self.mean_weight, self.lookahead]
        return {name: t for part in parts if part is not None for name, t in part.state().items()}

    def load_state_dict(self, state: Tensors, summaries: list[dict[str, Any]], step: int) -> None:
        """Restore what `state_dict` and `history.summaries` held when `step` steps were done."""
        self.mixing.load_state(state)
        self.history.load(state, summaries)
        self.stack.temperatures.load_state(state)
        self.mean_weight.load_state(state)
        self._restored, self._committed = state, step  # a checkpoint is written after the commit
