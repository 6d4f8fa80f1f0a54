"""Findings about a finished run, printed at its end where they hold; each has an entry in docs/faq.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_from_disk

GAP = 0.1  # of accuracy: less is no reason to look
ERRORS = 2.0  # standard errors of the difference: less may be chance


def findings(run_dir: str | Path, metrics: Mapping[str, Any], sources: Mapping[str, str | None]) -> list[str]:
    """One line each, of a run folder that is written.

    Args:
        metrics: by split, as in `metrics.json`.
        sources: name -> the column of `rows/` that it asserts, as in `run.json`.
    """
    split = next((name for name in ("test", "selection") if name in metrics), None)
    if split is None:
        return []
    scores = metrics[split]
    found = list(_one_class(split, scores))
    teachers = [name for name, column in sources.items() if str(column).startswith("teachers/")]
    return found + list(_below_teachers(Path(run_dir), teachers, split, scores))


def finding(text: str) -> str:
    """A finding as printed."""
    return f"look      {text}"


def _one_class(split: str, scores: Mapping[str, Any]) -> Iterator[str]:
    if scores["classes_named"] == 1 and scores["rows"] > 1:
        yield finding(
            f"the student names one and the same class on all {scores['rows']} {split} rows. Train for more steps, or "
            "raise `learning_rate`; see whether the clean rows have every class."
        )


def _below_teachers(run_dir: Path, teachers: list[str], split: str, scores: Mapping[str, Any]) -> Iterator[str]:
    """Teachers that are right far more often on the clean rows than the student on the measured rows."""
    if not teachers or not (run_dir / "clean").is_dir():
        return
    clean = load_from_disk(run_dir / "clean").with_format("numpy")
    labels, named = np.asarray(clean["label"][:]), np.asarray(clean["teachers"][:])
    own, rows = scores["accuracy"], scores["rows"]
    for name, classes in zip(teachers, named.T, strict=True):
        covered = classes >= 0
        if not covered.any():
            continue
        right, count = float((classes == labels)[covered].mean()), int(covered.sum())
        error = np.sqrt(right * (1 - right) / count + own * (1 - own) / rows)
        if right - own > max(GAP, ERRORS * error):
            yield finding(
                f"the student is far below its teacher: {name!r} is right on {right:.0%} of {count} clean rows, the "
                f"student on {own:.0%} of {rows} {split} rows. Train for more steps, or take a larger student."
            )
