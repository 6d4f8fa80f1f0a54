"""`AMALTrainer`: a `Trainer` whose training step learns how far to trust each source on each row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn

from amal_hf._files import no_folder_left
from amal_hf._types import LABELS, ROW_ID, RowFunction
from amal_hf._window import PADDING, Window
from amal_hf.checkpoints import LearnedCheckpoints, check_checkpoint
from amal_hf.clean_rows import lookahead_for, prepare_batch
from amal_hf.config import AMALConfig
from amal_hf.data.columns import LABEL_ALIASES
from amal_hf.data.tokens import in_tokens
from amal_hf.data.validate import check_launch
from amal_hf.denoising import without_clean_rows
from amal_hf.denoising.inputs import Prepared
from amal_hf.door import enter, in_classes
from amal_hf.epoch_schedule import EpochRefresh
from amal_hf.finite import FiniteCheck
from amal_hf.losses import Loss
from amal_hf.losses.annotators import Annotators
from amal_hf.metagrad import model_outputs
from amal_hf.mixing import Mixing
from amal_hf.model_card import amend_model_card
from amal_hf.run import make_collator, new_run
from amal_hf.run_folder.corrected import corrected_corpus, list_suspects
from amal_hf.tasks import resolve_task
from amal_hf.weigher import KNOWN
from amal_hf.weight_history import is_logged


class AMALTrainer(LearnedCheckpoints):
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
        splits = {"train": train_dataset, "clean": clean_dataset, "eval": kwargs.pop("eval_dataset", None)}
        self._given = given = enter(model, args, losses, splits, mixing, kwargs)
        rows = {f"{name}_dataset": given.splits[name] for name in ("train", "eval")}
        with no_folder_left(args.output_dir):
            super().__init__(given.model, args, **{**kwargs, **rows, "processing_class": given.tokenizer})
            self.task = resolve_task(self.model.config, given.stack.losses, given.splits)
            self.data_collator = make_collator(self.data_collator, given, self.task)
            self.given_rows, self.clean_dataset = given.splits["train"], given.splits["clean"]
            self.prepared: Prepared | None = None
            self._training = False
            self.start_afresh()
            if self.settings.refresh == "epoch":
                self.add_callback(EpochRefresh(self))

    # ---- before training: a run, and the rows of its batches ----

    def start_afresh(self, training: bool = False) -> None:
        """Settings, sources, rows and weigher as at the start of a run: each trial and each retry begins here."""
        self.model.config.problem_type = self.task  # for the loss in evaluation, and for a pipeline
        run = new_run(self, self._given, training)
        self.settings, self.prepared, self.stack, self.train_dataset = run.settings, run.prepared, run.stack, run.rows
        self.weigher, self._finite = run.weigher, FiniteCheck(self)
        check_launch(self, self.weigher.mixing, isinstance(self.train_dataset, Dataset))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; method "denoise" reads every row once before, and before a checkpoint is loaded."""
        check_checkpoint(args[0] if args else kwargs.get("resume_from_checkpoint"))
        self.start_afresh(training=True)
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.start_afresh(training=True)
        result = super()._inner_training_loop(*args, **kwargs)
        self.weigher.commit(self.state.global_step)  # what the last step showed
        return result

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = {*self.data_collator.columns, *LABEL_ALIASES}
        self._signature_columns += sorted(ours - {*self._signature_columns})

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        rows = in_tokens(in_classes(dataset, self._given.classes), self.processing_class, self.args)
        return super()._get_dataloader(rows, *args, **kwargs)

    # ---- the training step: forward, lookahead, backward ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step, and how many rows they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        split = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        window = Window.of(self.accelerator, batches, self.accelerator.num_processes // split)
        self.weigher.commit(self.state.global_step)
        self.weigher.begin(batches, self.model.config.num_labels, shown=is_logged(self))
        return batches, window

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The batch's weighted loss, a scalar, in nats: `Trainer`'s step, with the lookahead before its backward."""
        self.weigher.commit(self.state.global_step)
        inputs = self._prepare_inputs(inputs)
        if self.weigher.looks_ahead and self.weigher.lookahead is None:
            self.weigher.look_ahead_by(lookahead_for(self, self.model_inputs(inputs)))
        self._training = True
        try:
            with self.weigher.capture_features():
                loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._training = False
        self._finite.loss(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        r"""In training $\frac1N\sum_{ik}\lambda_{ik}\ell_{ik}$, in nats; in evaluation the model's own loss."""
        if not self._training:
            # told of the items of all processes, transformers <= 5.24 multiplies the mean by their number (#47688)
            return super().compute_loss(model, self.model_inputs(inputs, labels=True), return_outputs)
        window, read = num_items_in_batch, self.model_inputs(inputs)
        if not isinstance(window, Window):  # a batch that did not come by way of `get_batch_samples`
            window = Window.of_one(self.accelerator, inputs, self.current_gradient_accumulation_steps)
        batch = prepare_batch(self, inputs, read, window) if self.weigher.looks_ahead else None
        raw = model(**read)
        outputs = model_outputs(raw)
        rows, losses = self.weigher.weighted(outputs, inputs, batch)
        self._finite.rows(inputs, outputs.logits, losses)
        loss = window.mean(rows, inputs.get(PADDING))
        return (loss, raw) if return_outputs else loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._finite.losses()
        self._finite.gradient(norm := super()._get_grad_norm(*args, **kwargs))
        return norm

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, self.model_inputs(inputs, labels=True), *args, **kwargs)

    def model_inputs(self, inputs: Mapping[str, Any], labels: bool = False) -> dict[str, Any]:
        """What the model's forward reads of a batch: everything but the sources' columns and, unless asked, labels."""
        ours = {*self.data_collator.columns, ROW_ID, LABELS, *LABEL_ALIASES, PADDING, KNOWN}
        ours -= set(self.label_names) if labels else set()
        return {k: v for k, v in inputs.items() if k not in ours}

    # ---- after training ----

    @property
    def weights(self) -> Dataset:
        """The last λ of every training row: `row_id` and one column per source (null: it abstains, or was not visited).

        Raises:
            ValueError: `log_weights=False`, or the training set is a stream.
        """
        kept = self.weigher.last_weights()  # clean rows that are trained on stand behind the user's own
        return kept.select(range(len(without_clean_rows(self.train_dataset))))

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

        return save_run(self, in_classes(test_dataset, self._given.classes))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds each group's loss, mean λ and quantiles, and the share of wall-clock spent on meta steps."""
        if "loss" in logs and self.args.log_weights:
            logs |= self.weigher.summary(self.state.global_step, self.state.epoch)
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            amend_model_card(Path(self.args.output_dir) / "README.md", self)
