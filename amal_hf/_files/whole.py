"""Files that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amal_hf._types import Tensors

NO_ROOM = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EXDEV,
}  # fmt: skip
"""What the system says where something cannot be written."""


TEMPORARY = ".amal_hf"
"""Ends the name of a file that is being written, after the number of the process that does it."""


def is_temporary(name: str) -> bool:
    """Whether a name is one that `write_whole` gives."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY)}", name) is not None


def sweep_temporaries(folder: Path) -> None:
    """Delete what killed processes were writing into a folder."""
    for entry in os.scandir(folder):
        if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
            try:
                os.kill(int(entry.name.split(".")[-2]), 0)
            except ProcessLookupError:
                os.unlink(entry.path)
            except (OSError, OverflowError):
                pass  # somebody's, and at work


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` on a temporary neighbour of `path`, then rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """`value` as indented JSON."""
    return write_whole(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_tensors(path: str | Path, tensors: Tensors) -> Path:
    """`tensors` as safetensors."""
    from safetensors.torch import save_file

    return write_whole(path, lambda p: save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, p))


def could_not_write(error: BaseException) -> bool:
    """Whether an error says that a file or folder could not be written.

    torch and safetensors raise no OSError then, and Arrow's carries its number in the text alone.
    """
    text = str(error).lower()
    if isinstance(error, OSError) and (error.errno in NO_ROOM or (error.errno is None and "[errno " in text)):
        return True
    written = type(error).__name__ == "SafetensorError" and "deserializ" not in text
    return written or "inline_container" in text


@contextmanager
def room_for(argument: str, folder: Path, cure: str) -> Iterator[None]:
    """One good line for whatever fails to be written inside the block.

    Raises:
        OSError: naming the argument and the folder, with what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Refused) or not could_not_write(error):
            raise
        reason = " ".join(str(error).split())
        raise Refused(f"`{argument}`: expected room for {str(folder)!r}, found: {reason}. {cure}") from error


class Refused(OSError):
    """A message that is complete: nothing is added to it on its way up."""
