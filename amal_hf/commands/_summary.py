"""The last words of `amal-hf train`: labels before and after, metrics, files, and what to do next."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_from_disk

from amal_hf.commands._findings import findings

WRITTEN = {
    "model.safetensors": "the student, with its tokenizer",
    "report.html": "open this: what was trusted where",
    "README.md": "the model card: scores, classes, data, sources; name a licence",
    "suspects.csv": "rows whose given label looks wrong, surest first",
    "rows": "every training row: its sources, and the class that is made of them",
    "trust_table.csv": "each labeling function or annotator, the one to mend first on top",
    "teacher_table.csv": "each teacher: where it is right",
    "weights.safetensors": "the last weight of every row and source",
    "metrics.json": "the metrics above",
    "run.json": "settings, versions, classes and sources",
}


def summary(run_dir: str | Path, metrics: Mapping[str, Any], parts: Mapping[str, Sized], page: str | Path) -> str:
    """The block that a run ends with.

    Args:
        run_dir: the run folder, written.
        metrics: by split, and "baseline", as in `metrics.json`.
        parts: the rows of each split.
        page: the report.
    """
    run_dir = Path(run_dir)
    quoted = shlex.quote(str(run_dir))
    run = json.loads((run_dir / "run.json").read_text())
    lines = ["", *_labels(run_dir, run["classes"]), ""]
    lines += _scores(metrics, parts)
    lines += findings(run_dir, metrics, run["asserts"])
    lines += ["", f"run folder {run_dir}   report {page}"]
    lines += [
        f"  {name:22s}{what}"
        for name, what in WRITTEN.items()
        if (run_dir / name).exists() and (metrics or name != "metrics.json")
    ]
    lines += [
        "",
        "next",
        f"  amal-hf denoise {quoted}    the training rows with corrected labels, as a data set and as Parquet",
        f"  amal-hf report {quoted}     the report anew",
        "",
        "the model",
        "  from transformers import pipeline",
        f'  classify = pipeline("text-classification", {str(run_dir)!r})',
        '  classify("a text of yours")',
    ]
    return "\n".join(lines)


def _scores(metrics: Mapping[str, Any], parts: Mapping[str, Sized]) -> list[str]:
    """A line for each split that was measured, the baseline's under it."""
    lines, baseline = [], metrics.get("baseline") or {}
    for split in ("selection", "test"):
        if split in metrics:
            lines.append(f"{split:10s}{_numbers(metrics[split])}  of {len(parts[split])} rows")
        if split in baseline:
            rows, what = baseline["rows"], baseline["trained_on"]
            lines.append(
                f"{'baseline':10s}{_numbers(baseline[split])}  plain Trainer, {what} and clean rows, {rows} rows"
            )
    return lines or ["measured   nothing: there are no test or selection rows with a label"]


def _numbers(scores: Mapping[str, float]) -> str:
    shown = ("accuracy", "macro_f1", "ece", "loss")
    return "  ".join(f"{key} {scores[key]:.4f}" for key in shown if key in scores)


def _labels(run_dir: Path, classes: list[str]) -> list[str]:
    """How often each class was given and is given now, and how many given labels look wrong."""
    rows = load_from_disk(run_dir / "rows").with_format("numpy")
    given, now = _column(rows, "label"), _column(rows, "corrected").argmax(-1)
    after = Counter(now.tolist())
    if not (given >= 0).any():
        counts = ", ".join(f"{name} {after[i]}" for i, name in enumerate(classes))
        return [f"labels    none were given; corrected: {counts}"]
    before, labelled = Counter(given.tolist()), given >= 0
    wrong = int((given[labelled] != now[labelled]).sum())
    lines = [f"labels    {wrong} of {int(labelled.sum())} given labels look wrong ({wrong / labelled.sum():.1%})"]
    width = max(len("class"), *(len(name) for name in classes))
    lines.append(f"          {'class':{width}s}  before   after")
    return lines + [f"          {name:{width}s}  {before[i]:6d}  {after[i]:6d}" for i, name in enumerate(classes)]


def _column(rows: Any, name: str) -> np.ndarray:
    return np.asarray(rows[name][:])
