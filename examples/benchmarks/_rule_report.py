"""Tables and a plot of `rule_denoising.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _work import cell, number, plain, row, rule, spread
from scipy import stats

from amal_hf._files import write_json, write_whole

OURS, BOUND, UNIT = "amal_hf", "gold", "majority vote"
FEW = ("10", "50")
Runs = list[dict[str, Any]]
Scores = dict[tuple[str, int], float]
"""Metric by (data set, seed)."""


def of(runs: Runs, method: str, budget: str, key: str = "metric") -> Scores:
    """A method at a budget; methods that read no clean rows are the same at each."""
    mine = [r for r in runs if r["method"] == method and r["budget"] in (budget, "none")]
    return {(r["dataset"], r["seed"]): r[key] for r in mine}


def ranks(runs: Runs, budget: str) -> dict[str, float]:
    """Mean rank over data sets of each method's mean over seeds; only of methods with a run on every data set."""
    names, sets = _names(runs)
    means = {}
    for method in (m for m in names if m != BOUND):
        found = of(runs, method, budget)
        of_sets = [[v for (d, _), v in found.items() if d == data] for data in sets]
        if all(of_sets):
            means[method] = [-np.mean(each) for each in of_sets]
    if not means:
        return {}
    of_set = stats.rankdata(np.asarray(list(means.values())), axis=0)  # [methods, data sets]
    return dict(zip(means, of_set.mean(1).tolist(), strict=True))


def difference(runs: Runs, method: str, budgets: Sequence[str]) -> dict[str, float] | None:
    """Ours minus `method`, paired by (data set, seed, budget): mean, 95 % interval, p of the paired t-test."""
    pairs = []
    for budget in budgets:
        ours, theirs = of(runs, OURS, budget), of(runs, method, budget)
        pairs += [(value, theirs[key]) for key, value in ours.items() if key in theirs]
    if not pairs:
        return None
    mean, half = spread([a - b for a, b in pairs])
    p = float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue) if len(pairs) > 1 else math.nan
    return {"mean": mean, "half": half, "p": p, "pairs": len(pairs)}


def time_ratio(runs: Runs, method: str, budgets: Sequence[str]) -> float:
    """Seconds of training beside majority vote's, mean over data sets, seeds and budgets.

    A run of another day or machine holds `unit_seconds`: what majority vote took beside it.
    """
    ratios = []
    for budget in budgets:
        unit = of(runs, UNIT, budget, "seconds")
        mine = [r for r in runs if r["method"] == method and r["budget"] in (budget, "none")]
        beside = [(r["seconds"], r.get("unit_seconds") or unit.get((r["dataset"], r["seed"]))) for r in mine]
        ratios += [seconds / majority for seconds, majority in beside if majority]
    return float(np.mean(ratios)) if ratios else math.nan


def report(runs: Runs, budgets: Sequence[str], out: Path) -> str:
    """Write `results.json`, `table.md` and `plot.png`; the table as text."""
    names, sets = _names(runs)
    lines: list[str] = []
    summary: dict[str, dict[str, Any]] = {}
    for budget in budgets:
        rank = ranks(runs, budget)
        lines += [f"\n### Clean rows per class: {budget}\n", row(["method", *sets, "mean rank"]), rule(len(sets) + 2)]
        for method in names:
            found = of(runs, method, budget)
            cells = [spread(v) if (v := [x for (d, _), x in found.items() if d == s]) else None for s in sets]
            lines.append(row([method, *(cell(c) for c in cells), number(rank.get(method, math.nan), 1)]))
            summary.setdefault(budget, {})[method] = {
                "by_set": dict(zip(sets, cells, strict=True)), "mean_rank": rank.get(method)
            }  # fmt: skip
    few, rest = [b for b in budgets if b in FEW], [b for b in budgets if b not in FEW]
    groups = [g for g in (few, rest) if g]
    head = [f"{OURS} minus it, {' and '.join(g)}, p" for g in groups]
    lines += ["\n### Paired differences and time\n", row(["method", *head, "time ratio"]), rule(len(head) + 2)]
    for method in names:
        apart = [difference(runs, method, g) if method != OURS else None for g in groups]
        ratio = time_ratio(runs, method, budgets)
        told = [f"{cell((a['mean'], a['half']))}, {number(a['p'], 4)}" if a else "–" for a in apart]
        lines.append(row([method, *told, number(ratio, 2)]))
        keyed = {" and ".join(g): a for g, a in zip(groups, apart, strict=True)}
        summary.setdefault("paired", {})[method] = {"difference": keyed, "time_ratio": ratio}
    lines += [*corrected(runs, budgets), *states(runs)]
    table = "\n".join(lines) + "\n"
    write_whole(out / "table.md", lambda path: path.write_text(table))
    write_json(out / "results.json", plain({"runs": runs, "summary": summary}))
    write_whole(out / "plot.png", lambda path: plot(runs, budgets, path))
    return table


def corrected(runs: Runs, budgets: Sequence[str]) -> list[str]:
    """How good our corrected labels of the training rows are, by data set: accuracy and calibration error."""
    mine = [r for r in runs if r["method"] == OURS and "corrected_ece" in r]
    if not mine:
        return []
    sets = _names(mine)[1]
    title = "\n### Corrected labels of the training rows: accuracy; expected calibration error, 15 bins\n"
    lines = [title, row(["clean rows per class", *sets]), rule(len(sets) + 1)]
    for budget in (b for b in budgets if any(r["budget"] == b for r in mine)):
        of_key = [of(mine, OURS, budget, f"corrected_{key}") for key in ("accuracy", "ece")]
        values = [[[v for (d, _), v in found.items() if d == data] for found in of_key] for data in sets]
        told = ["; ".join(cell(spread(each)) if each else "–" for each in pair) for pair in values]
        lines.append(row([budget, *told]))
    return lines


def states(runs: Runs) -> list[str]:
    """Of which state of the code the runs are."""
    lines = ["\n### State of the code\n", row(["commit", "runs", "methods"]), rule(3)]
    for code in dict.fromkeys(r.get("code", "") for r in runs):
        mine = [r for r in runs if r.get("code", "") == code]
        lines.append(row([code or "not stated", str(len(mine)), "; ".join(_names(mine)[0])]))
    return lines


def plot(runs: Runs, budgets: Sequence[str], path: Path) -> None:
    """A panel per data set, a line per method, a mark per budget."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, sets = _names(runs)
    figure, axes = pyplot.subplots(
        1, len(sets), figsize=(1.5 + 3 * len(sets), 0.8 + 0.35 * len(names)), sharey=True, squeeze=False
    )
    for axis, data in zip(axes[0], sets, strict=True):
        for nth, budget in enumerate(budgets):
            shift = 0.18 * (nth - (len(budgets) - 1) / 2)
            found = [[v for (d, _), v in of(runs, m, budget).items() if d == data] for m in names]
            drawn = [(y + shift, *spread(values)) for y, values in enumerate(found) if values]
            if drawn:
                y, mean, half = np.asarray(drawn).T
                axis.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="o", markersize=4, label=budget, capsize=2)
        axis.set_title(data)
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(title="clean rows\nper class", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)


def _names(runs: Runs) -> tuple[list[str], list[str]]:
    """Methods and data sets in the order of the runs."""
    return list(dict.fromkeys(r["method"] for r in runs)), list(dict.fromkeys(r["dataset"] for r in runs))
