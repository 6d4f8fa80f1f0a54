"""The trust table: which labeling function is wrong on how many rows, and on which."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from amal_hf._files import write_own
from amal_hf.report.run import NONE, Run, read_run
from amal_hf.report.summary import mean

SHOWN = 20
"""Rows on which a function is least, and as many on which it is most trusted."""
TABLE, ROWS = "trust_table.csv", "trust_rows.jsonl"


@dataclass(frozen=True)
class FunctionTrust:
    """What its author should know of a labeling function; shares and means are NaN where there is nothing to count.

    Args:
        name: of the function.
        source, column: its place among the K sources and among the M functions.
        coverage: share of the rows on which it votes.
        wrong: share of the rows on which it votes for another class than the corrected label.
        instead: the class of the corrected label on most of these; -1: none.
        votes_by_class, accuracy_by_class, trust_by_class: by the class it votes for, `[C]`: on how many rows, how often
            the corrected label agrees, mean λ.
        accuracy: how often the corrected label agrees, over all its votes.
        trust: mean λ.
        clean_votes: its votes on clean rows.
        clean_accuracy, clean_low, clean_high: how often these are right, and the 95 % Wilson interval.
        least, most: positions of the rows on which it is least trusted (least first) and most (most first).
    """

    name: str
    source: int
    column: int
    coverage: float
    wrong: float
    instead: int
    votes_by_class: np.ndarray
    accuracy_by_class: np.ndarray
    trust_by_class: np.ndarray
    accuracy: float
    trust: float
    clean_votes: int
    clean_accuracy: float
    clean_low: float
    clean_high: float
    least: np.ndarray
    most: np.ndarray

    @property
    def asserted(self) -> list[int]:
        """The classes it votes for."""
        return np.flatnonzero(self.votes_by_class).tolist()


def judge_functions(run: Run) -> list[FunctionTrust]:
    """The labeling functions of a run, the one that is wrong on most rows first; [] without corrected labels."""
    if run.corrected is None:
        return []
    places = {source: str(run.asserts.get(source)).split("/") for source in run.sources}
    judged = [
        _judge(run, k, int(places[source][1]))
        for k, source in enumerate(run.sources)
        if places[source][0] == "votes" and int(places[source][1]) < run.votes.shape[1]
    ]
    return sorted(judged, key=lambda function: (-function.wrong, -function.coverage))


def _judge(run: Run, source: int, column: int) -> FunctionTrust:
    assert run.corrected is not None
    votes, corrected, weights = run.votes[:, column], run.corrected.argmax(1), run.weights[:, source]
    cast = votes != NONE
    right, classes = cast & (votes == corrected), len(run.classes)
    instead = np.bincount(corrected[cast & ~right], minlength=classes)
    by_class = [cast & (votes == c) for c in range(classes)]
    trusted = np.flatnonzero(cast & np.isfinite(weights))
    trusted = trusted[np.argsort(weights[trusted], kind="stable")]
    least = trusted[: min(SHOWN, (len(trusted) + 1) // 2)]  # few votes: no row stands in both lists
    name = run.sources[source]
    clean = (run.about.get("clean") or {}).get(name, {"votes": 0, "right": 0})
    low, high = interval(clean["right"], clean["votes"])
    return FunctionTrust(
        name=name.split("/", 1)[-1],
        source=source,
        column=column,
        coverage=float(cast.mean()),
        wrong=float((cast & ~right).mean()),
        instead=int(instead.argmax()) if instead.any() else NONE,
        votes_by_class=np.array([at.sum() for at in by_class]),
        accuracy_by_class=np.array([mean(right[at]) for at in by_class]),
        trust_by_class=np.array([mean(weights[at & np.isfinite(weights)]) for at in by_class]),
        accuracy=mean(right[cast]),
        trust=mean(weights[trusted]),
        clean_votes=clean["votes"],
        clean_accuracy=clean["right"] / clean["votes"] if clean["votes"] else float("nan"),
        clean_low=low,
        clean_high=high,
        least=least,
        most=trusted[len(least) :][::-1][:SHOWN],
    )


def interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson (1927); (0, 1) of nothing.

    Example:
        >>> tuple(round(end, 3) for end in interval(8, 10))
        (0.49, 0.943)
    """
    if of == 0:
        return 0.0, 1.0
    ends = binomtest(right, of).proportion_ci(0.95, "wilson")
    return float(ends.low), float(ends.high)


def write_trust_table(run_dir: str | Path) -> Path | None:
    """Write `trust_table.csv`, a line per labeling function, and `trust_rows.jsonl`, the rows that explain it.

    Args:
        run_dir: a run folder; the format stands in `amal_hf.report`.

    Returns:
        the table; None, and nothing is written, where the run has no labeling functions.

    Raises:
        FileNotFoundError, ValueError: as `write_report`.
    """
    run = read_run(run_dir)
    functions = judge_functions(run)
    if not functions:
        return None
    write_own(Path(run_dir) / ROWS, lambda path: _write_rows(path, run, functions))
    return write_own(Path(run_dir) / TABLE, lambda path: _write_table(path, run, functions))


def _write_table(path: Path, run: Run, functions: list[FunctionTrust]) -> None:
    lines = [
        {
            "function": each.name,
            "wrong": rounded(each.wrong),
            "coverage": rounded(each.coverage),
            "clean_accuracy": rounded(each.clean_accuracy),
            "clean_low": rounded(each.clean_low),
            "clean_high": rounded(each.clean_high),
            "clean_votes": each.clean_votes,
            "corrected_accuracy": rounded(each.accuracy),
            "trust": rounded(each.trust),
            "instead": run.class_name(each.instead) or "",
            **{f"votes {name}": int(n) for name, n in zip(run.classes, each.votes_by_class, strict=True)},
            **{f"trust {name}": rounded(w) for name, w in zip(run.classes, each.trust_by_class, strict=True)},
        }
        for each in functions
    ]
    write_csv(path, lines)


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A table with a header; every line has the columns of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(lines[0]))
        table.writeheader()
        table.writerows(lines)


def _write_rows(path: Path, run: Run, functions: list[FunctionTrust]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in _rows(run, functions):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _rows(run: Run, functions: list[FunctionTrust]) -> Iterator[dict[str, Any]]:
    assert run.corrected is not None
    for function in functions:
        for which, positions in (("least", function.least), ("most", function.most)):
            for i in map(int, positions):
                row = run.rows[i]
                yield {
                    "function": function.name,
                    "trusted": which,
                    "trust": round(float(run.weights[i, function.source]), 4),
                    "row_id": row["row_id"],
                    "text": row["text"],
                    "vote": run.class_name(int(run.votes[i, function.column])),
                    "corrected": run.class_name(int(run.corrected[i].argmax())),
                    "confidence": round(float(run.corrected[i].max()), 4),
                }


def rounded(value: float) -> float | str:
    """Four digits for a table; nothing for NaN."""
    return round(float(value), 4) if np.isfinite(value) else ""
