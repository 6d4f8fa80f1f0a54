"""From how many clean rows on votes are worth nothing more: tables and plots of `rule_denoising.py --crossover`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from _rule_report import Runs, of, states
from _work import cell, row, rule, spread

from amal_hf._files import write_whole

METHODS = ["clean only", "logistic regression", "setfit", "amal_hf"]
BUDGETS = ["5", "10", "20", "50", "all"]


def report(runs: Runs, budgets: Sequence[str], out: Path) -> str:
    """Write `crossover.md`, and `crossover-SET.png` of each data set; the table as text."""
    lines: list[str] = []
    for data in dict.fromkeys(r["dataset"] for r in runs):
        found = curves([r for r in runs if r["dataset"] == data], budgets)
        lines += [f"\n### {data}, by clean rows per class\n", row(["method", *budgets]), rule(len(budgets) + 1)]
        lines += [row([method, *(cell(each) for each in curve)]) for method, curve in found.items()]
        write_whole(out / f"crossover-{data}.png", partial(plot, data, found, budgets))
    table = "\n".join([*lines, *states(runs)]) + "\n"
    write_whole(out / "crossover.md", lambda path: path.write_text(table))
    return table


def curves(runs: Runs, budgets: Sequence[str]) -> dict[str, list[tuple[float, float] | None]]:
    """Of one data set: method -> mean and half interval of the metric at each budget, None where there is no run."""
    methods = dict.fromkeys(r["method"] for r in runs)
    values = {m: [list(of(runs, m, budget).values()) for budget in budgets] for m in methods}
    return {m: [spread(each) if each else None for each in of_method] for m, of_method in values.items()}


def plot(data: str, found: dict[str, list[tuple[float, float] | None]], budgets: Sequence[str], path: Path) -> None:
    """A line per method over the clean rows per class."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.5))
    for nth, (method, curve) in enumerate(found.items()):
        drawn = [(x + 0.06 * (nth - (len(found) - 1) / 2), *value) for x, value in enumerate(curve) if value]
        x, mean, half = np.asarray(drawn).T
        axis.errorbar(x, mean, yerr=np.nan_to_num(half), fmt="o-", markersize=4, label=method, capsize=2)
    axis.set_xticks(range(len(budgets)), budgets)
    axis.set(title=data, xlabel="clean rows per class", ylabel="F1" if data in ("sms", "mitr") else "accuracy")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")
    pyplot.close(figure)
