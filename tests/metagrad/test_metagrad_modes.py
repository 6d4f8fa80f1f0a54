"""`estimator="auto"` in every mode a model can be in: it never fails, and what it computes is the same derivative."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import (
    CLASSES,
    LENGTHS,
    META_LENGTHS,
    build,
    lookahead,
    network_problem,
    relative_error,
    row_weights,
    slow_directional,
    sources,
    supervision,
    token_batch,
)
from torch.nn import functional as F

from amal_hf.build import choose_estimator
from amal_hf.lookahead import Batch, FullModelLookahead, MetaSampler, Step
from amal_hf.metagrad import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    MetaGradient,
    NoStep,
    PureModel,
    RNGState,
    SGDStep,
    trainable,
)

NETWORKS = ("bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "xlnet", "gpt2", "llama")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def recorded(inner: MetaGradient) -> tuple[MetaGradient, list]:
    """The same estimator, of the same type, that remembers what it was asked: another can be asked the same."""
    asked = []

    class Recorded(type(inner)):
        def directional(self, problem, direction):
            asked.append((problem, direction))
            return super().directional(problem, direction)

    return Recorded(**vars(inner)), asked


def auto(model) -> tuple[MetaGradient, str]:
    """What `make_lookahead` asks `choose_estimator` for."""
    return choose_estimator(
        "auto",
        getattr(model.config, "_attn_implementation", "eager"),
        bool(getattr(model, "is_activation_checkpointing", False)),
        "no",
    )


# ---- through choose_estimator: mode × dropout × attention ----


@pytest.mark.parametrize("attn", [None, "eager"], ids=["default", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_auto_is_the_oracle_in_every_mode(name, training, dropout, attn):
    model = build(name, attn, dropout)
    assert model.config._attn_implementation == (attn or "sdpa")
    estimator, _ = auto(model)
    assert isinstance(estimator, ForwardMode)
    problem = network_problem(model, k=3, training=training)
    assert relative_error(estimator(problem), DoubleBackward()(problem)) <= 1e-10
    assert relative_error(FiniteDifference(1e-4)(problem), DoubleBackward()(problem)) <= 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_is_the_oracle_on_every_architecture(name):
    problem = network_problem(model := build(name, dropout=0.1), k=3, training=True)
    estimator, why = auto(model)
    assert isinstance(estimator, ForwardMode), why
    assert relative_error(estimator(problem), DoubleBackward()(problem)) <= 1e-10


def test_dropout_changes_the_derivative_but_not_between_calls():
    """Otherwise the comparisons above would hold without any dropout in them."""
    noisy = network_problem(build("bert", dropout=0.1), training=True)
    first, oracle = ForwardMode()(noisy), DoubleBackward()(noisy)
    torch.manual_seed(0)
    still = network_problem(build("bert", dropout=0.1), training=False)
    assert relative_error(ForwardMode()(still), oracle) > 1e-2
    torch.rand(100)  # the random state has moved on: the noise is replayed nevertheless
    assert torch.equal(ForwardMode()(noisy), first)


# ---- through FullModelLookahead: the trainer's own path ----


def directional_derivatives(model, estimator, step=None, micro=False):
    """D as the lookahead gives it, `[N, K + C]`, and as it is written (slow)."""
    inputs = token_batch(model, LENGTHS)
    stack, votes = sources(3)
    batch = supervision(len(LENGTHS), votes)
    clean, answers = token_batch(model, META_LENGTHS, seed=3), torch.tensor([0, 1, 2])

    def encode(rows):
        return {name: t[torch.as_tensor(rows)] for name, t in clean.items()}

    estimator, asked = recorded(estimator)
    lookahead = FullModelLookahead(model, estimator, answers, encode, MetaSampler(len(answers), 2, seed=0))
    model.train()
    known = Batch(
        inputs=inputs, noise=RNGState(torch.device("cpu")), losses_of=lambda o: stack.with_classes(o, batch),
        lookahead=step or SGDStep(0.3), num_rows=len(LENGTHS),
    )  # fmt: skip
    lookahead.prepare(known)
    with lookahead.capture_features():
        outputs = model(**inputs)
    given = Step(**vars(known), outputs=outputs, weights=row_weights(len(LENGTHS), 3))
    along, length = lookahead.directional_derivatives(given)
    ((problem, v),) = asked
    params = trainable(model)
    by_hand = slow_directional(given.losses_of(given.outputs), params.values(), [v[k] for k in params])
    return SimpleNamespace(
        along=along, length=length, problem=problem, v=v, by_hand=by_hand, lookahead=lookahead, step=given
    )


@pytest.mark.parametrize("attn", [None, "eager"], ids=["default", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["sgd", "adam-frozen", "still"])
def test_lookahead_differentiates_the_forward_that_trains(kind, dropout, attn):
    """D belongs to the very outputs, dropout masks included, that the real update uses."""
    model = build("bert", attn, dropout)
    step = lookahead(kind, model, token_batch(model, LENGTHS))
    seen = directional_derivatives(model, auto(model)[0], step)
    assert seen.along.shape == (len(LENGTHS), 3 + CLASSES)
    assert relative_error(seen.along, seen.by_hand) <= 1e-10
    assert relative_error(seen.along, DoubleBackward().directional(seen.problem, seen.v)) <= 1e-10
    assert seen.length == pytest.approx(sum(t.square().sum().item() for t in seen.v.values()) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_lookahead_with_differences(dropout):
    seen = directional_derivatives(build("bert", dropout=dropout), FiniteDifference(radius=1e-4))
    assert relative_error(seen.along, seen.by_hand) <= 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_direction_of_the_lookahead_is_the_problems_own(dropout):
    """The gradient shared with the real update gives the v that a second training forward would."""
    seen = directional_derivatives(build("bert", dropout=dropout), ForwardMode())
    fresh = replace(seen.problem, known_gradient=None)
    known, again = seen.problem.gradient(), fresh.gradient()
    for name in known:
        assert (known[name] - again[name]).abs().max() <= 1e-12, name


def test_virtual_classes_weigh_nothing_in_the_lookahead():
    seen = directional_derivatives(build("bert"), ForwardMode())
    assert not seen.problem.weights[:, 3:].any() and seen.problem.weights[:, :3].all()
    assert seen.along[:, 3:].all()  # and yet have a derivative: the soft label's (E2)


def test_soft_label_gradient_is_that_of_the_oracle():
    """D of the virtual class c is what V changes by when the row's soft label moves to c (E2)."""
    seen = directional_derivatives(build("bert"), ForwardMode())
    ones = torch.zeros_like(seen.problem.weights)
    ones[:, 3:] = 1.0  # λ of −log p_c is q_c: the derivative by λ is the derivative by q
    problem = replace(seen.problem, weights=ones, lr=SGDStep(1e-3), known_gradient=None)
    assert relative_error(ForwardMode()(problem)[:, 3:], DoubleBackward()(problem)[:, 3:]) <= 1e-10


def test_the_training_forward_takes_the_kernel_of_its_derivative():
    """Fused attention draws other dropout masks on a GPU than the MATH kernel, which has the forward-mode rule."""
    fused = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    for estimator, stays in ((ForwardMode(), False), (DoubleBackward(), False), (FiniteDifference(), True)):
        model = build("mlp")
        with FullModelLookahead(
            model, estimator, torch.tensor([0]), dict, MetaSampler(1, 1, seed=0)
        ).capture_features():
            assert all(enabled() is stays for enabled in fused) and torch.backends.cuda.math_sdp_enabled()
        assert all(enabled() for enabled in fused)


def test_not_due_means_no_direction():
    model = build("bert")
    seen = directional_derivatives(model, ForwardMode())
    assert seen.lookahead.directional_derivatives(replace(seen.step, due=False)) is None
    assert int(seen.lookahead.lookaheads) == 1


def test_every_lookahead_reads_other_clean_rows_once_a_pass():
    sampler = MetaSampler(num_rows=7, batch_size=3, seed=0)
    drawn = [row for j in range(7) for row in sampler(j)]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert [sampler(j) for j in range(3)] == [MetaSampler(7, 3, 0)(j) for j in range(3)]
    assert sorted(MetaSampler(2, 64, 0)(0)) == [0, 1]  # more asked for than there is


# ---- where there is no forward-mode rule ----


def test_gradient_checkpointing_takes_differences():
    model = build("bert", dropout=0.1)
    model.activation_checkpointing_enable()
    estimator, why = auto(model)
    assert isinstance(estimator, FiniteDifference) and why == "gradient checkpointing has no forward-mode rule"
    seen = directional_derivatives(model, FiniteDifference(radius=1e-4))
    assert relative_error(seen.along, seen.by_hand) <= 1e-6


def test_unknown_attention_takes_differences():
    for attention in ("flash_attention_2", "flex_attention", "paged_attention"):
        estimator, why = choose_estimator("auto", attention, False, "no")
        assert isinstance(estimator, FiniteDifference) and why == f"attention {attention!r} has no forward-mode rule"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_takes_differences(precision, attention):
    estimator, why = choose_estimator("auto", attention, False, precision)
    assert (
        isinstance(estimator, FiniteDifference) and why == f"under {precision} autocast the differences run in float32"
    )


@pytest.fixture
def own_accelerator():
    """accelerate keeps its precision for the whole process: lend it another, and give the first one back."""
    shared = [state._shared_state for state in (AcceleratorState, PartialState, GradientState)]
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    yield accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    for state, before in zip(shared, kept, strict=True):
        state.clear()
        state.update(before)


def test_differences_of_a_half_precision_model_run_in_float32(own_accelerator):
    """accelerate wraps `forward` in autocast; the difference of two bfloat16 outputs would be mostly rounding."""
    bare, (estimator, _) = build("bert", dropout=0.1).float(), choose_estimator("auto", "sdpa", False, "bf16")
    half, seen = own_accelerator.prepare(deepcopy(bare)), []
    wrapped = half.forward
    half.bert.pooler.dense.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    found = directional_derivatives(half, estimator, NoStep())
    judge, ahead, behind, training = seen
    assert judge == training == torch.bfloat16, "the training forward is not under autocast: nothing is tested"
    assert ahead == behind == torch.float32 and half.forward == wrapped
    pure = found.problem.outputs_of
    alone = replace(found.problem, outputs_of=PureModel(bare, pure.inputs, training=True, noise=pure.noise))
    assert torch.equal(found.along, estimator.directional(alone, found.v))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_otherwise_forward_mode(attention):
    estimator, why = choose_estimator("auto", attention, False, "no")
    assert isinstance(estimator, ForwardMode) and repr(attention) in why


def test_a_named_estimator_is_taken_as_it_is():
    for name, kind in {"forward": ForwardMode, "difference": FiniteDifference, "double": DoubleBackward}.items():
        for attention, checkpointing, precision in (("sdpa", False, "no"), ("flash_attention_2", True, "bf16")):
            estimator, why = choose_estimator(name, attention, checkpointing, precision)
            assert isinstance(estimator, kind) and why == "asked for by `estimator`"


def test_both_choices_compute_the_same_derivative():
    problem = network_problem(build("bert", dropout=0.1), training=True)
    assert relative_error(FiniteDifference(1e-4)(problem), ForwardMode()(problem)) <= 1e-6


def test_kernel_and_random_state_are_restored():
    before = torch.get_rng_state()
    problem = network_problem(build("bert", dropout=0.1), training=True)
    state = torch.get_rng_state()
    assert not torch.equal(before, state)
    enabled = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    ForwardMode()(problem)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == enabled
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_of_the_clean_rows_decide_the_direction():
    """Other clean labels, another D: V is really asked."""
    problem = network_problem(build("bert"))
    other = replace(problem, val_loss=lambda params: -problem.val_loss(params))
    assert F.cosine_similarity(ForwardMode()(problem).flatten(), ForwardMode()(other).flatten(), dim=0) < 0
