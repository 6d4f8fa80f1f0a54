"""How many training labels does the label model correct rightly, and does its confidence mean what it says?

    python examples/benchmarks/corrected_labels.py DATA_DIR
    python examples/benchmarks/corrected_labels.py DATA_DIR --layers student 2 4 -1 "2 4 -1"

DATA_DIR as for `rule_denoising.py`: votes of labeling functions, clean rows drawn from `validation` by seed and class.
No student is trained. `--layers`: which of the whole MiniLM are read; "default", "student" (the last of its first two
layers), or numbers, side by side.

Share of the training rows whose corrected label is the true class, and the expected calibration error (15 bins) of its
probability, both in percent, mean over seeds. What was read is kept in the cache of `datasets`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from _rule_data import load_parts
from _work import row, rule
from rule_denoising import LENGTHS, settings_of
from transformers import AutoTokenizer, EvalPrediction

from amal_hf import AMALConfig
from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising import LOG_POSTERIOR, add_posterior
from amal_hf.denoising.assertions import Assertions
from amal_hf.denoising.text_reader import open_reader
from amal_hf.metrics import classification_metrics


def measure(given: argparse.Namespace, name: str, budget: str, seed: int, layers: str) -> tuple[float, float]:
    """Accuracy and calibration error of the corrected labels, in percent, of one draw of clean rows."""
    settings = settings_of(name, given)
    parts = load_parts(given.data, name, settings, given.out, budget, seed)
    chosen = {"default": {}, "student": {"reader": "student"}}
    how = chosen[layers] if layers in chosen else {"reader_layers": [int(each) for each in layers.split()]}
    args = AMALConfig("out", use_cpu=True, bf16=True, report_to="none", max_length=settings.max_length, **how)
    student, tokenizer = load_student(default_model(), parts.classes, settings.layers), given.tokenizer
    reader = open_reader(args.resolved(), student, tokenizer, parts.train, parts.clean)
    votes = tuple(torch.as_tensor(np.asarray(rows["weak_labels"][:])) for rows in (parts.train, parts.clean))
    labels = torch.as_tensor(parts.clean["label"][:])
    judged, _ = add_posterior(
        parts.train, parts.clean, labels, len(parts.classes), Assertions(votes={"rules": votes}), reader
    )
    found = classification_metrics(
        EvalPrediction(np.asarray(judged[LOG_POSTERIOR][:]), np.asarray(parts.train["truth"][:]))
    )
    return 100 * found["accuracy"], 100 * found["ece"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder per data set")
    parser.add_argument("--datasets", nargs="+", default=[*LENGTHS])
    parser.add_argument("--budgets", nargs="+", default=["10", "50"], help="clean rows per class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", nargs="+", default=["default"])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "corrected_labels")
    parser.set_defaults(scale="cpu", bf16=True, quick=False, steps=0)
    given = parser.parse_args()
    given.tokenizer = AutoTokenizer.from_pretrained(default_model())
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    print(row(["layers read", *given.datasets]))
    print(rule(1 + len(given.datasets)))
    for layers in given.layers:
        cells = [layers]
        for name in given.datasets:
            found = [
                np.mean([measure(given, name, budget, seed, layers) for seed in given.seeds], axis=0)
                for budget in given.budgets
            ]
            right, error = (" / ".join(f"{value:.1f}" for value in values) for values in zip(*found, strict=True))
            cells.append(f"{right}; ECE {error}")
        print(row(cells), flush=True)


if __name__ == "__main__":
    main()
