"""`AMALTrainer`: a `Trainer` whose training step learns how far to trust each source on each row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from amal_hf._distributed import summed
from amal_hf._files import discard_but, no_folder_left, save_whole
from amal_hf._types import LABELS, ROW_ID, Outputs, RowFunction
from amal_hf._window import PADDING, Window
from amal_hf.build import make_lookahead, make_mixing, make_virtual_step
from amal_hf.checkpoints import check_checkpoint, check_loaded, read_learned, readable, write_learned
from amal_hf.config import AMALConfig
from amal_hf.data.columns import (
    LABEL_ALIASES,
    RowIndex,
    SourceCollator,
    clean_rows_and_labels,
    in_tokens,
    weights_dataset,
    with_row_ids,
)
from amal_hf.data.validate import check_finite, check_launch, look_over
from amal_hf.denoising import LOG_POSTERIOR, without_gold
from amal_hf.denoising.inputs import ADDED, Prepared, prepare_rows
from amal_hf.door import enter, in_classes
from amal_hf.epoch_schedule import EpochRefresh
from amal_hf.lookahead import Batch, Lookahead
from amal_hf.losses import Loss, LossStack
from amal_hf.losses.annotators import Annotators
from amal_hf.metagrad import RNGState, VirtualStep, model_outputs
from amal_hf.metagrad.tasks import SINGLE_LABEL
from amal_hf.mixing import Mixing
from amal_hf.model_card import amend_model_card
from amal_hf.run_folder.corrected import corrected_corpus, list_suspects
from amal_hf.tasks import resolve_task
from amal_hf.weigher import TARGETS, WEIGHTS, Weigher


class AMALTrainer(Trainer):
    r"""Fine-tune on several imperfect sources at once; learn λ `[N, K]` from a few clean rows.

    $$L = \frac1N \sum_{ik} \lambda_{ik}\, \ell_{ik}(\theta), \qquad
      \lambda \text{ moves against } \partial V(\theta')/\partial\lambda$$

    Everything else is `Trainer`'s: evaluation, checkpoints, callbacks, precision, launch.

    Args:
        model, args: as for `Trainer`, or the name of a model; `args` is an `AMALConfig`.
        losses: name -> `Loss` or `Annotators` (or a function `(outputs, batch) -> [N]`); the first is column 0.
        train_dataset: rows with the columns the losses read. Raw text is tokenized here when
            `processing_class` is a tokenizer.
        clean_dataset: clean rows whose `label` (of `config.problem_type`) steers the weights; unless fixed, needed.
        mixing: a `Mixing` of your own, in place of the method's.
        **kwargs: everything else `Trainer` takes.

    Raises:
        ValueError: before training, naming the argument, what was expected and what was found.

    References:
        Sivasubramanian et al. (AAAI 2023), arXiv 2202.03250.
    """

    _tag_names: ClassVar[list[str]] = ["amal-hf"]
    loss_is_scaled_for_ga = True  # our loss is a mean over the rows of the optimizer step already
    data_collator: Any

    def __init__(
        self,
        model: nn.Module | str | None = None,
        args: AMALConfig | None = None,
        *,
        losses: Mapping[str, Loss | Annotators | RowFunction],
        train_dataset: Any = None,
        clean_dataset: Dataset | None = None,
        mixing: Mixing | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or AMALConfig("tmp_trainer")
        eval_dataset = kwargs.pop("eval_dataset", None)
        named = {"train": train_dataset, "clean": clean_dataset, "eval": eval_dataset}
        self._classes, model, tokenizer, losses, named = enter(model, args, losses, named)
        kwargs |= {"processing_class": kwargs.get("processing_class") or tokenizer}
        train_dataset, clean_dataset, eval_dataset = named.values()
        stack, self._example = look_over(args, model or kwargs.get("model_init"), losses, named, mixing, kwargs)
        self._given_losses, self._given_mixing = stack.losses, mixing
        tokens = lambda split: in_tokens(split, kwargs.get("processing_class"), args)  # noqa: E731
        train_dataset = with_row_ids(train_dataset) if isinstance(train_dataset, Dataset) else train_dataset
        with no_folder_left(args.output_dir):
            splits = {"train_dataset": tokens(train_dataset), "eval_dataset": tokens(eval_dataset)}
            self._our_columns = [*stack.columns]
            super().__init__(model, args, **splits, **kwargs)
            self.task = resolve_task(self.model.config, stack.losses, named)
            columns = [*stack.columns, *(c for loss in ADDED.values() for c in loss.columns), LOG_POSTERIOR, ROW_ID]
            self._our_columns = columns[:-1]
            votes = [c for loss in stack.losses.values() for c in loss.vote_columns]
            self.data_collator = SourceCollator(self.data_collator, columns, self._example, self.task, votes)
            self.clean_dataset, self.given_rows = tokens(clean_dataset), splits["train_dataset"]
            self._prepared: Prepared | None = None
            self._training = False
            self._start_afresh()
            if self.settings.refresh == "epoch":
                self.add_callback(EpochRefresh(self))

    # ---- before training: settings, rows, weigher ----

    def _start_afresh(self, training: bool = False) -> None:
        """Settings, sources, rows and weigher as at the start of a run: each trial and each retry begins here."""
        self.settings = self.args.resolved()
        if self.task != SINGLE_LABEL and self.args.probe_weight is None:
            self.settings.probe_weight = 0.0  # it retrains a head of classes
        self.model.config.problem_type = self.task  # for the loss in evaluation, and for a pipeline
        denoises = self.settings.mixing == "corrected" and self._given_mixing is None
        losses, rows = self._given_losses, self.given_rows
        if denoises and training:
            self._prepared = self._prepared or prepare_rows(self)
        if denoises and self._prepared is not None:
            losses, rows = {**losses, **ADDED}, self._prepared.train
            if self.args.mixing_start is None:
                self.settings.mixing_start = self._prepared.levels
        self.stack, self.train_dataset = LossStack(losses, self._example), rows
        counted = isinstance(rows, Dataset)
        num_rows, classes = len(rows) if counted else None, self.model.config.num_labels
        mixing = deepcopy(self._given_mixing) or make_mixing(self.settings, self.stack, classes, num_rows)
        positions = RowIndex(rows.with_format("numpy")[ROW_ID][:] if counted else None)
        check_launch(self, mixing, counted)
        single, known = classes if self.task == SINGLE_LABEL else 0, LOG_POSTERIOR if denoises else ""
        self.weigher = Weigher(self.settings, self.stack, mixing, self.accelerator, positions, num_rows, single, known)
        self._asked_step, self._losses = -1, list[Tensor]()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; method "denoise" reads every row once before, and before a checkpoint is loaded."""
        said = args[0] if args else kwargs.get("resume_from_checkpoint")
        if said and not isinstance(said, bool):
            check_checkpoint(said)
        self._start_afresh(training=True)
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._start_afresh(training=True)
        result = super()._inner_training_loop(*args, **kwargs)
        self.weigher.commit(self.state.global_step)  # what the last step showed
        return result

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += sorted({*self._our_columns, ROW_ID, *LABEL_ALIASES} - {*self._signature_columns})

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        rows = in_tokens(in_classes(dataset, self._classes), self.processing_class, self.args)
        return super()._get_dataloader(rows, *args, **kwargs)

    # ---- the training step: forward, lookahead, backward ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step, and how many rows they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        split = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        window = Window.of(self.accelerator, batches, self.accelerator.num_processes // split)
        self.weigher.commit(self.state.global_step)
        if not self.weigher.needs_forward and self.stack.folds and not self._logs_now():
            for batch in batches:
                batch |= self.weigher.fold(batch, self.model.config.num_labels)
        return batches, window

    def _logs_now(self) -> bool:
        """Whether the next step is one whose losses are shown, source by source."""
        every, step = self.state.logging_steps, self.state.global_step + 1
        return self.args.log_weights and (step % every == 0 if every else False)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The batch's weighted loss, a scalar, in nats: `Trainer`'s step, with the lookahead before its backward."""
        self.weigher.commit(self.state.global_step)
        inputs = self._prepare_inputs(inputs)
        if (weigher := self.weigher).mixing.learns and weigher.lookahead is None and self.settings.refresh == "step":
            weigher.look_ahead_by(self.lookahead_for(self._for_model(inputs)))
        self._rng = RNGState(self.args.device)
        self._training = True
        try:
            with nullcontext() if weigher.lookahead is None else weigher.lookahead.capture_features():
                loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._training = False
        self._losses.append(loss)  # looked at with the gradient's norm, for which the loop waits anyway
        if not self.args.max_grad_norm:
            self._check_losses()
        return loss

    def _check_losses(self) -> None:
        seen, self._losses = self._losses, []
        check_finite(self, "loss", sum(seen))

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._check_losses()
        check_finite(self, "gradient", norm := super()._get_grad_norm(*args, **kwargs))
        return norm

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        r"""In training $\frac1N\sum_{ik}\lambda_{ik}\ell_{ik}$, in nats; in evaluation the model's own loss."""
        if not self._training:
            # told of the items of all processes, transformers <= 5.24 multiplies the mean by their number (#47688)
            return super().compute_loss(model, self._for_model(inputs, labels=True), return_outputs)
        window, ways = num_items_in_batch, self.accelerator.num_processes
        if not isinstance(window, Window):  # a batch that did not come by way of `get_batch_samples`
            window = Window(find_batch_size(inputs) * ways * self.current_gradient_accumulation_steps, ways)
        batch = self._prepare_lookahead(inputs, window)
        raw = model(**self._for_model(inputs))
        outputs = model_outputs(raw)
        if TARGETS in inputs:
            rows, losses = inputs[TARGETS](outputs.logits), None
        else:
            losses = self.stack(outputs, inputs)
            known = inputs.get(WEIGHTS)
            weights = self._weights(outputs, losses.detach(), inputs, batch) if known is None else known
            rows, losses = (weights * losses).sum(1), losses.detach()
        self._seen = inputs, outputs.logits.detach(), losses  # to name what was not finite
        if PADDING in inputs:
            rows = rows * ~inputs[PADDING]
        loss = window.mean(rows)
        return (loss, raw) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, self._for_model(inputs, labels=True), *args, **kwargs)

    def _for_model(self, inputs: Mapping[str, Any], labels: bool = False) -> dict[str, Any]:
        """What the model's forward reads: everything but the sources' columns."""
        ours = {*self._our_columns, ROW_ID, LABELS, *LABEL_ALIASES, PADDING, WEIGHTS, TARGETS}
        ours -= set(self.label_names) if labels else set()
        return {k: v for k, v in inputs.items() if k not in ours}

    def _weights(self, outputs: Outputs, losses: Tensor, inputs: dict[str, Any], batch: Batch | None) -> Tensor:
        """λ of this batch, `[N, K]`, after the clean rows had their say."""
        rows = self.weigher.rows(inputs, outputs.logits.shape[-1], losses)
        if batch is not None:
            rows = self.weigher.hear(batch, outputs, rows, inputs)
        return self.weigher.weigh(rows).to(losses.device)

    def _prepare_lookahead(self, inputs: dict[str, Any], window: Window) -> Batch | None:
        """What the clean rows may be asked before the forward; None where they are not asked at all."""
        start, lookahead = self.settings.meta_start, self.weigher.lookahead
        after = self.state.global_step - int(start * self.state.max_steps if start < 1 else start)
        if lookahead is None or after < 0:
            return None
        new, self._asked_step = self._asked_step != self.state.global_step, self.state.global_step
        batch = Batch(
            inputs=self._for_model(inputs),
            noise=self._rng,
            losses_of=lambda out: self.stack.with_classes(out, inputs),
            along_of=lambda out, tangent: self.stack.along(out, tangent, inputs),
            lookahead=self.virtual_step(),
            num_rows=window.num_rows,
            due=after % self.settings.meta_every == 0,
            new=new,
            last=self.accelerator.sync_gradients,
            temperatures=len(self.stack.temperatures),
            summed=partial(summed, self.accelerator),
        )
        with self.weigher.clock:
            lookahead.prepare(batch)
        return batch

    def lookahead_for(self, inputs: Mapping[str, Any]) -> Lookahead:
        """How D is computed for this model; `inputs` is any batch of the model's inputs."""
        rows = self._remove_unused_columns(self.clean_dataset, "clean")
        clean, labels = clean_rows_and_labels(rows, self.args.device)
        batch = lambda at: self._prepare_inputs(self.data_collator(clean.__getitems__([*at])))  # noqa: E731
        encode = lambda at: self._for_model(batch(at))  # noqa: E731
        model = self.accelerator.unwrap_model(self.model)
        precision, optimizer = self.accelerator.mixed_precision, self.optimizer
        return make_lookahead(model, labels, encode, inputs, self.settings, precision, self.task, optimizer)

    def virtual_step(self) -> VirtualStep:
        """The lookahead's step from the optimizer's present state."""
        model = self.accelerator.unwrap_model(self.model)
        return make_virtual_step(self.settings.lookahead, self.optimizer, model, self._get_learning_rate())

    # ---- after training ----

    @property
    def weights(self) -> Dataset:
        """The last λ of every training row: `row_id` and one column per source (null: it abstains, or was not visited).

        Raises:
            ValueError: `log_weights=False`, or the training set is a stream.
        """
        if not self.args.log_weights:
            raise ValueError("`log_weights`: expected True for `trainer.weights`, found False: none were kept.")
        weights = self.weigher.history.last_weights()
        rows = len(without_gold(self.train_dataset))  # the user's own; clean rows may stand behind them
        return weights_dataset(self.weigher.positions.ids[:rows], weights[:rows], self.stack.names)

    def corrected_dataset(self) -> Dataset:
        """Every training row with its corrected label, confidence, probabilities `[C]`, and trust in each source."""
        return corrected_corpus(self)

    def suspects(self) -> Dataset:
        """The training rows whose given label is probably wrong, surest first: `row_id`, `text`, `given`, `suggested`
        and `confidence`."""
        return list_suspects(self.corrected_dataset())

    def save_run(self, test_dataset: Dataset | None = None) -> dict[str, Any]:
        """Scores by split; model, weights, corrected rows, suspects and report are in `args.output_dir` then."""
        from amal_hf.run_folder.write import save_run

        return save_run(self, in_classes(test_dataset, self._classes))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds each group's loss, mean λ and quantiles, and the share of wall-clock spent on meta steps."""
        if "loss" in logs and self.args.log_weights:
            logs |= self.weigher.history.flush(self.state.global_step, self.state.epoch)
            logs |= {"meta_time_share": self.weigher.clock.share(), **self.stack.temperatures.values()}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save_whole(self, self._get_output_dir(trial), partial(super()._save_checkpoint, model, trial))

    def _finalize_training(self, trial: Any, *args: Any) -> Any:
        if self.args.should_save and self.args.save_total_limit == 1 and (best := self.state.best_model_checkpoint):
            discard_but(self._get_output_dir(trial), 1, best, newest=False)  # `Trainer` would do so file by file
        return super()._finalize_training(trial, *args)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.weigher.commit(self.state.global_step)
        if self.args.should_save:
            write_learned(self.weigher, Path(output_dir))

    def _load_from_checkpoint(self, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with readable(checkpoint):
            super()._load_from_checkpoint(checkpoint, *args, **kwargs)

    def _issue_warnings_after_load(self, result: Any) -> None:
        super()._issue_warnings_after_load(result)
        check_loaded(result.missing_keys, self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint) if checkpoint is not None else nullcontext():
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                read_learned(self.weigher, Path(checkpoint), self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint) if checkpoint is not None else nullcontext():
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        read_learned(self.weigher, Path(self.state.best_model_checkpoint), self.state.global_step)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            amend_model_card(Path(self.args.output_dir) / "README.md", self)
