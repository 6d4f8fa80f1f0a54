"""Rows asked about rows like them: every answer comes without the row's own say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amal_hf.evidence import pool as module
from amal_hf.evidence.pool import FOLDS, RIDGE, pool

ROWS, WIDTH, CLASSES = 60, 4, 3


def clusters(rows: int, seed: int, noise: float = 0.4) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    truth = torch.arange(rows) % CLASSES
    return torch.eye(CLASSES, WIDTH)[truth] + noise * torch.randn(rows, WIDTH, generator=gen), truth


def flipped(truth: Tensor, share: float, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    moved = (truth + 1 + torch.randint(0, CLASSES - 1, truth.shape, generator=gen)) % CLASSES
    return torch.where(torch.rand(len(truth), generator=gen) < share, moved, truth)


def slow(features: Tensor, believed: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression with scikit-learn's kind of design, written out; centred over classes."""
    design = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    gram = design.T @ design
    weights = torch.linalg.inv(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()) @ design.T
    said = torch.cat([asked, torch.ones(len(asked), 1)], 1).double() @ (weights @ believed)
    return said - said.mean(1, keepdim=True)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_each_row_is_answered_from_the_other_folds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(12, 1)
    believed = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(3)).double()
    found = pool(train, clean, labels, lambda rows: believed)
    assert found is not None
    told, unseen = found
    about_mean = believed - believed.mean(0)
    expected = torch.zeros_like(believed)
    for k in range(FOLDS):
        others = torch.arange(ROWS) % FOLDS != k
        expected[~others] = slow(train[others], about_mean[others], train[~others])
    of_clean = slow(train, about_mean, clean)
    scale = 2.0 / of_clean.norm(dim=1).mean()
    torch.testing.assert_close(told, scale * expected)
    torch.testing.assert_close(unseen, scale * of_clean)


def test_a_clean_row_has_no_say_in_what_it_is_told() -> None:
    """Each fold of clean rows is answered from what is believed without it, class by class the same share."""
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(30, 1)
    asked: list[list[int]] = []

    def believe(rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return torch.eye(CLASSES).double()[torch.arange(ROWS) % CLASSES] * (1 + len(rows) % 7)

    pool(train, clean, labels, believe)
    everybody, *without = asked
    assert everybody == list(range(30)) and len(without) == FOLDS
    gone = [sorted({*everybody} - {*rows}) for rows in without]
    assert sorted(row for rows in gone for row in rows) == everybody
    assert all(labels[rows].bincount().tolist() == [2, 2, 2] for rows in gone)


def test_many_wrong_labels_know_more_than_they_say() -> None:
    """Two of five labels are wrong; what rows alike are called is right far more often."""
    (train, truth), (clean, labels) = clusters(600, 0, noise=0.3), clusters(30, 1, noise=0.3)
    said = flipped(truth, 0.4)
    found = pool(train, clean, labels, lambda rows: torch.eye(CLASSES).double()[said])
    assert found is not None
    assert (said == truth).float().mean() < 0.65
    assert (found[0].argmax(1) == truth).float().mean() > 0.9
    assert (found[1].argmax(1) == labels).float().mean() > 0.9


def test_a_class_with_one_clean_row_leaves_nothing_to_judge_by() -> None:
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(7, 1)
    assert pool(train, clean[:4], labels[:4], lambda rows: torch.rand(ROWS, CLASSES).double()) is None
    assert pool(train, clean[:6], labels[:6], lambda rows: torch.rand(ROWS, CLASSES).double()) is not None
