"""Corrected: the posterior and the weights by hand, and sources that abstain."""

import pytest
import torch

from amal_hf import AMALConfig
from amal_hf.build import make_mixing
from amal_hf.denoising import CLEAN_LABEL
from amal_hf.losses import CrossEntropy, Distillation, Entropy, LabelingFunctions, LossStack
from amal_hf.mixing import Corrected, Rows

LOG_POSTERIOR = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
OTHER = torch.tensor([[0.2, 0.8], [0.9, 0.1]])


def rows(mask: list[list[bool]], log_posterior: torch.Tensor = LOG_POSTERIOR) -> Rows:
    """Source 0 says class 0, source 1 asserts nothing, source 2 is unsure."""
    n = len(mask)
    targets = torch.zeros(n, 3, 2)
    targets[:, 0, 0], targets[:, 2] = 1.0, OTHER[:n]
    speaks = torch.tensor(mask)
    return Rows(
        index=torch.arange(n),
        losses=torch.ones(n, 3),
        mask=speaks,
        targets=targets * speaks[..., None],
        class_gradient=torch.zeros(n, 2),
        log_posterior=log_posterior[:n],
    )


def test_weights_by_hand():
    """A source weighs what the posterior gives to its claim; one that names no class keeps its start."""
    weights = Corrected(torch.tensor([1.0, 0.3, 1.0])).weights(rows([[True] * 3, [True] * 3]))
    claims = [[0.8, 0.3, 0.8 * 0.2 + 0.2 * 0.8], [0.8, 0.3, 0.8 * 0.9 + 0.2 * 0.1]]
    assert torch.allclose(weights, torch.tensor(claims))


def test_masked_sources_weigh_nothing():
    weights = Corrected(torch.ones(3)).weights(rows([[True, False, False], [False, True, True]]))
    assert torch.allclose(weights, torch.tensor([[0.8, 0.0, 0.0], [0.0, 1.0, 0.74]]))


def test_log_posteriors_need_no_normalizing():
    mixing = Corrected(torch.ones(3))
    assert torch.allclose(
        mixing.weights(rows([[True] * 3] * 2)), mixing.weights(rows([[True] * 3] * 2, LOG_POSTERIOR - 5))
    )


def test_the_method_makes_it_and_it_learns_nothing(tmp_path):
    args = AMALConfig(str(tmp_path), method="denoise")
    losses = {
        "label": CrossEntropy(),
        "teacher": Distillation(),
        "rules": LabelingFunctions(),
        "clean": CrossEntropy(CLEAN_LABEL),
        "entropy": Entropy(),
    }
    mixing = make_mixing(args.resolved(), LossStack(losses, {"weak_labels": [0, 1]}), num_classes=2, num_rows=4)
    assert isinstance(mixing, Corrected) and not mixing.learns
    assert (mixing.teachers, mixing.yielding) == ([1], [0, 2, 3])


def test_an_unsure_teacher_is_weighted_as_the_class_it_names():
    seen = rows([[True] * 3, [True] * 3])
    seen.targets[:, 0] = torch.tensor([[0.55, 0.45], [0.4, 0.6]])  # names class 0, then class 1; a level of one half
    weights = Corrected(torch.tensor([0.5, 0.3, 1.0]), teachers=[0]).weights(seen)
    assert torch.allclose(weights[:, 0], torch.tensor([0.4, 0.1]))


def test_others_are_weighted_with_what_teachers_leave():
    """Sources: teacher, teacher, label, clean."""
    mixing = Corrected(torch.ones(4), teachers=[0, 1], yielding=[2])
    weights = torch.tensor([[0.8, 0.0, 0.5, 1.0], [0.6, 0.3, 0.5, 0.0], [0.0, 0.0, 0.5, 0.0]])
    used = torch.tensor([[0.8, 0.0, 0.1, 1.0], [0.4, 0.2, 0.2, 0.0], [0.0, 0.0, 0.5, 0.0]])
    assert torch.allclose(mixing.used(weights), used)
    assert torch.equal(Corrected(torch.ones(4)).used(weights), weights)


def test_another_mixing_than_the_methods_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`mixing`: expected 'corrected'.*'custom'"):
        AMALConfig(str(tmp_path), mixing="trust")
