"""A loss or a gradient that is no number ends a run, before the optimizer moves anything."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from amal_hf._types import ROW_ID, Outputs


class FiniteCheck:
    """The losses of one optimizer step, looked at together with the norm of its gradient, for which the loop waits.

    Where a gradient scaler is at work (fp16 on a GPU) that is its to see: it skips the step.

    Args:
        trainer: an `AMALTrainer`.

    Raises:
        FloatingPointError: from `losses` and `gradient`, naming the sources and rows whose loss is not finite.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._losses = list[Tensor]()
        self._rows: tuple[dict[str, Any], Tensor, Tensor | None] | None = None

    def rows(self, inputs: dict[str, Any], logits: Tensor, losses: Tensor | None) -> None:
        """Note the rows of the last micro-batch: logits `[N, C]`, and losses `[N, K]` where they were computed."""
        self._rows = inputs, logits.detach(), losses

    def loss(self, loss: Tensor) -> None:
        """Note a micro-batch's loss, a scalar in nats."""
        self._losses.append(loss)
        if not self.trainer.args.max_grad_norm:  # nobody asks for the gradient's norm
            self.losses()

    def losses(self) -> None:
        """Look at the losses that were noted since the last time."""
        noted, self._losses = self._losses, []
        self._look("loss", sum(noted))

    def gradient(self, norm: Any) -> None:
        """Look at the gradient's norm."""
        self._look("gradient", norm)

    def _look(self, what: str, value: Any) -> None:
        trainer = self.trainer
        precision, scaler = trainer.accelerator.mixed_precision, trainer.accelerator.scaler
        scaled = precision == "fp16" and (scaler is not None or trainer.is_deepspeed_enabled)
        if scaled or math.isfinite(value):  # of a tensor on a GPU one copy, and no operation
            return
        assert self._rows is not None
        inputs, logits, losses = self._rows
        ids = inputs.get(ROW_ID)
        if losses is None:  # the sources stood as one soft target
            losses = trainer.stack(Outputs(logits=logits), inputs)
        wrong = ~losses.isfinite()
        sources = [name for name, column in zip(trainer.stack.names, wrong.any(0).tolist(), strict=True) if column]
        rows = ids[wrong.any(1)].tolist() if ids is not None else []
        where = f"source(s) {sources} on row_id {rows[:5]}" if sources else "finite losses of every row"
        step = trainer.state.global_step + 1
        raise FloatingPointError(
            f"`losses`: expected a finite {what} at step {step}, found {float(value)} with {where}. No parameter was "
            "moved. Check these rows, lower `learning_rate`, and go on with resume_from_checkpoint=True."
        )
