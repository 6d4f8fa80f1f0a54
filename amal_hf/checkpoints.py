"""What a checkpoint holds beside `Trainer`'s: λ, the clean rows' features, temperatures, history."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from amal_hf._files import write_json, write_tensors
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
