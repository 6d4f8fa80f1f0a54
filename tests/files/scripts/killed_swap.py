"""A process that ends without a word at its n-th change of the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from amal_hf._files import swap

CHANGES = ("rename", "replace", "mkdir", "rmdir", "unlink")


def kill_at(n: int, how: str) -> None:
    """End this process before the n-th change from now on."""
    done = 0

    def counted(change: Callable) -> Callable:
        def changed(*args, **kwargs):
            nonlocal done
            done += 1
            if done == n:
                os._exit(9)
            return change(*args, **kwargs)

        return changed

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    swap.exchanged = counted(swap.exchanged) if how == "exchange" else lambda a, b: False


def run(target: Path, n: int, how: str, write: Callable[[Path], None]) -> None:
    """Write `target` and end: 9 killed, 1 refused, 0 written."""
    kill_at(n, how)
    try:
        write(target)
    except OSError:
        os._exit(1)
    os._exit(0)
