"""Data of `distillation.py`: noisy labels, teachers that learned from them or are blind, and what both say."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _work import EVAL_BATCH, Settings, made, predict, without_shared_texts
from datasets import Dataset, DatasetDict, load_from_disk
from noisy_labels import corrupt
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from amal_hf.commands.train import default_model, load_student
from amal_hf.data.tokens import tokenized
from amal_hf.denoising.reader import encode_rows

TEACHER_EPOCHS, TEACHER_RATE = 3, 1e-4
CLUSTERS = 6
CHECKPOINTS = [f"quarter{i}_logits" for i in (1, 2, 3, 4)]
TEACHER, SHUFFLED = CHECKPOINTS[-1], "shuffled_logits"


@dataclass
class Parts:
    """One data set, one case, one seed.

    Args:
        train: tokens, a `label` that may be wrong, `true_label`, `flipped`, and the teachers' columns of logits.
        clean, selection, test: tokens, the true `label`, and the same columns.
        facts: accuracy of the teacher, and the AUROC of cleanlab's score for "this label is right".
    """

    name: str
    classes: list[str]
    train: Dataset
    clean: Dataset
    selection: Dataset
    test: Dataset
    settings: Settings
    facts: dict[str, float]


def load_parts(data: Path, name: str, case: str, settings: Settings, out: Path, seed: int) -> Parts:
    """What all methods read; made once and kept under `out`/cache."""
    folder = out / "cache" / f"{name}-{settings.hash}" / f"{case}-{seed}"
    splits = load_from_disk(str(made(folder, lambda path: _prepare(data / name, case, settings, seed, path))))
    train, test = splits["train"], splits["test"]
    hit = np.asarray(test[TEACHER][:]).argmax(1) == np.asarray(test["label"][:])
    facts = {"teacher": 100 * float(hit.mean())}
    if any(train["flipped"][:]):
        quality = np.asarray(train["cleanlab"][:])
        facts["cleanlab"] = float(roc_auc_score(~np.asarray(train["flipped"][:]), quality))
    classes = splits["clean"].features["label"].names
    return Parts(name, classes, train, splits["clean"], splits["selection"], test, settings, facts)


def _prepare(source: Path, case: str, settings: Settings, seed: int, path: Path) -> None:
    """Splits without shared texts; labels flipped; teachers trained and read."""
    kind, percent = case.split("-")
    whole = _divided(source, settings, seed)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    parts = {k: tokenized(v, tokenizer, ["text"], settings.max_length) for k, v in whole.items()}
    classes = whole["train"].features["label"].names
    features = _features(whole["train"], settings)
    rows = np.arange(len(parts["train"]))
    if kind == "b":
        half = len(rows) // 2
        theirs, rows = rows[:half], rows[half:]
        theirs = theirs[_seen(np.asarray(whole["train"]["label"][:]), features, theirs, len(classes), seed)]
        lesson = parts["train"].select(theirs)
    truth = np.asarray(parts["train"]["label"][:])[rows]
    noisy, flipped = corrupt(truth.tolist(), len(classes), int(percent) / 100, seed)
    parts["train"] = train = _labelled(parts["train"].select(rows), noisy)
    lessons = {TEACHER: lesson if kind == "b" else train}
    if kind == "a" and flipped.any():
        lessons[SHUFFLED] = _labelled(train, np.random.default_rng(seed).permutation(noisy))
    for column, each in lessons.items():
        for said, logits in _taught(each, parts, classes, settings, seed, column).items():
            parts = {k: v.add_column(said, list(logits[k])) for k, v in parts.items()}
    parts["train"] = parts["train"].add_column("true_label", truth.tolist()).add_column("flipped", flipped.tolist())
    parts["train"] = parts["train"].add_column("cleanlab", _quality(features[rows], noisy).tolist())
    DatasetDict(parts).save_to_disk(str(path))


def _divided(source: Path, settings: Settings, seed: int) -> dict[str, Dataset]:
    """Splits without shared texts, shuffled; half of validation is `clean`, half `selection`."""
    kept = {k: v.shuffle(seed=seed) for k, v in without_shared_texts(source, "text", "label").items()}
    if settings.rows:
        kept["train"] = kept["train"].select(range(min(settings.rows, len(kept["train"]))))
    half = len(kept["validation"]) // 2
    return {
        "train": kept["train"],
        "clean": kept["validation"].select(range(half)),
        "selection": kept["validation"].select(range(half, 2 * half)),
        "test": kept["test"],
    }


def _seen(labels: np.ndarray, features: np.ndarray, rows: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Of `rows`, those outside the region that the teacher never sees: a third of the classes, or of the clusters."""
    region = labels
    if num_classes == 2:
        region = KMeans(CLUSTERS, n_init=3, random_state=seed).fit_predict(features)
    parts = region.max() + 1
    gone = np.random.default_rng(seed).permutation(parts)[: parts // 3]
    return ~np.isin(region[rows], gone)


def _taught(
    lesson: Dataset, parts: Mapping[str, Dataset], classes: Sequence[str], settings: Settings, seed: int, column: str
) -> dict[str, dict[str, np.ndarray]]:
    """Column -> split -> logits `[N, C]` of a 6-layer model fine-tuned on `lesson`, at four times or at the end."""
    set_seed(seed + 100)
    args = TrainingArguments(
        tempfile.gettempdir(), num_train_epochs=TEACHER_EPOCHS, learning_rate=TEACHER_RATE, seed=seed + 100,
        per_device_train_batch_size=settings.batch, per_device_eval_batch_size=EVAL_BATCH, warmup_steps=0.1,
        bf16=settings.bf16, use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
        disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    model = load_student(default_model(), classes, 0, settings.freeze_embeddings)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    trainer = Trainer(model, args, train_dataset=lesson, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    steps = TEACHER_EPOCHS * -(-len(lesson) // settings.batch)
    found: dict[str, dict[str, np.ndarray]] = {}

    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            quarters = {-(-steps * (i + 1) // 4): name for i, name in enumerate(CHECKPOINTS)}
            name = quarters.get(state.global_step) if column == TEACHER else None
            if state.global_step == steps:
                name = column
            if name:
                found[name] = {split: predict(trainer, rows) for split, rows in parts.items()}
                model.train()

    trainer.add_callback(Ask())
    trainer.train()
    return found


def _labelled(rows: Dataset, labels: np.ndarray) -> Dataset:
    feature = rows.features["label"]
    return rows.remove_columns("label").add_column("label", labels.tolist()).cast_column("label", feature)


def _features(rows: Dataset, settings: Settings) -> np.ndarray:
    """Mean-pooled states `[N, H]` of the pretrained model."""
    model = load_student(default_model(), ["a", "b"])
    if torch.cuda.is_available():
        model.cuda()
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    return encode_rows(model, tokenizer, rows, ["text"], settings.max_length, bf16=settings.bf16).numpy()


def _quality(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """cleanlab's label-quality score `[N]` from out-of-sample probabilities: 5 folds, logistic regression."""
    from cleanlab.rank import get_label_quality_scores

    model = LogisticRegression(max_iter=300)
    probabilities = cross_val_predict(model, features, labels, cv=5, method="predict_proba")
    return get_label_quality_scores(labels, probabilities)
