"""What a checkpoint holds beside `Trainer`'s: λ, the clean rows' features, temperatures, history."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from amal_hf._files import discard_but, save_whole, write_json, write_tensors
from amal_hf.weigher import Weigher

logger = logging.get_logger(__name__)

STATE_FILE = "amal_state.safetensors"
HISTORY_FILE = "amal_history.json"
ROWS = "row_ids"
"""`row_id` of every training row, `[rows]`, where they are not 0, 1, 2, ..."""


def write_learned(weigher: Weigher, checkpoint: Path) -> None:
    """Everything learned beside the model, into the folder `checkpoint`."""
    write_tensors(checkpoint / STATE_FILE, {**weigher.state_dict(), ROWS: weigher.positions.ids})
    write_json(checkpoint / HISTORY_FILE, weigher.history.summaries)


def read_learned(weigher: Weigher, checkpoint: Path, step: int) -> None:
    """The same back; a checkpoint of a plain `Trainer` has none, and the weights stay as they are.

    What is kept for each row follows its `row_id`, in whatever order the rows come now.

    Raises:
        ValueError: the checkpoint is of other rows.
    """
    if not (checkpoint / STATE_FILE).is_file():
        logger.warning(f"`resume_from_checkpoint`: no {STATE_FILE} in {checkpoint}; the weights stay as they are.")
        return
    state = load_file(checkpoint / STATE_FILE)
    kept, now = state.pop(ROWS), weigher.positions.ids
    if not torch.equal(kept, now):
        if len(kept) != len(now) or not torch.equal(kept.sort().values, now.sort().values):
            raise ValueError(
                f"`resume_from_checkpoint`: expected the rows of the run that wrote {str(checkpoint)!r}, found others "
                f"({len(set(now.tolist()) & set(kept.tolist()))} of {len(now)} have a `row_id` that it knows). Go on "
                "with its rows, or start anew."
            )
        place = kept.argsort()[torch.searchsorted(kept.sort().values, now)]
        state |= {name: state[name][place] for name in ("table", "last_weights") if name in state}
    weigher.load_state_dict(state, json.loads((checkpoint / HISTORY_FILE).read_text()), step)


class LearnedCheckpoints(Trainer):
    """A `Trainer` whose checkpoints hold what its `weigher` has learned, and are whole or not there."""

    weigher: Weigher

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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            read_learned(self.weigher, Path(checkpoint), self.state.global_step)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        read_learned(self.weigher, Path(self.state.best_model_checkpoint), self.state.global_step)
