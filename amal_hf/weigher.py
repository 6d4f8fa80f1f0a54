"""λ `[N, K]` of every batch: what it is computed from, how it is held, kept and restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from amal_hf._distributed import PADDED, everyones, everyones_sum, of_all_processes
from amal_hf._types import Outputs, Tensors
from amal_hf._window import PADDING
from amal_hf.config import AMALConfig
from amal_hf.data.columns import RowIndex
from amal_hf.lookahead import Batch, Lookahead, Step, split_along
from amal_hf.losses import LossStack
from amal_hf.mixing import MeanWeight, Mixing, Rows, centred, share
from amal_hf.weight_history import Stopwatch, WeightHistory, groups

WEIGHTS, TARGETS = "amal_weights", "amal_targets"
"""Keys of a batch: λ `[N, K]`, or the sources as soft targets, where they are known before the forward."""


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
        self.lookahead: Lookahead | None = None
        self.clock = Stopwatch()
        self._mean_weight, self._committed = MeanWeight(), -1
        self._restored: Tensors = {}
        stack.temperatures.restart()

    @property
    def needs_forward(self) -> bool:
        """Whether λ depends on the student's outputs on the batch."""
        return self.mixing.learns or not self.mixing.from_columns

    def look_ahead_by(self, lookahead: Lookahead) -> None:
        """From here on the clean rows are asked by this lookahead."""
        self.lookahead = lookahead
        lookahead.load_state(self._restored)

    def rows(self, inputs: Mapping[str, Tensor], width: int, losses: Tensor | None = None) -> Rows:
        """What the mixing sees of a batch; `width` outputs; `losses` `[N, K]`, zeros before the forward."""
        mask = self.stack.mask(inputs)
        nothing = torch.zeros(len(mask), width, device=mask.device)
        targets = self.stack.targets(inputs, width) * bool(self.classes)
        known = torch.zeros(mask.shape, device=mask.device) if losses is None else losses.to(mask.device)
        posterior, index = inputs.get(self.posterior, nothing), self.positions(inputs)
        if PADDING in inputs:
            index = index.masked_fill(inputs[PADDING].to(index.device), PADDED)
        return Rows(index, known, mask, targets, class_gradient=nothing, log_posterior=posterior)

    def weigh(self, rows: Rows) -> Tensor:
        """λ as the loss uses it, `[N, K]`; noted in history and running mean."""
        weights = self.mixing.weights(rows).detach()
        if self.settings.log_weights:
            self.history.record(*everyones(self.accelerator, rows.index, weights, rows.losses, rows.mask))
        self._mean_weight.count(self.mixing.used(weights)[rows.index != PADDED])
        return self.normalized(weights, rows.mask)

    def fold(self, batch: Mapping[str, Any], width: int) -> dict[str, Any]:
        """All sources of a batch as soft targets, or λ where one of them is no cross-entropy, under their keys."""
        weights = self.weigh(self.rows(batch, width))
        folded = self.stack.fold(batch, width, weights)
        return {WEIGHTS: weights} if folded is None else {TARGETS: folded}

    def update(self, batch: Batch, outputs: Outputs, rows: Rows, inputs: Mapping[str, Any]) -> Rows:
        """The rows with their class gradient `[N, C]`, after the mixing's step on the meta-gradient."""
        assert self.lookahead is not None
        with self.clock:
            asked = batch.lookahead.needs_gradient or batch.temperatures  # else only the shape of λ as it is counts
            weights = self.normalized(self.mixing.weights(rows), rows.mask) if asked else rows.losses
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
            if self.settings.center:
                gradient = centred(gradient, every.mask, list(groups(self.stack.names).values()))
            self.mixing.update(every, gradient)
            return rows

    def normalized(self, weights: Tensor, mask: Tensor) -> Tensor:
        """λ as the loss uses it, `[N, K]`."""
        weights = self.mixing.used(weights)
        if self.settings.normalize == "row":
            return share(weights, mask)
        return self._mean_weight.held(weights) if self.settings.normalize == "mean" else weights

    def commit(self, step: int) -> None:
        """Once per optimizer step: what its micro-batches showed takes effect."""
        before, self._committed = self._committed, step
        if before == step:
            return
        self.mixing.commit()
        summed: Callable[[Tensor], Tensor] = partial(everyones_sum, self.accelerator)
        for shared in (self._mean_weight, self.stack.temperatures):
            shared.commit(summed)

    def state_dict(self) -> Tensors:
        """Everything learned, as tensors for safetensors."""
        parts: list[Any] = [self.mixing, self.history, self.stack.temperatures, self._mean_weight, self.lookahead]
        return {name: t for part in parts if part is not None for name, t in part.state().items()}

    def load_state_dict(self, state: Tensors, summaries: list[dict[str, Any]], step: int) -> None:
        """Restore what `state_dict` and `history.summaries` held when `step` steps were done."""
        self.mixing.load_state(state)
        self.history.load(state, summaries)
        self.stack.temperatures.load_state(state)
        self._mean_weight.load_state(state)
        self._restored, self._committed = state, step  # a checkpoint is written after the commit
