"""Tables and a plot of `distillation.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _work import cell, number, plain, row, rule, spread

from amal_hf._files import write_json, write_whole

OURS, BEST, UNIT = "amal_hf", "best of the grid", "alpha 0 T 2"
TOGETHER = "4 checkpoints"
Runs = list[dict[str, Any]]


def in_grid(method: str) -> bool:
    return method.startswith("alpha") and not method.endswith("clean")


def best_of_grid(runs: Runs) -> Runs:
    """Of each data set, case and seed the fixed mixture that is best on the selection rows; its time is the grid's."""
    chosen = []
    for key in dict.fromkeys((r["dataset"], r["case"], r["seed"]) for r in runs):
        grid = [r for r in runs if (r["dataset"], r["case"], r["seed"]) == key and in_grid(r["method"])]
        if grid:
            best = max(grid, key=lambda r: r["selection"])
            chosen.append({**best, "method": BEST, "chosen": best["method"], "runs": len(grid),
                           "seconds": sum(r["seconds"] for r in grid)})  # fmt: skip
    return chosen


def of(runs: Runs, method: str, key: str = "metric") -> dict[tuple[str, str, int], float]:
    """By data set, case and seed."""
    return {(r["dataset"], r["case"], r["seed"]): r[key] for r in runs if r["method"] == method and key in r}


def difference(runs: Runs, method: str, cases: Sequence[str]) -> tuple[float, float] | None:
    """Ours minus `method`, paired by data set, case and seed: mean and half the 95 % interval."""
    ours, theirs = of(runs, OURS), of(runs, method)
    pairs = [ours[key] - theirs[key] for key in ours if key in theirs and key[1] in cases]
    return spread(pairs) if pairs else None


def report(runs: Runs, cases: Sequence[str], out: Path) -> str:
    """Write `results.json`, `table.md` and `plot.png`; the table as text."""
    runs = runs + best_of_grid(runs)
    names = list(dict.fromkeys(r["method"] for r in runs))
    single = [name for name in names if not name.startswith(TOGETHER)]
    sets = list(dict.fromkeys(r["dataset"] for r in runs))
    cells = [(data, case) for case in cases for data in sets]
    heads = [f"{data} {case}" for data, case in cells]
    lines = ["\n### Accuracy\n", row(["method", *heads, "time ratio"]), rule(len(cells) + 2)]
    for name in single:
        found, time = of(runs, name), _time_ratio(runs, name)
        lines.append(row([name, *(cell(_spread_of(found, *each)) for each in cells), number(time, 2)]))
    teachers = {(r["dataset"], r["case"], r["seed"]): r["facts"]["teacher"] for r in runs}
    lines.append(row(["(the teacher itself)", *(cell(_spread_of(teachers, *each)) for each in cells), ""]))
    lines += [f"\n### {OURS} minus it, paired by data set and seed\n", row(["method", *cases, "all"])]
    lines.append(rule(len(cases) + 2))
    for name in (n for n in single if n != OURS):
        apart = (difference(runs, name, chosen) for chosen in (*([c] for c in cases), cases))
        lines.append(row([name, *map(cell, apart)]))
    lines += ["\n### AUROC of the label's weight for “this label is right”\n", row(["", *heads]), rule(len(cells) + 1)]
    for name in single:
        if auroc := of(runs, name, "auroc"):
            lines.append(row([name, *(cell(_spread_of(auroc, *each), 3) for each in cells)]))
    quality = {(r["dataset"], r["case"], r["seed"]): q for r in runs if (q := r["facts"].get("cleanlab"))}
    lines.append(row(["cleanlab", *(cell(_spread_of(quality, *each), 3) for each in cells)]))
    lines += _several(runs, sets)
    table = "\n".join(lines) + "\n"
    write_whole(out / "table.md", lambda path: path.write_text(table))
    write_json(out / "results.json", plain(runs))
    write_whole(out / "plot.png", lambda path: plot(runs, single, cells, path))
    return table


def _several(runs: Runs, sets: Sequence[str]) -> list[str]:
    """Several teachers: accuracy, and the mean weight of each that is learned."""
    names = list(dict.fromkeys(r["method"] for r in runs if r["method"].startswith(TOGETHER)))
    if not names:
        return []
    lines = ["\n### Several teachers, case a-40\n", row(["method", *sets, "mean weights"]), rule(len(sets) + 2)]
    for name in names:
        mine = [r for r in runs if r["method"] == name]
        found = of(runs, name)
        sources = [s for s in (mine[0]["weights"] or {}) if s.startswith(("quarter", "shuffled"))]
        weights = ", ".join(f"{s} {np.mean([r['weights'][s] for r in mine]):.2f}" for s in sources)
        by_set = (cell(_spread_of(found, data, mine[0]["case"])) for data in sets)
        lines.append(row([name, *by_set, weights or "–"]))
    return lines


def _spread_of(found: dict[tuple[str, str, int], float], data: str, case: str) -> tuple[float, float] | None:
    values = [value for (d, c, _), value in found.items() if (d, c) == (data, case)]
    return spread(values) if values else None


def _time_ratio(runs: Runs, method: str) -> float:
    """Seconds of training beside those of labels alone; a run of another day holds what these took then."""
    mine, then, unit = (of(runs, *each) for each in ((method, "seconds"), (method, "unit_seconds"), (UNIT, "seconds")))
    beside = [(value, then.get(key) or unit.get(key)) for key, value in mine.items()]
    ratios = [value / labels for value, labels in beside if labels]
    return float(np.mean(ratios)) if ratios else math.nan


def plot(runs: Runs, names: Sequence[str], cells: Sequence[tuple[str, str]], path: Path) -> None:
    """A panel per data set and case, a mark per method."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(cells), figsize=(1.5 + 2.2 * len(cells), 0.8 + 0.3 * len(names)), sharey=True, squeeze=False
    )
    for axis, (data, case) in zip(axes[0], cells, strict=True):
        drawn = [(y, *s) for y, n in enumerate(names) if (s := _spread_of(of(runs, n), data, case))]
        if drawn:
            y, mean, half = np.asarray(drawn).T
            axis.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="o", markersize=4, capsize=2)
        axis.set_title(f"{data} {case}")
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
