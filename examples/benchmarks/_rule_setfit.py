"""SetFit in `rule_denoising.py`: the package `setfit` on the student's encoder, of the clean rows, or of votes too.

The recipe is the paper's: 20 pairs of one class and 20 of two for each text, 16 pairs a step, once; then logistic
regression. Everybody's are the encoder (the same checkpoint, layers and frozen word embeddings), the learning rate
and, where the pairs of many texts would take more, the number of steps, each of 32 texts.

References:
    Tunstall et al. (2022), section 3.
"""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import torch
from _rule_data import Parts
from _rule_vectors import logits
from _work import clock
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from transformers import PrinterCallback, set_seed

from amal_hf.commands.train import default_model

ITERATIONS = 20  # R
CONFIDENT = 50  # rows of a class that votes add


def clean_only(parts: Parts, seed: int, steps: int) -> np.ndarray:
    return _fitted(parts, _texts(parts.clean, parts.clean_labels), seed, steps)


def with_votes(parts: Parts, seed: int, steps: int) -> np.ndarray:
    """The clean rows and, with the class voted for, the rows on which all votes agree."""
    votes = np.asarray(parts.train["weak_labels"][:])
    at = confident(votes, len(parts.classes), CONFIDENT, seed)
    added = _texts(parts.train.select(at), votes[at].max(1))
    clean = _texts(parts.clean, parts.clean_labels)
    return _fitted(parts, {name: clean[name] + added[name] for name in clean}, seed, steps)


def confident(votes: np.ndarray, num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """Of each class the rows whose votes `[N, M]` all name it, at most so many: those with most votes first."""
    count, named = (votes >= 0).sum(1), votes.max(1)
    agreed = (count > 0) & ((votes == named[:, None]) | (votes < 0)).all(1)
    order = np.random.default_rng(seed).permutation(len(votes))
    order = order[np.argsort(-count[order], kind="stable")]
    return np.concatenate([order[agreed[order] & (named[order] == c)][:per_class] for c in range(num_classes)])


def _texts(rows: Dataset, labels: np.ndarray) -> dict[str, list]:
    return {"text": rows["text"][:], "label": labels.tolist()}


def _fitted(parts: Parts, rows: dict[str, list], seed: int, steps: int) -> np.ndarray:
    """Both stages; log-probabilities `[N, C]` of the test rows."""
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments, logging

    logging.set_verbosity_error()
    given, device = parts.settings, "cuda" if torch.cuda.is_available() else "cpu"
    cut = {"num_hidden_layers": given.layers} if given.layers else {}
    set_seed(seed)
    body = SentenceTransformer(default_model(), device=device, config_kwargs=cut)
    body.max_seq_length = given.max_length
    encoder: Any = body[0].auto_model
    encoder.get_input_embeddings().requires_grad_(not given.freeze_embeddings)
    pairs = given.batch // 2
    needed = math.ceil(2 * ITERATIONS * len(rows["text"]) / pairs)
    amount = {"num_iterations": ITERATIONS} if needed <= steps else {"max_steps": steps}
    parts.facts["steps"] = min(needed, steps)
    args = TrainingArguments(
        tempfile.gettempdir(), batch_size=pairs, num_epochs=1, body_learning_rate=given.learning_rate, **amount,
        warmup_proportion=0.1, l2_weight=0.01, seed=seed, report_to="none", show_progress_bar=False,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    model = SetFitModel(body, LogisticRegression(max_iter=1000))
    trainer = Trainer(model, args, train_dataset=Dataset.from_dict(rows))
    trainer.remove_callback(PrinterCallback)
    with torch.autocast(device, torch.bfloat16, enabled=given.bf16):
        trainer.train()
        started = clock()
        vectors = body.encode(parts.test["text"][:], show_progress_bar=False)
        found = logits(model.model_head, vectors, len(parts.classes))
    parts.extra_seconds -= clock() - started
    return found
