"""The last parts of a run folder, put in place together.

Written in the folder's scratch folder as "run"; once they are whole, "whole.json" stands beside them, and what a
process that is killed then leaves is finished by the next one. What they replace goes to "before" and then away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from amal_hf._files.checkpoints import CHECKPOINT, UNFINISHED, checkpoints, free_name
from amal_hf._files.lock import holds, scratch_folder
from amal_hf._files.owned import (
    MARKER,
    NEW,
    Marker,
    delete_owned,
    entries_of,
    named,
    read_marker,
    same,
    walk,
    write_marker,
)
from amal_hf._files.whole import Refused, room_for

SCRATCH = ".amal_hf"
STAGED, BEFORE, ASIDE, EARLIER, WHOLE = "run", "before", "checkpoints", "earlier.json", "whole.json"
LAST = "run.json"
"""The part that makes a folder a run: the first to go, the last to come."""
OURS = (MARKER, SCRATCH, UNFINISHED)


@contextmanager
def parts_of_run(output_dir: str | Path, command: str, leads: bool, wait: Callable[[], object]) -> Iterator[Path]:
    """Where a run writes its last parts; they take their places together when the block ends, and none where it fails.

    Args:
        output_dir: the run folder.
        command: whose run it is.
        leads: whether this process renames and deletes.
        wait: returns when every process has called it.

    Raises:
        OSError: no room, and what was there is untouched; or a file of somebody else's stands in a part's way, and the
            parts wait in the scratch folder until it is gone.
    """
    folder = Path(os.path.realpath(output_dir))
    scratch = folder / SCRATCH
    own = scratch_folder(scratch, "output_dir", command) if leads and not holds(scratch) else nullcontext()
    with own, room_for("output_dir", folder, "Nothing was changed: make room, and start again."):
        if leads:
            shutil.rmtree(scratch / STAGED, ignore_errors=True)
            (scratch / STAGED).mkdir()
        wait()
        try:
            yield scratch / STAGED
            wait()
            if leads:
                _seal(folder, scratch, command)
                put_in_place(folder, scratch, command)
        finally:
            if leads and not (scratch / WHOLE).is_file():
                shutil.rmtree(scratch / STAGED, ignore_errors=True)
    wait()


def _seal(folder: Path, scratch: Path, command: str) -> None:
    """The new marker beside the parts: from now on they are whole, and nothing more need be written."""
    entries = entries_of(scratch / STAGED)
    earlier = _earlier(folder, command)
    gone = {*_tops(entries), *_tops(earlier.entries), *OURS}
    nested = {entry.name for entry in os.scandir(folder) if entry.is_dir() and _holds_marked(Path(entry.path))}
    beside = [entry.name for entry in os.scandir(folder) if entry.name not in gone | nested]
    sealed = scratch / STAGED / MARKER
    write_marker(scratch / STAGED, Marker(command, entries, True, tuple(sorted({*beside, *earlier.beside} - gone))))
    os.replace(sealed, scratch / WHOLE)


def put_in_place(folder: Path, scratch: Path, command: str) -> None:
    """Rename the old parts out and the new parts in; again where a process was killed at it."""
    staged, before, earlier = scratch / STAGED, scratch / BEFORE, _earlier(folder, command)
    parts = sorted((entry.name for entry in os.scandir(staged)), key=lambda name: (name == LAST, name))
    ways = [name for name in {*parts, *_tops(earlier.entries)} if os.path.lexists(folder / name)]
    strange = [
        path
        for name in ways
        for path, place in _below(folder, name)
        if not same(path, place, earlier.entries) and name in parts
    ]
    if strange:
        raise Refused(
            f"`output_dir`: expected free names for the parts of the run, found in {str(folder)!r} {named(strange)}, "
            f"which it did not write. The run is whole in {str(staged)!r}: move them away and start again with "
            "--resume_from_checkpoint true."
        )
    known = [n for n in ways if all(same(path, place, earlier.entries) for path, place in _below(folder, n))]
    before.mkdir(exist_ok=True)
    moves = [(folder / name, before / name) for name in sorted(known, key=lambda name: (name != LAST, name))]
    moves += [(scratch / name, before / name) for name in (ASIDE, EARLIER) if (scratch / name).exists()]
    moves += [(staged / name, folder / name) for name in parts]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            os.rename(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.rename(target, source)
        raise
    os.replace(scratch / WHOLE, folder / MARKER)
    drop_replaced(folder, scratch)
    staged.rmdir()


def _earlier(folder: Path, command: str) -> Marker:
    marker = read_marker(folder)
    return marker if marker is not None and marker.command == command else Marker(command)


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """An entry of a folder and all below it, as `walk` names them."""
    place = folder / name
    if place.is_dir() and not place.is_symlink():
        yield f"{name}/", place
        yield from walk(place, f"{name}/")
    else:
        yield name, place


def _holds_marked(folder: Path) -> bool:
    if read_marker(folder) is not None:
        return True
    return any(entry.is_dir(follow_symlinks=False) and _holds_marked(Path(entry.path)) for entry in os.scandir(folder))


def _tops(entries: Any) -> set[str]:
    return {path.split("/")[0].removesuffix(NEW) for path in entries}


def drop_replaced(folder: Path, scratch: Path) -> None:
    """Delete what the new parts replaced; a checkpoint that somebody put something into comes back beside the new."""
    for checkpoint in checkpoints(scratch / BEFORE / ASIDE):
        if not delete_owned(checkpoint, CHECKPOINT):
            os.rename(checkpoint, free_name(folder / checkpoint.name, ".earlier"))
    shutil.rmtree(scratch / BEFORE, ignore_errors=True)
