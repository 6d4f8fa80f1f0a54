"""Corrected: the posterior and the weights by hand, silent sources, and a run without a slow copy."""

import pytest
import torch

from amal_hf import AMALConfig
from amal_hf.build import make_mixing
from amal_hf.denoising import GOLD
from amal_hf.losses import CrossEntropy, Distillation, Entropy, LabelingFunctions, LossStack, SlowCopy
from amal_hf.mixing import Corrected, Rows

LOG_POSTERIOR = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
SLOW = torch.tensor([[0.2, 0.8], [0.9, 0.1]])


def rows(mask: list[list[bool]], log_posterior: torch.Tensor = LOG_POSTERIOR) -> Rows:
    """Source 0 says class 0, source 1 asserts nothing, source 2 is the slow copy."""
    n = len(mask)
    targets = torch.zeros(n, 3, 2)
    targets[:, 0, 0], targets[:, 2] = 1.0, SLOW[:n]
    speaks = torch.tensor(mask)
    return Rows(
        index=torch.arange(n),
        losses=torch.ones(n, 3),
        mask=speaks,
        targets=targets * speaks[..., None],
        class_gradient=torch.zeros(n, 2),
        log_posterior=log_posterior[:n],
    )


def test_posterior_by_hand():
    """√(0.8 · 0.2) against √(0.2 · 0.8) is even; √(0.8 · 0.9) against √(0.2 · 0.1) is 6 to 1."""
    both = Corrected(torch.ones(3), slow=2).posterior(rows([[True] * 3, [True] * 3]))
    assert torch.allclose(both, torch.tensor([[0.5, 0.5], [6 / 7, 1 / 7]]))


def test_weights_by_hand():
    """A source weighs what the posterior gives to its claim; one that names no class keeps its start."""
    weights = Corrected(torch.tensor([1.0, 0.3, 1.0]), slow=2).weights(rows([[True] * 3, [True] * 3]))
    claims = [6 / 7, 0.3, 6 / 7 * 0.9 + 1 / 7 * 0.1]
    assert torch.allclose(weights, torch.tensor([[0.5, 0.3, 0.5], claims]))


def test_masked_sources_weigh_nothing_and_a_silent_copy_changes_nothing():
    mixing = Corrected(torch.ones(3), slow=2)
    weights = mixing.weights(rows([[True, False, False], [False, True, True]]))
    assert torch.allclose(weights[0], torch.tensor([0.8, 0.0, 0.0]))  # the copy is silent here: evidence alone
    assert weights[1, 0] == 0 and weights[1, 1] == 1 and torch.isclose(weights[1, 2], torch.tensor(5.5 / 7))
    assert torch.allclose(mixing.posterior(rows([[True, True, False]])), LOG_POSTERIOR[:1].exp())


def test_without_a_slow_copy_the_posterior_is_the_evidence():
    mixing = Corrected(torch.ones(3), slow=None)
    assert torch.allclose(mixing.posterior(rows([[True] * 3] * 2)), LOG_POSTERIOR.exp())


def test_evidence_needs_no_normalizing():
    mixing = Corrected(torch.ones(3), slow=2)
    assert torch.allclose(
        mixing.weights(rows([[True] * 3] * 2)), mixing.weights(rows([[True] * 3] * 2, LOG_POSTERIOR - 5))
    )


def test_a_copy_that_is_sure_of_nothing_possible_stays_finite():
    seen = rows([[True] * 3])
    seen.targets[0, 2] = torch.tensor([0.0, 1.0])
    assert Corrected(torch.ones(3), slow=2).weights(seen).isfinite().all()


def test_the_recipe_makes_it_and_it_learns_nothing(tmp_path):
    args = AMALConfig(str(tmp_path), method="denoise")
    losses = {
        "label": CrossEntropy(),
        "teacher": Distillation(),
        "rules": LabelingFunctions(),
        "self": SlowCopy(),
        "gold": CrossEntropy(GOLD),
        "entropy": Entropy(),
    }
    mixing = make_mixing(args, LossStack(losses, {"weak_labels": [0, 1]}), num_classes=2, num_rows=4)
    assert isinstance(mixing, Corrected) and not mixing.learns
    assert (mixing.slow, mixing.teachers, mixing.yielding) == (4, [1], [0, 2, 3, 4])


def test_an_unsure_teacher_is_believed_as_far_as_the_class_it_names():
    seen = rows([[True] * 3, [True] * 3])
    seen.targets[:, 0] = torch.tensor([[0.55, 0.45], [0.4, 0.6]])  # names class 0, then class 1; a level of one half
    weights = Corrected(torch.tensor([0.5, 0.3, 1.0]), slow=2, teachers=[0]).weights(seen)
    assert torch.allclose(weights[:, 0], torch.tensor([0.25, 0.5 / 7]))


def test_others_are_heard_as_far_as_no_teacher_is_believed():
    """Sources: teacher, teacher, label, gold."""
    mixing = Corrected(torch.ones(4), teachers=[0, 1], yielding=[2])
    weights = torch.tensor([[0.8, 0.0, 0.5, 1.0], [0.6, 0.3, 0.5, 0.0], [0.0, 0.0, 0.5, 0.0]])
    used = torch.tensor([[0.8, 0.0, 0.1, 1.0], [0.4, 0.2, 0.2, 0.0], [0.0, 0.0, 0.5, 0.0]])
    assert torch.allclose(mixing.used(weights), used)
    assert torch.equal(Corrected(torch.ones(4)).used(weights), weights)


def test_the_recipe_needs_its_column(tmp_path):
    with pytest.raises(ValueError, match="`posterior_column`"):
        AMALConfig(str(tmp_path), mixing="corrected")
