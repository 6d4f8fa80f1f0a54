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


def classes(where: str, found: Any, num_classes: int) -> None:
    """Classes lie in 0..C-1. `found`: the lowest and highest, or the type of what are no integers."""
    if not (isinstance(found, tuple) and found[0] >= 0 and found[1] < num_classes):
        told = f"{found[0]} to {found[1]}" if isinstance(found, tuple) else f"values of type {found}"
        raise ValueError(
            f"{where}: expected classes 0 to {num_classes - 1}, found {told}. Encode names with "
            "`class_encode_column`, mark a missing label with None, and check the model's `num_labels`."
        )


def equal_width(where: str, low: int, high: int, expected: int | None = None) -> None:
    """Lists of every row are equally long, and as long as expected."""
    wanted = high if expected is None else expected
    if not low == high == wanted:
        told = f"{low}" if low == high else f"{low} to {high}"
        raise ValueError(f"{where}: expected {wanted} entries in every row, found {told}.")


def votes(argument: str, low: int, high: int, num_classes: int) -> None:
    """Votes lie in -1..C-1."""
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"`{argument}`: expected votes from -1 (abstain) to {num_classes - 1}, found {low} to {high}. "
            "Check the order of classes, or the model's `num_labels`."
        )
