"""Along every trainable parameter: only steps with a lookahead have a D."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amal_hf._types import Outputs, Tensors
from amal_hf.lookahead.base import Batch, Encode, Lookahead, MetaSampler, Step, length_of
from amal_hf.metagrad import (
    FiniteDifference,
    MetaGradient,
    OutputsProblem,
    PureModel,
    float32_copies,
    in_float32,
    trainable,
)
from amal_hf.metagrad.tasks import SINGLE_LABEL, clean_loss

FORWARD_MODE_ATTENTION = ("eager", "sdpa")


class FullModelLookahead(Lookahead):
    """The lookahead moves every trainable parameter; only steps with a lookahead have a D."""

    def __init__(
        self,
        model: nn.Module,
        estimator: MetaGradient,
        labels: Tensor,
        encode: Encode,
        sampler: MetaSampler,
        task: str = SINGLE_LABEL,
    ) -> None:
        self.model, self.estimator, self.labels, self.task = model, estimator, labels, task
        self.encode, self.sampler = encode, sampler
        if task != SINGLE_LABEL:
            self.inverse_temperature = torch.zeros(())
        self.lookaheads = torch.zeros((), dtype=torch.long)
        self._direction: Tensors | None = None
        self._prepared: tuple[Tensor, Tensor] | None = None

    def capture_features(self) -> AbstractContextManager[Any]:
        # dropout inside a fused kernel draws other masks than the MATH kernel does: where the derivative
        # runs on MATH and there is dropout, the training forward of that step must run on MATH as well
        return nullcontext() if isinstance(self.estimator, FiniteDifference) else sdpa_kernel(SDPBackend.MATH)

    def prepare(self, batch: Batch) -> None:
        if not batch.due:
            return
        batch.lookahead.ready()
        if batch.lookahead.needs_gradient:
            return
        # θ′ = θ: v owes nothing to this batch. Micro-batches share it, and its graph is gone before theirs is there
        problem = self._problem(batch)
        if batch.new or self._direction is None:
            self._direction = problem.direction()
        self._prepared = self._along(problem, self._direction)
        if batch.last:
            self._direction = None

    def directional_derivatives(self, step: Step) -> tuple[Tensor, Tensor] | None:
        if not step.due:
            return None
        found, self._prepared = self._prepared, None
        if found is None:
            problem = self._problem(step, step.padded_weights.detach(), self._shared_gradient(step))
            found = self._along(problem, problem.direction())
        return found

    def _problem(
        self, batch: Batch, weights: Tensor | None = None, known_gradient: Tensors | None = None
    ) -> OutputsProblem:
        """The bilevel problem; `weights` and the gradient they make, where the lookahead moves along it."""
        self.lookaheads += int(batch.new)
        rows = self.sampler(int(self.lookaheads))
        labels = self.labels[torch.as_tensor(rows, device=self.labels.device)]
        judge = PureModel(self.model, self.encode(rows), training=False)
        student = PureModel(self.model, batch.inputs, training=True, noise=batch.noise)
        return OutputsProblem.through(
            student,
            lambda outputs: batch.losses_of(Outputs(outputs)),
            params=self._params(),
            weights=labels.new_empty(0) if weights is None else weights,
            val_loss=lambda params: clean_loss(self.task, judge(params).logits.float(), labels),
            lr=batch.lookahead,
            num_rows=batch.num_rows,
            known_gradient=known_gradient,
        )

    def _params(self) -> Tensors:
        """What is moved; float32 copies of half-precision weights, unless the attention kernel knows no other."""
        params = trainable(self.model)
        return float32_copies(params) if self._in_full else {name: p.detach() for name, p in params.items()}

    @property
    def _in_full(self) -> bool:
        config = getattr(self.model, "config", None)
        return getattr(config, "_attn_implementation", "eager") in FORWARD_MODE_ATTENTION

    def _along(self, problem: OutputsProblem, direction: Tensors) -> tuple[Tensor, Tensor]:
        with self._precision():
            return self.estimator.directional(problem, direction), length_of(direction)

    def _precision(self) -> AbstractContextManager[Any]:
        """Differences run in float32, unless the attention kernel knows only half precision."""
        in_full = isinstance(self.estimator, FiniteDifference) and self._in_full
        return in_float32(self.model) if in_full else nullcontext()

    def _shared_gradient(self, step: Step) -> Tensors:
        """∇L from the graph the real update will use: no second training forward."""
        params = trainable(self.model)
        loss = (step.padded_weights * step.losses_of(step.outputs)).sum() / step.num_rows
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, materialize_grads=True)
        return step.summed(dict(zip(params, grads, strict=True)))

    def state(self) -> Tensors:
        return {"lookaheads": self.lookaheads}

    def load_state(self, state: Tensors) -> None:
        if "lookaheads" in state:
            self.lookaheads.copy_(state["lookaheads"])
