"""Files appear whole or not at all: written under a temporary name, then renamed (floor 0)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amal_hf._types import Tensors


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` on a temporary neighbour of `path`, then rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """`value` as indented JSON."""
    return write_whole(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n"))


def write_tensors(path: str | Path, tensors: Tensors) -> Path:
    """`tensors` as safetensors."""
    from safetensors.torch import save_file

    return write_whole(path, lambda p: save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, p))
