"""One file of a folder, written anew where the folder's marker vouches for the one that is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from amal_hf._files.owned import NEW, Entry, Marker, entry_of, read_marker, same, write_marker
from amal_hf._files.whole import Refused, room_for, sweep_temporaries, write_whole


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
