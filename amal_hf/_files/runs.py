"""A run folder: claimed by one process, resumed or refused; its last parts are put in place together (floor 0).

While a run lasts, `.amal_hf` in its folder holds the lock, the parts that are being written ("run"), parts of the
earlier run that these replace ("before"), its checkpoints ("checkpoints") and its marker ("earlier.json"). Once the
new parts are whole, "whole.json" stands beside them: whoever claims the folder next finishes what a killed process
began.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from amal_hf._files.checkpoints import CHECKPOINT, UNFINISHED, checkpoints, free_name
from amal_hf._files.lock import holds, scratch_folder
from amal_hf._files.owned import (
    MARKER,
    NEW,
    Entry,
    Marker,
    delete_owned,
    entries_of,
    entry_of,
    foreign,
    named,
    read_marker,
    same,
    walk,
    write_marker,
)
from amal_hf._files.places import Inputs, check_output
from amal_hf._files.whole import Refused, is_temporary, room_for, sweep_temporaries, write_whole

SCRATCH = ".amal_hf"
STAGED, BEFORE, ASIDE, EARLIER, WHOLE = "run", "before", "checkpoints", "earlier.json", "whole.json"
LAST = "run.json"
"""The part that makes a folder a run: the first to go, the last to come."""
OURS = (MARKER, SCRATCH, UNFINISHED)


@contextmanager
def run_folder(
    output_dir: str | Path, command: str, inputs: Inputs, resume: Any = None, leads: bool = True
) -> Iterator[None]:
    """A run folder that is this run's alone while the block lasts.

    A run of `command` that ended may be there: its parts stay until those of the new run are whole, and its checkpoints
    are kept aside until then. Where the block fails before a checkpoint of its own, all is as it was.

    Args:
        output_dir: the folder.
        command: who runs.
        inputs: what the run reads.
        resume: `resume_from_checkpoint`; a path outside of the folder resumes nothing of this folder.
        leads: whether this process renames and deletes; the others only wait for it elsewhere.

    Raises:
        OSError: before anything is written: files of others, a run that did not end and is not resumed, an input in
            the folder, another process at work in it.
    """
    if not leads:
        yield
        return
    folder = Path(os.path.realpath(output_dir))
    check_output(output_dir, command, inputs, owner=False)
    if not (folder / SCRATCH).exists():
        _check_claim(folder, command, resume)
    with room_for("output_dir", folder, "Name a folder that can be written."):
        scratch = scratch_folder(folder / SCRATCH, "output_dir", command)
    with scratch as place:
        try:
            with room_for("output_dir", folder, "Make room, or name a folder on another disk."):
                _settle(folder, place, command)
                _begin(folder, place, command, _check_claim(folder, command, resume))
            yield
        finally:
            _undo(folder, place)
    _remove_if_empty(folder)


def _check_claim(folder: Path, command: str, resume: Any) -> bool:
    """Whether the run goes on with what is in the folder.

    Raises:
        OSError: as `run_folder`.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise Refused(f"`output_dir`: expected a folder, found a file, {str(folder)!r}. Name another one.")
    marker, found = read_marker(folder), checkpoints(folder)
    ours = marker is None or marker.command == command
    if ours and found and _resumes(folder, resume):
        return True
    if ours and found and (marker is None or not marker.finished):
        raise Refused(
            f"`output_dir`: expected a folder without checkpoints of a run that did not end, found {found[-1].name!r} "
            f"in {str(folder)!r}. Go on from there with --resume_from_checkpoint true, or name another folder."
        )
    strange = strangers(folder, command)
    if strange:
        other = f" (`amal-hf {marker.command}` wrote there)" if marker and not ours else ""
        raise Refused(
            f"`output_dir`: expected a new or empty folder, or one that holds a run of `amal-hf {command}` and nothing "
            f"else, found in {str(folder)!r} {named(strange)}{other}. Nothing was touched: name another folder, or "
            "move them away."
        )
    return False


def _resumes(folder: Path, resume: Any) -> bool:
    if not resume or str(resume).lower() == "false":
        return False
    inside = folder in Path(os.path.realpath(str(resume))).parents
    return resume is True or str(resume).lower() == "true" or inside


def strangers(folder: Path, command: str) -> list[str]:
    """Paths in a run folder that neither its marker nor one of a folder in it vouches for."""
    marker = read_marker(folder)
    if marker is None or marker.command != command:
        return [entry.name for entry in os.scandir(folder) if entry.name != SCRATCH and not is_temporary(entry.name)]
    left_alone = {*OURS, *marker.beside}
    found = ((path.split("/")[0], path) for path in _unknown(folder, marker, ""))
    return [path for top, path in found if top not in left_alone and not is_temporary(top)]


def _unknown(folder: Path, marker: Marker, within: str) -> Iterator[str]:
    for entry in sorted(os.scandir(folder / within), key=lambda entry: entry.name):
        path, place = within + entry.name, Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            if path != MARKER and not same(path, place, marker.entries):
                yield path
        elif own := read_marker(place):
            yield from (f"{path}/{each}" for each in foreign(place, own.command))
        elif f"{path}/" in marker.entries or any(place.iterdir()):
            yield from _unknown(folder, marker, f"{path}/")
        else:
            yield f"{path}/"


# ---- the earlier run, while the new one lasts ----


def _begin(folder: Path, scratch: Path, command: str, resumes: bool) -> None:
    """Mark the folder as that of a run that has not ended; the earlier run's checkpoints and marker are kept aside."""
    marker = read_marker(folder)
    begun = replace(marker or Marker(command), finished=False)
    if resumes:
        if marker != begun:
            write_marker(folder, begun)
        return
    for checkpoint in checkpoints(folder):
        (scratch / ASIDE).mkdir(exist_ok=True)
        os.rename(checkpoint, scratch / ASIDE / checkpoint.name)
    write_marker(scratch, begun)
    if marker is not None:
        os.rename(folder / MARKER, scratch / EARLIER)
    os.rename(scratch / MARKER, folder / MARKER)


def _undo(folder: Path, scratch: Path) -> None:
    """Put the earlier run's checkpoints and marker back where the new one left neither parts nor a checkpoint.

    Nothing is written for it, so that a full disk is no hindrance.
    """
    if (scratch / WHOLE).is_file():
        return
    (scratch / MARKER).unlink(missing_ok=True)
    marker = read_marker(folder)
    own = marker is not None and not marker.finished and bool(checkpoints(folder))
    kept = (scratch / ASIDE).is_dir() or (scratch / EARLIER).is_file()
    if kept and not own:
        for checkpoint in checkpoints(scratch / ASIDE):
            os.rename(checkpoint, folder / checkpoint.name)
        if (scratch / ASIDE).is_dir():
            (scratch / ASIDE).rmdir()
        if (scratch / EARLIER).is_file():
            os.replace(scratch / EARLIER, folder / MARKER)
    elif marker and not marker.finished and {entry.name for entry in os.scandir(folder)} <= {MARKER, SCRATCH}:
        (folder / MARKER).unlink()


def _settle(folder: Path, scratch: Path, command: str) -> None:
    """Finish what a killed process began to put in place; drop what it only began to write."""
    if (scratch / WHOLE).is_file():
        _put_in_place(folder, scratch, command)
    shutil.rmtree(scratch / STAGED, ignore_errors=True)
    _drop_replaced(folder, scratch)
    sweep_temporaries(scratch)
    sweep_temporaries(folder)
    _undo(folder, scratch)


def _drop_replaced(folder: Path, scratch: Path) -> None:
    """Delete what the new parts replaced; a checkpoint that somebody put something into comes back beside the new."""
    for checkpoint in checkpoints(scratch / BEFORE / ASIDE):
        if not delete_owned(checkpoint, CHECKPOINT):
            os.rename(checkpoint, free_name(folder / checkpoint.name, ".earlier"))
    shutil.rmtree(scratch / BEFORE, ignore_errors=True)


# ---- its last parts ----


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
                _put_in_place(folder, scratch, command)
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


def _put_in_place(folder: Path, scratch: Path, command: str) -> None:
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
    _drop_replaced(folder, scratch)
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


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


# ---- one file of a run folder, written anew ----


def write_own(path: str | Path, write: Callable[[Path], object], argument: str = "RUN_DIR") -> Path:
    """A file of a folder, whole; one that is there must be what the folder's marker says.

    Raises:
        OSError: the file there is not ours, or was changed since; or there is no room.
    """
    path = Path(path)
    folder, name = path.parent, path.name
    marker = read_marker(folder) or Marker("report")
    check_own(path, argument)
    sweep_temporaries(folder)

    def written(temporary: Path) -> None:
        write(temporary)
        # known under both names until it stands in its place: killed in between, either is ours
        write_marker(folder, replace(marker, entries={**marker.entries, name + NEW: entry_of(temporary)}))

    with room_for(argument, path, "What was there is untouched: make room."):
        write_whole(path, written)
        entries: dict[str, Entry] = {**marker.entries, name: entry_of(path)}
        entries.pop(name + NEW, None)
        write_marker(folder, replace(marker, entries=entries))
    return path


def check_own(path: str | Path, argument: str = "RUN_DIR") -> None:
    """A file may be written anew: it is not there, or its folder's marker vouches for it."""
    path = Path(path)
    marker = read_marker(path.parent) or Marker("report")
    if os.path.lexists(path) and not same(path.name, path, marker.entries):
        raise Refused(
            f"`{argument}`: expected no {path.name!r}, or the one that was written here before, found another one, "
            f"{str(path)!r}. Nothing was touched: move it away."
        )
