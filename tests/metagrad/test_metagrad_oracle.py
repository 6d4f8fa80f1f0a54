"""Every estimator against the oracle, in float64, wherever both can be asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import (
    CLASSES,
    LENGTHS,
    LOOKAHEADS,
    META_LENGTHS,
    adam_state,
    as_lookahead,
    build,
    head_problem,
    lookahead,
    network_problem,
    relative_error,
    silent,
    slow_directional,
    supervision,
    token_batch,
)
from torch.nn import functional as F

from amal_hf.metagrad import (
    AdamStep,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HeadClosedForm,
    HeadProblem,
    MetaProblem,
    NoStep,
    PureModel,
    SGDStep,
    trainable,
)

MODELS = ("mlp", "mlp-tied", "bert", "roberta", "gpt2", "llama")
# Llama computes its norms in float32 whatever its weights are: differences of outputs have no float64 there
ESTIMATORS = [
    pytest.param(name, estimator, tolerance, id=f"{type(estimator).__name__}-{name}")
    for estimator, tolerance in ((ForwardMode(), 1e-10), (FiniteDifference(radius=1e-4), 1e-6))
    for name in MODELS
    if not (name == "llama" and isinstance(estimator, FiniteDifference))
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- the whole network ----


@pytest.mark.parametrize("k", [1, 3, 70])
@pytest.mark.parametrize("name, estimator, tolerance", ESTIMATORS)
def test_estimator_equals_oracle(name, estimator, tolerance, k):
    problem = network_problem(build(name), k)
    assert relative_error(estimator(problem), DoubleBackward()(problem)) <= tolerance


@pytest.mark.parametrize("kind", LOOKAHEADS)
@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_every_lookahead(name, kind):
    model = build(name)
    problem = network_problem(model, lr=lookahead(kind, model, token_batch(model, LENGTHS)))
    if isinstance(problem.lookahead, NoStep):  # θ′ = θ: the derivative through the step is zero by construction
        v = problem.direction()
        found = {e: e.directional(problem, v) for e in (ForwardMode(), FiniteDifference(1e-4), DoubleBackward())}
        assert not DoubleBackward()(problem).any()
    else:
        found = {e: e(problem) for e in (ForwardMode(), FiniteDifference(1e-4), DoubleBackward())}
    forward, difference, oracle = found.values()
    assert relative_error(forward, oracle) <= 1e-10
    assert relative_error(difference, oracle) <= 1e-6


@pytest.mark.parametrize("kind", ["sgd", "adam-frozen", "still"])
def test_the_two_oracles_agree_with_one_gradient_a_row(kind):
    """D as it is written, without functional_call, jvp or a second derivative."""
    model = build("bert")
    problem = network_problem(model, lr=lookahead(kind, model, token_batch(model, LENGTHS)))
    v, leaves = problem.direction(), {k: p.requires_grad_() for k, p in problem.params.items()}
    by_hand = slow_directional(problem.losses(leaves), leaves.values(), v.values())
    assert relative_error(DoubleBackward().directional(problem, v), by_hand) <= 1e-10
    assert relative_error(ForwardMode().directional(problem, v), by_hand) <= 1e-10


@pytest.mark.parametrize("estimator", [ForwardMode(), FiniteDifference(1e-4), DoubleBackward()], ids=repr)
def test_derivative_of_a_retrained_step(estimator):
    """∂V/∂λ_ik is what V changes by when λ_ik does: two lookaheads of the real update, no formula."""
    problem = network_problem(build("mlp"), lr=0.5)
    found, step = estimator(problem), 1e-5

    def value(weights):
        moved = replace(problem, weights=weights)
        return problem.val_loss(moved.lookahead.move(problem.params, moved.gradient()))

    expected = torch.zeros_like(found)
    for i in range(found.shape[0]):
        for k in range(found.shape[1]):
            nudge = torch.zeros_like(found)
            nudge[i, k] = step
            expected[i, k] = (value(problem.weights + nudge) - value(problem.weights - nudge)) / (2 * step)
    assert relative_error(found, expected) <= 1e-6


def test_masked_sources_are_exactly_zero():
    model = build("bert")
    problem = network_problem(model, k=70)
    nothing = silent(supervision(4), 70)
    assert (
        nothing[:, 3].all() and nothing[1, 0] and nothing[2, 1]
    )  # a mute function, a row without label, without teacher
    for estimator in (ForwardMode(), FiniteDifference(1e-4), DoubleBackward()):
        found = estimator(problem)
        assert not found[nothing].any() and found[~nothing].all()


def test_padding_is_not_read():
    model = build("bert")
    problem = network_problem(model)
    other = token_batch(model, LENGTHS)
    other["input_ids"] = torch.where(other["attention_mask"].bool(), other["input_ids"], 17)
    padded = PureModel(model, other, training=False)
    moved = type(problem).through(
        padded,
        problem.losses_from,
        params=problem.params,
        weights=problem.weights,
        val_loss=problem.val_loss,
        lr=problem.lr,
    )
    assert relative_error(ForwardMode()(moved), DoubleBackward()(problem)) <= 1e-10


def test_num_rows_is_the_effective_batch():
    model = build("mlp")
    here, share = network_problem(model, lr=NoStep()), network_problem(model, lr=NoStep(), num_rows=16)
    assert relative_error(ForwardMode()(share) * 4, ForwardMode()(here)) <= 1e-12


# ---- tied weights ----


def test_tied_weights_move_together():
    model = build("mlp-tied")
    inputs, names = token_batch(model, LENGTHS), set(trainable(model))
    assert "embed.weight" in names and "classifier.weight" not in names
    pure, params = PureModel(model, inputs, training=False), {k: p.detach() * 1.5 for k, p in trainable(model).items()}
    through_copy = pure(params).logits
    with torch.no_grad():
        for p in trainable(model).values():
            p.mul_(1.5)
    assert torch.equal(through_copy, model(**inputs).logits)


def test_tied_weights_gather_both_gradients():
    model = build("mlp-tied")
    inputs, labels = token_batch(model, LENGTHS), torch.tensor([0, 1, 2, 3])
    leaves = {k: p.detach().clone().requires_grad_() for k, p in trainable(model).items()}
    F.cross_entropy(PureModel(model, inputs, training=False)(leaves).logits, labels).backward()
    F.cross_entropy(model(**inputs).logits, labels).backward()
    for name, p in trainable(model).items():
        assert torch.equal(leaves[name].grad, p.grad), name


# ---- the head alone ----


@pytest.mark.parametrize("k", [1, 3, 70])
@pytest.mark.parametrize("name", ["mlp", "bert", "roberta", "gpt2", "llama"])
def test_closed_form_equals_forward_mode(name, k):
    problem = head_problem(build(name), k)
    found = HeadClosedForm()(problem)
    assert relative_error(found, ForwardMode()(problem)) <= 1e-12
    assert relative_error(found, DoubleBackward()(problem)) <= 1e-10


@pytest.mark.parametrize("kind", LOOKAHEADS)
def test_closed_form_with_every_lookahead(kind):
    model = build("bert")
    step = lookahead(kind, model, token_batch(model, LENGTHS))
    problem = head_problem(model)
    problem = replace(problem, lr=SGDStep({k: step.lr[k] for k in problem.params}) if kind == "sgd-dict" else step)
    v = problem.direction()
    found = HeadClosedForm().directional(problem, v)
    assert relative_error(found, ForwardMode().directional(problem, v)) <= 1e-12
    assert relative_error(found, DoubleBackward().directional(problem, v)) <= 1e-10
    if kind != "still":
        assert relative_error(HeadClosedForm()(problem), DoubleBackward()(problem)) <= 1e-10


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_closed_form_is_the_network_with_a_frozen_body(name):
    model = build(name)
    closed = HeadClosedForm()(head_problem(model))
    for parameter, p in model.named_parameters():
        p.requires_grad_(parameter.startswith(("classifier", "score")))
    assert relative_error(closed, DoubleBackward()(network_problem(model))) <= 1e-10


def test_closed_form_needs_features():
    with pytest.raises(TypeError, match=r"`problem`: HeadClosedForm expects a HeadProblem .* found OutputsProblem"):
        HeadClosedForm()(network_problem(build("mlp")))


# ---- plain problems, known gradients, corners ----


def scalar_problem(**changes):
    """ℓ_i = (x_i w − y_i)², V = (w − 1)²: everything known by hand."""
    x, y = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    given = {
        "params": {"w": torch.tensor(0.5, dtype=torch.float64)},
        "weights": torch.tensor([[1.0], [0.5]], dtype=torch.float64),
        "losses": lambda p: (x * p["w"] - y).square()[:, None],
        "val_loss": lambda p: (p["w"] - 1).square(),
        "lr": 0.1,
    }
    return MetaProblem(**{**given, **changes})


@pytest.mark.parametrize("estimator", [ForwardMode(), FiniteDifference(1e-4), DoubleBackward()], ids=repr)
def test_formula_by_hand(estimator):
    grads = torch.tensor([2 * (0.5 - 1), 2 * 2 * 2 * 0.5], dtype=torch.float64)  # ∂ℓ_i/∂w at .5
    moved = 0.5 - 0.1 * (1.0 * grads[0] + 0.5 * grads[1]) / 2
    expected = (-0.1 / 2 * grads * 2 * (moved - 1))[:, None]
    assert relative_error(estimator(scalar_problem()), expected) <= 1e-8


def test_known_gradient_is_used():
    problem = network_problem(build("mlp"))
    oracle = ForwardMode()(problem)
    assert torch.equal(ForwardMode()(replace(problem, known_gradient=problem.gradient())), oracle)
    zero = {k: torch.zeros_like(p) for k, p in problem.params.items()}
    assert relative_error(ForwardMode()(replace(problem, known_gradient=zero)), oracle) > 1e-6


@pytest.mark.parametrize("estimator", [ForwardMode(), FiniteDifference(), DoubleBackward()], ids=repr)
def test_along_no_direction_nothing_changes(estimator):
    problem = network_problem(build("mlp"), k=3)
    nowhere = {name: torch.zeros_like(p) for name, p in problem.params.items()}
    assert torch.equal(estimator.directional(problem, nowhere), torch.zeros_like(problem.weights))


def test_a_validation_loss_that_ignores_a_parameter():
    params = {"w": torch.tensor(0.5, dtype=torch.float64), "unused": torch.ones(3, dtype=torch.float64)}
    problem = scalar_problem(params=params)
    for estimator in (ForwardMode(), FiniteDifference(1e-4), DoubleBackward()):
        assert relative_error(estimator(problem), DoubleBackward()(scalar_problem())) <= 1e-6


# ---- Adam is the optimizer's own step ----


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("steps, decay", [(0, 0.0), (0, 0.1), (3, 0.0), (3, 0.1), (3, 0.5)])
def test_adam_moves_as_torch_does(steps, decay, exact):
    model = build("bert")
    inputs = token_batch(model, LENGTHS)
    optimizer = adam_state(model, inputs, torch.tensor([0, 1, 2, 3]), steps, lr=0.01, decay=decay)
    F.cross_entropy(model(**inputs).logits, torch.tensor([3, 2, 1, 0])).backward()
    params = trainable(model)
    step = as_lookahead(optimizer, params, exact)
    grads = {k: p.grad for k, p in params.items()}
    moved = step.move({k: p.detach().clone() for k, p in params.items()}, grads)
    optimizer.step()
    for name, p in params.items():
        assert (moved[name] - p).abs().max() <= 1e-12, name


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("time", [0, 1, 20])
def test_sensitivity_is_the_derivative_of_move(time, exact):
    draw = torch.Generator().manual_seed(0)
    p, g, m, s = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    state = {} if time == 0 else {"w": {"exp_avg": m, "exp_avg_sq": s.square(), "step": torch.tensor(float(time))}}
    step = AdamStep(lr=0.1, state=state, weight_decay=0.1, exact=exact)
    leaf = g.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(-step.move({"w": p}, {"w": leaf})["w"].sum(), leaf)
    found = step.sensitivity({"w": p}, {"w": g})["w"]
    # at t = 1 two equal terms cancel in the exact form, so the error is measured on the frozen one
    size = AdamStep(lr=0.1, state=state, weight_decay=0.1).sensitivity({"w": p}, {"w": g})["w"].norm()
    assert (found - derivative).norm() / size <= 1e-12


@pytest.mark.parametrize("exact", [True, False])
def test_adam_where_nothing_ever_moved(exact):
    """A parameter without gradient or moments (an unseen token) stays, and its 1/ε does not swamp v."""
    zero = torch.zeros(3, dtype=torch.float64)
    step = AdamStep(lr=0.1, state={"w": {"exp_avg": zero, "exp_avg_sq": zero, "step": 5}}, exact=exact)
    leaf = zero.clone().requires_grad_()
    moved = step.move({"w": zero}, {"w": leaf})["w"]
    (derivative,) = torch.autograd.grad(moved.sum(), leaf)
    assert torch.equal(moved, zero)
    assert torch.equal(derivative, zero)
    assert torch.equal(step.sensitivity({"w": zero}, {"w": zero})["w"], zero)


@pytest.mark.parametrize("kind", ["adam-frozen", "adam-exact"])
def test_clean_tokens_unseen_in_training_do_not_swamp_the_direction(kind):
    """Differences need ‖v‖ to be the length of what the training rows can feel."""
    model = build("bert")
    v = network_problem(model, lr=lookahead(kind, model, token_batch(model, LENGTHS))).direction()
    name = "bert.embeddings.word_embeddings.weight"
    unseen = torch.ones(len(v[name]), dtype=torch.bool)
    unseen[token_batch(model, LENGTHS)["input_ids"]] = False
    clean = token_batch(model, META_LENGTHS, seed=3)["input_ids"]
    assert unseen[clean].any() and not v[name][unseen].any() and v[name][~unseen].any()


def test_adam_by_parameter_group():
    p = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    g = {name: torch.full_like(t, 0.5) for name, t in p.items()}
    both = AdamStep(lr={"a": 0.1, "b": 0.2}, weight_decay={"a": 0.0, "b": 0.3})
    for name in p:
        alone = AdamStep(lr=both.lr[name], weight_decay=both.weight_decay[name])
        assert torch.equal(both.move(p, g)[name], alone.move(p, g)[name])
        assert torch.equal(both.sensitivity(p, g)[name], alone.sensitivity(p, g)[name])


def test_classes_of_the_helpers_are_the_models():
    assert build("bert").config.num_labels == build("mlp").config.num_labels == CLASSES


def test_a_loss_without_forward_mode_rule_gives_the_same_derivative():
    """Head and differences fall back to one backward per source; the oracle is the hinge written out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.tensor([0, 1, 2, 1])

    def written_out(logits):
        margins = (1 - logits.gather(1, y[:, None]) + logits).clamp_min(0)
        return (margins.sum(1) - 1)[:, None] / 3

    problems = [
        HeadProblem.on(
            x,
            loss,
            names=("w", None),
            params={"w": torch.randn(3, 3, dtype=torch.float64, generator=generator.manual_seed(1))},
            weights=torch.ones(4, 1, dtype=torch.float64),
            val_loss=lambda p: p["w"].square().sum(),
            lr=0.1,
        )
        for loss in (lambda z: torch.nn.functional.multi_margin_loss(z, y, reduction="none")[:, None], written_out)
    ]
    expected = ForwardMode()(problems[1])
    for estimator in (HeadClosedForm(), FiniteDifference(radius=1e-6)):
        torch.testing.assert_close(estimator(problems[0]), expected, rtol=1e-8, atol=1e-12)
