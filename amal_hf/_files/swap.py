"""A folder that takes another's place as a whole; at every instant the old one is there or can be found."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amal_hf._files.lock import LOCK, scratch_folder
from amal_hf._files.owned import check_owned, delete_owned, foreign, mark, named
from amal_hf._files.whole import Refused, room_for

MADE, NEXT, BEFORE = "made", "next", "before"
"""In the scratch folder: what is being written; what is whole and about to change places; what stood there."""
UNTOUCHED = "What was there is untouched: make room, or name a folder on another disk."


def scratch_of(target: Path) -> Path:
    """The scratch folder of a target: its hidden neighbour."""
    return target.with_name(f".{target.name}.amal_hf")


@contextmanager
def replaced_folder(target: str | Path, command: str, argument: str = "output_dir") -> Iterator[Path]:
    """A scratch folder beside `target`; what the block leaves in it as "made" takes the target's place.

    Where the block fails, the target stays as it was. A link is followed, and stays. What an earlier process left
    behind when it was killed is put right first.

    Args:
        target: absent, empty, or a folder in which everything was written by `command`.
        command: who writes; it signs the folder.
        argument: what a message calls the target.

    Raises:
        OSError: something else stands in the target; another process is at work on it; there is no room.
    """
    target = Path(os.path.realpath(target))
    with room_for(argument, target, UNTOUCHED), scratch_folder(scratch_of(target), argument, command) as scratch:
        recover(target, scratch, command, argument)
        check_owned(argument, target, command)
        try:
            yield scratch
            mark(scratch / MADE, command)
            take_place(target, scratch, command, argument)
        finally:
            sweep(scratch, command)


def recover(target: Path, scratch: Path, command: str, argument: str) -> None:
    """Put right what a killed process left: the old folder back where no new one came, all else away."""
    if (scratch / BEFORE).is_dir() and not target.exists():
        os.rename(scratch / BEFORE, target)
    if left := sweep(scratch, command):
        raise Refused(
            f"`{argument}`: expected nothing but unfinished work in {str(scratch)!r}, found {named(left)}. Move it to "
            "where it belongs."
        )


def sweep(scratch: Path, command: str) -> list[str]:
    """Empty the scratch folder but for its lock; what once stood in the target goes file by file, from its list.

    Returns:
        what was left, for it is not `command`'s.
    """
    left = []
    for folder in (scratch / NEXT, scratch / BEFORE):  # one of them may have stood in the target
        if folder.is_dir() and not delete_owned(folder, command):
            left += [f"{folder.name}/{path}" for path in foreign(folder, command)]
    for other in os.scandir(scratch):
        if other.name not in (LOCK, NEXT, BEFORE):
            remove = shutil.rmtree if other.is_dir(follow_symlinks=False) else os.unlink
            remove(other.path)
    return left


def take_place(target: Path, scratch: Path, command: str, argument: str) -> None:
    """`made` takes the place of `target`, in one step where the system can; the old one ends in the scratch folder."""
    following, before = scratch / NEXT, scratch / BEFORE
    os.rename(scratch / MADE, following)
    if not target.exists():
        os.rename(following, target)
    elif exchanged(following, target):
        if foreign(following, command):  # there were none before the work; somebody came meanwhile
            exchanged(following, target)
            check_owned(argument, target, command)
    else:
        check_owned(argument, target, command)
        os.rename(target, before)
        try:
            os.rename(following, target)
        except BaseException:
            os.rename(before, target)
            raise


def exchanged(a: Path, b: Path) -> bool:
    """Whether two folders changed places, in one step; False, and they did not, where the system cannot do that."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at_working_folder, exchange = -100, 2
    return rename is not None and (
        rename(at_working_folder, os.fsencode(a), at_working_folder, os.fsencode(b), exchange) == 0
    )
