"""What a checkpoint holds beside `Trainer`'s: λ, the clean rows' features, temperatures, history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from transformers.utils import logging

from amal_hf._files import write_json, write_tensors

if TYPE_CHECKING:
    from amal_hf.trainer import AMALTrainer

logger = logging.get_logger(__name__)

STATE_FILE = "amal_state.safetensors"
HISTORY_FILE = "amal_history.json"


def write_learned(trainer: AMALTrainer, checkpoint: Path) -> None:
    """Everything learned beside the model, into the folder `checkpoint`."""
    write_tensors(checkpoint / STATE_FILE, trainer._amal_state())
    write_json(checkpoint / HISTORY_FILE, trainer.history.summaries)


def read_learned(trainer: AMALTrainer, checkpoint: Path) -> None:
    """The same back; a checkpoint of a plain `Trainer` has none, and the weights stay as they are."""
    if not (checkpoint / STATE_FILE).is_file():
        logger.warning(f"`resume_from_checkpoint`: no {STATE_FILE} in {checkpoint}; the weights stay as they are.")
        return
    state = load_file(checkpoint / STATE_FILE)
    trainer.mixing.load_state(state)
    trainer.history.load(state, json.loads((checkpoint / HISTORY_FILE).read_text()))
    trainer.stack.temperatures.load_state(state)
    trainer._mean_weight.load_state(state)
    trainer._restored = state
    trainer._committed_step = trainer.state.global_step  # a checkpoint is written after the commit
