"""A run folder: claimed by one process, resumed or refused; its last parts are put in place together.

While a run lasts, `.amal_hf` in its folder holds the lock, the parts that are being written ("run"), parts of the
earlier run that these replace ("before"), its checkpoints ("checkpoints") and its marker ("earlier.json"). Once the
new parts are whole, "whole.json" stands beside them: whoever claims the folder next finishes what a killed process
began.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from amal_hf._files.checkpoints import checkpoints
from amal_hf._files.lock import scratch_folder
from amal_hf._files.owned import MARKER, Marker, foreign, named, read_marker, same, write_marker
from amal_hf._files.parts import ASIDE, EARLIER, OURS, SCRATCH, STAGED, WHOLE, drop_replaced, put_in_place
from amal_hf._files.places import Inputs, check_output
from amal_hf._files.whole import Refused, is_temporary, room_for, sweep_temporaries


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
                _finish(folder, place, command)
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


def _finish(folder: Path, scratch: Path, command: str) -> None:
    """Finish what a killed process began to put in place; drop what it only began to write."""
    if (scratch / WHOLE).is_file():
        put_in_place(folder, scratch, command)
    shutil.rmtree(scratch / STAGED, ignore_errors=True)
    drop_replaced(folder, scratch)
    sweep_temporaries(scratch)
    sweep_temporaries(folder)
    _undo(folder, scratch)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
