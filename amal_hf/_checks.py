"""Every user-facing check and its message, in one place: argument, expected, found, what to do (floor 0)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def one_of(argument: str, found: Any, allowed: Collection[Any]) -> None:
    """`found` is one of `allowed`."""
    if found not in allowed:
        raise ValueError(f"`{argument}`: expected one of {sorted(map(str, allowed))}, found {found!r}.")


def positive(argument: str, found: float, *, zero: bool = False) -> None:
    """`found` is positive (or zero, where allowed) and finite."""
    if not (0 < found < float("inf") or (zero and found == 0)):
        raise ValueError(f"`{argument}`: expected a {'non-negative' if zero else 'positive'} number, found {found!r}.")


def between(argument: str, found: float, low: float, high: float) -> None:
    """low ≤ found ≤ high."""
    if not low <= found <= high:
        raise ValueError(f"`{argument}`: expected a number from {low} to {high}, found {found!r}.")


def columns(argument: str, names: Collection[str], needed: Mapping[str, Sequence[str]]) -> None:
    """Every column a source needs is there. `needed`: source -> its columns."""
    for source, wanted in needed.items():
        missing = [c for c in wanted if c not in names]
        if missing:
            raise ValueError(
                f"`{argument}`: source {source!r} reads column(s) {missing}, found only {sorted(names)}. "
                f"Add the column, or name another one in the loss."
            )


def start_values(found: Sequence[float], sources: Sequence[str]) -> None:
    """One start value for all, two (the primary source's and the others'), or one per source."""
    if len(found) not in (1, 2, len(sources)):
        raise ValueError(
            f"`mixing_start`: expected 1 number, 2 ([primary, others]) or {len(sources)} (one per source "
            f"{list(sources)}), found {len(found)}."
        )


def votes(argument: str, low: int, high: int, num_classes: int) -> None:
    """Votes lie in -1..C-1."""
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"`{argument}`: expected votes from -1 (abstain) to {num_classes - 1}, found {low} to {high}. "
            "Check the order of classes, or the model's `num_labels`."
        )
