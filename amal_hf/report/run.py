"""A run folder, read and checked once: what the page needs, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk

from amal_hf import _checks
from amal_hf.run_folder.read import NAMED, NONE, answers_of, check_described, classes_of, json_object, read_rows


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
    about, rows, read = read_rows(folder)
    check_described(about)
    mask = read["mask"] & np.isfinite(read["weights"])
    given, width = about.get("asserts") or {}, read["votes"].shape[1]
    asserts = {**_usual(about["sources"], about.get("primary"), width), **given}
    places = _places(read)
    if odd := {k: v for k, v in given.items() if k not in about["sources"] or not (v is None or v in places)}:
        raise ValueError(
            f"`run.json`: expected sources and columns of the rows in 'asserts', found {str(odd)[:60]}. Write rows/ "
            "and run.json from the same run."
        )
    return Run(
        about=about,
        history=_check_history(json_object(folder / "history.json")),
        metrics=_check_metrics(json_object(folder / "metrics.json")),
        rows=rows,
        weights=np.where(mask, read["weights"], np.nan),
        covers=read["mask"],
        mask=mask,
        asserted=np.where(mask, _asserted(about["sources"], asserts, places, len(rows)), NONE),
        votes=read["votes"],
        teachers=read["teachers"],
        teachers_confidence=read["teachers_confidence"],
        clean=_clean(folder / "clean", read["teachers"].shape[1], len(about["classes"])),
        asserts=asserts,
        corrected=read.get("corrected"),
        columns={name: read[name] for name in NAMED},
    )


def _clean(path: Path, width: int, classes: int) -> dict[str, np.ndarray]:
    """The teachers' classes on the clean rows; nothing where they were not kept, or of another number of teachers."""
    if not path.is_dir() or not width:
        return {}
    try:
        table: pa.Table = load_from_disk(str(path)).with_format("arrow")[:]
    except Exception as error:
        raise ValueError(
            f"`clean`: expected a folder written by `Dataset.save_to_disk`, found {str(path)!r} "
            f"({_checks.raised(error)}). Save it again, or remove it."
        ) from error
    answers = answers_of(table, classes)
    return {"label": classes_of(table, "label", classes), **answers} if answers["teachers"].shape[1] == width else {}


def _check_history(history: dict[str, Any]) -> dict[str, Any]:
    steps = history.get("step", [])
    lines = {("step", ""): steps}
    for kind in ("mean", "q10", "q90"):
        of_kind = history.get(kind, {})
        lines |= (
            {(kind, s): line for s, line in of_kind.items()} if isinstance(of_kind, dict) else {(kind, ""): of_kind}
        )
    for (kind, source), line in lines.items():
        which = f"{kind!r}{f' of {source!r}' * bool(source)}"
        if not isinstance(line, list) or not all(map(_is_number, line)) or not (source or kind == "step"):
            raise ValueError(f"`history.json`: expected numbers in {which}, found {str(line)[:60]!r}. Write it again.")
        if len(line) != len(steps):
            raise ValueError(f"`history.json`: expected {len(steps)} in {which}, found {len(line)}. Write it again.")
    return history


def _check_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    for split in ("selection", "test"):
        scores = metrics.get(split)
        if scores is not None and not (isinstance(scores, dict) and all(map(_is_number, scores.values()))):
            raise ValueError(
                f"`metrics.json`: expected numbers by name in {split!r}, found {str(scores)[:60]!r}. Write it again."
            )
    methods = metrics.get("comparison") or []
    if not isinstance(methods, list) or not all(isinstance(method, dict) for method in methods):
        raise ValueError(
            f"`metrics.json`: expected a list of methods in 'comparison', found {str(methods)[:60]!r}. Write it again."
        )
    return metrics


def _is_number(found: Any) -> bool:
    return found is None or (isinstance(found, (int, float)) and not isinstance(found, bool))


def _places(read: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Classes `[N]` by where `asserts` finds them: a column, `votes/j` or `teachers/j`."""
    places = {name: read[name] for name in NAMED}
    for name in ("votes", "teachers"):
        places |= {f"{name}/{j}": read[name][:, j] for j in range(read[name].shape[1])}
    return places


def _asserted(
    sources: Sequence[str], asserts: Mapping[str, str | None], places: Mapping[str, np.ndarray], rows: int
) -> np.ndarray:
    """The class each source asserts, `[N, K]`, before the mask."""
    abstains = np.full(rows, NONE)
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
