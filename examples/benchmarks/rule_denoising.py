"""From labeling functions and a few clean rows to a classifier: twenty methods, the same rows, the same steps.

    python examples/benchmarks/rule_denoising.py DATA_DIR                 # 2 cores
    python examples/benchmarks/rule_denoising.py DATA_DIR --scale full    # a GPU
    python examples/benchmarks/rule_denoising.py DATA_DIR --crossover     # 5 clean rows per class to all of them
    python examples/benchmarks/rule_denoising.py DATA_DIR --quick

DATA_DIR holds a folder per data set: `train`, `validation` and `test` with `text`, `label` and `weak_labels`. Train
loses the rows whose text (but for case and white space) also stands in validation or test, validation those in test:
the published splits share texts, 62 of the 500 test texts of sms among them. Clean rows are drawn from `validation`
by seed and class, the same ones for every method, to steer, train or select with as it likes. Gold, majority vote,
snorkel and cage read none. Metric: accuracy; F1 of spam on sms; micro-F1 of the slots on mitr.

Every student is trained for the same number of steps (phases share them: 3 : 1 where there are two), from the same
encoder at the same learning rate; "best fixed" trains 3 times, once per weighting.
Nothing is evaluated or saved on the way. Seconds are of training (all phases and runs), without the label models; on
a CPU those that the process worked, so that other work on the machine does not count. Logistic regression trains no
student: it reads all 6 layers of the encoder, and reading counts. SetFit (the package `setfit`, needed besides, with
`sentence-transformers`) takes the paper's 40 pairs of each text, 16 a step, in at most as many steps; "setfit, votes"
adds up to 50 rows of each class on which all votes agree. "corrected labels" has the labels of amal_hf and its share
of clean rows, but no weights; "self-training" is COSINE's without its contrastive and confidence terms, with clean
rows among the others.

Each run is one JSON under --out, with the traceback in an `.error` file where it failed. A killed benchmark goes on
where it stopped; runs of other settings are not counted and are made anew. Runs of other code are counted: `code` in
the JSON is the commit ("+": with changes), and the report lists them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import _rule_crossover
from _rule_data import load_parts
from _rule_methods import METHODS, scores
from _rule_report import report
from _work import Job, Settings, carry_out, clock, options, settled

NO_BUDGET = "none"
CPU = Settings(2, True, 3e-4, 240, 0, 128, 0, True)
FULL = Settings(6, False, 1e-4, 0, 3, 128, 0, True)
LENGTHS = {"trec": 32, "youtube": 48, "sms": 48, "imdb": 64}
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {"datasets": ["youtube", "sms", "trec", "imdb"], "budgets": ["10", "50", "all"], "seeds": [0, 1, 2]},
    "full": {
        "datasets": ["youtube", "sms", "trec", "imdb", "mitr"],
        "budgets": ["10", "20", "50", "all"],
        "seeds": [0, 1, 2, 3, 4],
    },
    "quick": {"datasets": ["youtube"], "budgets": ["10"], "seeds": [0]},
}


def settings_of(dataset: str, given: argparse.Namespace) -> Settings:
    base = replace(FULL if given.scale == "full" else CPU, bf16=given.bf16)
    if given.scale == "cpu":
        base = replace(base, max_length=LENGTHS.get(dataset, 128), rows=5000 if dataset == "imdb" else 0)
    if given.quick:
        base = replace(base, rows=500, steps=40)
    return replace(base, steps=given.steps) if given.steps else base


def plan(given: argparse.Namespace) -> list[Job]:
    """What to run in which order: the few clean rows before all of them, then by method, seed, budget, data set."""
    jobs = []
    for late in (False, True):
        for method in (m for m in METHODS if m in given.methods):
            for seed in given.seeds:
                for budget in given.budgets if METHODS[method].clean else [NO_BUDGET]:
                    if (budget == "all") == late:
                        jobs += [Job(d, method, budget, seed, settings_of(d, given)) for d in given.datasets]
    return jobs


def run(job: Job, data: Path, out: Path) -> dict[str, Any]:
    """Train and judge one method once."""
    parts = load_parts(data, job.dataset, job.settings, out, job.case, job.seed)
    steps = job.settings.steps or math.ceil(job.settings.epochs * len(parts.train) / job.settings.batch)
    started = clock()
    method = METHODS[job.method]
    logits = method.run(parts, job.seed, steps)
    seconds = clock() - started + parts.extra_seconds
    return {
        "dataset": job.dataset,
        "method": job.method,
        "budget": job.case,
        "seed": job.seed,
        **scores(job.dataset, logits, parts.test["label"][:]),
        "seconds": seconds,
        "steps": steps if method.student else 0,
        "train_rows": len(parts.train),
        "clean_rows": 0 if job.case == NO_BUDGET else len(parts.clean),
        "test_rows": len(parts.test),
        **parts.facts,
    }


def arguments() -> argparse.Namespace:
    parser = options(__doc__, quick="youtube, 500 rows, 40 steps, one seed")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="NAME")
    parser.add_argument("--budgets", nargs="+", help="clean rows per class, or `all`")
    parser.add_argument("--steps", type=int, default=0, help="other than the scale's")
    what = "5 clean rows per class to all, of the methods that this decides between, and a plot of each data set"
    parser.add_argument("--crossover", action="store_true", help=what)
    crossover = {"methods": _rule_crossover.METHODS, "budgets": _rule_crossover.BUDGETS}
    chosen = crossover if parser.parse_known_args()[0].crossover else {"methods": list(METHODS)}
    given = settled(parser, {scale: {**values, **chosen} for scale, values in SCALES.items()}, "rule_denoising")
    for budget in given.budgets:
        if budget != "all" and not (budget.isdigit() and int(budget)):
            parser.error(f"--budgets: expected a number of rows per class or `all`, found {budget!r}")
    return given


def main() -> None:
    given = arguments()
    tell = _rule_crossover.report if given.crossover else report
    carry_out(given, plan(given), run, lambda found: tell(found, given.budgets, given.out))


if __name__ == "__main__":
    main()
