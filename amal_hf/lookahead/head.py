"""Along the final linear layer: exact at every visit of a row, without a forward more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from amal_hf._types import Outputs, Tensors
from amal_hf.config import AMALConfig
from amal_hf.lookahead.base import Batch, Encode, Lookahead, MetaSampler, Step, length_of
from amal_hf.metagrad import Head, HeadClosedForm, HeadProblem, HeadTap, PureModel
from amal_hf.metagrad.clean_features import CleanFeatureBank
from amal_hf.metagrad.tasks import SINGLE_LABEL

logger = logging.get_logger(__name__)


class HeadLookahead(Lookahead):
    """The lookahead moves the final linear layer; V is the loss of all clean rows, from memory.

    A lookahead encodes `meta_batch_size` clean rows without gradient; v is reused until the next one,
    so every row is judged at every visit at no further forward.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        labels: Tensor,
        encode: Encode,
        sampler: MetaSampler,
        args: AMALConfig,
        task: str = SINGLE_LABEL,
    ) -> None:
        self.model, self.head, self.encode, self.sampler, self.args = model, head, encode, sampler, args
        self._tap = HeadTap(head)
        self.clean_features = CleanFeatureBank(labels, head.module.out_features, head.module.in_features, task)
        self.lookaheads = torch.zeros((), dtype=torch.long)
        self.inverse_temperature = torch.zeros(())
        self._direction: Tensors | None = None
        self._length = torch.zeros(())
        self._looked = False

    def capture_features(self) -> AbstractContextManager[Any]:
        return self._tap

    def encode_clean_rows(self, rows: Sequence[int]) -> None:
        """Encode clean `rows` as the student sees them now."""
        inputs = self.encode(rows)
        pure = PureModel(self.model, inputs, training=False)
        with torch.no_grad(), HeadTap(self.head) as tap:
            features = tap.features(pure({}).logits)
        self.clean_features.encode_clean_rows(torch.as_tensor(rows, device=features.device), features)

    def fill(self) -> None:
        """Encode every clean row once, before the first lookahead."""
        size = self.args.meta_batch_size
        for start in range(0, self.sampler.num_rows, size):
            self.encode_clean_rows(range(start, min(start + size, self.sampler.num_rows)))

    def problem(self, features: Tensor, step: Step, rows: Tensor | None = None) -> HeadProblem:
        """The head's bilevel problem for this batch, V on all clean rows or on `rows`."""
        params = {name: p.detach().to(features.device, torch.float32) for name, p in self.head.params().items()}
        weighted = step.lookahead.needs_gradient
        outputs = lambda logits: Outputs({**step.outputs, "logits": logits})  # noqa: E731
        return HeadProblem.on(
            features.float(),
            lambda logits: step.losses_of(outputs(logits)),
            along_of=lambda logits, tangent: step.along_of(outputs(logits), tangent),
            names=self.head.names,
            params=params,
            weights=step.padded_weights.detach() if weighted else features.new_empty(0),
            val_loss=lambda moved: self.clean_features.loss(self.head, moved, rows),
            lr=step.lookahead,
            num_rows=step.num_rows,
        )

    def prepare(self, batch: Batch) -> None:
        if self._direction is not None and not (batch.due and batch.new):
            return
        batch.lookahead.ready()
        if self._direction is None:
            self.fill()
        else:
            self.encode_clean_rows(self.sampler(int(self.lookaheads)))

    def directional_derivatives(self, step: Step) -> tuple[Tensor, Tensor] | None:
        features = self._tap.features(step.outputs.logits)
        if (step.due and step.new) or self._direction is None:
            problem = self.problem(features, step)
            if step.lookahead.needs_gradient:
                problem = replace(problem, known_gradient=step.summed(problem.gradient()))
            self.lookaheads += 1
            direction, inverse_temperature = problem.direction(), 0.0
            if self.clean_features.task == SINGLE_LABEL:
                direction, inverse_temperature = self.clean_features.blended_direction(
                    self.head, direction, self.args.probe_weight
                )
            # laid out as a checkpoint restores it: a transposed view rounds differently in the product with h
            self._direction = {name: v.contiguous() for name, v in direction.items()}
            self._length = length_of(self._direction)
            self.inverse_temperature.fill_(inverse_temperature)
        self._direction = {name: v.to(step.device) for name, v in self._direction.items()}
        judged = self.problem(features.to(step.device), step)
        along = HeadClosedForm().directional(judged, self._direction)
        if not self._looked and bool(along.any()):
            self._looked = True
            self._warn_blind(along[:, : step.weights.shape[1]], step.weights)
        return along, self._length

    def _warn_blind(self, along: Tensor, weights: Tensor) -> None:
        """Name the sources that cover rows and have no derivative by the logits: D and λ, `[N, K]`."""
        blind = ((along == 0).all(0) & (weights != 0).any(0).to(along.device)).nonzero()[:, 0].tolist()
        if blind:
            named = [self.sources[k] for k in blind]
            logger.warning(
                f"`lookahead_params`: 'head' sees what a loss makes of the logits, and {named} make nothing of them: "
                "their weights stay where they start. Set lookahead_params='all'."
            )

    def state(self) -> Tensors:
        if self._direction is None:
            return {}
        held = {f"direction/{name}": v for name, v in self._direction.items()}
        kept = {
            "memory": self.clean_features.features,
            "memory_labels": self.clean_features.labels,
            "lookaheads": self.lookaheads,
            "inverse_temperature": self.inverse_temperature,
        }
        return kept | held

    def load_state(self, state: Tensors) -> None:
        if "memory" in state:
            labels = self.clean_features.labels.cpu()
            if not torch.equal(state.get("memory_labels", labels).cpu(), labels):
                raise ValueError(
                    "`resume_from_checkpoint`: expected the clean rows of the run that wrote the checkpoint, found "
                    "other labels, or another order. Go on with its clean rows, or start anew."
                )
            self.clean_features.features.copy_(state["memory"])
            self.lookaheads.copy_(state["lookaheads"])
            self.inverse_temperature.copy_(state["inverse_temperature"])
            self._direction = {name: state[f"direction/{name}"] for name in self.head.params()}
            self._length = length_of(self._direction)
