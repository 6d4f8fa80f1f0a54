"""The baseline of a run: the same student, trained by a plain `transformers.Trainer` on what one would take otherwise.

Its rows are the training rows with their labels, where labels are a source; else with the majority vote of the sources;
and the clean rows behind them. Start weights, steps, batch, learning rate and seed are the run's.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset, Features, concatenate_datasets
from snorkel.labeling.model import MajorityLabelVoter
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from amal_hf._progress import closing_bars, name_bars, no_bars
from amal_hf._types import LABELS
from amal_hf.config import AMALConfig
from amal_hf.data.columns import tokenized
from amal_hf.losses import ABSTAIN, Loss
from amal_hf.metrics import classification_metrics
from amal_hf.run_folder.write import scores_of
from amal_hf.trainer import AMALTrainer

MEASURED = ("selection", "test")
TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def check_measured(parts: Mapping[str, Dataset]) -> None:
    """There are rows that a baseline can be compared on.

    Raises:
        ValueError: neither test nor selection rows with labels.
    """
    if not {*MEASURED} & {*parts}:
        raise ValueError(
            "`baseline`: expected test or selection rows with labels to compare on, found none. Name test_split or "
            "selection_split, or leave baseline out."
        )


def measure_baseline(
    model: PreTrainedModel, trainer: AMALTrainer, parts: Mapping[str, Dataset], losses: Mapping[str, Loss]
) -> dict[str, Any]:
    """Scores by split of the plain baseline, `trained_on` ("given labels" or "majority vote") and its number of `rows`.

    Args:
        model: a fresh student; it is trained.
        trainer: of the run; its tokenizer, settings and number of steps are the baseline's.
        parts: `train`, `clean`, and `selection` or `test`.
        losses: the run's sources.
    """
    args, tokenizer = trainer.args, trainer.processing_class
    with _scratch(args.process_index == 0) as folder:
        with no_bars():
            trained_on, rows = _rows(trainer, parts, losses)
            measured = {name: _encoded(parts[name], tokenizer, args) for name in MEASURED if name in parts}
            encoded = _encoded(rows, tokenizer, args)
        set_seed(args.seed)
        plain = Trainer(
            model=model,
            args=_settings(args, folder, trainer.state.max_steps),
            train_dataset=encoded,
            eval_dataset=measured.get("selection"),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            compute_metrics=classification_metrics,
        )
        name_bars(plain, "Training the baseline", logs=False)
        with closing_bars(plain):
            plain.train()
        scores = {name: scores_of(plain.predict(split).metrics) for name, split in measured.items()}
    return {"trained_on": trained_on, "rows": len(rows), **scores}


def _settings(args: AMALConfig, folder: str, steps: int) -> AMALConfig:
    """The run's, in a folder of its own; checkpoints only where the best one is taken in the end."""
    settings = copy(args)
    settings.output_dir, settings.max_steps, settings.resume_from_checkpoint = folder, steps, None
    settings.report_to, settings.push_to_hub = [], False
    if not settings.load_best_model_at_end:
        settings.save_strategy, settings.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    return settings


def _rows(trainer: AMALTrainer, parts: Mapping[str, Dataset], losses: Mapping[str, Loss]) -> tuple[str, Dataset]:
    """What the baseline is trained on: text (or tokens) and `label`; rows without a class are left out."""
    train, clean = parts["train"], parts["clean"]
    names = clean.features["label"].names
    by_label = "label" in train.column_names and any(loss.columns == (LABELS,) for loss in losses.values())
    labels = _given(train) if by_label else _majority(trainer, losses, len(names))
    read = [c for c in (*trainer.args.text_columns, *TOKENS) if c in train.column_names and c in clean.column_names]
    features = Features({**{c: clean.features[c] for c in read}, "label": ClassLabel(names=names)})
    kept = np.flatnonzero(labels >= 0)
    rows = train.select_columns(read).select(kept).add_column("label", labels[kept])
    both = [rows.cast(features), clean.select_columns([*read, "label"]).cast(features)]
    return "given labels" if by_label else "majority vote", concatenate_datasets(both)


def _given(train: Dataset) -> np.ndarray:
    """The class of each row, `[N]`; -1 where it has none."""
    return np.array([-1 if label is None else max(int(label), -1) for label in train["label"][:]])


def _majority(trainer: AMALTrainer, losses: Mapping[str, Loss], num_classes: int) -> np.ndarray:
    """The class that most sources assert, `[N]`; -1 where none does or several tie."""
    read = {column for loss in losses.values() for column in loss.columns}
    rows = trainer.given_rows.select_columns([c for c in trainer.given_rows.column_names if c in read])
    votes = []
    for batch in DataLoader(rows, 1024, collate_fn=trainer.data_collator.sources):
        targets = [loss.target(batch, num_classes) for loss in losses.values()]
        asserted = torch.cat([t.float().reshape(len(t), -1, num_classes) for t in targets if t is not None], 1)
        votes.append(torch.where(asserted.sum(-1) > 0, asserted.argmax(-1), ABSTAIN))
    return MajorityLabelVoter(cardinality=num_classes).predict(torch.cat(votes).numpy(), tie_break_policy="abstain")


def _encoded(rows: Dataset, tokenizer: Any, args: AMALConfig) -> Dataset:
    """The rows with tokens and `labels`, and nothing else that a model would read."""
    rows = tokenized(rows, tokenizer, args.text_columns, args.max_length).rename_column("label", LABELS)
    return rows.select_columns([c for c in rows.column_names if c in (*TOKENS, LABELS)])


@contextmanager
def _scratch(leads: bool) -> Iterator[str]:
    """A folder for the time of the baseline, the same for all processes of a launch."""
    with tempfile.TemporaryDirectory() if leads else nullcontext("") as made:
        (folder,) = broadcast_object_list([made])
        yield folder


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Inside, random numbers may be drawn and seeds set; afterwards every random state is what it was."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
