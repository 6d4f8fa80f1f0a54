"""Which labeling function each voting process is at: one that does not end is named, and stops with the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import Value, active_children
from multiprocessing.sharedctypes import RawArray
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

PATIENCE = 30.0
"""Seconds after which a function that has not answered is named."""


class Places:
    """Function and rows `(function, first row, last row + 1)` of each voting process, in memory that all share.

    Args:
        processes: how many vote.
    """

    def __init__(self, processes: int) -> None:
        self._at, self._taken, self._own = RawArray("q", [-1] * 3 * processes), Value("i", 0), 0

    def claim(self) -> None:
        """Once in every process: the place that it notes where it is in."""
        with self._taken.get_lock():
            self._own, self._taken.value = 3 * self._taken.value, self._taken.value + 1

    def note(self, function: int, span: Sequence[int]) -> None:
        """This process is at a function on rows of a span; -1: at none."""
        self._at[self._own : self._own + 3] = [function, *((span[0], span[-1] + 1) if len(span) else (0, 0))]

    def read(self) -> set[tuple[int, ...]]:
        """Where the processes are that are at a function."""
        at = list(self._at)
        return {tuple(at[i : i + 3]) for i in range(0, len(at), 3) if at[i] >= 0}


class Watch:
    """Waits for votes, and names functions that have not answered for `PATIENCE` seconds, each once.

    Args:
        places: where the voting processes are.
        functions: names of the functions.
        name: what messages call the data set.
    """

    def __init__(self, places: Places, functions: Sequence[str], name: str) -> None:
        self.places, self.functions, self.name = places, functions, name
        self._named: set[tuple[int, ...]] = set()

    def result(self, future: Future[Any]) -> Any:
        """The future's result, however long it takes."""
        before: set[tuple[int, ...]] = set()
        while True:
            try:
                return future.result(timeout=PATIENCE)
            except TimeoutError:
                if future.done():
                    raise
            now = self.places.read()
            for function, first, stop in sorted((now & before) - self._named):
                logger.warning(
                    f"`functions`: labeling function {self.functions[function]!r} has been at rows {first} to "
                    f"{stop - 1} of {self.name} for more than {PATIENCE:.0f} s. Wait, or stop with Ctrl-C and mend it."
                )
            self._named |= now & before
            before = now


@contextmanager
def ended() -> Iterator[None]:
    """Processes that were started inside the block end with it where it is left by an error or by Ctrl-C."""
    before = {*active_children()}
    try:
        yield
    except BaseException:
        for process in {*active_children()} - before:
            process.kill()
        raise
