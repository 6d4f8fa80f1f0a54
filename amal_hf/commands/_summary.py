"""The last words of `amal-hf train`: labels before and after, metrics, files, and what to do next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_from_disk

ONE_CLASS, FAR = 0.99, 0.1
"""Share of rows on which a student that learned nothing names one class; points that are far below a teacher."""
WRITTEN = {
    "model.safetensors": "the student, with its tokenizer",
    "report.html": "open this: what was trusted where",
    "suspects.csv": "rows whose given label looks wrong, surest first",
    "rows": "every training row, what was said of it and what is made of it",
    "weights.safetensors": "the last weight of every row and source",
    "metrics.json": "the metrics above",
    "run.json": "settings, versions, classes and sources",
}


def summary(
    run_dir: str | Path, metrics: Mapping[str, Mapping[str, float]], parts: Mapping[str, Sized], page: str | Path
) -> str:
    """The block that a run ends with.

    Args:
        run_dir: the run folder, written.
        metrics: by split.
        parts: the rows of each split.
        page: the report.
    """
    run_dir = Path(run_dir)
    run = json.loads((run_dir / "run.json").read_text())
    classes = run["classes"]
    rows = load_from_disk(run_dir / "rows").with_format("numpy")
    lines = ["", *_labels(rows, classes), *_findings(rows, classes), *_epoch(run, len(rows)), ""]
    for split, numbers in metrics.items():
        rows = len(parts[split])
        lines.append(f"{split:10s}" + "  ".join(f"{k} {v:.4f}" for k, v in numbers.items()) + f"  of {rows} rows")
    lines += ["", f"run folder {run_dir}   report {page}"]
    lines += [f"  {name:22s}{what}" for name, what in WRITTEN.items() if (run_dir / name).exists()]
    lines += [
        "",
        "next",
        f"  amal-hf denoise {run_dir}    the training rows with corrected labels, as a data set and as Parquet",
        f"  amal-hf report {run_dir}     the report anew",
        "",
        "the model",
        "  from transformers import pipeline",
        f'  classify = pipeline("text-classification", {str(run_dir)!r})',
        '  classify("a text of yours")',
    ]
    return "\n".join(lines)


def _findings(rows: Any, classes: list[str]) -> list[str]:
    """A student that names one class, or is far below a teacher: measured by the corrected labels."""
    student, now = _column(rows, "student"), _column(rows, "corrected").argmax(-1)
    found, most = [], Counter(student.tolist()).most_common(1)[0]
    if most[1] >= ONE_CLASS * len(student) and (now == most[0]).mean() < ONE_CLASS - FAR:
        found.append(
            f"student   names {classes[most[0]]!r} on {most[1]} of {len(student)} rows: it has hardly learned."
        )
    teachers = _column(rows, "teachers") if "teachers" in rows.column_names else np.empty((len(student), 0))
    for said in teachers.T:
        there = said >= 0
        theirs, its = ((each == now)[there].mean() if there.any() else 0.0 for each in (said, student))
        if theirs - its > FAR:
            found.append(f"student   agrees with corrected labels on {its:.1%} of rows, a teacher on {theirs:.1%}.")
            break
    advice = "          Raise learning_rate (3.0e-4 for a small encoder) or num_train_epochs."
    return [*found, advice] if found else []


def _epoch(run: Mapping[str, Any], rows: int) -> list[str]:
    """How many rows an epoch has, where the clean rows are repeated among them."""
    seen = run.get("epoch", rows)
    return [f"epoch     {seen} rows: {rows} of train, and clean rows, repeated, {seen - rows}"] if seen > rows else []


def _labels(rows: Any, classes: list[str]) -> list[str]:
    """How often each class was given and is given now, and how many given labels look wrong."""
    given, now = _column(rows, "label"), _column(rows, "corrected").argmax(-1)
    after = Counter(now.tolist())
    if not (given >= 0).any():
        told = ", ".join(f"{name} {after[i]}" for i, name in enumerate(classes))
        return [f"labels    none were given; corrected: {told}"]
    before, labelled = Counter(given.tolist()), given >= 0
    wrong = int((given[labelled] != now[labelled]).sum())
    lines = [f"labels    {wrong} of {int(labelled.sum())} given labels look wrong ({wrong / labelled.sum():.1%})"]
    width = max(len("class"), *(len(name) for name in classes))
    lines.append(f"          {'class':{width}s}  before   after")
    return lines + [f"          {name:{width}s}  {before[i]:6d}  {after[i]:6d}" for i, name in enumerate(classes)]


def _column(rows: Any, name: str) -> np.ndarray:
    return np.asarray(rows[name][:])
