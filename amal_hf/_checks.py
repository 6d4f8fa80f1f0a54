"""Every user-facing check and its message, in one place: argument, expected, found, what to do."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def one_of(argument: str, found: Any, allowed: Collection[Any]) -> None:
    """`found` is one of `allowed`."""
    if not isinstance(found, (str, int)) or found not in allowed:
        raise ValueError(
            f"`{argument}`: expected one of {sorted(map(str, allowed))}, found {found!r}. Choose one of these."
        )


def positive(argument: str, found: Any, *, zero: bool = False) -> None:
    """`found` is positive (or zero, where allowed) and finite."""
    if not _is_number(found) or not (0 < found < float("inf") or (zero and found == 0)):
        kind = "non-negative" if zero else "positive"
        raise ValueError(f"`{argument}`: expected a {kind} number, found {found!r}. Set it to one, or leave it out.")


def between(argument: str, found: float, low: float, high: float) -> None:
    """low ≤ found ≤ high."""
    if not _is_number(found) or not low <= found <= high:
        raise ValueError(
            f"`{argument}`: expected a number from {low} to {high}, found {found!r}. Set it to one, or leave it out."
        )


def whole(argument: str, found: Any) -> None:
    """`found` counts something."""
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"`{argument}`: expected a whole number, found {found!r}. Set it to one, or leave it out.")


def finite(argument: str, found: Sequence[Any]) -> None:
    """A list of non-negative numbers."""
    if not all(_is_number(each) and 0 <= each < float("inf") for each in found):
        raise ValueError(f"`{argument}`: expected non-negative numbers, found {list(found)!r}. Give one per weight.")


def of_type(argument: str, found: Any, kind: type | tuple[type, ...], expected: str, cure: str) -> None:
    """Refuses a `found` that is not of this `kind`; `expected` describes it, `cure` names the way to one."""
    if not isinstance(found, kind):
        raise ValueError(f"`{argument}`: expected {expected}, found {type(found).__name__} {str(found)[:40]!r}. {cure}")


def raised(error: BaseException) -> str:
    """What code of the user's raised, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def few(names: Sequence[str]) -> str:
    """Names in a list; of many, the first ones and how many more there are."""
    return str(list(names)) if len(names) <= 12 else f"{[*names[:10]]} and {len(names) - 10} more"


def writable(argument: str, folder: str | Path) -> None:
    """A folder that can be written, or made.

    Raises:
        OSError: it is a file, or where it would stand nothing may be written.
    """
    path = Path(folder).absolute()
    effective = os.access in os.supports_effective_ids
    try:
        there = next(p for p in (path, *path.parents) if p.exists())
        what = "" if there.is_dir() else "is not a folder"
        allowed = os.access(there, os.W_OK | os.X_OK, effective_ids=effective)
    except PermissionError:  # a folder above it cannot even be looked into
        there, what, allowed = path, "", False
    if what or not allowed:
        what = what or "may not be written"
        raise OSError(
            f"`{argument}`: expected a folder to write to, found that {str(there)!r} {what}. Name another folder, or "
            "change its permissions."
        )


def _is_number(found: Any) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool)


def columns(argument: str, names: Collection[str], needed: Mapping[str, Sequence[str]]) -> None:
    """Every column a source needs is there. `needed`: source -> its columns."""
    for source, wanted in needed.items():
        missing = [c for c in wanted if c not in names]
        if missing:
            raise ValueError(
                f"`{argument}`: source {source!r} reads column(s) {missing}, found only {few(sorted(names))}. "
                "Add the column, or name another one in the loss."
            )


def start_values(found: Sequence[float], sources: Sequence[str]) -> None:
    """One start value for all, two (the primary source's and the others'), or one per source."""
    if len(found) not in (1, 2, len(sources)):
        raise ValueError(
            f"`mixing_start`: expected 1 number, 2 ([primary, others]) or {len(sources)} (one per source "
            f"{list(sources)}), found {len(found)}. Give as many."
        )


def classes(where: str, found: Any, num_classes: int) -> None:
    """Classes lie in 0..C-1. `found`: the lowest and highest, or the type of what are no integers."""
    if not (isinstance(found, tuple) and found[0] >= 0 and found[1] < num_classes):
        seen = f"{found[0]} to {found[1]}" if isinstance(found, tuple) else f"values of type {found}"
        raise ValueError(
            f"{where}: expected classes 0 to {num_classes - 1}, found {seen}. Pass answers that are names as "
            "`Annotators([...])`, mark a missing label with None, and check the model's `num_labels`."
        )


def numbers(where: str, kind: Any, whole: bool = False) -> None:
    """A column of lists of numbers. `kind`: its Arrow type."""
    inner = str(getattr(kind, "value_type", ""))
    if not inner.startswith(("int", "uint") if whole else ("int", "uint", "float", "double", "halffloat")):
        raise ValueError(
            f"{where}: expected a list of {'whole ' * whole}numbers in every row, found values of type {kind}. "
            "Convert the column, e.g. with `cast_column`."
        )


def booleans(where: str, entries: Any) -> None:
    """A column (Arrow) of true and false, or of 1 and 0; what is missing is false."""
    kind, found = str(entries.type), {*entries.unique().to_pylist()} - {None}
    if kind != "null" and not (kind.startswith(("bool", "int", "uint", "float", "double")) and found <= {0, 1}):
        odd = next((value for value in found if kind == "string" or value not in (0, 1)), kind)
        raise ValueError(
            f"{where}: expected true or false on every row, found {str(odd)[:40]!r} ({kind}). Write booleans, or 1 and "
            "0; a missing one is false."
        )


def row_weights(where: str, entries: Any) -> None:
    """A column (Arrow) of finite numbers that are not negative, one on every row."""
    kind, found = str(entries.type), entries.to_pandas().to_numpy()
    if not kind.startswith(("int", "uint", "float", "double", "halffloat")):
        raise ValueError(f"{where}: expected a number as every row's weight, found values of type {kind}. Convert it.")
    wrong = [i for i, each in enumerate(found.tolist()) if not 0 <= each < float("inf")]
    if wrong:
        raise ValueError(
            f"{where}: expected a finite weight of at least 0 on every row, found {found[wrong[0]]} on row {wrong[0]} "
            f"and {len(wrong) - 1} more. Give every row one; 0 leaves a row out."
        )


def within(where: str, low: float, high: float, least: float, most: float) -> None:
    """All numbers of a column lie between two, or nearly."""
    if low < least - 1e-3 or high > most + 1e-3:
        seen = "log-probabilities, at most 0" if most == 0 else "finite numbers"
        seen = "probabilities from 0 to 1" if most == 1 else seen
        raise ValueError(
            f"{where}: expected {seen}, found {low:.4g} to {high:.4g}. Mark what is missing with None, and give logits "
            "to Distillation()."
        )


def equal_width(where: str, low: int, high: int, expected: int | None = None) -> None:
    """Lists of every row are equally long, and as long as expected."""
    wanted = high if expected is None else expected
    if not low == high == wanted:
        seen = f"{low}" if low == high else f"{low} to {high}"
        classes = " and check the model's `num_labels`" if expected is not None else ""
        raise ValueError(
            f"{where}: expected {wanted} entries in every row, found {seen}. Give every row as many{classes}."
        )


def votes(argument: str, low: int, high: int, num_classes: int) -> None:
    """Votes lie in -1..C-1."""
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"`{argument}`: expected votes from -1 (abstain) to {num_classes - 1}, found {low} to {high}. "
            "Check the order of classes, or the model's `num_labels`."
        )
