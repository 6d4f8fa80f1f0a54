"""`Reweight` against its equation, and on labels of which 40 % are flipped."""

from __future__ import annotations

import pytest
import torch
from flipped import NUM_ROWS, Flipped, auroc

from amal_hf.mixing import Reweight, Rows

MASK = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
GRADIENT = torch.tensor([[-1.0, 2.0], [-3.0, -1e6], [1e6, -2.0], [-1e6, -1e6]], dtype=torch.float64)
START = torch.tensor([0.3, 0.7])


def batch(index=(7, 2, 9, 4), mask=MASK) -> Rows:
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    return Rows(torch.tensor(index), nothing, mask, torch.zeros(*mask.shape, 3), torch.zeros(len(mask), 3))


def test_weights_are_the_rectified_gradient_at_mean_one():
    reweight = Reweight(START)
    reweight.update(batch(), GRADIENT)
    weights = reweight.weights(batch())
    # they help by 1, 3 and 2; of the four entries that speak, row 0 of source 1 hurts
    expected = torch.tensor([[4 / 6, 0], [12 / 6, 0], [0, 8 / 6], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    assert weights[MASK].mean().item() == pytest.approx(1) and weights.dtype == torch.float64


def test_the_size_of_the_gradient_does_not_matter():
    small, large = Reweight(START), Reweight(START)
    small.update(batch(), 1e-6 * GRADIENT)
    large.update(batch(), 1e3 * GRADIENT)
    torch.testing.assert_close(small.weights(batch()), large.weights(batch()))


def test_rows_are_found_in_any_order_among_those_of_all_processes():
    reweight = Reweight(START)
    reweight.update(batch(), GRADIENT)
    every, mine = reweight.weights(batch()), [2, 0]
    assert torch.equal(reweight.weights(batch((9, 7), MASK[mine])), every[mine])


def test_rows_not_seen_weigh_start_and_nothing_outlives_its_step():
    reweight, start = Reweight(START), (START * MASK).double()
    torch.testing.assert_close(reweight.weights(batch()), start, rtol=0, atol=1e-7)
    reweight.update(batch(), GRADIENT)
    torch.testing.assert_close(reweight.weights(batch((1, 3, 5, 6))), start, rtol=0, atol=1e-7)
    reweight.commit()
    torch.testing.assert_close(reweight.weights(batch()), start, rtol=0, atol=1e-7)
    assert reweight.state() == {}


def test_a_batch_in_which_nothing_helps_weighs_nothing():
    reweight = Reweight(START)
    reweight.update(batch(), GRADIENT.abs())
    assert torch.equal(reweight.weights(batch()), torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.xfail(raises=AssertionError, strict=True, reason="the sums are over the rows at hand, a micro-batch's")
def test_sixteen_rows_at_once_or_in_parts():
    problem, index, reweight = Flipped(), torch.arange(16), Reweight(torch.ones(1))
    reweight.update(*problem.directional_derivatives(index))
    whole = reweight.weights(problem.rows(index))
    for part in index.split(4):
        reweight.update(*problem.directional_derivatives(part))
        torch.testing.assert_close(reweight.weights(problem.rows(part)), whole[part])


@pytest.mark.parametrize("seed", range(2))
def test_flipped_labels_weigh_less(seed):
    problem = Flipped(seed=seed)
    last = problem.train(Reweight(torch.ones(1)), epochs=4)
    assert last.shape == (NUM_ROWS, 1) and last.mean().item() == pytest.approx(1, abs=1e-6)
    assert auroc(last, ~problem.flipped) > 0.8
