"""The teachers' table: where each is right, and how far it was trusted; and the rows where it contradicts a label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amal_hf._files import write_own
from amal_hf.report.functions import interval, rounded, write_csv
from amal_hf.report.run import NONE, Run, read_run
from amal_hf.report.summary import mean

TEACHERS, DISAGREEMENTS = "teacher_table.csv", "disagreements.jsonl"
BINS = 4
"""Parts of the training rows, equally many, by how sure the teacher is."""


@dataclass(frozen=True)
class TeacherTrust:
    """A teacher on a part of the rows; means and shares are NaN where there is nothing to count.

    Args:
        teacher: the source.
        part: "overall"; "says", the rows on which it names a class; "confidence", those on which it is so sure.
        value: the class, or the span of its confidence (its largest probability).
        rows: training rows.
        trust: mean λ there.
        clean_rows: clean rows of this part.
        clean_accuracy, clean_low, clean_high: how often it is right there, and the 95 % Wilson interval.
    """

    teacher: str
    part: str
    value: str
    rows: int
    trust: float
    clean_rows: int
    clean_accuracy: float
    clean_low: float
    clean_high: float


def teachers_of(run: Run) -> dict[str, tuple[int, int]]:
    """Teachers of a run: source -> its column among the K sources, and among the T teachers."""
    places = {source: str(run.asserts.get(source)).split("/") for source in run.sources}
    width = run.teachers.shape[1]
    return {
        source: (k, int(places[source][1]))
        for k, source in enumerate(run.sources)
        if places[source][0] == "teachers" and int(places[source][1]) < width
    }


def judge_teachers(run: Run) -> list[TeacherTrust]:
    """Every teacher: over all rows, by the class that it names, and by quarters of its confidence."""
    return [line for name, (source, column) in teachers_of(run).items() for line in _judge(run, name, source, column)]


def _judge(run: Run, name: str, source: int, column: int) -> Iterator[TeacherTrust]:
    named_classes, sure = run.teachers[:, column], run.teachers_confidence[:, column]
    clean = run.clean["teachers"][:, column] if run.clean else np.empty(0, int)
    clean_sure = run.clean["teachers_confidence"][:, column] if run.clean else np.empty(0)
    right = clean == run.clean["label"] if run.clean else np.empty(0, bool)

    def line(part: str, value: str, rows: np.ndarray, tried: np.ndarray) -> TeacherTrust:
        weights, hits = run.weights[rows, source], int(right[tried].sum())
        low, high = interval(hits, int(tried.sum()))
        return TeacherTrust(
            teacher=name,
            part=part,
            value=value,
            rows=int(rows.sum()),
            trust=mean(weights[np.isfinite(weights)]),
            clean_rows=int(tried.sum()),
            clean_accuracy=mean(right[tried]),
            clean_low=low,
            clean_high=high,
        )

    yield line("overall", "", named_classes != NONE, clean != NONE)
    for c, named in enumerate(run.classes):
        if (named_classes == c).any() or (clean == c).any():
            yield line("says", named, named_classes == c, clean == c)
    if not (named_classes != NONE).any():
        return
    ends = np.quantile(sure[named_classes != NONE], np.linspace(0, 1, BINS + 1))
    part, clean_part = (np.searchsorted(ends[1:-1], values, "right") for values in (sure, clean_sure))
    for i in range(BINS):
        rows, tried = (named_classes != NONE) & (part == i), (clean != NONE) & (clean_part == i)
        if rows.any() or tried.any():  # a teacher that is always as sure has no four parts
            yield line("confidence", f"{ends[i]:.3f} to {ends[i + 1]:.3f}", rows, tried)


def disagreements(run: Run) -> np.ndarray:
    """Positions of the rows on which a teacher names another class than the label, the surest teacher first."""
    columns = [column for _, column in teachers_of(run).values()]
    label = run.columns["label"][:, None]
    against = (run.teachers[:, columns] != label) & (run.teachers[:, columns] != NONE) & (label != NONE)
    sure = np.where(against, run.teachers_confidence[:, columns], 0.0).max(1, initial=0.0)
    found = np.flatnonzero(against.any(1))
    return found[np.argsort(-sure[found], kind="stable")]


def disagreement(run: Run, i: int) -> dict[str, Any]:
    """One such row: label, teachers' classes, the most trusted source, and the student's class."""
    row, weights = run.rows[i], run.weights[i]
    trusts = {name: round(float(w), 4) for name, w in zip(run.sources, weights, strict=True) if np.isfinite(w)}
    entry = {
        "row_id": row["row_id"],
        "text": row["text"],
        "label": run.class_name(int(run.columns["label"][i])),
        "teachers": {
            name: {
                "class": run.class_name(int(run.teachers[i, column])),
                "confidence": round(float(run.teachers_confidence[i, column]), 4),
            }
            for name, (_, column) in teachers_of(run).items()
            if run.teachers[i, column] != NONE
        },
        "weights": trusts,
        "believed": max(trusts, key=lambda name: trusts[name]) if trusts else None,
        "student": run.class_name(int(run.columns["student"][i])),
        "student_confidence": row.get("student_confidence"),
    }
    truth = run.class_name(int(run.columns["true_label"][i]))
    return entry if truth is None else {**entry, "true_label": truth}


def write_teacher_table(run_dir: str | Path) -> Path | None:
    """Write `teacher_table.csv`, a line per teacher and part of the rows, and `disagreements.jsonl`.

    Args:
        run_dir: a run folder; the format stands in `amal_hf.report`.

    Returns:
        the table; None, and nothing is written, where the run has no teachers.

    Raises:
        FileNotFoundError, ValueError: as `write_report`.
    """
    run = read_run(run_dir)
    lines = judge_teachers(run)
    if not lines:
        return None
    write_own(Path(run_dir) / DISAGREEMENTS, lambda path: _write_rows(path, run))
    table = [{k: rounded(v) if isinstance(v, float) else v for k, v in vars(line).items()} for line in lines]
    return write_own(Path(run_dir) / TEACHERS, lambda path: write_csv(path, table))


def _write_rows(path: Path, run: Run) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in disagreements(run):
            file.write(json.dumps(disagreement(run, int(i)), ensure_ascii=False) + "\n")
