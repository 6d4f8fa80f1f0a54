"""Data of `label_errors.py`: vectors of texts, and labels of which 40 % are wrong in one of three ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _rule_data import draw
from _work import Settings, made, without_shared_texts
from datasets import Dataset, DatasetDict, load_from_disk
from noisy_labels import corrupt
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising.reader import encode_rows

SHARE = 0.4
SEEN = 10  # rows per class that the confused model has seen
NOISES = ["uniform", "class", "instance"]


@dataclass
class Labelled:
    """Rows with labels that may be wrong, and clean rows.

    Args:
        train, clean: rows with `text`.
        vectors, clean_vectors: their sentence vectors, `[N, H]` and `[M, H]`.
        given: label of each training row, `[N]`.
        wrong: whether it is wrong, `[N]`.
        clean_labels: `[M]`.
    """

    classes: list[str]
    train: Dataset
    clean: Dataset
    vectors: np.ndarray
    clean_vectors: np.ndarray
    given: np.ndarray
    wrong: np.ndarray
    clean_labels: np.ndarray


def load_labelled(data: Path, name: str, settings: Settings, out: Path, noise: str, budget: str, seed: int) -> Labelled:
    """One data set for one run; texts and vectors are read once and kept under `out`/cache."""
    folder = out / "cache" / f"{name}-{settings.hash}"
    splits = load_from_disk(str(made(folder / "splits", lambda path: _prepare(data / name, settings, path))))
    vectors = load_file(made(folder / "vectors.safetensors", lambda path: _read(splits, settings, path)))
    train, clean, classes = splits["train"], splits["validation"], splits["train"].features["label"].names
    truth, known = np.asarray(train["label"][:]), np.asarray(clean["label"][:])
    given = mislabelled(noise, train["text"][:], truth, len(classes), seed)
    drawn = draw(known, int(budget), seed) if budget.isdigit() else np.arange(len(known))
    return Labelled(
        classes, train.remove_columns("label"), clean.select(drawn), vectors["train"], vectors["validation"][drawn],
        given, given != truth, known[drawn],
    )  # fmt: skip


def mislabelled(noise: str, texts: list[str], truth: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Labels `[N]`, about 40 % of them wrong.

    Args:
        noise: "uniform": any other class. "class": 30 to 50 % of a class are called one other class, each class its
            own. "instance": what a model is unsure of that has seen 10 rows of each class (logistic regression on
            tf-idf, no vectors that a method reads): rows are drawn by 1 − p(truth), their class by p of the others.
    """
    if noise == "uniform":
        return corrupt(truth.tolist(), num_classes, SHARE, seed)[0]
    rng = np.random.default_rng(seed)
    if noise == "class":
        order = rng.permutation(num_classes)
        partner = np.empty(num_classes, int)
        partner[order] = np.roll(order, 1)
        rates = rng.permutation(np.linspace(SHARE - 0.1, SHARE + 0.1, num_classes))
        return np.where(rng.random(len(truth)) < rates[truth], partner[truth], truth)
    seen = draw(truth, SEEN, seed)
    read = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    said = LogisticRegression(C=100, max_iter=1000).fit(read[seen], truth[seen]).predict_proba(read)
    said[np.arange(len(truth)), truth] = 0
    doubt = said.sum(1)
    flipped = rng.choice(len(truth), round(SHARE * len(truth)), replace=False, p=doubt / doubt.sum())
    given = truth.copy()
    given[flipped] = [rng.choice(num_classes, p=each / each.sum()) for each in said[flipped]]
    return given


def _prepare(source: Path, settings: Settings, path: Path) -> None:
    kept = without_shared_texts(source, "text", "label")
    kept.pop("test")  # no student is trained, none is tested
    if settings.rows and settings.rows < len(kept["train"]):
        kept["train"] = kept["train"].shuffle(seed=0).select(range(settings.rows))
    DatasetDict(kept).save_to_disk(str(path))


def _read(splits: DatasetDict, settings: Settings, path: Path) -> None:
    """Vectors as method "denoise" reads a whole MiniLM, for every method."""
    model, tokenizer = load_student(default_model(), ["a", "b"]), AutoTokenizer.from_pretrained(default_model())
    how: dict[str, Any] = {"max_length": settings.max_length, "bf16": settings.bf16, "layers": None}
    read = {name: encode_rows(model, tokenizer, rows, **how) for name, rows in splits.items()}
    save_file({name: np.ascontiguousarray(vectors) for name, vectors in read.items()}, path)
