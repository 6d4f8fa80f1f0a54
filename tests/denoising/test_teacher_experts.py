"""Teachers and wrong labels as experts: who is blind, who guesses, how often a label is wrong."""

import math

import pytest
import torch

from amal_hf.denoising import LabelNoise, adjusted_balanced_accuracy
from amal_hf.denoising.row_features import RowFeatures
from amal_hf.denoising.teacher_experts import of_teacher

CLASSES = 3
TRUTH = torch.arange(60) % CLASSES
BLIND = torch.where(TRUTH == 2, 1, TRUTH)


def named(classes: torch.Tensor, sure: float = 3.0) -> list[list[float]]:
    """Logits that name these classes."""
    return (sure * torch.eye(CLASSES)[classes]).tolist()


def known(logits: list) -> RowFeatures:
    """These teacher's logits, and nothing else."""
    said = torch.tensor([[math.nan] * CLASSES if row is None else row for row in logits]).double()
    return RowFeatures(torch.zeros(len(logits), 0), {}, {"teacher_logits": said})


def test_noise_is_found_where_nobody_has_counted_it() -> None:
    """30 % of class 0 are called 1, no other label is wrong; the others know every class, and are nearly sure."""
    truth = torch.arange(3000) % CLASSES
    said = torch.where((truth == 0) & (torch.arange(3000) % 10 < 3), 1, truth)
    found = LabelNoise.fit(9.0 * torch.eye(CLASSES)[truth].double(), said).log_p.exp()
    expected = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    assert (found - expected).abs().max() < 0.01
    torch.testing.assert_close(found.sum(1), torch.ones(CLASSES).double())


def test_a_label_that_says_nothing_moves_nothing() -> None:
    """Half of two classes' labels are wrong: they tell no class from the other."""
    truth = torch.arange(2000) % 2
    said = (truth + torch.randint(0, 2, (2000,), generator=torch.Generator().manual_seed(1))) % 2
    noise = LabelNoise.fit(4.0 * torch.eye(2)[truth].double(), said)
    heard = noise(said)
    assert (heard[:, 0] - heard[:, 1]).abs().max() < 0.2
    assert noise(torch.tensor([-100, -1])).abs().sum() == 0


def test_clean_rows_tell_which_classes_a_blind_teacher_confuses() -> None:
    """It was never shown class 2 and calls its rows 1: where it says 1, both are as likely."""
    asked, clean = known(named(torch.tensor([0, 1]))), known(named(BLIND))
    logits, confusion = of_teacher("teacher_logits", asked, clean, TRUTH, CLASSES)
    assert logits.train_log_odds.argmax(1).tolist() == [0, 1] and logits.train_log_odds[1, 2] < 0
    said = confusion.train_log_odds
    assert said[0].argmax() == 0 and abs(said[1, 1] - said[1, 2]) < 0.5 and said[1, 2] > said[1, 0] + 1


def test_a_teacher_that_abstains_says_nothing() -> None:
    silent = [None, [math.nan] * CLASSES, *named(TRUTH[2:])]
    for expert in of_teacher("teacher_logits", known([None, None]), known(silent), TRUTH, CLASSES):
        assert expert.oof_log_odds[:2].abs().sum() == 0 and expert.oof_log_odds[2:].abs().sum() > 0
        assert expert.train_log_odds.tolist() == [[0.0] * CLASSES] * 2


@pytest.mark.parametrize(
    ("classes", "expected"), [(TRUTH, 1.0), ((TRUTH + 1) % CLASSES, 0.0), (torch.zeros_like(TRUTH), 0.0), (BLIND, 0.5)]
)
def test_skill_is_how_much_better_than_chance(classes: torch.Tensor, expected: float) -> None:
    assert adjusted_balanced_accuracy(classes, TRUTH) == pytest.approx(expected)


def test_nothing_is_known_against_a_teacher_that_abstains() -> None:
    assert adjusted_balanced_accuracy(torch.full((6,), -1), TRUTH[:6]) == 1.0
