"""Assembly of the page: a run folder in, `report.html` out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from amal_hf._files import write_own
from amal_hf.report import _figures
from amal_hf.report.functions import FunctionTrust, judge_functions
from amal_hf.report.run import NONE, Run, read_run
from amal_hf.report.summary import (  # noqa: F401
    SMALL,
    Classes,
    Group,
    agreement,
    auroc,
    disagreeing,
    findings,
    groups_of,
    least_trusted,
    limits,
    trust,
)
from amal_hf.report.teachers import disagreement, disagreements, judge_teachers

LISTED = 50
"""Rows on the page whose primary source is least trusted."""
_LONG = 320  # characters of a text shown before it folds
_MOST_FUNCTIONS = 40  # labeling functions with rows on the page; the others' are in trust_rows.jsonl
_MOST_DISAGREEMENTS = 30  # rows on the page where teacher and label disagree; all are in disagreements.jsonl
_MOST_ALONE = 16  # sources drawn one by one; above, groups
_SCORES = {
    "accuracy": ("accuracy", max),
    "macro_f1": ("macro-F1", max),
    "ece": ("ECE", min),
    "seconds": ("seconds", min),
}


def write_report(run_dir: str | Path) -> Path:
    """Write the trust report of a run: one HTML file that opens offline.

    Args:
        run_dir: a run folder; the format stands in `amal_hf.report`.

    Returns:
        `run_dir/report.html`. The file appears whole or not at all; an older one of this function is replaced.

    Raises:
        FileNotFoundError: no such folder, or one without `run.json` or `rows/`.
        ValueError: a part that is not what it should be, such as `weights` that are not `[N, K]`.
    """
    page = Path(run_dir) / "report.html"
    html = render_page(read_run(run_dir))
    return write_own(page, lambda path: path.write_text(html, encoding="utf-8", errors="replace"))


def render_page(run: Run) -> str:
    """The page as a string."""
    classes = Classes.of(run)
    groups = groups_of(run.sources, run.primary)
    alone = [trust(run, Group(name, (k,)), classes) for k, name in enumerate(run.sources)]
    grouped = [trust(run, each, classes) for each in groups]
    same, both = agreement(run, alone[run.primary].group, "true_label")
    environment = Environment(loader=PackageLoader("amal_hf.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"number": number, "percent": percent, "duration": duration}
    listed = least_trusted(run, LISTED)
    functions, contradicted = judge_functions(run), disagreements(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        about=run.about,
        name=run.about.get("name") or "Run",
        primary=run.sources[run.primary],
        split=next((s for s in ("test", "selection") if run.metrics.get(s)), None),
        scores=_SCORES,
        comparison=_comparison(run),
        findings=findings(run, alone, classes),
        classes=classes,
        table=_table(groups, grouped, alone),
        top=limits(run.weights)[1],
        time=_figures.over_time(run, groups),
        by_class=_figures.by_class(run, groups, classes) if classes.shown else None,
        majority=_figures.with_majority(run, alone if len(alone) <= _MOST_ALONE else grouped),
        truth=_figures.right_and_wrong(run),
        area=auroc(run.weights[:, [run.primary]][both], same[both]),
        functions=functions,
        function_rows=[_function_rows(run, each) for each in functions[:_MOST_FUNCTIONS]],
        teachers=judge_teachers(run),
        contradicted=[_disagreement(run, int(i)) for i in contradicted[:_MOST_DISAGREEMENTS]],
        contradictions=len(contradicted),
        rows=[_row(run, int(i)) for i in listed],
        wrong=(int((both & ~same)[listed].sum()), int(both[listed].sum()), int((both & ~same).sum()), int(both.sum())),
    )


def _comparison(run: Run) -> list[dict[str, Any]]:
    """Methods side by side: cells are (text, is best); best is judged as printed, so ties share it."""
    methods = [m for m in run.metrics.get("comparison") or [] if isinstance(m, Mapping)]
    texts = {key: [number(m.get(key), 1 if key == "seconds" else 3) for m in methods] for key in _SCORES}
    best = {}
    for key, (_, better) in _SCORES.items():
        known = [float(t) for t in texts[key] if t != "–"]
        best[key] = better(known) if len(known) > 1 else None
    learned = [m.get("learned", m.get("method") in (run.about.get("name"), run.about.get("method"))) for m in methods]
    if not any(learned):
        learned = [any(w in str(m.get("method")).lower() for w in ("learned", "amal")) for m in methods]
    return [
        {
            "method": m.get("method"),
            "runs": m.get("runs"),
            "learned": ours,
            "cells": [
                (texts[k][i], texts[k][i] != "–" and float(texts[k][i]) == best[k], number(m.get(f"{k}_std"), 3))
                for k in _SCORES
            ],
        }
        for i, (m, ours) in enumerate(zip(methods, learned, strict=True))
    ]


def _table(groups: list[Group], grouped: list[Any], alone: list[Any]) -> list[tuple[str, Any]]:
    """Lines of the trust table: a group of several sources has a line of its own above its members."""
    lines: list[tuple[str, Any]] = []
    for group, pooled in zip(groups, grouped, strict=True):
        if len(group.members) == 1:
            lines.append(("source", alone[group.members[0]]))
            continue
        lines.append(("group", pooled))
        lines += [("member", alone[k]) for k in group.members]
    return lines


def _row(run: Run, i: int) -> dict[str, Any]:
    """One training row as the page shows it."""
    row = run.rows[i]
    text = " ".join(str(row["text"] or "").split())
    columns = {name: int(column[i]) for name, column in run.columns.items()}
    votes = Counter(int(v) for v in run.votes[i] if v > NONE)
    label = columns["label"]
    confidence = row.get("student_confidence")
    return {
        "id": row["row_id"],
        "head": _shortened(text),
        "rest": text if len(text) > _LONG else None,
        "label": run.class_name(label),
        "truth": run.class_name(columns["true_label"]),
        "label_right": columns["true_label"] == label,
        "votes": [(run.class_name(c), n, c != label) for c, n in votes.most_common()],
        "teacher": run.class_name(columns["teacher"]),
        "teacher_differs": columns["teacher"] != label,
        "student": run.class_name(columns["student"]),
        "student_differs": columns["student"] != label,
        "confidence": confidence if columns["student"] > NONE else None,
        "weight": float(run.weights[i, run.primary]),
        "disagree": disagreeing([label, columns["teacher"], *votes]),
    }


def _disagreement(run: Run, i: int) -> dict[str, Any]:
    """One row on which teacher and label disagree, as the page shows it."""
    case = disagreement(run, i)
    return {**case, "text": _shortened(case["text"]), "truth": case.get("true_label")}


def _shortened(text: Any) -> str:
    text = " ".join(str(text or "").split())
    return text if len(text) <= _LONG else text[:_LONG].rsplit(" ", 1)[0] + " …"


def _function_rows(run: Run, function: FunctionTrust) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows on which a function is least and most trusted, as the page shows them."""
    probabilities = run.corrected
    assert probabilities is not None

    def shown(i: int) -> dict[str, Any]:
        vote, corrected = int(run.votes[i, function.column]), int(probabilities[i].argmax())
        return {
            "text": _shortened(run.rows[i]["text"]),
            "weight": float(run.weights[i, function.source]),
            "vote": run.class_name(vote),
            "corrected": run.class_name(corrected),
            "differs": vote != corrected,
            "confidence": float(probabilities[i].max()),
        }

    return [(title, [shown(int(i)) for i in at]) for title, at in (("Least", function.least), ("Most", function.most))]


def number(value: Any, digits: int = 2) -> str:
    """A number with so many digits, or a dash where there is none."""
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def percent(value: Any, digits: int = 0) -> str:
    """A share as per cent, or a dash."""
    text = number(value, digits + 2)
    return text if text == "–" else f"{100 * value:.{digits}f} %"


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if number(seconds) == "–":
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts: Iterable[tuple[int, str]] = ((hours, "h"), (minutes, "min"), (rest, "s"))
    words = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(words[:2]) or f"{seconds:.1f} s"
