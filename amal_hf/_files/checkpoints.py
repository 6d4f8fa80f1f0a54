"""Checkpoints of a `Trainer` that are whole or not there: written in a hidden folder, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from amal_hf._files.owned import foreign, mark
from amal_hf._files.whole import could_not_write

CHECKPOINT = "train: checkpoint"
"""Who signs a checkpoint."""
UNFINISHED = ".unfinished"
"""Folder inside a run folder where checkpoints are written and deleted; what a killed run leaves there is void."""


@contextmanager
def whole_folder(folder: Path, leads: bool, wait: Callable[[], object]) -> Iterator[Path]:
    """The name under which to write; the folder gets its own when the block ends, and none where it fails.

    Args:
        folder: where it is to appear; its parent is the run folder.
        leads: whether this process renames and deletes.
        wait: returns when every process has called it.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    unfinished = folder.parent / UNFINISHED
    if leads:
        shutil.rmtree(unfinished, ignore_errors=True)
    wait()
    try:
        yield unfinished / folder.name
    except Exception as error:
        if leads:
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) or could_not_write(error):
            raise OSError(
                f"`output_dir`: expected room for {folder.name!r} in {str(folder.parent)!r}, found: {error}. Earlier "
                "checkpoints are whole: make room (or set `save_total_limit`) and resume_from_checkpoint=True."
            ) from error
        raise
    wait()
    if leads:
        mark(unfinished / folder.name, CHECKPOINT, hashed=False)
        if folder.is_dir():  # from an earlier run
            earlier = foreign(folder, CHECKPOINT)
            os.rename(folder, free_name(folder, ".earlier") if earlier else unfinished / f"old-{folder.name}")
        os.replace(unfinished / folder.name, folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    wait()


@contextmanager
def no_folder_left(folder: str | Path) -> Iterator[None]:
    """A folder that was not there before is not there after an error either, unless something stands in it.

    Raises:
        OSError: naming `output_dir`, where it is this folder that could not be made.
    """
    new = not Path(folder).exists()
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and str(error.filename).startswith(str(folder)):
            raise OSError(
                f"`output_dir`: expected a folder that can be made, found: {error}. Name another folder."
            ) from error
        if new and Path(folder).is_dir() and not any(Path(folder).iterdir()):
            Path(folder).rmdir()
        raise


def free_name(path: Path, ending: str) -> Path:
    """A name that nothing has."""
    names = (path.with_name(f"{path.name}{ending}{number or ''}") for number in count())
    return next(name for name in names if not os.path.lexists(name))


def discard(folder: Path) -> None:
    """Delete a checkpoint, never seen in part; it stays where somebody put something into it."""
    if foreign(folder, CHECKPOINT):
        return
    aside = folder.parent / UNFINISHED / f"old-{folder.name}"
    aside.parent.mkdir(exist_ok=True)
    os.replace(folder, aside)
    shutil.rmtree(aside.parent, ignore_errors=True)


def checkpoints(run_dir: str | Path) -> list[Path]:
    """Checkpoints in a folder, by number."""
    folders = [path for path in Path(run_dir).glob("checkpoint-*") if path.is_dir()]
    numbered = [path for path in folders if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def discard_but(run_dir: str | Path, keep: int | None, best: str | None, newest: bool = True) -> None:
    """Keep the newest `keep` checkpoints, `best` and (if so) the newest among them, as `save_total_limit` says."""
    found = sorted(checkpoints(run_dir), key=lambda path: path.stat().st_mtime_ns)  # as numbered where as old
    held = {path for path in found if (newest and path == found[-1]) or (best and path.samefile(best))}
    surplus = len(found) - max(keep, len(held)) if keep else 0
    for path in [path for path in found if path not in held][: max(surplus, 0)]:
        discard(path)


def save_whole(trainer: Any, run_dir: str | Path, save: Callable[[], None]) -> None:
    """`Trainer._save_checkpoint` as `save`, so that its folder appears whole, and goes whole when it rotates out.

    `Trainer` writes where its `_get_output_dir` says; meanwhile that is a hidden folder, in which it finds nothing to
    rotate. What it notes about the best checkpoint, and what it pushes, must know the folder's later name.
    """
    state, args = trainer.state, trainer.args
    folder = Path(run_dir) / f"checkpoint-{state.global_step}"
    with whole_folder(folder, args.should_save, trainer.accelerator.wait_for_everyone) as written:
        vars(trainer).update(_get_output_dir=lambda trial: str(written.parent), _push_from_checkpoint=lambda path: None)
        try:
            save()
        finally:
            del trainer._get_output_dir, trainer._push_from_checkpoint
        best = folder.with_name(f"checkpoint-{state.best_global_step}")
        if best == folder or best.is_dir():
            state.best_model_checkpoint = f"{run_dir}/{best.name}"
        if args.should_save:
            state.save_to_json(str(written / "trainer_state.json"))
    if args.push_to_hub:
        trainer._push_from_checkpoint(str(folder))
    if args.should_save:
        discard_but(run_dir, args.save_total_limit, state.best_model_checkpoint)
