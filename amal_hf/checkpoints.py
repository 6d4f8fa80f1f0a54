"""What a checkpoint holds beside `Trainer`'s: λ, the clean rows' features, temperatures, history."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerState
from transformers.utils import logging

from amal_hf import _checks
from amal_hf._files import changed_since, discard_but, save_whole, write_json, write_tensors
from amal_hf.run_identity import RunIdentity
from amal_hf.weigher import Weigher

logger = logging.get_logger(__name__)

STATE_FILE = "amal_state.safetensors"
HISTORY_FILE = "amal_history.json"
STEPS = "trainer_state.json"
ROWS = "row_ids"
"""`row_id` of every training row, `[rows]`, where they are not 0, 1, 2, ..."""


@contextmanager
def readable(checkpoint: str | Path) -> Iterator[None]:
    """Whatever fails while a checkpoint is read ends as one line that names it.

    Raises:
        ValueError: with the cause.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if str(error).startswith("`"):
            raise
        raise _unfit(checkpoint, _checks.raised(error)[:200]) from error


def check_checkpoint(checkpoint: str | Path | bool | None) -> None:
    """A checkpoint's folder is as it was written, and says at which step that was; before anything is loaded from it.

    Args:
        checkpoint: `resume_from_checkpoint`; where it names no folder, there is nothing to look at.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a part that is not there, or was changed since.
    """
    if not checkpoint or isinstance(checkpoint, bool):
        return
    folder = Path(checkpoint)
    if not (folder / STEPS).is_file():
        raise FileNotFoundError(
            f"`resume_from_checkpoint`: expected a checkpoint's folder, found no {STEPS} in {str(folder)!r}. Name one, "
            "or true for the last of `output_dir`."
        )
    if odd := changed_since(folder):
        raise _unfit(folder, f"other than it was written, or gone: {', '.join(odd[:4])}")
    with readable(folder):
        state = TrainerState.load_from_json(str(folder / STEPS))
    counts = {name: getattr(state, name) for name in ("global_step", "train_batch_size")}
    if not all(isinstance(count, int) and count >= 0 for count in counts.values()):
        raise _unfit(folder, f"{counts} in {STEPS}")


def check_loaded(missing: Collection[str], model: Any) -> None:
    """A checkpoint had every weight of the model.

    Raises:
        ValueError: naming some of those that are missing.
    """
    idle = {
        *(getattr(model, "_keys_to_ignore_on_save", None) or ()),
        *(getattr(model, "_tied_weights_keys", None) or ()),
    }
    if lacking := sorted({*missing} - idle):
        raise ValueError(
            f"`resume_from_checkpoint`: expected the weights of this model, found none of {', '.join(lacking[:3])} "
            f"({len(lacking)} are missing). Name a checkpoint of the same model, or start anew."
        )


def _unfit(checkpoint: str | Path, found: str) -> ValueError:
    return ValueError(
        f"`resume_from_checkpoint`: expected a whole checkpoint in {str(checkpoint)!r}, found {found}. Go on from an "
        "earlier one, or start anew."
    )


def write_learned(weigher: Weigher, identity: RunIdentity, checkpoint: Path) -> None:
    """Everything learned beside the model, and of which run, into the folder `checkpoint`."""
    identity.write(checkpoint)
    held = {**weigher.state_dict(), **identity.tensors(), ROWS: weigher.positions.ids}
    write_tensors(checkpoint / STATE_FILE, held)
    write_json(checkpoint / HISTORY_FILE, weigher.history.summaries)


def read_learned(weigher: Weigher, identity: RunIdentity, checkpoint: Path, step: int) -> None:
    """The same back; a checkpoint of a plain `Trainer` has none, and the weights stay as they are.

    What is kept for each row follows its `row_id`, in whatever order the rows come now.

    Raises:
        ValueError: the checkpoint is of other rows, or of another run.
    """
    if not (checkpoint / STATE_FILE).is_file():
        logger.warning(f"`resume_from_checkpoint`: no {STATE_FILE} in {checkpoint}; the weights stay as they are.")
        return
    state, summaries = load_file(checkpoint / STATE_FILE), json.loads((checkpoint / HISTORY_FILE).read_text())
    if not isinstance(summaries, list) or not all(isinstance(each, dict) and "sources" in each for each in summaries):
        raise _unfit(checkpoint, f"no history in {HISTORY_FILE}")
    identity.check(checkpoint, state)
    kept, now = state.pop(ROWS), weigher.positions.ids
    place = torch.arange(len(now))
    if not torch.equal(kept, now):
        if len(kept) != len(now) or not torch.equal(kept.sort().values, now.sort().values):
            known = len({*now.tolist()} & {*kept.tolist()})
            raise ValueError(
                f"`resume_from_checkpoint`: expected the rows of the run that wrote {str(checkpoint)!r}, {len(kept)}, "
                f"found {len(now)}, {known} of them with a `row_id` that it knows. Go on with its rows, or start anew."
            )
        place = kept.argsort()[torch.searchsorted(kept.sort().values, now)]
    identity.check_rows(checkpoint, state, place)
    state |= {name: state[name][place] for name in ("table", "last_weights") if name in state}
    weigher.load_state_dict(state, summaries, step)


class LearnedCheckpoints(Trainer):
    """A `Trainer` whose checkpoints hold what its `weigher` has learned, and are whole or not there."""

    weigher: Weigher
    _held_identity: tuple[Any, str, RunIdentity] | None = None

    def identity(self) -> RunIdentity:
        """What its checkpoints belong to; the rows are hashed once."""
        rows, method = self.train_dataset, self.args.method
        held = self._held_identity
        if held is None or held[0] is not rows or held[1] != method:
            self._held_identity = held = (rows, method, RunIdentity(self))
        return held[2]

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
            write_learned(self.weigher, self.identity(), Path(output_dir))

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
                read_learned(self.weigher, self.identity(), Path(checkpoint), self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint) if checkpoint is not None else nullcontext():
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        read_learned(self.weigher, self.identity(), Path(self.state.best_model_checkpoint), self.state.global_step)
