"""A tiny planted problem: words that name their class, labels that may lie, a teacher who knows."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerBase,
    set_seed,
)

from amal_hf import AMALConfig, AMALTrainer, CrossEntropy, Distillation, LabelingFunctions

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS, OWN, CLASSES = 40, 8, 3  # words in all; words of each class, the rest belong to none
NAMES = ["air", "sea", "land"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}


def make_rows(n: int = 32, seed: int = 0, wrong: float = 0.0, tokens: bool = True) -> Dataset:
    """`n` rows: text (or tokens), `label` of which a share is `wrong`, `truth`, teacher and three votes."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        truth = i % CLASSES
        lies = draw.random() < wrong
        label = (truth + draw.randint(1, CLASSES - 1)) % CLASSES if lies else truth
        words = [draw.randrange(OWN * truth, OWN * truth + OWN) for _ in range(4)]
        words += [draw.randrange(OWN * CLASSES, WORDS) for _ in range(draw.randint(2, 5))]
        draw.shuffle(words)
        ids = [VOCABULARY["[CLS]"], *(VOCABULARY[f"w{w}"] for w in words), VOCABULARY["[SEP]"]]
        read = {"input_ids": ids, "attention_mask": [1] * len(ids)} if tokens else {"text": sentence(words)}
        teacher = [4.0 * (c == truth) + draw.gauss(0, 0.5) for c in range(CLASSES)]
        votes = [truth, truth if draw.random() < 0.5 else -1, draw.randint(-1, CLASSES - 1)]
        rows.append({**read, "label": label, "truth": truth, "teacher_logits": teacher, "weak_labels": votes})
    plain = Dataset.from_list(rows)
    return Dataset.from_list(rows, features=Features({**plain.features, "label": ClassLabel(names=NAMES)}))


def sentence(words: list[int]) -> str:
    return " ".join(f"w{w}" for w in words)


def make_student(kind: str = "bert", dropout: float = 0.0, hidden: int = 16, seed: int = 0) -> nn.Module:
    """Two layers from a configuration, the same weights for the same seed."""
    set_seed(seed)
    if kind == "distilbert":
        return DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=len(VOCABULARY), dim=hidden, hidden_dim=2 * hidden, n_layers=2, n_heads=2,
                max_position_embeddings=32, dropout=dropout, attention_dropout=dropout,
                seq_classif_dropout=dropout, num_labels=CLASSES,
            )
        )  # fmt: skip
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=2 * hidden, max_position_embeddings=32, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, classifier_dropout=dropout, num_labels=CLASSES,
            initializer_range=0.2,  # rows differ from the start: no rounding is blown up to unit length
        )
    )  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizerFast(vocab=dict(VOCABULARY), model_max_length=32)


def make_losses(*which: str) -> dict[str, Any]:
    every = {
        "label": CrossEntropy(),
        "teacher": Distillation("teacher_logits", temperature=2.0),
        "rules": LabelingFunctions("weak_labels"),
    }
    return {name: every[name] for name in which or every}


SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-3,
    "logging_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": os.environ.get("AMAL_HF_TESTS_ON") != "gpu",  # there, what is bit for bit on a CPU may not be
    "dataloader_pin_memory": False,
    "meta_batch_size": 8,
}


HOW_OFTEN, EPOCHS = ("meta_batch_size", "meta_every", "meta_start"), ("refresh_every", "refresh_repeats")


def make_trainer(
    folder: Path, settings: Mapping[str, Any] | None = None, kind: type[AMALTrainer] = AMALTrainer, **given: Any
) -> AMALTrainer:
    """A trainer on the planted problem; `settings` go to `AMALConfig`, `given` to the trainer."""
    usual = "custom" if "mixing" in (settings or {}) else "trust"
    settings = {**SETTINGS, "method": usual, **(settings or {})}
    idle = {*HOW_OFTEN} if settings["method"] in ("fixed", "denoise") else set()  # they refuse to be told when
    idle |= {*EPOCHS} if settings["method"] != "amal" else set()
    settings = {name: value for name, value in settings.items() if name not in idle}
    args = AMALConfig(str(folder), **settings)
    if "model_init" not in given:
        given.setdefault("model", make_student())
    given.setdefault("losses", make_losses("label", "teacher"))
    given.setdefault("train_dataset", make_rows(32, wrong=0.4))
    given.setdefault("clean_dataset", make_rows(12, seed=1))
    given.setdefault("processing_class", make_tokenizer())
    return kind(args=args, **given)


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in trainer.model.named_parameters()}


def table_of(trainer: AMALTrainer) -> torch.Tensor:
    """Last weights of every row, `[rows, K]`; NaN where the source says nothing."""
    columns = trainer.weights.with_format("torch")
    return torch.stack([columns[name][:].float() for name in trainer.stack.names], dim=1)


def furthest(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any entry of any tensor, relative where entries exceed one."""
    assert a.keys() == b.keys()
    pairs = [(a[k].cpu(), b[k].cpu()) for k in a if a[k].is_floating_point()]
    gaps = [((x - y).abs() / x.abs().clamp_min(1)).nan_to_num() for x, y in pairs]
    return max(gap.max().item() for gap in gaps)


def identical(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bit for bit the same (NaN equals NaN)."""
    assert a.keys() == b.keys()
    pairs = {k: (a[k].detach().cpu().nan_to_num(nan=1e9), b[k].detach().cpu().nan_to_num(nan=1e9)) for k in a}
    return [k for k, (x, y) in pairs.items() if not torch.equal(x, y)]
