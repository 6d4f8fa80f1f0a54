"""Three imperfect annotators of real texts, through a real encoder: corrected labels beat their majority."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from transformers import AutoTokenizer

from amal_hf import AMALConfig, CrossEntropy, Distillation, LabelingFunctions
from amal_hf.commands.train import default_model, load_student
from amal_hf.data.collate import SourceCollator
from amal_hf.denoising.assertions import read_assertions
from amal_hf.denoising.prepare import LOG_POSTERIOR, add_posterior
from amal_hf.denoising.text_reader import open_reader

TREC = Path(__file__).parents[3] / "shared" / "data" / "trec"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TREC.is_dir(), reason="trec is not beside this checkout"),
]
CLASSES, SHARES, PER_CLASS = 6, (0.85, 0.80, 0.52), 10


@pytest.fixture(scope="module")
def splits() -> dict[str, Any]:
    """1,200 training rows and the validation rows, each with features of the whole encoder."""
    tokenizer, model = AutoTokenizer.from_pretrained(default_model()), load_student(default_model(), ["a"] * CLASSES, 2)
    found = {}
    for split, count in (("train", 1200), ("validation", 500)):
        rows = load_dataset("json", data_files=str(next(TREC.glob(f"{split}.jsonl*"))), split=f"train[:{count}]")
        rows = rows.select_columns(["text", "label"])
        args = AMALConfig("out", use_cpu=True, max_length=32, report_to="none").resolved()
        found[split] = (rows, open_reader(args, model, tokenizer, rows, rows)(rows))
    return found


def answers(truth: Tensor, g: torch.Generator) -> Tensor:
    """Of every row from every annotator, `[N, 3]`; wrong ones spread evenly."""
    other = (truth[:, None] + torch.randint(1, CLASSES, (len(truth), 3), generator=g)) % CLASSES
    right = torch.rand(len(truth), 3, generator=g) < torch.tensor(SHARES)
    return torch.where(right, truth[:, None], other)


def sure(named: Tensor) -> list[list[float]]:
    return (0.9 * torch.eye(CLASSES)[named] + 0.1 / CLASSES).tolist()


FORMS: dict[str, tuple[Callable[[Tensor], dict[str, Any]], dict[str, Any]]] = {
    "one block of votes": (lambda a: {"votes": a.tolist()}, {"votes": LabelingFunctions("votes")}),
    "columns of classes": (
        lambda a: {f"a{j}": a[:, j].tolist() for j in range(3)},
        {f"a{j}": CrossEntropy(f"a{j}") for j in range(3)},
    ),
    "probabilities": (
        lambda a: {f"a{j}": sure(a[:, j]) for j in range(3)},
        {f"a{j}": Distillation(f"a{j}", probabilities=True) for j in range(3)},
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_corrected_labels_are_at_or_above_the_majority(splits, form, seed):
    make, losses = FORMS[form]
    g, draw = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    (train, features), (clean, clean_features) = splits["train"], splits["validation"]
    labels = np.array(clean["label"])
    few = np.concatenate([draw.permutation(np.flatnonzero(labels == c))[:PER_CLASS] for c in range(CLASSES)])
    truth = torch.tensor(train["label"])
    of_train, of_clean = answers(truth, g), answers(torch.tensor(labels[few]), g)
    rows = with_columns(train, make(of_train))
    clean = with_columns(clean.select(few), make(of_clean))
    columns = [c for loss in losses.values() for c in loss.columns]
    votes = [c for loss in losses.values() for c in loss.vote_columns]
    collator = SourceCollator(lambda batch: {}, columns, rows[0], votes=votes)
    sources = read_assertions(losses, rows, clean, CLASSES, collator.sources)
    features_of = {id(rows): features, id(clean): clean_features[few]}
    judged, _ = add_posterior(
        rows, clean, torch.tensor(clean["label"]), CLASSES, sources, lambda split: features_of[id(split)]
    )
    right = (torch.tensor(judged[LOG_POSTERIOR][:]).argmax(1) == truth).float().mean().item()
    counts = torch.nn.functional.one_hot(of_train, CLASSES).sum(1)
    winners = (counts == counts.amax(1, keepdim=True)).double()
    majority = (winners[torch.arange(len(truth)), truth] / winners.sum(1)).mean().item()
    assert right >= majority


def with_columns(rows: Dataset, columns: dict[str, Any]) -> Dataset:
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows
