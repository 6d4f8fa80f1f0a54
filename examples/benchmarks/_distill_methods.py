"""Methods of `distillation.py`: each is `(parts, seed, steps) -> Outcome`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from _distill_data import CHECKPOINTS, SHUFFLED, TEACHER, Parts
from _work import EVAL_BATCH, authors, learn, predict
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from amal_hf import AMALTrainer, CrossEntropy, Distillation, Loss
from amal_hf.denoising import CLEAN_LABEL, clean_share, with_clean_rows

COLUMNS = ["text", "input_ids", "token_type_ids", "attention_mask", "label"]


@dataclass
class Outcome:
    """A trained student, the last weights of its training rows (source -> `[N]`), and what it trained on besides."""

    trainer: AMALTrainer
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def scores(self, parts: Parts) -> dict[str, Any]:
        """In percent: accuracy on test and selection; AUROC of the label's weight; mean weights of the sources."""
        found: dict[str, Any] = {}
        for name, rows in (("metric", parts.test), ("selection", parts.selection)):
            hit = predict(self.trainer, rows).argmax(1) == np.asarray(rows["label"][:])
            found[name] = 100 * float(hit.mean())
        flipped = np.asarray(parts.train["flipped"][:])
        label = self.weights.get("label", np.empty(0))
        seen = ~np.isnan(label)
        if seen.any() and flipped.any():
            found["auroc"] = float(roc_auc_score(~flipped[seen], label[seen]))
        heard = {name: w[~np.isnan(w)] for name, w in self.weights.items()}
        return {**found, "weights": {name: float(w.mean()) for name, w in heard.items() if len(w)}}


Method = Callable[[Parts, int, int], Outcome]


def rows_of(parts: Parts, *columns: str, of: str = "train") -> Dataset:
    """What a method may read of the training (or clean) rows: tokens, label and the teachers named."""
    rows: Dataset = getattr(parts, of)
    return rows.select_columns([c for c in COLUMNS if c in rows.column_names] + list(columns))


def sources(temperature: Any, *teachers: str) -> dict[str, Loss]:
    named = {name.removesuffix("_logits"): Distillation(name, temperature=temperature) for name in teachers}
    return {"label": CrossEntropy(), **(named if len(teachers) > 1 else {"teacher": next(iter(named.values()))})}


def fixed(alpha: float, temperature: float, clean: bool = False) -> Method:
    """(1 − alpha) · CE(label) + alpha · T² KL(teacher); `clean`: the clean rows among the batches, as ours has them."""

    def method(parts: Parts, seed: int, steps: int) -> Outcome:
        rows, losses, weights = rows_of(parts, TEACHER), sources(temperature, TEACHER), [1 - alpha, alpha]
        if clean:
            known = rows_of(parts, TEACHER, of="clean")
            labels, share = torch.as_tensor(known["label"][:]), clean_share(len(known), len(rows))
            rows = with_clean_rows(rows, known, labels, len(parts.classes), share)
            losses["clean"], weights = CrossEntropy(CLEAN_LABEL), [*weights, 1.0]
        return Outcome(student(parts, rows, losses, seed, steps, method="fixed", mixing_start=weights))

    return method


def steered(name: str, *teachers: str, temperature: Any = 2.0, **mixture: Any) -> Method:
    """A method that the clean rows only steer."""

    def method(parts: Parts, seed: int, steps: int) -> Outcome:
        losses = sources(temperature, *teachers) if teachers else {"label": CrossEntropy()}
        rows, clean = rows_of(parts, *teachers), rows_of(parts, of="clean")
        trainer = student(parts, rows, losses, seed, steps, clean=clean, method=name, log_weights=True, **mixture)
        return Outcome(trainer, weights_of(trainer, len(rows)))

    return method


def amal(parts: Parts, seed: int, steps: int) -> Outcome:
    """A weight per row and source, T = 4, as the authors have it."""
    rows, clean = rows_of(parts, TEACHER), rows_of(parts, of="clean")
    theirs = authors(EVAL_BATCH, parts.settings.learning_rate, steps)
    trainer = student(parts, rows, sources(4.0, TEACHER), seed, steps, clean=clean, log_weights=True, **theirs)
    return Outcome(trainer, weights_of(trainer, len(rows)))


def ours(*teachers: str) -> Method:
    """Method "denoise": one run, nothing to tune."""

    def method(parts: Parts, seed: int, steps: int) -> Outcome:
        rows, clean = (rows_of(parts, *teachers, of=split) for split in ("train", "clean"))
        trainer = student(
            parts, rows, sources(2.0, *teachers), seed, steps,
            clean=clean, method="denoise", log_weights=True, max_length=parts.settings.max_length,
        )  # fmt: skip
        return Outcome(trainer, weights_of(trainer, len(rows)))

    return method


def averaged(*teachers: str) -> Method:
    """Teachers only, each with the same weight."""

    def method(parts: Parts, seed: int, steps: int) -> Outcome:
        losses = sources(2.0, *teachers)
        weights = [0.0, *[1 / len(teachers)] * len(teachers)]
        return Outcome(
            student(parts, rows_of(parts, *teachers), losses, seed, steps, method="fixed", mixing_start=weights)
        )

    return method


def best_single(*teachers: str) -> Method:
    """Teacher only: the one that is right most often on the selection rows."""

    def method(parts: Parts, seed: int, steps: int) -> Outcome:
        truth = np.asarray(parts.selection["label"][:])
        right = {t: (np.asarray(parts.selection[t][:]).argmax(1) == truth).mean() for t in teachers}
        chosen = max(right, key=lambda t: right[t])
        losses = sources(2.0, chosen)
        return Outcome(
            student(parts, rows_of(parts, chosen), losses, seed, steps, method="fixed", mixing_start=[0.0, 1.0])
        )

    return method


def student(parts: Parts, *args: Any, **kwargs: Any) -> AMALTrainer:
    return learn(parts.settings, parts.classes, *args, **kwargs)


def weights_of(trainer: AMALTrainer, rows: int) -> dict[str, np.ndarray]:
    """λ of the training rows as they were last seen, without the clean rows behind them: source -> `[N]`."""
    kept = trainer.weigher.history.last_weights()[:rows].float().numpy()
    return dict(zip(trainer.stack.names, kept.T, strict=True))


def methods(alphas: Sequence[float], temperatures: Sequence[float]) -> dict[str, Method]:
    """In the order in which they run. Those with several teachers have a case of their own."""
    grid = {f"alpha {a:g} T {t:g}": fixed(a, t) for t in temperatures for a in alphas}
    return {
        "amal_hf": ours(TEACHER),
        **grid,
        "alpha 0.5 T 2 + clean": fixed(0.5, 2.0, clean=True),
        "alpha 1 T 2 + clean": fixed(1.0, 2.0, clean=True),
        "alm-kd": steered("alm-kd", TEACHER),
        "amal (authors)": amal,
        "learning to reweight": steered("l2r"),
        "trust": steered("trust", TEACHER),
        "trust, T learned": steered("trust", TEACHER, temperature="learned"),
        "trust, every 5": steered("trust", TEACHER, meta_every=5),
    }


SEVERAL: dict[str, Method] = {
    "4 checkpoints: average": averaged(*CHECKPOINTS),
    "4 checkpoints: best single": best_single(*CHECKPOINTS),
    "4 checkpoints: amal_hf": ours(*CHECKPOINTS),
    "4 checkpoints + shuffled: amal_hf": ours(*CHECKPOINTS, SHUFFLED),
}
