"""Which of the labels are wrong? 40 % of them are, in three ways; suspicion of ours beside cleanlab's.

    python examples/benchmarks/label_errors.py DATA_DIR
    python examples/benchmarks/label_errors.py DATA_DIR --quick

DATA_DIR holds a folder per data set: `train`, `validation` and `test` with `text` and `label`. Labels of train are made
wrong: uniformly; by class (30 to 50 % of a class are called one other class); by row (where a model that has seen ten
rows of each class is unsure). Clean rows are drawn from `validation` by seed and class.

All methods read the same vectors, those of a whole MiniLM; no student is trained. "cleanlab": label-quality scores of
out-of-sample probabilities, 5 folds of logistic regression; "clean rows too": these among the rows of every fold;
"clean rows alone": probabilities of a model that saw nothing else.

AUROC for "this label is wrong"; precision at 50: how many of the 50 most suspicious labels are wrong. Both in percent.
Each run is one JSON under --out; a killed benchmark goes on where it stopped. Needs `cleanlab` besides.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _errors_data import NOISES, load_labelled
from _errors_methods import METHODS
from _rule_report import states
from _work import Job, Settings, carry_out, cell, clock, options, plain, row, rule, settled, spread
from sklearn.metrics import roc_auc_score

from amal_hf._files import write_json, write_whole

NO_BUDGET, TOP = "none", 50
ALL = Settings(0, True, 0.0, 0, 0, 48, 5000, True)  # of these only length, rows and bf16 count
LENGTHS = {"trec": 32}
SCALE: dict[str, Any] = {
    "datasets": ["youtube", "sms", "trec", "subj"],
    "noises": NOISES,
    "budgets": ["10", "50"],
    "seeds": [0, 1, 2],
}
SCALES = {
    "cpu": SCALE,
    "full": {**SCALE, "seeds": [0, 1, 2, 3, 4]},
    "quick": {"datasets": ["youtube"], "noises": NOISES, "budgets": ["10"], "seeds": [0]},
}


def plan(given: argparse.Namespace) -> list[Job]:
    """What to run; `case` is noise and clean rows per class."""
    jobs = []
    for data in given.datasets:
        settings = replace(ALL, max_length=LENGTHS.get(data, ALL.max_length), bf16=given.bf16)
        settings = replace(settings, rows=400) if given.quick else settings
        for noise in given.noises:
            for name, method in METHODS.items():
                for budget in given.budgets if method.clean else [NO_BUDGET]:
                    jobs += [Job(data, name, f"{noise}-{budget}", seed, settings) for seed in given.seeds]
    return jobs


def run(job: Job, data: Path, out: Path) -> dict[str, Any]:
    """Suspect the labels of one data set once."""
    noise, budget = job.case.split("-")
    rows = load_labelled(data, job.dataset, job.settings, out, noise, budget, job.seed)
    started = clock()
    suspicion = METHODS[job.method].run(rows, job.seed)
    seconds = clock() - started
    top = np.argsort(-suspicion, kind="stable")[:TOP]
    return {
        "dataset": job.dataset,
        "method": job.method,
        "noise": noise,
        "budget": budget,
        "seed": job.seed,
        "metric": 100 * float(roc_auc_score(rows.wrong, suspicion)),
        "precision": 100 * float(rows.wrong[top].mean()),
        "wrong": 100 * float(rows.wrong.mean()),
        "seconds": seconds,
        "rows": len(rows.given),
        "clean_rows": len(rows.clean_labels) if budget != NO_BUDGET else 0,
    }


def report(runs: list[dict[str, Any]], out: Path) -> str:
    """Write `results.json` and `table.md`; the table as text."""
    sets, methods = (list(dict.fromkeys(r[key] for r in runs)) for key in ("dataset", "method"))
    lines: list[str] = []
    for noise in dict.fromkeys(r["noise"] for r in runs):
        share = spread([r["wrong"] for r in runs if r["noise"] == noise])[0]
        lines.append(f"\n### Noise by {noise}, {share:.0f} % wrong: AUROC; precision at {TOP}\n")
        lines += [row(["clean rows per class", "method", *sets, "seconds"]), rule(len(sets) + 3)]
        for budget in dict.fromkeys(r["budget"] for r in runs):
            for method in methods:
                mine = [r for r in runs if (r["noise"], r["budget"], r["method"]) == (noise, budget, method)]
                if mine:
                    seconds = f"{np.mean([r['seconds'] for r in mine]):.1f}"
                    lines.append(row([budget, method, *(_cell(mine, data) for data in sets), seconds]))
    table = "\n".join([*lines, *states(runs)]) + "\n"
    write_whole(out / "table.md", lambda path: path.write_text(table))
    write_json(out / "results.json", plain({"runs": runs}))
    return table


def _cell(runs: list[dict[str, Any]], data: str) -> str:
    mine = [r for r in runs if r["dataset"] == data]
    return "; ".join(cell(spread([r[key] for r in mine]) if mine else None) for key in ("metric", "precision"))


def arguments() -> argparse.Namespace:
    parser = options(__doc__, quick="youtube, 400 rows, one seed")
    parser.add_argument("--noises", nargs="+", choices=NOISES)
    parser.add_argument("--budgets", nargs="+", help="clean rows per class, or `all`")
    return settled(parser, SCALES, "label_errors")


def main() -> None:
    given = arguments()
    carry_out(given, plan(given), run, lambda found: report(found, given.out))


if __name__ == "__main__":
    main()
