"""Methods of `rule_denoising.py`: each is `(parts, seed, steps) -> logits [N, C]` of the test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _rule_ours
import _rule_setfit
import _rule_vectors
import numpy as np
import torch
from _rule_data import Parts
from _rule_selftraining import self_training
from _work import EVAL_BATCH, authors, clock, made
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score
from transformers import PreTrainedModel

from amal_hf import AMALTrainer, CrossEntropy, LabelingFunctions
from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising import CLEAN_LABEL, with_clean_rows
from amal_hf.losses import MajorityVote

SECOND_PHASE = 0.25
FIXED = {  # each labeling function, majority vote, label model, clean rows
    "majority": [0.0, 1.0, 0.0, 3.0],
    "label model": [0.0, 0.0, 1.0, 3.0],
    "all": [0.2, 0.5, 0.5, 1.0],
}


def scores(name: str, logits: np.ndarray, truth: Sequence[int]) -> dict[str, float]:
    """In percent; `metric`: F1 of spam on sms, micro-F1 of all slots (not class O) on mitr, elsewhere accuracy."""
    said = np.asarray(logits).argmax(-1)
    found = {"accuracy": accuracy_score(truth, said), "macro_f1": f1_score(truth, said, average="macro")}
    found["metric"] = found["accuracy"]
    if name == "sms":
        found["metric"] = f1_score(truth, said, pos_label=1)
    if name == "mitr":
        found["metric"] = f1_score(truth, said, labels=range(1, logits.shape[-1]), average="micro")
    return {key: 100 * float(value) for key, value in found.items()}


def fine_tune(parts: Parts, model: PreTrainedModel, seed: int, steps: int) -> AMALTrainer:
    """Another phase on the clean rows: a fresh optimizer, the same learning rate and schedule."""
    return parts.learn(parts.clean, {"label": CrossEntropy()}, seed, steps, model=model)


def one_source(column: str, every_row: bool = False) -> Callable[[Parts, int, int], np.ndarray]:
    """Train on one column of the training rows: on those that some function votes on, or on all."""

    def method(parts: Parts, seed: int, steps: int) -> np.ndarray:
        loss = MajorityVote() if column == "weak_labels" else CrossEntropy(column)
        return parts.predict(parts.learn(parts.train if every_row else parts.covered, {"source": loss}, seed, steps))

    return method


def clean_only(parts: Parts, seed: int, steps: int) -> np.ndarray:
    return parts.predict(parts.learn(parts.clean, {"label": CrossEntropy()}, seed, steps))


def vote_then_clean(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """The first phase knows no budget: it is trained once per data set and seed, and its time counts for every run."""
    second = round(SECOND_PHASE * steps)

    def first_phase(path: Path) -> None:
        started = clock()
        model = parts.learn(parts.covered, {"votes": MajorityVote()}, seed, steps - second).model
        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file({**state, "seconds": torch.tensor(clock() - started)}, path)

    started = clock()
    state = load_file(made(parts.folder / f"votes-{seed}-{steps - second}.safetensors", first_phase))
    parts.extra_seconds += float(state.pop("seconds")) - (clock() - started)
    model = load_student(default_model(), parts.classes, parts.settings.layers, parts.settings.freeze_embeddings)
    model.load_state_dict(state)
    return parts.predict(fine_tune(parts, model, seed, second))


def mixed(parts: Parts, clean: Dataset, seed: int, steps: int, **mixture: Any) -> AMALTrainer:
    """Every labeling function, the majority vote, the label model and, in a quarter of the rows, the clean class."""
    sources = {
        "rules": LabelingFunctions(),
        "majority": MajorityVote(),
        "label_model": CrossEntropy("label_model"),
        "clean": CrossEntropy(CLEAN_LABEL),
    }
    labels = torch.as_tensor(clean["label"][:])
    rows = with_clean_rows(parts.covered.remove_columns("truth"), clean, labels, len(parts.classes))
    return parts.learn(rows, sources, seed, steps, **mixture)


def equal_mix(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """All of `mixed`: each weighs 1 where it speaks."""
    return parts.predict(mixed(parts, parts.clean, seed, steps))


def best_fixed(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """`FIXED`: one run each on half of the clean rows; the other half chooses."""
    half, selection = parts.halves()
    functions = len(parts.train[0]["weak_labels"])
    best, chosen = -1.0, None
    for rule, *others in FIXED.values():
        trainer = mixed(parts, half, seed, steps, mixing_start=[rule] * functions + others)
        found = scores(parts.name, parts.predict(trainer, selection), selection["label"][:])["metric"]
        if found > best:
            best, chosen = found, trainer
    return parts.predict(chosen)


def steered(name: str, **mixture: Any) -> Callable[[Parts, int, int], np.ndarray]:
    """Weights per row on the majority vote's label, steered by the clean rows."""

    def method(parts: Parts, seed: int, steps: int) -> np.ndarray:
        votes = {"votes": MajorityVote()}
        return parts.predict(parts.learn(parts.covered, votes, seed, steps, clean=parts.clean, method=name, **mixture))

    return method


def amal(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """A weight per row and source, as the authors have it."""
    sources = {"rules": LabelingFunctions(), "majority": MajorityVote()}
    theirs = authors(EVAL_BATCH, parts.settings.learning_rate, steps)
    trainer = parts.learn(parts.covered, sources, seed, steps, clean=parts.clean, mixing_start=[1.0], **theirs)
    return parts.predict(trainer)


@dataclass(frozen=True)
class Method:
    """`run` on the test rows.

    Args:
        clean: it reads clean rows, so that every budget is another run.
        student: it trains the student, for so many steps.
    """

    run: Callable[[Parts, int, int], np.ndarray]
    clean: bool = True
    student: bool = True


METHODS: dict[str, Method] = {  # in the order in which they run
    "majority vote": Method(one_source("weak_labels"), clean=False),
    "vote then clean": Method(vote_then_clean),
    "clean only": Method(clean_only),
    "amal_hf": Method(_rule_ours.ours),
    "logistic regression": Method(_rule_vectors.clean_vectors, student=False),
    "setfit": Method(_rule_setfit.clean_only),
    "setfit, votes": Method(_rule_setfit.with_votes),
    "corrected labels": Method(_rule_ours.plain),
    "corrected labels, logistic regression": Method(_rule_vectors.corrected_vectors, student=False),
    "self-training": Method(self_training),
    "trust": Method(_rule_ours.trust),
    "gold": Method(one_source("truth", every_row=True), clean=False),
    "snorkel": Method(one_source("label_model"), clean=False),
    "cage": Method(one_source("cage"), clean=False),
    "equal mix": Method(equal_mix),
    "learning to reweight": Method(steered("l2r")),
    "learning to reweight, head": Method(steered("l2r", lookahead_params="head")),
    "meta-weight-net": Method(steered("meta-weight-net")),
    "amal (authors)": Method(amal),
    "best fixed": Method(best_fixed),
}
