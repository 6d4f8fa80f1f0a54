"""`AMALTrainer`: a `Trainer` whose training step learns how far to trust each source on each row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from amal_hf._files import discard_but, no_folder_left, save_whole
from amal_hf._types import ROW_ID, SLOW_LOGITS, Outputs, RowFunction, Tensors
from amal_hf.build import make_lookahead, make_mixing, make_virtual_step
from amal_hf.checkpoints import read_learned, write_learned
from amal_hf.config import AMALConfig
from amal_hf.data.columns import (
    LABEL_ALIASES,
    LABELS,
    RowIndex,
    SourceCollator,
    clean_rows_and_labels,
    in_tokens,
    weights_dataset,
    with_row_ids,
)
from amal_hf.data.validate import check_finite, check_launch, look_over
from amal_hf.denoising import without_gold
from amal_hf.epoch_schedule import EpochRefresh
from amal_hf.lookahead import Batch, Lookahead, Step, everyones, everyones_sum, of_all_processes, split_along, summed
from amal_hf.losses import Loss, SlowCopy
from amal_hf.metagrad import RNGState, VirtualStep, model_outputs, trainable
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.mixing import MeanWeight, Mixing, Rows, centred, share
from amal_hf.model_card import amend_model_card
from amal_hf.near import Columns
from amal_hf.slow import SlowModel
from amal_hf.tasks import resolve_task
from amal_hf.weight_history import Stopwatch, WeightHistory, groups


class AMALTrainer(Trainer):
    r"""Fine-tune on several imperfect sources at once; learn λ `[N, K]` from a few clean rows.

    $$L = \frac1N \sum_{ik} \lambda_{ik}\, \ell_{ik}(\theta), \qquad
      \lambda \text{ moves against } \partial V(\theta')/\partial\lambda$$

    Everything `Trainer` does stays as it is: evaluation, checkpoints, callbacks, precision, launch.

    Args:
        model, args: as for `Trainer`; `args` is an `AMALConfig`.
        losses: name -> `Loss` (or a function `(outputs, batch) -> [N]`); the first is column 0.
        train_dataset: rows with the columns the losses read. Raw text is tokenized here when
            `processing_class` is a tokenizer.
        clean_dataset: clean rows whose `label` (of `config.problem_type`) steers the weights; unless fixed, needed.
        mixing: a `Mixing` of your own, in place of `args.mixing`.
        **kwargs: everything else `Trainer` takes.

    Raises:
        ValueError: before training, naming the argument, what was expected and what was found.

    References:
        Sivasubramanian et al. (AAAI 2023), arXiv 2202.03250.
    """

    _tag_names: ClassVar[list[str]] = ["amal-hf"]
    # our loss is a per-batch mean: Trainer then divides it by the accumulation steps, exactly once.
    # transformers <= 5.23 leaves BERT-style models over-scaled (transformers#47688).
    loss_is_scaled_for_ga = False
    data_collator: Any

    def __init__(
        self,
        model: nn.Module | None = None,
        args: AMALConfig | None = None,
        *,
        losses: Mapping[str, Loss | RowFunction],
        train_dataset: Any = None,
        clean_dataset: Dataset | None = None,
        mixing: Mixing | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or AMALConfig("tmp_trainer")
        eval_dataset = kwargs.pop("eval_dataset", None)
        named = {"train": train_dataset, "meta": clean_dataset, "eval": eval_dataset}
        self.stack, example = look_over(args, model or kwargs.get("model_init"), losses, named, mixing)
        self._our_columns = [*self.stack.columns, *filter(None, [args.posterior_column])]
        tokens = lambda split: in_tokens(split, kwargs.get("processing_class"), args)  # noqa: E731
        train_dataset = with_row_ids(train_dataset) if isinstance(train_dataset, Dataset) else train_dataset
        with no_folder_left(args.output_dir):
            splits = {"train_dataset": tokens(train_dataset), "eval_dataset": tokens(eval_dataset)}
            super().__init__(model, args, **splits, **kwargs)
            self.task, self.args = resolve_task(self.model.config, args, self.stack.losses, named)
            self.data_collator = SourceCollator(self.data_collator, [*self._our_columns, ROW_ID], example, self.task)
            self.clean_dataset = tokens(clean_dataset)
            self._given_mixing = mixing
            if self.args.refresh == "epoch":
                self.add_callback(EpochRefresh(self))
            self._start_afresh()

    # ---- before training: check at the door, start afresh ----

    def _start_afresh(self) -> None:
        """Weights, memory and history as at the start of a run: each trial and each retry begins here."""
        self.model.config.problem_type = self.task  # for the loss in evaluation, and for a pipeline
        counted = isinstance(self.train_dataset, Dataset)
        num_rows = len(self.train_dataset) if counted else None
        self.positions = RowIndex(self.train_dataset.with_format("numpy")[ROW_ID][:] if counted else None)
        made = make_mixing(self.args, self.stack, self.model.config.num_labels, num_rows)
        self.mixing = deepcopy(self._given_mixing) or made
        check_launch(self, self.mixing, counted)
        # a mixing of the user's may hold tensors where the model is
        self._light = self._given_mixing is None and self.stack.anywhere
        self.history = WeightHistory(self.stack.names, num_rows, getattr(torch, self.args.table_dtype))
        self._lookahead: Lookahead | None = None
        self._slow: SlowModel | None = None
        self._restored: Tensors = {}
        self.stack.temperatures.restart()
        self._mean_weight = MeanWeight()
        self._asked_step = self._committed_step = -1
        self.meta_clock = Stopwatch()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._start_afresh()
        result = super()._inner_training_loop(*args, **kwargs)
        self._commit()  # what the last step showed
        return result

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += sorted({*self._our_columns, ROW_ID, *LABEL_ALIASES} - {*self._signature_columns})

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._get_dataloader(in_tokens(dataset, self.processing_class, self.args), *args, **kwargs)

    # ---- the training step: forward, lookahead, backward ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """`Trainer`'s step, with the lookahead between its forward and its backward.

        Returns:
            the batch's weighted loss, a scalar, in nats.
        """
        self._commit()
        inputs = self._prepare_inputs(inputs)
        if self.mixing.learns and self._lookahead is None and self.args.refresh == "step":
            self._lookahead = self.lookahead_for(self._for_model(inputs))
            self._lookahead.load_state(self._restored)
        self._self_train(inputs)
        self._noise = RNGState(self.args.device)
        with nullcontext() if self._lookahead is None else self._lookahead.capture_features():
            loss = super().training_step(model, inputs, num_items_in_batch)
        check_finite(self, "loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        check_finite(self, "gradient", norm := super()._get_grad_norm(*args, **kwargs))
        return norm

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        r"""In training $\frac1N\sum_{ik}\lambda_{ik}\ell_{ik}$, in nats; in evaluation the model's own loss."""
        if not model.training:
            # a mean as it is: told of the items of all processes, transformers <= 5.24 multiplies the mean that
            # BERT-style models return by their number (as transformers#47688 does in training)
            return super().compute_loss(model, self._for_model(inputs, labels=True), return_outputs)
        columns = Columns(inputs, [*self._our_columns, LABELS, SLOW_LOGITS, ROW_ID])
        batch = self._prepare_lookahead(columns)
        raw = model(**self._for_model(inputs))
        outputs = model_outputs(raw)
        losses = self.stack(outputs, inputs)
        self._seen = inputs.get(ROW_ID), losses.detach()  # to name what was not finite
        weights = self._weights(outputs, losses.detach(), columns, batch)
        loss = (weights * losses).sum(1).mean()
        return (loss, raw) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, self._for_model(inputs, labels=True), *args, **kwargs)

    def _self_train(self, inputs: dict[str, Any]) -> None:
        """Where the slow copy is a source: keep it, and write what it says into the batch."""
        if self.stack.position(SlowCopy) is None:
            return
        if self._slow is None:
            self._slow = SlowModel(self.accelerator.unwrap_model(self.model), self.args.slow_decay)
            self._slow.load_state(self._restored)
        if self.state.global_step >= self._steps(self.args.slow_start):
            inputs[SLOW_LOGITS] = self._slow.logits(self._for_model(inputs))

    def _steps(self, start: float) -> int:
        return int(start * self.state.max_steps if start < 1 else start)

    def _for_model(self, inputs: Mapping[str, Any], labels: bool = False) -> dict[str, Any]:
        """What the model's forward reads: everything but the sources' columns."""
        ours = {*self._our_columns, SLOW_LOGITS, ROW_ID, LABELS, *LABEL_ALIASES}
        ours -= set(self.label_names) if labels else set()
        return {k: v for k, v in inputs.items() if k not in ours}

    def _weights(self, outputs: Outputs, losses: Tensor, columns: Columns, batch: Batch | None) -> Tensor:
        """λ of this batch, `[N, K]`, after the clean rows had their say."""
        place = columns.place(outputs, self._light)
        inputs, nothing = columns.on(place), torch.zeros(outputs.logits.shape, device=place)
        mask, log_posterior = self.stack.mask(inputs), inputs.get(self.args.posterior_column, nothing)
        targets = self.stack.targets(inputs, nothing.shape[1]) * (self.task == SINGLE_LABEL)
        rows = Rows(
            self.positions(inputs), losses.to(place), mask, targets, class_gradient=nothing, log_posterior=log_posterior
        )
        if batch is not None:
            with self.meta_clock:
                rows = self._look_ahead(batch, outputs, rows, inputs)
        weights = self.mixing.weights(rows).detach()
        if self.args.log_weights:
            self.history.record(*everyones(self.accelerator, rows.index, weights, rows.losses, mask))
        return self._normalized(weights, mask, count=True).to(losses.device)

    def _prepare_lookahead(self, columns: Columns) -> Batch | None:
        """What the clean rows may be asked before the forward; None where they are not asked at all."""
        after = self.state.global_step - self._steps(self.args.meta_start)
        if self._lookahead is None or after < 0:
            return None
        new, self._asked_step = self._asked_step != self.state.global_step, self.state.global_step
        read = self._for_model(columns.inputs)
        batch = Batch(
            inputs=read,
            noise=self._noise,
            losses_of=lambda out: self.stack.with_classes(out, columns.on(out.logits.device)),
            along_of=lambda out, tangent: self.stack.along(out, tangent, columns.on(tangent.device)),
            lookahead=self.virtual_step(),
            num_rows=find_batch_size(read) * self.accelerator.num_processes * self.current_gradient_accumulation_steps,
            due=after % self.args.meta_every == 0,
            new=new,
            last=self.accelerator.sync_gradients,
            temperatures=len(self.stack.temperatures),
            summed=partial(summed, self.accelerator),
        )
        with self.meta_clock:
            self._lookahead.prepare(batch)
        return batch

    def _look_ahead(self, batch: Batch, outputs: Outputs, rows: Rows, inputs: Mapping[str, Any]) -> Rows:
        """Ask the clean rows, move the mixing, and return the rows with their advice `[N, C]`."""
        assert self._lookahead is not None
        asked = batch.lookahead.needs_gradient or batch.temperatures  # else only the shape of λ as it is counts
        weights = self._normalized(self.mixing.weights(rows), rows.mask) if asked else rows.losses
        step = Step(**vars(batch), outputs=outputs, weights=weights, device=weights.device)
        seen = self._lookahead.directional_derivatives(step)
        if seen is None:
            return rows
        along, length = (t.to(step.device) for t in seen)
        if batch.temperatures:
            self.stack.temperatures.hear(weights, along, outputs.logits.to(step.device), inputs)
        gradient, class_gradient = split_along(along, length, step, self.args.mixing_scale)
        rows = replace(rows, class_gradient=self._lookahead.inverse_temperature.to(class_gradient) * class_gradient)
        every, gradient = of_all_processes(self.accelerator, rows, gradient)
        if self.args.center:
            gradient = centred(gradient, every.mask, list(groups(self.stack.names).values()))
        self.mixing.update(every, gradient)
        return rows

    def lookahead_for(self, inputs: Mapping[str, Any]) -> Lookahead:
        """How D is computed for this model; `inputs` is any batch of the model's inputs."""
        clean, labels = clean_rows_and_labels(self._remove_unused_columns(self.clean_dataset, "meta"), self.args.device)
        batch = lambda rows: self._prepare_inputs(self.data_collator(clean.__getitems__([*rows])))  # noqa: E731
        encode = lambda rows: self._for_model(batch(rows))  # noqa: E731
        model = self.accelerator.unwrap_model(self.model)
        return make_lookahead(model, labels, encode, inputs, self.args, self.accelerator.mixed_precision, self.task)

    def virtual_step(self) -> VirtualStep:
        """The lookahead's step from the optimizer's present state."""
        params = {} if self.args.lookahead == "none" else trainable(self.accelerator.unwrap_model(self.model))
        return make_virtual_step(self.args.lookahead, self.optimizer, params, self._get_learning_rate())

    # ---- weights: hold their scale, let them take effect, keep them ----

    def _normalized(self, weights: Tensor, mask: Tensor, count: bool = False) -> Tensor:
        """λ as the loss uses it; counted towards the running mean of Σ_k λ_ik where `count`."""
        weights = self.mixing.used(weights)
        if count:
            self._mean_weight.count(weights)
        if self.args.normalize == "row":
            return share(weights, mask)
        return self._mean_weight.held(weights) if self.args.normalize == "mean" else weights

    def _commit(self) -> None:
        """Once per optimizer step: what its micro-batches showed takes effect."""
        before, self._committed_step = self._committed_step, self.state.global_step
        if before == self._committed_step:
            return
        self.mixing.commit()
        if self._slow is not None:
            self._slow.follow()
        for shared in (self._mean_weight, self.stack.temperatures):
            shared.commit(partial(everyones_sum, self.accelerator))

    @property
    def weights(self) -> Dataset:
        """The last λ of every training row: `row_id` and one column per source (null: the source says
        nothing about the row, or it was not visited). Joinable with the training set by `row_id`.

        Raises:
            ValueError: `log_weights=False`, or the training set is a stream.
        """
        if not self.args.log_weights:
            raise ValueError("`log_weights`: expected True for `trainer.weights`, found False: none were kept.")
        weights = self.history.last_weights()
        rows = len(without_gold(self.train_dataset))  # the user's own; clean rows may stand behind them
        return weights_dataset(self.positions.ids[:rows], weights[:rows], self.stack.names)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds each group's loss, mean λ and quantiles, and the share of wall-clock spent on meta steps."""
        if "loss" in logs and self.args.log_weights:
            logs |= self.history.flush(self.state.global_step, self.state.epoch)
            logs |= {"meta_time_share": self.meta_clock.share(), **self.stack.temperatures.values()}
        super().log(logs, *args, **kwargs)

    def _amal_state(self) -> Tensors:
        kept: list[Any] = [self.mixing, self.history, self.stack.temperatures, self._mean_weight]
        return {name: t for part in [*kept, self._lookahead, self._slow] if part for name, t in part.state().items()}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save_whole(self, self._get_output_dir(trial), partial(super()._save_checkpoint, model, trial))

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        if self.args.should_save and self.args.save_total_limit == 1 and (best := self.state.best_model_checkpoint):
            discard_but(self._get_output_dir(trial), 1, best, newest=False)  # `Trainer` would do so file by file
        return super()._finalize_training(trial, *args)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._commit()
        if self.args.should_save:
            write_learned(self, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            read_learned(self, Path(checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        read_learned(self, Path(self.state.best_model_checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            amend_model_card(Path(self.args.output_dir) / "README.md", self)
