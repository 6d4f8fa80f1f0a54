"""One teacher, labels that may be wrong, no alpha to tune: a grid of fixed mixtures against one learned run.

    python examples/benchmarks/distillation.py DATA_DIR                 # 2 cores
    python examples/benchmarks/distillation.py DATA_DIR --scale full    # a GPU
    python examples/benchmarks/distillation.py DATA_DIR --quick

DATA_DIR holds a folder per data set: `train`, `validation` and `test` with `text` and `label`; no text of one split
is kept in another. Half of `validation` are the clean rows, half select. A case is a teacher and the percentage of the
student's labels that are wrong:

- `a-0`, `a-40`: a 6-layer MiniLM fine-tuned on the same rows with the same labels;
- `b-40`: one fine-tuned on true labels of the other half of the rows, but blind to a region: a third of the classes,
  or, of two classes, of the text clusters.

Every student has 2 (full: 3) layers, the same encoder, steps and learning rate. "best of the grid" is the mixture that
is best on the selection rows, and costs all its runs. Those named "+ clean" train on the clean rows as well, as
amal_hf does. In case `a-40` checkpoints of the teacher, and one trained on shuffled labels, are teachers too.

Each run is one JSON under --out; a killed benchmark goes on where it stopped. Needs `cleanlab` besides.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from _distill_data import load_parts
from _distill_methods import SEVERAL, methods
from _distill_report import report
from _work import Job, Settings, carry_out, clock, options, settled

CPU = Settings(2, True, 3e-4, 400, 0, 64, 5000, True)
FULL = Settings(3, False, 1e-4, 0, 4, 128, 0, True)
LENGTHS = {"trec": 32, "subj": 48}
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "datasets": ["trec", "subj"], "cases": ["a-0", "a-40", "b-40"], "seeds": [0, 1, 2],
        "alphas": [0, 0.25, 0.5, 0.75, 1], "temperatures": [2],
    },
    "full": {
        "datasets": ["trec", "sst2", "subj"], "seeds": [0, 1, 2, 3, 4],
        "cases": ["a-0", "a-20", "a-40", "a-60", "b-0", "b-20", "b-40", "b-60"],
        "alphas": [i / 10 for i in range(11)], "temperatures": [1, 2, 4],
    },
    "quick": {"datasets": ["trec"], "cases": ["a-40"], "seeds": [0], "alphas": [0, 1], "temperatures": [2]},
}  # fmt: skip
TOGETHER = "a-40"


def settings_of(dataset: str, given: argparse.Namespace) -> Settings:
    base = FULL if given.scale == "full" else replace(CPU, max_length=LENGTHS.get(dataset, 64))
    if given.quick:
        base = replace(base, rows=400, steps=20)
    return replace(base, bf16=given.bf16)


def plan(given: argparse.Namespace) -> list[Job]:
    """One teacher before several; by seed, method, data set and case."""
    chosen = {name: given.cases for name in methods(given.alphas, given.temperatures)}
    chosen |= {name: [case for case in given.cases if case == TOGETHER] for name in SEVERAL}
    return [
        Job(dataset, name, case, seed, settings_of(dataset, given))
        for name, cases in chosen.items()
        if not given.methods or name in given.methods
        for seed in given.seeds
        for dataset in given.datasets
        for case in cases
    ]


def run(job: Job, data: Path, out: Path) -> dict[str, Any]:
    """Train and judge one method once."""
    parts = load_parts(data, job.dataset, job.case, job.settings, out, job.seed)
    steps = job.settings.steps or math.ceil(job.settings.epochs * len(parts.train) / job.settings.batch)
    grid = SCALES["full"]
    named = {**methods(grid["alphas"] + SCALES["cpu"]["alphas"], grid["temperatures"]), **SEVERAL}
    started = clock()
    outcome = named[job.method](parts, job.seed, steps)
    seconds = clock() - started
    return {
        "dataset": job.dataset,
        "method": job.method,
        "case": job.case,
        "seed": job.seed,
        **outcome.scores(parts),
        "facts": parts.facts,
        "seconds": seconds,
        "steps": steps,
        "train_rows": len(parts.train),
        "clean_rows": len(parts.clean),
        "test_rows": len(parts.test),
    }


def arguments() -> argparse.Namespace:
    parser = options(__doc__, quick="trec, 400 rows, 20 steps, one seed")
    parser.add_argument("--cases", nargs="+", help="teacher-percentage, e.g. a-40 b-40")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    given = settled(parser, SCALES, "distillation")
    for case in given.cases:
        kind, _, percent = case.partition("-")
        if kind not in ("a", "b") or not percent.isdigit() or int(percent) > 99:
            parser.error(f"--cases: expected a or b, a hyphen and a percentage below 100, found {case!r}")
    known = [*methods(given.alphas, given.temperatures), *SEVERAL]
    for name in given.methods or []:
        if name not in known:
            parser.error(f"--methods: expected one of {known}, found {name!r}")
    return given


def main() -> None:
    given = arguments()
    carry_out(given, plan(given), run, lambda found: report(found, given.cases, given.out))


if __name__ == "__main__":
    main()
