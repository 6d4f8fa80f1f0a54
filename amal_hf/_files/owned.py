"""Which files of a folder a command wrote: a list of them, kept in the folder, with their sizes and hashes.

A folder is replaced, and a file overwritten, only where the list vouches for it: the same name, size and content, and
the same command. All else in it is somebody's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amal_hf._files.whole import Refused, write_json

MARKER = ".amal_hf.json"
FORMAT = 1
NEW = " (new)"
"""After a name: what is about to stand under it."""
Entry = tuple[int, str]
"""Size in bytes and hash of a file ("": only the size counts); (-1, "") for a folder."""


@dataclass(frozen=True)
class Marker:
    """Content of the marker file.

    Args:
        command: which command wrote the folder.
        entries: path below the folder -> its `Entry`; folders end in "/".
        finished: whether the command came to its end.
        beside: names at the top of the folder that came while the command ran, and are left alone.
    """

    command: str
    entries: Mapping[str, Entry] = field(default_factory=dict)
    finished: bool = True
    beside: tuple[str, ...] = ()


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder; None where there is none, or none that can be read."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        entries = {str(path): (int(size), str(content)) for path, (size, content) in found["entries"].items()}
        if found["format"] != FORMAT or (folder / MARKER).is_symlink():
            return None
        return Marker(str(found["command"]), entries, bool(found["finished"]), tuple(map(str, found["beside"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Keep the marker in the folder."""
    recorded: dict[str, Any] = {"format": FORMAT, **asdict(marker)}
    write_json(folder / MARKER, {**recorded, "entries": {path: list(of) for path, of in marker.entries.items()}})


def walk(folder: Path, within: str = "") -> Iterator[tuple[str, Path]]:
    """Everything below a folder but its marker, as (path, place), folders with "/" and before what they hold.

    Links are not followed: a link is an entry, whatever it leads to.
    """
    for found in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = within + found.name
        if found.is_dir(follow_symlinks=False):
            yield f"{path}/", Path(found.path)
            yield from walk(Path(found.path), f"{path}/")
        elif path != MARKER:
            yield path, Path(found.path)


def entries_of(folder: Path, hashed: bool = True) -> dict[str, Entry]:
    """Everything below a folder as a marker lists it."""
    return {path: entry_of(place, hashed) for path, place in walk(folder)}


def mark(folder: Path, command: str, hashed: bool = True) -> None:
    """Say that `command` wrote everything that is in the folder now."""
    write_marker(folder, Marker(command, entries_of(folder, hashed)))


def foreign(folder: Path, command: str) -> list[str]:
    """Paths below a folder that `command` did not write, or that were changed since; [] where there is no folder."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() or folder.is_symlink() else []
    marker = read_marker(folder)
    known = marker.entries if marker is not None and marker.command == command else {}
    unknown = [path for path, place in walk(folder) if not same(path, place, known)]
    lone = marker is None and (folder / MARKER).exists()  # of another format, or damaged
    other = marker is not None and marker.command != command and not unknown
    return [MARKER, *unknown] if lone or other else unknown


def changed_since(folder: Path) -> list[str]:
    """Files that a folder's marker lists and that are gone, or of another size or content; [] without a marker."""
    marker = read_marker(folder)
    known = marker.entries if marker else {}
    return [path for path in known if not path.endswith("/") and not same(path, folder / path, known)]


def same(path: str, place: Path, known: Mapping[str, Entry]) -> bool:
    """Whether a file or folder is what the list says."""
    if path.endswith("/"):
        return path in known
    if place.is_symlink() or not place.is_file():
        return False
    size = place.stat().st_size
    recorded = [known[name] for name in (path, path + NEW) if name in known]
    return any(size == length and (not content or hash_of(place) == content) for length, content in recorded)


def delete_owned(folder: Path, command: str) -> bool:
    """Delete what `command` wrote, file by file from its list; False, and nothing is deleted, where else is in it."""
    if foreign(folder, command):
        return False
    for path, place in reversed(list(walk(folder))):
        place.rmdir() if path.endswith("/") else place.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()
    return True


def check_owned(argument: str, folder: Path, command: str) -> None:
    """The folder is absent, empty, or holds nothing but what `command` wrote.

    Raises:
        OSError: naming what else is there.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise Refused(f"`{argument}`: expected a folder, found a file, {str(folder)!r}. Name another one.")
    found = foreign(folder, command)
    if found:
        marker = read_marker(folder)
        other = f" (`amal-hf {marker.command}` wrote there)" if marker and marker.command != command else ""
        raise Refused(
            f"`{argument}`: expected a new or empty folder, or one with nothing in it but what `amal-hf {command}` "
            f"wrote, found in {str(folder)!r} {named(found)}{other}. Nothing was touched: name another folder, or move "
            "them away."
        )


def named(paths: list[str], most: int = 4) -> str:
    """The first of some paths, and how many there are."""
    tops = list(dict.fromkeys(paths))
    more = f" and {len(tops) - most} more" if len(tops) > most else ""
    return f"{', '.join(map(repr, tops[:most]))}{more}"


def entry_of(place: Path, hashed: bool = True) -> Entry:
    """A file or folder as a marker lists it."""
    if place.is_dir():
        return -1, ""
    return place.stat().st_size, hash_of(place) if hashed else ""


def hash_of(place: Path) -> str:
    """Hash of a file's bytes."""
    with place.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
