"""Rows asked about rows like them: every answer comes without the row's own say."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from amal_hf.denoising import neighbours as module
from amal_hf.denoising.neighbours import FOLDS, RIDGE, CrossFittedRidge

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
    """Ridge regression, written out."""
    design = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    gram = design.T @ design
    weights = torch.linalg.inv(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()) @ design.T
    return torch.cat([asked, torch.ones(len(asked), 1)], 1).double() @ (weights @ believed)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_each_row_is_answered_from_the_other_folds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(12, 1)
    believed = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(3)).double()
    told, unseen = CrossFittedRidge(train, clean, labels).answers(lambda rows: believed)
    about_mean = believed - believed.mean(0)
    for k in range(FOLDS):
        others = torch.arange(ROWS) % FOLDS != k
        torch.testing.assert_close(told[~others], slow(train[others], about_mean[others], train[~others]))
    torch.testing.assert_close(unseen, slow(train, about_mean, clean))


def test_a_clean_row_has_no_say_in_what_it_is_told() -> None:
    """Each fold of clean rows is answered from what is believed without it, class by class the same share."""
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(30, 1)
    asked: list[list[int]] = []

    def believe(rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return torch.eye(CLASSES).double()[torch.arange(ROWS) % CLASSES] * (1 + len(rows) % 7)

    CrossFittedRidge(train, clean, labels).answers(believe)
    everybody, *without = asked
    assert everybody == list(range(30)) and len(without) == FOLDS
    gone = [sorted({*everybody} - {*rows}) for rows in without]
    assert sorted(row for rows in gone for row in rows) == everybody
    assert all(labels[rows].bincount().tolist() == [2, 2, 2] for rows in gone)


@pytest.mark.parametrize("labelled", [1.0, 0.5])
def test_many_wrong_labels_know_more_than_they_say(labelled: float) -> None:
    """Two of five labels are wrong; what rows alike are called is right far more often, unlabelled ones included."""
    (train, truth), (clean, labels) = clusters(600, 0, noise=0.3), clusters(30, 1, noise=0.3)
    said = flipped(truth, 0.4)
    assert (said == truth).float().mean() < 0.65
    said[round(600 * labelled) :] = -100
    found = CrossFittedRidge(train, clean, labels).label_expert(said, CLASSES)
    assert (found.train_log_odds.argmax(1) == truth).float().mean() > 0.9
    assert (found.oof_log_odds.argmax(1) == labels).float().mean() > 0.9
    assert found.train_log_odds.sum(1).abs().max() < 1e-9 and found.prior_weight == 0


def test_a_teacher_is_doubted_where_it_is_not_believed_and_nowhere_else() -> None:
    """It calls the first cluster 1; labels, 40 % of them wrong, do not. Where it abstains nothing is said."""
    (train, truth), (clean, labels) = clusters(600, 0, noise=0.3), clusters(30, 1, noise=0.3)
    named, clean_named = (torch.where(y == 0, 1, y) for y in (truth, labels))
    named[::10], clean_named[0] = -1, -1
    believed = torch.eye(CLASSES).double()[flipped(truth, 0.4)]
    found = CrossFittedRidge(train, clean, labels).teacher_reliability_expert(
        named, clean_named, CLASSES, lambda rows: believed
    )
    for said, classes, truly in ((found.train_log_odds, named, truth), (found.oof_log_odds, clean_named, labels)):
        spoke = classes >= 0
        for_it = said.gather(1, classes.clamp_min(0)[:, None])[spoke, 0]
        assert roc_auc_score(classes[spoke] == truly[spoke], for_it) > 0.95
        assert said[~spoke].abs().sum() == 0


@pytest.mark.parametrize(("speaks", "clean_speaks"), [(False, True), (True, False)])
def test_a_teacher_that_is_silent_on_all_rows_of_a_kind_is_not_judged(speaks: bool, clean_speaks: bool) -> None:
    (train, truth), (clean, labels) = clusters(ROWS, 0), clusters(12, 1)
    named, clean_named = (torch.where(torch.tensor(s), y, -1) for s, y in ((speaks, truth), (clean_speaks, labels)))
    believed = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(3)).double()
    found = CrossFittedRidge(train, clean, labels).teacher_reliability_expert(
        named, clean_named, CLASSES, lambda rows: believed
    )
    assert found.train_log_odds.abs().sum() == 0 and found.oof_log_odds.abs().sum() == 0


@pytest.mark.parametrize("heard", [1.0, 1e-2, 1e-9])
def test_next_to_nothing_on_clean_rows_is_not_blown_up(heard: float) -> None:
    """Clean rows that are told 1e-9 of what training rows are cannot judge it: 1e9 times as much drowned the rest."""
    told = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]).double() / 2**0.5
    found = module.of_usual_length(told, heard * told)
    length = found.train_log_odds.norm(dim=1).mean()
    assert length == pytest.approx(module.SPAN * min(1 / heard, module.LOUDER))
    torch.testing.assert_close(found.oof_log_odds, heard * found.train_log_odds)


def test_a_class_with_one_clean_row_leaves_nothing_to_judge_by() -> None:
    (train, _), (clean, labels) = clusters(ROWS, 0), clusters(7, 1)
    assert not CrossFittedRidge(train, clean[:4], labels[:4]).can_leave_out
    assert CrossFittedRidge(train, clean[:6], labels[:6]).can_leave_out
