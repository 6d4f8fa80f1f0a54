"""The authors' epoch schedule, transcribed a second time from the description alone, in plain torch and float64.

first E epochs at the start values (label 0.1, teachers 0.9), then every E epochs one pass in eval mode;
rows in groups of 4 batches; per group one meta batch and 5 repetitions of
    θ' = last layer − η ∇L        L = mean_i [λ_i0 CE + Σ_m λ_im T² KL(softmax(t_m/T) ‖ softmax(f/T))], T = 4
    λ ← clip(λ − α ∂V(θ')/∂λ)     α = 1500, V exact at θ', all columns together
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from planted import CLASSES, make_rows, make_student, make_trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from amal_hf import CrossEntropy, Distillation
from amal_hf.lookahead import MetaSampler

ROWS, CLEAN, BATCH, GROUP, REPEATS, ALPHA, T = 56, 12, 8, 4, 5, 1500.0, 4.0
LOW, HIGH = 1e-7, 2 - 1e-7


def with_teachers(rows: Dataset, count: int) -> Dataset:
    """Teachers of different skill: the m-th is sure of the truth on fewer rows than the one before."""
    rows = rows.remove_columns("teacher_logits")
    for m in range(count):
        draw = random.Random(m)
        said = [
            [draw.gauss(0, 1) + 4.0 * (c == truth and draw.random() > 0.2 * m) for c in range(CLASSES)]
            for truth in rows["truth"][:]
        ]
        rows = rows.add_column(f"t{m}", said)
    return rows


def features(model: Any, rows: Dataset) -> Tensor:
    """What enters the last layer, `[N, H]`, a row at a time: no padding, no batch."""
    model.eval()
    with torch.no_grad():
        each = [model.bert(torch.tensor([ids], device=model.device)).pooler_output[0] for ids in rows["input_ids"][:]]
    model.train()
    return torch.stack(each).double().cpu()


def losses(logits: Tensor, labels: Tensor, teachers: list[Tensor]) -> Tensor:
    """`[N, 1 + M]`, as the description writes them."""
    log_q = torch.log(torch.exp(logits / T) / torch.exp(logits / T).sum(1, keepdim=True))
    columns = [
        -torch.log(torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))[torch.arange(len(labels)), labels]
    ]
    for teacher in teachers:
        p = torch.exp(teacher / T) / torch.exp(teacher / T).sum(1, keepdim=True)
        columns.append(T * T * (p * (torch.log(p) - log_q)).sum(1))
    return torch.stack(columns, 1)


def refresh(table: Tensor, model: Any, eta: float, train: Dataset, clean: Dataset, draws: list[list[int]]) -> Tensor:
    """One pass. `draws`: which clean rows the j-th group is judged by."""
    table = table.clone()
    weight, bias = (p.detach().double().cpu() for p in (model.classifier.weight, model.classifier.bias))
    h, h_clean = features(model, train), features(model, clean)
    labels, labels_clean = torch.tensor(train["label"][:]), torch.tensor(clean["label"][:])
    teachers = [torch.tensor(train[c][:]).double() for c in train.column_names if c.startswith("t") and c != "truth"]
    for group, start in enumerate(range(0, ROWS, GROUP * BATCH)):
        rows, judges = slice(start, start + GROUP * BATCH), draws[group]
        for _ in range(REPEATS):
            lam = table[rows].clone().requires_grad_()
            w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            each = losses(h[rows] @ w.T + b, labels[rows], [t[rows] for t in teachers])
            g_w, g_b = torch.autograd.grad((lam * each).sum(1).mean(), (w, b), create_graph=True)
            judged = h_clean[judges] @ (w - eta * g_w).T + (b - eta * g_b)
            (slope,) = torch.autograd.grad(F.cross_entropy(judged, labels_clean[judges]), lam)
            table[rows] = (lam - ALPHA * slope).detach().clamp(LOW, HIGH)
    return table


class Transcription(TrainerCallback):
    """Follows a run with a table of its own, and compares after every refresh."""

    def __init__(self, trainer: Any, every: int, draws: list[list[int]]) -> None:
        self.trainer, self.every, self.draws = trainer, every, draws
        sources = len(trainer.stack)
        self.table = torch.tensor([0.1] + [0.9] * (sources - 1), dtype=torch.float64).repeat(ROWS, 1)
        self.gaps: list[float] = []
        self.moved: list[float] = []
        self.interior = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch and epoch % self.every == 0:
            eta = self.trainer.optimizer.param_groups[0]["lr"]
            before = self.table
            self.table = refresh(
                before, self.trainer.model, eta, self.trainer.train_dataset, self.trainer.clean_dataset, self.draws
            )
            self.moved.append((self.table - before).abs().mean().item())
            self.interior = ((self.table > 0.01) & (self.table < 1.99)).double().mean().item()
        found = self.trainer.weigher.mixing.table.double()
        self.gaps.append((found - self.table).abs().max().item())


@pytest.mark.parametrize("meta_batch", [CLEAN, 5], ids=["all clean rows", "a draw of them"])
@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_epoch_refresh_is_the_description(tmp_path, count, meta_batch):
    train = with_teachers(make_rows(ROWS, wrong=0.4), count)
    trainer = make_trainer(
        tmp_path,
        {"method": "amal", "refresh_every": 2, "num_train_epochs": 7, "learning_rate": 0.01, "optim": "sgd",
         "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH, "meta_batch_size": meta_batch,
         "logging_strategy": "no"},
        model=make_student(),
        train_dataset=train,
        clean_dataset=make_rows(CLEAN, seed=1),
        losses={"label": CrossEntropy()} | {f"t{m}": Distillation(f"t{m}", temperature=T) for m in range(count)},
    )  # fmt: skip
    draw = MetaSampler(CLEAN, meta_batch, trainer.args.seed)
    judge = Transcription(trainer, every=2, draws=[draw(0), draw(1)])
    trainer.add_callback(judge)
    trainer.train()
    assert len(judge.moved) == 3 and min(judge.moved) > 0.005, judge.moved  # three refreshes, each of them felt
    assert judge.interior > 0.25, judge.interior  # and not all of it decided by the clamp
    assert len(judge.gaps) == 7 and max(judge.gaps) <= 1e-6, judge.gaps
