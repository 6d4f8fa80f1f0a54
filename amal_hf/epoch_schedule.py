"""`refresh="epoch"`: the authors' schedule, a pass over the training set every few epochs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from amal_hf._distributed import first_of_each
from amal_hf._types import ROW_ID, Outputs
from amal_hf.clean_rows import lookahead_for, virtual_step
from amal_hf.lookahead import HeadLookahead, Step, everyones, length_of, split_along
from amal_hf.metagrad import HeadClosedForm, HeadTap, PureModel, RNGState
from amal_hf.mixing import Rows

GROUP = 4
"""Batches that share one set of clean rows (the authors: 2 to 4)."""


class EpochRefresh(TrainerCallback):
    """Refresh the table before epochs E, 2E, ... (E = `refresh_every`); the first E train at the start values.

    References:
        The schedule of AMAL's released code; docs/method.md.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = state.epoch or 0.0  # not a whole number where a run resumes within an epoch
        if epoch > 0 and epoch % self.trainer.settings.refresh_every == 0:
            refresh_table(self.trainer)


def refresh_table(trainer: Any) -> None:
    """One pass over the training set in eval mode; rows are taken in groups of `GROUP` batches.

    Per group, with features fixed: `refresh_repeats` times {θ′ on the head from the group's rows,
    V at θ′ on one draw of clean rows, λ ← Π(λ − κ ∂V/∂λ)}. Leaves random state and mode as they were.
    """
    loader = trainer.get_eval_dataloader(trainer.train_dataset)
    batches: list[dict[str, Any]] = []
    lookahead: HeadLookahead | None = None
    seen = torch.zeros(len(trainer.weigher.positions.ids), dtype=torch.bool)
    with RNGState(trainer.args.device).replayed():
        for lap, batch in enumerate(loader):
            batches.append(trainer._prepare_inputs(batch))
            if len(batches) < GROUP and lap + 1 < len(loader):
                continue
            if lookahead is None:
                made = lookahead_for(trainer, trainer.model_inputs(batches[0]))
                assert isinstance(made, HeadLookahead)  # AMALConfig: refresh="epoch" works on the head
                lookahead = made
                lookahead.fill()
            _refresh_group(trainer, lookahead, batches, seen)
            batches = []


def _refresh_group(trainer: Any, lookahead: HeadLookahead, batches: list[dict[str, Any]], seen: torch.Tensor) -> None:
    features = []
    for batch in batches:
        with torch.no_grad(), HeadTap(lookahead.head) as tap:
            outputs = PureModel(lookahead.model, trainer.model_inputs(batch), training=False)({})
            features.append(tap.features(outputs.logits))
    group = {name: torch.cat([b[name] for b in batches]) for name in trainer.stack.columns}
    own = trainer.weigher.positions({ROW_ID: torch.cat([b[ROW_ID] for b in batches])})
    # every process steps on the rows of all of them, and on the rows that even out the last batch only once
    index, hidden, *columns = everyones(trainer.accelerator, own, torch.cat(features), *group.values())
    new = ~seen[index] & first_of_each(index)
    seen[index] = True
    index, hidden = index[new], hidden[new.to(hidden.device)]
    group = {name: column[new.to(column.device)] for name, column in zip(group, columns, strict=True)}
    logits = lookahead.head.logits(lookahead.head.params(), hidden).detach()
    mask = trainer.stack.mask(group)
    rows = Rows(
        index=index,
        losses=trainer.stack(Outputs(logits=logits), group).detach(),
        mask=mask,
        targets=trainer.stack.targets(group, logits.shape[-1]),
        class_gradient=torch.zeros_like(logits),
    )
    clean = torch.as_tensor(lookahead.sampler(int(lookahead.lookaheads)), device=hidden.device)
    lookahead.lookaheads += 1
    for _ in range(trainer.settings.refresh_repeats):
        step = Step(
            outputs=Outputs(logits=logits),
            inputs={},
            noise=RNGState(hidden.device),
            weights=trainer.weigher.mixing.weights(rows),
            losses_of=lambda out: trainer.stack.with_classes(out, group),
            lookahead=virtual_step(trainer),
            num_rows=len(hidden),
        )
        problem = lookahead.problem(hidden, step, clean)
        direction = problem.direction()
        along = HeadClosedForm().directional(problem, direction)
        gradient, _ = split_along(along, length_of(direction), step, trainer.settings.mixing_scale)
        trainer.weigher.mixing.update(rows, gradient)
        trainer.weigher.mixing.commit()
