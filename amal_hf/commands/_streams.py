"""What a command prints and how it ends: streams that cannot fail, warnings once, signals with a word."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses after Ctrl-C and after SIGTERM: 128 and the number of the signal."""


class Terminated(BaseException):
    """SIGTERM, where it can be answered."""


class Unbroken:
    """A stream that goes on into nothing where its reader is gone (`| head`)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._into_nothing()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._into_nothing()
            self._stream.flush()

    def _into_nothing(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)


def calm_streams() -> None:
    """stdout and stderr write what their encoding lacks as escapes, and outlive their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        if stream is not None:
            setattr(sys, name, Unbroken(stream))


def warn_once() -> None:
    """Every warning as one line without its code, and once, whether of `warnings` or of a logger."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in shown:
            shown.add(line)
            print(f"warning: {line}", file=sys.stderr)

    def new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if record.levelno != logging.WARNING:
            return True
        if line in shown:
            return False
        shown.add(line)
        return True

    class Once(logging.StreamHandler):
        """The root's: what no library prints by itself."""

    handler = Once()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(new)
    logging.getLogger().addHandler(handler)
    warnings.showwarning = show
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


@contextmanager
def answered_signals() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block, so that what is half written is taken back."""

    def end(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cause(error: BaseException) -> str:
    """What went wrong in one line: a library that hides the reason behind another error is followed by that reason."""
    lines = [" ".join(str(error).split()) or type(error).__name__]
    inner = error.__cause__ or error.__context__
    while inner is not None and "`" not in lines[0]:
        reason = " ".join(str(inner).split())
        if reason and not any(reason in each for each in lines):
            lines.append(reason)
        inner = inner.__cause__ or inner.__context__
    return ": ".join((lines[0], lines[-1]) if len(lines) > 1 else lines)
