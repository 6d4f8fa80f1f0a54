"""A folder that one process at a time writes into; the lock goes with the process, however it ends."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amal_hf._files.whole import Refused

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
_held: set[tuple[int, int]] = set()
"""Locks of this process, as device and inode: the system would give it the same one twice."""


@contextmanager
def scratch_folder(folder: Path, argument: str, command: str) -> Iterator[Path]:
    """A folder of this process alone, marked by the lock in it; what an ended process left in it is still there.

    It goes when the block ends, unless something is left in it. The lock is of POSIX' kind: children do not inherit it,
    so that a worker that outlives its parent holds nothing.

    Raises:
        OSError: another process holds it (its number is named), or something else stands there.
    """
    made = [each for each in folder.parents if not each.exists()]
    try:
        file, held = _acquire(folder, argument, command)
    except BaseException:
        _remove_empty([folder, *made])
        raise
    try:
        yield folder
    except BaseException:
        _release(folder, file, held)
        _remove_empty(made)
        raise
    _release(folder, file, held)


def holds(folder: Path) -> bool:
    """Whether this process holds the lock of a scratch folder."""
    return _identity(folder / LOCK) in _held


def _acquire(folder: Path, argument: str, command: str) -> tuple[int, tuple[int, int]]:
    while True:
        if holds(folder):  # not opened: closing it again would give up this process' own lock
            raise Refused(_busy(folder, argument, b""))
        _check_scratch(folder, argument)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"`{argument}`: expected a folder that can be made, found: {error}. Name another folder."
            ) from error
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except FileNotFoundError:  # its last holder has just deleted the folder
            continue
        if not _locked(file):
            written = os.read(file, 4096)
            os.close(file)
            raise Refused(_busy(folder, argument, written))
        held = (os.fstat(file).st_dev, os.fstat(file).st_ino)
        if _identity(folder / LOCK) == held:  # else its last holder deleted it meanwhile
            break
        os.close(file)
    _held.add(held)
    try:
        written = json.dumps({"amal_hf": command, "pid": os.getpid()}).encode()
        os.pwrite(file, written, 0)  # then cut: on a full disk an earlier mark stays what it is
        os.ftruncate(file, len(written))
    except BaseException:
        _release(folder, file, held)
        raise
    return file, held


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino
    return None


def _locked(file: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise  # a file system without locks: go on without
    return True


def _check_scratch(folder: Path, argument: str) -> None:
    """Nothing of somebody else's stands where the scratch folder is to be."""
    if not folder.exists() and not folder.is_symlink():
        return
    ours = folder.is_dir() and not folder.is_symlink()
    if ours and (inside := [entry.name for entry in os.scandir(folder)]):
        ours = LOCK in inside and stat.S_ISREG(os.lstat(folder / LOCK).st_mode) and _is_lock(folder / LOCK, inside)
    if not ours:
        raise Refused(
            f"`{argument}`: expected {str(folder)!r} to be free for what is written first, found something else "
            "there. Move it away, or name another folder."
        )


def _is_lock(path: Path, inside: list[str]) -> bool:
    with path.open("rb") as file:
        written = file.read(4096)
    if not written:  # killed between making the file and writing into it
        return inside == [LOCK]
    try:
        return "amal_hf" in json.loads(written)
    except (ValueError, TypeError):
        return False


def _busy(folder: Path, argument: str, written: bytes) -> str:
    try:
        holder = json.loads(written)
        who = f"process {holder['pid']} (`amal-hf {holder['amal_hf']}`)"
    except (ValueError, KeyError, TypeError):
        who = "another part of this process"
    return (
        f"`{argument}`: expected a folder that nobody else is writing, found that {who} writes there now "
        f"({str(folder / LOCK)!r}). Wait for it, or name another folder."
    )


def _release(folder: Path, file: int, held: tuple[int, int]) -> None:
    """Delete the lock and the folder, unless something is left in it; then the lock stays as its mark."""
    with suppress(OSError):
        if [entry.name for entry in os.scandir(folder)] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
    _held.discard(held)
    os.close(file)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
