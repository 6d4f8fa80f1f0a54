"""`MetaWeightNet` and `WeightNetwork`: their gradient against a lookahead, their laws, and flipped labels."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from flipped import CLASSES, NUM_ROWS, Flipped, auroc, in_parts
from torch import Tensor
from torch.nn import functional as F

from amal_hf.metagrad import DoubleBackward, ForwardMode, MetaProblem
from amal_hf.mixing import Amortised, MetaWeightNet, Rows, WeightNetwork
from amal_hf.mixing.network import features

K, N, LR = 3, 12, 0.4
START = torch.tensor([0.5, 1.0, 1.5])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, **settings: object) -> Amortised:
    """The network by name; the zeros in its last layer replaced, so that every parameter has a gradient."""
    if name == "meta-weight-net":
        return MetaWeightNet(K, **settings)
    network = WeightNetwork(K, CLASSES, START, **settings)
    out = network.network.out
    with torch.no_grad():
        out.weight.copy_(draw(*out.weight.shape, seed=5) / 4)
    return network


def batch(seed: int = 0) -> Rows:
    """Some steps into the run, with advice and evidence."""
    problem = Flipped(sources=K, silent=0.4, seed=seed)
    problem.w = draw(*problem.w.shape, seed=seed) / 2
    return replace(problem.directional_derivatives(torch.arange(N))[0], log_posterior=draw(N, CLASSES, seed=seed + 1))


def some(rows: Rows, which: Tensor) -> Rows:
    return Rows(**{name: tensor[which] if tensor.dim() else tensor for name, tensor in vars(rows).items()})


NAMES = ["meta-weight-net", "network"]
each = pytest.mark.parametrize("name", NAMES)


# ---- E4: the gradient of φ ----


def lookahead(name: str) -> tuple[Amortised, Flipped, Rows, MetaProblem]:
    mixing, problem, index = made(name), Flipped(sources=K, silent=0.3), torch.arange(N)
    problem.w = draw(*problem.w.shape) / 2
    rows, _ = problem.directional_derivatives(index)
    return mixing, problem, rows, MetaProblem(
        params={"w": problem.w},
        weights=mixing.weights(rows),
        losses=lambda params: problem.losses(params["w"], index)[:, :K],
        val_loss=lambda params: F.cross_entropy(problem.clean_x @ params["w"], problem.clean_y),
        lr=LR,
    )  # fmt: skip


def through_the_lookahead(
    mixing: Amortised, rows: Rows, bilevel: MetaProblem, held: bool = False
) -> tuple[Tensor, ...]:
    """∂V(θ′(λ(φ)))/∂φ by autograd, the losses that φ reads held still; of λ / mean λ where `held`."""
    w = bilevel.params["w"].clone().requires_grad_()
    weights = mixing.predict(rows) * rows.mask
    weights = weights / weights[rows.mask].mean() if held else weights
    (step,) = torch.autograd.grad((weights * bilevel.losses({"w": w})).sum() / N, [w], create_graph=True)
    return torch.autograd.grad(bilevel.val_loss({"w": w - LR * step}), list(mixing.network.parameters()))


@each
@pytest.mark.parametrize("estimator", [DoubleBackward(), ForwardMode()], ids=["double", "forward"])
def test_the_surrogate_has_the_gradient_of_the_lookahead(name, estimator):
    mixing, _, rows, bilevel = lookahead(name)
    parameters = list(mixing.network.parameters())
    found = torch.autograd.grad(mixing.surrogate(rows, estimator(bilevel)), parameters)
    oracle = through_the_lookahead(mixing, rows, bilevel)
    assert all(g.norm() > 0 for g in oracle)
    for ours, theirs in zip(found, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


@each
@pytest.mark.parametrize("held", [False, True], ids=["free", "mean held"])
def test_a_step_is_adam_s_on_the_mean_over_rows(name, held):
    _, _, rows, bilevel = lookahead(name)
    mixing = made(name, hold_mean=held)
    mean = mixing.weights(rows)[rows.mask].mean() if held else torch.ones(())
    gradient = DoubleBackward()(replace(bilevel, weights=mixing.weights(rows) / mean))
    leaves = [p.detach().clone().requires_grad_() for p in mixing.network.parameters()]
    adam = torch.optim.Adam(leaves, lr=1e-3, weight_decay=1e-4)
    for leaf, oracle in zip(leaves, through_the_lookahead(mixing, rows, bilevel, held), strict=True):
        leaf.grad = mean * oracle / N
    adam.step()
    mixing.update(rows, gradient)
    mixing.commit()
    for ours, theirs in zip(mixing.network.parameters(), leaves, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-7, atol=1e-12)
        for moment in ("exp_avg", "exp_avg_sq"):  # Adam's first step shows the signs, these the sizes
            now = mixing.optimizer.state[ours][moment]
            torch.testing.assert_close(now, adam.state[theirs][moment], rtol=1e-7, atol=1e-15)


@each
def test_with_the_mean_held_a_gradient_for_more_of_everything_is_ignored(name):
    rows, weights = batch(), []
    for more in (0.0, -50.0):
        mixing = made(name, hold_mean=True, lr=0.01)
        mixing.update(rows, draw(N, K) + more)
        mixing.commit()
        weights.append(mixing.weights(rows))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-9)
    assert (weights[0] - made(name).weights(rows)).abs().max() > 1e-3


@each
def test_what_is_trusted_more_lowers_v(name):
    _, _, rows, bilevel = lookahead(name)
    mixing = made(name, hold_mean=False)
    before = bilevel.val_loss({"w": bilevel.params["w"] - LR * bilevel.gradient()["w"]})
    for _ in range(20):
        mixing.update(rows, DoubleBackward()(bilevel))
        mixing.commit()
        bilevel = MetaProblem(bilevel.params, mixing.weights(rows), bilevel.losses, bilevel.val_loss, LR)
    assert bilevel.val_loss({"w": bilevel.params["w"] - LR * bilevel.gradient()["w"]}) < before


# ---- laws of weights ----


@each
def test_masked_sources_weigh_nothing_and_are_not_read(name):
    rows, gradient, weights = batch(), draw(N, K), []
    silent = ~rows.mask
    assert silent.any()
    for loss, g in ((0.0, 0.0), (9.0, torch.nan)):
        heard = replace(rows, losses=torch.where(silent, loss, rows.losses))
        mixing = made(name, lr=0.1)
        mixing.update(heard, torch.where(silent, g, gradient))
        mixing.commit()
        weights.append(mixing.weights(heard))
    assert not weights[0][silent].any() and (weights[0][rows.mask] > 0).all()
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-12)


@each
def test_a_row_s_weights_are_its_own(name):
    """Rows in another order, or fewer of them: the same weights; and no index is read."""
    mixing, rows = made(name), batch()
    weights, order = mixing.weights(rows), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert (weights[order] - weights).abs().max() > 1e-3
    for which in (order, order[:5]):
        torch.testing.assert_close(mixing.weights(some(rows, which)), weights[which], rtol=0, atol=1e-12)
    elsewhere = replace(rows, index=rows.index + 1000)
    assert torch.equal(mixing.weights(elsewhere), weights) and not mixing.per_row


@each
def test_weights_keep_type_and_range(name):
    rows = batch()
    single = replace(rows, **{n: t.float() for n, t in vars(rows).items() if t.is_floating_point()})
    weights, limit = made(name).weights(single), torch.ones(K) if name == "meta-weight-net" else 2 * START
    assert weights.dtype == torch.float32 and not weights.requires_grad
    assert (weights >= 0).all() and (weights < limit).all()


def test_what_the_network_reads():
    """Sources 0 and 1 say class 0, source 2 leans to class 1, source 3 is silent; the evidence is 3 : 1 for class 0."""
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.2, 0.8], [0.0, 0.0]]], dtype=torch.float64)
    losses = torch.tensor([[0.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    rows = Rows(
        torch.tensor([0]), losses, torch.tensor([[True, True, True, False]]), targets,
        class_gradient=torch.tensor([[0.5, -0.5]]), log_posterior=torch.tensor([[3.0, 1.0]], dtype=torch.float64).log(),
    )  # fmt: skip
    loss, same, speak, wanted, believed, asserts = features(rows)[0].T.tolist()
    assert loss == pytest.approx([0, math.log(2), math.log(3), 0]) and asserts == [1, 1, 1, 0]
    assert same == pytest.approx([(1 + 0.2) / 2, (1 + 0.2) / 2, 0.2, 0]) and speak == [0.75] * 4
    assert wanted == pytest.approx([0.5, 0.5, -0.3, 0])
    assert believed == pytest.approx([0.75, 0.75, 0.2 * 0.75 + 0.8 * 0.25, 0])


def test_the_network_starts_at_start():
    rows = batch()
    torch.testing.assert_close(WeightNetwork(K, CLASSES, START).weights(rows), START.double() * rows.mask)


@each
def test_sixteen_rows_at_once_or_in_parts(name):
    made_of = in_parts(lambda: made(name))
    rows, start = batch(), made(name).weights(batch())
    whole, parts = (made_of[split].weights(rows) for split in ("1x16", "4x4"))
    assert (whole - start).abs().max() > 1e-4
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)


@each
def test_the_run_s_random_state_is_left_alone(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other, third = made(name), made(name), made(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    rows = batch()
    assert torch.equal(one.weights(rows), other.weights(rows))
    assert not torch.equal(one.weights(rows), third.weights(rows))


# ---- state ----


def learn(mixing: Amortised, seeds: range) -> None:
    for seed in seeds:
        mixing.update(batch(seed), draw(N, K, seed=seed))
        mixing.commit()


@each
def test_resumed_is_bit_for_bit_uninterrupted(name):
    learned, fresh, rows = made(name), made(name, seed=4), batch(9)
    learn(learned, range(3))
    fresh.load_state({key: tensor.clone() for key, tensor in learned.state().items()})
    for mixing in (learned, fresh):
        learn(mixing, range(3, 6))
    assert torch.equal(learned.weights(rows), fresh.weights(rows))
    left, right = learned.state(), fresh.state()
    assert all(torch.equal(left[key], right[key]) for key in left) and left.keys() == right.keys()
    assert all(left[key] == 6 for key in left if key.endswith("/step"))


@each
def test_a_copy_goes_its_own_way(name):
    """The trainer copies the mixing that it is given, at every run."""
    given, rows = made(name), batch()
    before, copied = given.weights(rows), deepcopy(given)
    learn(copied, range(3))
    assert torch.equal(given.weights(rows), before) and not torch.equal(copied.weights(rows), before)
    learn(given, range(3))
    assert torch.equal(given.weights(rows), copied.weights(rows))


@each
def test_nothing_seen_is_nothing_learned(name):
    mixing = made(name)
    learn(mixing, range(1))
    before = {key: tensor.clone() for key, tensor in mixing.state().items()}
    mixing.commit()
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixing.state().items())


@each
def test_state_of_other_sources_is_refused(name):
    wider = MetaWeightNet(K + 1) if name == "meta-weight-net" else WeightNetwork(K + 1, CLASSES, torch.ones(K + 1))
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint`: expected 'network/.*' of shape"):
        made(name).load_state(wider.state())
    with pytest.raises(ValueError, match="found nothing"):
        made(name).load_state({})


# ---- flipped labels ----


@pytest.mark.parametrize(("name", "sources"), [("meta-weight-net", 1), ("meta-weight-net", K), ("network", K)])
def test_flipped_labels_weigh_less_on_rows_seen_and_unseen(name, sources):
    problem = Flipped(sources, silent=0.3)
    mixing = MetaWeightNet(sources) if name != "network" else WeightNetwork(sources, CLASSES, torch.ones(sources))
    problem.train(mixing, epochs=10)
    unseen = Flipped(sources, silent=0.3, seed=1)
    unseen.w = problem.w
    for of in (problem, unseen):
        weights = mixing.weights(of.rows(torch.arange(NUM_ROWS)))  # without advice
        assert auroc(weights[of.mask], ~of.flipped[of.mask]) > 0.9
