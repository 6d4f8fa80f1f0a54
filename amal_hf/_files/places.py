"""Where a command may write: not over what it reads."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from amal_hf._files.owned import check_owned
from amal_hf._files.whole import Refused

Inputs = Mapping[str, str | Path | Sequence[str | Path]]
"""Argument -> what it names: a file, a folder, a pattern with `*`, or something that is not on this disk."""


def check_output(
    output_dir: str | Path,
    command: str,
    inputs: Inputs,
    argument: str = "output_dir",
    owner: bool = True,
    within: Sequence[str] = (),
) -> None:
    """Before anything is read or written: nothing of what a command reads can be lost by what it writes.

    Args:
        output_dir: the folder that is written.
        command: who writes.
        inputs: what is read. What is not on this disk (a name on the Hub, an empty string) is no danger.
        argument: what a message calls `output_dir`.
        owner: whether everything in the folder must have been written by `command`.
        within: inputs in which the folder may lie also where it is replaced.

    Raises:
        OSError: the folder is one of the inputs, or holds one; it is replaced, and lies in one; files of others in it.
    """
    target = Path(os.path.realpath(output_dir))
    replaced = target.is_dir() and any(target.iterdir())
    for name, given in inputs.items():
        for path in _on_disk(given):
            _check_apart(argument, target, name, path, replaced and name not in within)
    if owner:
        check_owned(argument, target, command)


def check_writable(argument: str, folder: str | Path) -> None:
    """A cache can be written, checked at once: its readers wait, or fail far away.

    Raises:
        OSError: naming the argument.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refused(
            f"`{argument}`: expected a folder that can be written, found {str(folder)!r}: {error}. Set it to another "
            "folder."
        ) from error


def _check_apart(argument: str, target: Path, name: str, path: Path, replaced: bool) -> None:
    """The target neither is the input nor holds it; and is not in it where it is `replaced`."""
    for place in _places(path):
        above = [place, *place.parents]
        if any(_same(target, folder) for folder in above):
            how = "that it is" if _same(target, place) else "that it holds"
        elif replaced and path.is_dir() and any(_same(place, folder) for folder in target.parents):
            how = "that it lies in"
        else:
            continue
        raise Refused(
            f"`{argument}`: expected a folder apart from `{name}`, found {how} {str(path)!r}: {str(target)!r}. "
            "Nothing was touched: name another folder."
        )


def _on_disk(given: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    for each in [given] if isinstance(given, (str, Path)) else given:
        spelled = str(each)
        found = [spelled] if os.path.lexists(spelled) else glob.glob(spelled)
        yield from (Path(path) for path in found if spelled)


def _places(path: Path) -> Iterator[Path]:
    """Where an input stands: the name it was given by, what it leads to, and what links in it lead to."""
    yield Path(os.path.abspath(path))
    yield Path(os.path.realpath(path))
    if path.is_dir():
        for folder in [path, *(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())]:
            links = [entry.path for entry in os.scandir(folder) if entry.is_symlink()]
            yield from (Path(os.path.realpath(link)) for link in links)


def _same(a: Path, b: Path) -> bool:
    """Whether two names are one folder: also through links, and where the disk does not tell A from a."""
    try:
        return a == b or os.path.samefile(a, b)
    except OSError:
        return False
