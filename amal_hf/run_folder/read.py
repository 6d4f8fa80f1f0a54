"""The rows of a run folder and `run.json`, which describes them, checked: no reader trusts what it finds there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, load_from_disk

from amal_hf import _checks
from amal_hf.run_folder.format import check_format

NONE = -1
"""Class index of a source (or a student) that names no class on a row."""
NAMED = ("label", "majority", "teacher", "probe", "student", "true_label")
"""Columns of classes."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "method": str, "config": dict, "data": dict, "versions": dict, "asserts": dict, "clean": dict,
    "seconds": (int, float), "meta_share": (int, float),
}  # fmt: skip


def read_rows(folder: Path) -> tuple[dict[str, Any], Dataset, dict[str, np.ndarray]]:
    """`run.json`, the training rows, and their columns as arrays: classes `[N]`, `weights` and `mask` `[N, K]`, `votes`
    `[N, M]`, `teachers` and `teachers_confidence` `[N, T]`, and `corrected` `[N, C]` where the rows have it.

    Raises:
        FileNotFoundError: no such folder, or one without `run.json` or `rows/`.
        ValueError: a part that is not what it should be, naming it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`run_dir`: expected a run folder, found nothing at {str(folder)!r}. Train first.")
    for part in ("run.json", "rows"):
        if not (folder / part).exists():
            raise FileNotFoundError(
                f"`run_dir`: expected a run folder with run.json and rows/, found no {part} in {str(folder)!r}. "
                "Pass the folder a finished run wrote."
            )
    about = json_object(folder / "run.json")
    check_format(about)
    _check_about(about)
    rows = _load(folder / "rows")
    table: pa.Table = rows.with_format("arrow")[:]
    missing = [c for c in ("row_id", "text", "label", "weights", "mask") if c not in rows.column_names]
    if missing or not len(rows):
        raise ValueError(
            f"`rows`: expected one row per training row with columns row_id, text, label, weights, mask; "
            f"found {len(rows)} rows and no {missing or 'data'}. Add what is missing."
        )
    _check_rows(table)
    sources, classes = len(about["sources"]), len(about["classes"])
    read = {name: classes_of(table, name, classes) for name in NAMED}
    read["weights"] = _of_width(table, "weights", sources, "source")
    read["mask"] = _of_width(table, "mask", sources, "source", bool)
    if np.isinf(read["weights"]).any():
        raise ValueError("`rows`: expected finite `weights`, found infinity. Write rows/ again.")
    read["votes"] = matrix(table, "votes", NONE, np.int64, classes)
    read |= answers_of(table, classes)
    if "corrected" in table.column_names:
        read["corrected"] = sure = _of_width(table, "corrected", classes, "class")
        if not ((sure >= 0).all() and np.allclose(sure.sum(1), 1, atol=1e-3)):
            raise ValueError("`rows`: expected probabilities in `corrected`, found other numbers. Write rows/ again.")
    return about, rows, read


def json_object(path: Path) -> dict[str, Any]:
    """What stands in a JSON file of a run folder; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(
            f"`{path.name}`: expected JSON, found a file that is not ({_checks.raised(error)}). Write it again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"`{path.name}`: expected a JSON object, found a {type(found).__name__}. Write it again.")
    return found


def answers_of(table: pa.Table, classes: int) -> dict[str, np.ndarray]:
    """The teachers' classes and confidence on rows, `[N, T]`."""
    named = matrix(table, "teachers", NONE, np.int64, classes)
    sure = matrix(table, "teachers_confidence", 0.0, np.float64)
    if named.shape != sure.shape:
        raise ValueError(
            f"`rows`: expected as many `teachers_confidence` as `teachers` per row, found {sure.shape[1]} and "
            f"{named.shape[1]}. Write both from the same run."
        )
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all():
        raise ValueError(
            f"`rows`: expected `teachers_confidence` from 0 to 1, found {sure.min():.3g} to {sure.max():.3g}. Write "
            "rows/ again."
        )
    return {"teachers": named, "teachers_confidence": sure}


def matrix(table: pa.Table, name: str, fill: Any, kind: Any, classes: int | None = None) -> np.ndarray:
    """A list column as a matrix `[N, width]`, of classes below `classes`; one without columns where it is absent."""
    if name not in table.column_names:
        return np.empty((len(table), 0), kind)
    column = table[name]
    inner = getattr(column.type, "value_type", None)
    fits = pa.types.is_boolean if kind is bool else pa.types.is_integer if kind is np.int64 else _is_number
    if inner is None or not (fits(inner) or pa.types.is_null(inner)):
        raise ValueError(
            f"`rows`: expected a list of {np.dtype(kind).name} in every row of {name!r}, found {column.type}. Write "
            "rows/ again."
        )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(int)
    if len({*lengths.tolist()}) > 1:
        raise ValueError(
            f"`rows`: expected as many {name!r} in every row, found {lengths.min()} to {lengths.max()}. Write rows/ "
            "again."
        )
    flat = pc.fill_null(pc.list_flatten(column).cast(pa.from_numpy_dtype(kind)), fill).to_numpy()
    found = flat.reshape(len(lengths), lengths.max(initial=0)).astype(kind)
    if classes is not None and found.max(initial=NONE) >= classes:
        raise _no_class(name, found.max(), classes)
    return found


def classes_of(table: pa.Table, name: str, classes: int) -> np.ndarray:
    """A column of classes `[N]`; -1 is none."""
    if name not in table.column_names:
        return np.full(len(table), NONE)
    if not (pa.types.is_integer(table[name].type) or pa.types.is_null(table[name].type)):
        raise ValueError(
            f"`rows`: expected indices of classes in {name!r}, found {table[name].type}. Write rows/ again."
        )
    found = pc.fill_null(table[name].cast(pa.int64()), NONE).to_numpy()  # a column of nothing has no type of its own
    if found.max(initial=NONE) >= classes:
        raise _no_class(name, found.max(), classes)
    return np.where(found < 0, NONE, found)


def _no_class(name: str, found: int, classes: int) -> ValueError:
    return ValueError(
        f"`rows`: expected classes 0 to {classes - 1} in {name!r}, as run.json names {classes}, found {found}. Write "
        "rows/ and run.json from the same run."
    )


def _of_width(table: pa.Table, name: str, width: int, of: str, kind: Any = np.float64) -> np.ndarray:
    found = matrix(table, name, False if kind is bool else np.nan, kind)
    if found.shape[1] != width:
        raise ValueError(
            f"`rows`: expected {width} {name} per row, one per {of} in run.json, found {found.shape[1]}. "
            "Write rows/ and run.json from the same run."
        )
    return found


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _check_rows(table: pa.Table) -> None:
    ids, text = table["row_id"], table["text"]
    if not pa.types.is_integer(ids.type) or ids.null_count or len(ids.unique()) < len(ids):
        raise ValueError(
            f"`rows`: expected a whole number of its own in `row_id` of every row, found {ids.type}, "
            f"{len(ids.unique())} of {len(ids)} different. Write rows/ again."
        )
    if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type) or pa.types.is_null(text.type)):
        raise ValueError(f"`rows`: expected texts in `text`, found {text.type}. Write rows/ again.")


def _load(path: Path) -> Dataset:
    try:
        rows = load_from_disk(str(path))
    except Exception as error:
        raise ValueError(
            f"`rows`: expected a folder written by `Dataset.save_to_disk`, found {str(path)!r} "
            f"({_checks.raised(error)}). Save it again."
        ) from error
    if not isinstance(rows, Dataset):
        raise ValueError(f"`rows`: expected one Dataset, found a {type(rows).__name__}. Save the training split alone.")
    return rows


def _check_about(about: dict[str, Any]) -> None:
    for name in ("sources", "classes"):
        found: Any = about.get(name)
        named = isinstance(found, list) and found and all(isinstance(each, str) and each for each in found)
        if not named or len({*found}) < len(found):
            raise ValueError(
                f"`run.json`: expected {name!r}, a list of names, each once, found {str(found)[:80]}. Write it again."
            )


def check_described(about: Mapping[str, Any]) -> None:
    """The parts of `run.json` that only a reader of all of it needs.

    Raises:
        ValueError: naming the part.
    """
    if about.get("primary") is not None and about["primary"] not in about["sources"]:
        raise ValueError(
            f"`run.json`: expected 'primary' to be one of the sources {about['sources']}, found {about['primary']!r}. "
            "Name one of them, or null for the first."
        )
    numbers = {"votes": 0, "right": 0}
    for name, kind in _KINDS.items():
        found = about.get(name)
        odd = found is not None and (not isinstance(found, kind) or isinstance(found, bool))
        if name == "data" and not odd:
            odd = not all(isinstance(size, int) for size in (found or {}).values())
        if name == "clean" and not odd:
            odd = not all(isinstance(c, dict) and {*numbers} <= {*c} and _counts(c) for c in (found or {}).values())
        if odd:
            raise ValueError(
                f"`run.json`: expected {name!r} as `amal-hf train` writes it, found {str(found)[:60]!r}. Write it "
                "again."
            )


def _counts(found: Mapping[str, Any]) -> bool:
    votes, right = found["votes"], found["right"]
    return isinstance(votes, int) and isinstance(right, int) and 0 <= right <= votes
