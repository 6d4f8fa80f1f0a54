"""A run folder, read and checked once: what the page needs, as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, load_from_disk

from amal_hf.run_folder.format import check_format

NONE = -1
"""Class index of a source (or a student) that names no class on a row."""
_NAMED = ("label", "majority", "teacher", "probe", "student", "true_label")


@dataclass(frozen=True)
class Run:
    """Everything the report reads, in shapes.

    Args:
        about: `run.json`.
        history, metrics: `history.json` and `metrics.json`; empty if absent.
        rows: the saved training rows, N of them; texts are read from here, a few at a time.
        weights: λ, `[N, K]`; NaN where the mask is False.
        covers: True where the source covers the row, `[N, K]`.
        mask: True where it does and the row was visited, `[N, K]`.
        asserted: the class each source asserts, `[N, K]`; -1 where it names none.
        votes: one class per labeling function, `[N, M]`; -1 abstains.
        asserts: source -> the column that holds what it asserts, `votes/j` for the j-th labeling function, `teachers/j`
            for the j-th teacher.
        teachers, teachers_confidence: the class that each teacher names, and its probability, `[N, T]`; -1 abstains.
        clean: `label` `[M]`, `teachers` and `teachers_confidence` `[M, T]` of the clean rows; empty if absent.
        corrected: probabilities of the corrected label, `[N, C]`; None if absent.
        columns: name -> classes `[N]` for label, majority, teacher, probe, student, true_label; -1 is none.
    """

    about: dict[str, Any]
    history: dict[str, Any]
    metrics: dict[str, Any]
    rows: Dataset
    weights: np.ndarray
    covers: np.ndarray
    mask: np.ndarray
    asserted: np.ndarray
    votes: np.ndarray
    teachers: np.ndarray
    teachers_confidence: np.ndarray
    clean: dict[str, np.ndarray]
    asserts: dict[str, str | None]
    corrected: np.ndarray | None
    columns: dict[str, np.ndarray]

    @property
    def sources(self) -> list[str]:
        """Names of the K sources."""
        return self.about["sources"]

    @property
    def classes(self) -> list[str]:
        """Names of the C classes."""
        return self.about["classes"]

    @property
    def primary(self) -> int:
        """Column of the source whose least trusted rows are listed."""
        return self.sources.index(self.about["primary"]) if self.about.get("primary") is not None else 0

    def class_name(self, index: int) -> str | None:
        """Name of a class; None for "no class"."""
        if index < 0:
            return None
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def read_run(run_dir: str | Path) -> Run:
    """Read and check a run folder; the format stands in `amal_hf.report`.

    Raises:
        FileNotFoundError: no such folder, or one without `run.json` or `rows/`.
        ValueError: a file that is not what it should be; the message says which part.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"`run_dir`: expected a run folder, found nothing at {str(folder)!r}. Train first.")
    for part in ("run.json", "rows"):
        if not (folder / part).exists():
            raise FileNotFoundError(
                f"`run_dir`: expected a run folder with run.json and rows/, found no {part} in {str(folder)!r}. "
                "Pass the folder a finished run wrote."
            )
    about = _object(folder / "run.json")
    _check_about(about)
    rows = _load_rows(folder / "rows")
    table: pa.Table = rows.with_format("arrow")[:]
    width = len(about["sources"])
    weights = _matrix(table["weights"], np.nan, np.float64)
    mask = _matrix(table["mask"], False, bool)
    for name, matrix in (("weights", weights), ("mask", mask)):
        if matrix.shape[1] != width:
            raise ValueError(
                f"`rows`: expected {width} {name} per row, one per source in run.json, found {matrix.shape[1]}. "
                "Write rows/ and run.json from the same run."
            )
    covers, mask = mask, mask & np.isfinite(weights)
    votes = _wide(table, "votes", NONE, np.int64)
    answers = _answers(table)
    columns = {name: _classes(table, name) for name in _NAMED}
    asserts = {**_usual(about["sources"], about.get("primary"), votes.shape[1]), **(about.get("asserts") or {})}
    return Run(
        about=about,
        history=_check_history(_object(folder / "history.json")),
        metrics=_object(folder / "metrics.json"),
        rows=rows,
        weights=np.where(mask, weights, np.nan),
        covers=covers,
        mask=mask,
        asserted=np.where(mask, _asserted(about["sources"], asserts, columns, votes, answers["teachers"]), NONE),
        votes=votes,
        **answers,
        clean=_clean(folder / "clean", answers["teachers"].shape[1]),
        asserts=asserts,
        corrected=_matrix(table["corrected"], 0.0, np.float64) if "corrected" in table.column_names else None,
        columns=columns,
    )


def _answers(table: pa.Table) -> dict[str, np.ndarray]:
    """The teachers' classes and confidence on rows, `[N, T]`."""
    asserted, sure = _wide(table, "teachers", NONE, np.int64), _wide(table, "teachers_confidence", 0.0, np.float64)
    if asserted.shape != sure.shape:
        raise ValueError(
            f"`rows`: expected as many `teachers_confidence` as `teachers` per row, found {sure.shape[1]} and "
            f"{asserted.shape[1]}. Write both from the same run."
        )
    return {"teachers": asserted, "teachers_confidence": sure}


def _clean(path: Path, width: int) -> dict[str, np.ndarray]:
    """The teachers' classes on the clean rows; nothing where they were not kept, or of another number of teachers."""
    if not path.is_dir() or not width:
        return {}
    table: pa.Table = load_from_disk(str(path)).with_format("arrow")[:]
    answers = _answers(table)
    return {"label": _classes(table, "label"), **answers} if answers["teachers"].shape[1] == width else {}


def _wide(table: pa.Table, name: str, fill: Any, kind: Any) -> np.ndarray:
    """A list column as a matrix; one without columns where it is absent."""
    return _matrix(table[name], fill, kind) if name in table.column_names else np.empty((len(table), 0), kind)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(
            f"`{path.name}`: expected JSON, found a file that is not ({error}). Write it again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"`{path.name}`: expected a JSON object, found a {type(found).__name__}. Write it again.")
    return found


def _check_about(about: dict[str, Any]) -> None:
    check_format(about)
    for name in ("sources", "classes"):
        found = about.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
            raise ValueError(f"`run.json`: expected {name!r}, a list of names, found {found!r}. Add it.")
    if about.get("primary") not in (None, *about["sources"]):
        raise ValueError(
            f"`run.json`: expected 'primary' to be one of the sources {about['sources']}, found {about['primary']!r}. "
            "Name one of them, or null for the first."
        )


def _check_history(history: dict[str, Any]) -> dict[str, Any]:
    steps = len(history.get("step", ()))
    for kind in ("mean", "q10", "q90"):
        for source, line in history.get(kind, {}).items():
            if len(line) != steps:
                raise ValueError(
                    f"`history.json`: expected {steps} in {kind!r} of {source!r}, found {len(line)}. Write it again."
                )
    return history


def _load_rows(path: Path) -> Dataset:
    try:
        rows = load_from_disk(str(path))
    except Exception as error:
        raise ValueError(
            f"`rows`: expected a folder written by `Dataset.save_to_disk`, found {str(path)!r} ({error}). "
            "Save it again."
        ) from error
    if not isinstance(rows, Dataset):
        raise ValueError(f"`rows`: expected one Dataset, found a {type(rows).__name__}. Save the training split alone.")
    missing = [c for c in ("row_id", "text", "label", "weights", "mask") if c not in rows.column_names]
    if missing or not len(rows):
        raise ValueError(
            f"`rows`: expected one row per training row with columns row_id, text, label, weights, mask; "
            f"found {len(rows)} rows and no {missing or 'data'}. Add what is missing."
        )
    return rows


def _matrix(column: pa.ChunkedArray, fill: Any, kind: Any) -> np.ndarray:
    """A list column as a matrix; short rows are filled up."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(int)
    flat = pc.list_flatten(column)
    flat = flat.to_numpy() if flat.null_count == 0 else np.array([fill if v is None else v for v in flat.to_pylist()])
    matrix = np.full((len(lengths), lengths.max(initial=0)), fill, dtype=kind)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = flat
    return matrix


def _classes(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), NONE)
    found = pc.fill_null(table[name].cast(pa.int64()), NONE).to_numpy()  # a column of nothing has no type of its own
    return np.where(found < 0, NONE, found)


def _asserted(
    sources: Sequence[str],
    asserts: Mapping[str, str | None],
    columns: Mapping[str, np.ndarray],
    votes: np.ndarray,
    teachers: np.ndarray,
) -> np.ndarray:
    """The class each source asserts, `[N, K]`, before the mask."""
    places = {**columns}
    for name, matrix in (("votes", votes), ("teachers", teachers)):
        places |= {f"{name}/{j}": matrix[:, j] for j in range(matrix.shape[1])}
    abstains = np.full(len(votes), NONE)
    return np.stack([places.get(asserts.get(name) or "", abstains) for name in sources], axis=1)


def _usual(sources: Sequence[str], primary: str | None, width: int) -> dict[str, str | None]:
    blocks: dict[str, list[str]] = {}
    for name in sources:
        if "/" in name:
            blocks.setdefault(name.split("/")[0], []).append(name)
    blocks["all of them"] = [name for block in blocks.values() for name in block]
    rules = next((block for block in blocks.values() if len(block) == width), [])
    usual: dict[str, str | None] = {name: "label" for name in (primary, "label") if name is not None}
    usual |= {"teacher": "teacher", **{name: f"votes/{j}" for j, name in enumerate(rules)}}
    return usual
