"""The clean rows' memory: the probe against a refit by hand, and a sharpness that knows when to be silent."""

import pytest
import torch
from torch import nn

from amal_hf.metagrad import Head
from amal_hf.metagrad.clean_features import CleanFeatureBank, ridge_leave_one_out


def memory(features, labels, num_classes):
    kept = CleanFeatureBank(labels, num_classes, features.shape[1])
    kept.encode_clean_rows(torch.arange(len(labels)), features)
    return kept, Head(nn.Linear(features.shape[1], num_classes), "w", "b")


def test_leave_one_out_predictions_are_those_of_a_refit_without_the_row():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    target = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    shares = torch.rand(12, 1, dtype=torch.float64, generator=generator)
    coefficients, oof_log_odds = ridge_leave_one_out(design, shares, target, ridge=0.5)
    penalty = 0.5 * (design.T @ (shares * design)).diagonal().mean() * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(design.T @ (shares * (design @ coefficients - target)) + penalty @ coefficients,
                               torch.zeros(4, 3, dtype=torch.float64))  # fmt: skip
    for row in range(12):
        rest = torch.arange(12) != row
        d, s, t = design[rest], shares[rest], target[rest]
        refit = torch.linalg.solve(d.T @ (s * d) + penalty, d.T @ (s * t))
        torch.testing.assert_close(oof_log_odds[row], design[row] @ refit)


@pytest.mark.parametrize("rows", [3, 39, 40, 41, 200])
@pytest.mark.parametrize("ridge", [1.0, 1e-2])
def test_few_rows_and_many_solve_the_same_equations(rows, ridge):
    """By rows or by columns, whichever are fewer: as the definition says, to 1e-10."""
    generator = torch.Generator().manual_seed(rows)
    design, target = (torch.randn(rows, n, dtype=torch.float64, generator=generator) for n in (40, 3))
    shares = torch.rand(rows, 1, dtype=torch.float64, generator=generator) / rows
    gram = design.T @ (shares * design)
    gram += ridge * gram.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    hat = design @ torch.linalg.solve(gram, design.T) * shares.T  # [M, M]
    leverage = hat.diagonal()[:, None]
    coefficients, oof_log_odds = ridge_leave_one_out(design, shares, target, ridge)
    expected = torch.linalg.solve(gram, design.T @ (shares * target))
    torch.testing.assert_close(coefficients, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        oof_log_odds, (hat @ target - leverage * target) / (1 - leverage), rtol=1e-10, atol=1e-10
    )


def test_inverse_temperature_is_high_on_informative_features_and_about_zero_on_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    told = nn.functional.one_hot(labels, 3).float() + 0.1 * torch.randn(60, 3, generator=generator)
    noise = torch.randn(60, 3, generator=generator)
    found = []
    for features in (told, noise):
        kept, head = memory(features, labels, 3)
        nothing = {"w": torch.zeros(3, 3), "b": torch.zeros(3)}
        found.append(kept.blended_direction(head, nothing, probe_weight=1.0)[1])
    assert found[0] >= 4 and found[1] <= 0.5


def test_a_rare_class_weighs_as_much_as_a_common_one():
    labels = torch.tensor([0] * 18 + [1] * 2)
    features = torch.stack([1.0 - labels, labels.float()], 1)
    kept, head = memory(features, labels, 2)
    direction, _ = kept.blended_direction(head, {"w": torch.zeros(2, 2), "b": torch.zeros(2)}, probe_weight=1.0)
    pull = -head.logits(direction, torch.eye(2))  # [2, C]: advice for a typical row of each class
    torch.testing.assert_close(pull[0, 0] - pull[0, 1], pull[1, 1] - pull[1, 0], rtol=0.05, atol=0)


def test_without_the_probe_the_direction_is_the_lookahead_s_own():
    labels = torch.tensor([0, 1, 0, 1])
    kept, head = memory(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), labels, 2)
    present = {"w": torch.randn(2, 2), "b": torch.randn(2)}
    assert kept.blended_direction(head, present, probe_weight=0.0)[0] is present
