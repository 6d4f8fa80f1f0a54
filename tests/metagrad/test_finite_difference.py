"""Differences are as near to forward mode as their docstring says: at every scale, and of half-precision weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from helpers import (
    CLASSES,
    DECODER,
    LENGTHS,
    META_LENGTHS,
    build,
    network_problem,
    relative_error,
    row_weights,
    slow_directional,
    sources,
    supervision,
    token_batch,
)
from torch import nn
from torch.nn import functional as F

from amal_hf.lookahead import Batch, FullModelLookahead, MetaSampler, Step
from amal_hf.lookahead.probe import has_kinks
from amal_hf.metagrad import (
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    NoStep,
    OutputsProblem,
    PureModel,
    RNGState,
    SGDStep,
    float32_copies,
    trainable,
)

VOCAB = 60
WIDE = {"vocab_size": VOCAB, "num_labels": CLASSES, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 24, "pad_token_id": 0}  # fmt: skip
SIDES = {"cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
OTHER = {"vocab_size": VOCAB, "num_labels": CLASSES}
GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 24}
CONFIGS = {
    "bert": transformers.BertConfig(**WIDE),
    "roberta": transformers.RobertaConfig(**WIDE),
    "electra": transformers.ElectraConfig(**WIDE, embedding_size=32),
    "albert": transformers.AlbertConfig(**WIDE, embedding_size=32),
    "deberta-v2": transformers.DebertaV2Config(**WIDE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": transformers.ModernBertConfig(**WIDE, **SIDES, global_attn_every_n_layers=2, local_attention=8),
    "xlnet": transformers.XLNetConfig(**OTHER, d_model=64, n_layer=4, n_head=4, d_inner=128),
    "gpt2": transformers.GPT2Config(**OTHER, **GPT, **DECODER),
    "llama": transformers.LlamaConfig(**{**WIDE, **DECODER}, num_key_value_heads=2),
    "distilbert": transformers.DistilBertConfig(**OTHER, dim=64, hidden_dim=128, n_layers=4, n_heads=4),
    "opt": transformers.OPTConfig(**{**WIDE, **DECODER}, word_embed_proj_dim=64, ffn_dim=128),
}
BOUND, WITH_KINKS = 3e-4, 3e-2
"""What the docstring of `FiniteDifference` promises."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def of_model(model: nn.Module, seed: int = 0) -> OutputsProblem:
    """A problem of eight rows in float32."""
    lengths = (7, 3, 5, 6, 4, 12, 9, 3)
    stack, votes = sources(3)
    said = {k: t.to(torch.float32) if t.is_floating_point() else t for k, t in supervision(8, votes, seed + 1).items()}
    clean, answers = token_batch(model, (6, 12, 4, 7, 5, 9), seed + 2), torch.arange(6) % CLASSES
    judge, student = PureModel(model, clean, training=False), PureModel(model, token_batch(model, lengths, seed), True)
    return OutputsProblem.through(
        student,
        lambda outputs: stack(outputs, said),
        params=float32_copies(trainable(model)),
        weights=row_weights(8, 3).float(),
        val_loss=lambda params: F.cross_entropy(judge(params).logits.float(), answers),
        lr=NoStep(),
    )


def counted(problem: OutputsProblem) -> tuple[OutputsProblem, list[int]]:
    asked: list[int] = []
    return replace(problem, outputs_of=lambda params: asked.append(1) or problem.outputs_of(params)), asked


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_departure_from_forward_mode_is_what_is_promised(name, seed):
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[name]).train()
    kinks = has_kinks(model, token_batch(model, LENGTHS))
    problem, asked = counted(of_model(model, seed))
    v = problem.direction()
    exact = ForwardMode().directional(problem, v)
    asked.clear()
    assert relative_error(FiniteDifference(kinks=kinks).directional(problem, v), exact) <= (
        WITH_KINKS if kinks else BOUND
    )
    assert len(asked) in (2, 4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_parameters_and_of_outputs_does_not_matter(scale):
    """θ → sθ, v → sv, the same derivative: a fixed radius would be far too long, or lost in rounding."""
    torch.manual_seed(0)
    problem = of_model(transformers.AutoModelForSequenceClassification.from_config(CONFIGS["bert"]).train())
    v = problem.direction()
    exact = ForwardMode().directional(problem, v)
    scaled = replace(
        problem,
        params={k: p * scale for k, p in problem.params.items()},
        outputs_of=lambda params: problem.outputs_of({k: p / scale for k, p in params.items()}),
    )
    found = FiniteDifference().directional(scaled, {k: t * scale for k, t in v.items()})
    assert relative_error(found, exact) <= BOUND
    if scale != 1:
        fixed = FiniteDifference(radius=5e-3).directional(scaled, {k: t * scale for k, t in v.items()})
        assert relative_error(fixed, exact) > 5 * BOUND


def test_a_head_that_begins_with_zeros():
    """Logits of zero change by an infinite share of their size."""
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS["bert"]).train()
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.zero_()
    problem = of_model(model)
    v = problem.direction()
    assert relative_error(FiniteDifference().directional(problem, v), ForwardMode().directional(problem, v)) <= BOUND


def test_in_float64():
    problem = network_problem(build("bert"))
    assert relative_error(FiniteDifference()(problem), DoubleBackward()(problem)) <= 2e-4
    assert relative_error(FiniteDifference(radius=1e-4)(problem), DoubleBackward()(problem)) <= 1e-6


# ---- half-precision weights, by the trainer's own path ----


def found_by(model: nn.Module, estimator, step) -> torch.Tensor:
    """D `[N, K + C]` of one training step."""
    inputs, clean = token_batch(model, LENGTHS), token_batch(model, META_LENGTHS, seed=3)
    stack, votes = sources(3)
    said = supervision(len(LENGTHS), votes)
    encode = lambda rows: {name: t[torch.as_tensor(rows)] for name, t in clean.items()}  # noqa: E731
    lookahead = FullModelLookahead(model, estimator, torch.tensor([0, 1, 2]), encode, MetaSampler(3, 3, seed=0))
    batch = Batch(inputs=inputs, noise=RNGState(torch.device("cpu")), losses_of=lambda o: stack.with_classes(o, said),
                  lookahead=step, num_rows=len(LENGTHS))  # fmt: skip
    lookahead.prepare(batch)
    with lookahead.capture_features():
        outputs = model(**inputs)
    found = lookahead.directional_derivatives(Step(**vars(batch), outputs=outputs, weights=row_weights(4, 3)))
    assert found is not None
    return found[0].double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", [FiniteDifference(), ForwardMode()], ids=["difference", "forward"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "mlp-norm"])
def test_of_half_precision_weights_it_is_as_exact_as_in_float32(name, estimator, dtype):
    """Against the same weights in float64; computed in half precision it would be percents off."""
    half = build(name).to(dtype)
    exact = build(name)
    exact.load_state_dict({k: t.to(torch.float64) for k, t in half.state_dict().items()})
    oracle = found_by(exact, DoubleBackward(), NoStep())
    before = {k: t.clone() for k, t in half.state_dict().items()}
    assert relative_error(found_by(half, estimator, NoStep()), oracle) <= 1e-3
    kept = {k: t for k, t in half.state_dict().items() if "running" not in k and "tracked" not in k}
    assert all(torch.equal(t, before[k]) and t.dtype == before[k].dtype for k, t in kept.items())


def test_a_step_along_the_half_precision_gradient():
    half = build("bert").bfloat16()
    exact = build("bert")
    exact.load_state_dict({k: t.to(torch.float64) for k, t in half.state_dict().items()})
    oracle = found_by(exact, DoubleBackward(), SGDStep(0.3))
    for estimator in (FiniteDifference(), ForwardMode()):
        assert relative_error(found_by(half, estimator, SGDStep(0.3)), oracle) <= 2e-2


def test_frozen_parameters_and_inputs_are_read_in_float32_too():
    """As under LoRA: most weights are no part of what is moved."""
    half = build("bert").bfloat16()
    for name, p in half.named_parameters():
        p.requires_grad_("query" in name or "classifier" in name)
    exact = build("bert").float()
    exact.load_state_dict({k: t.float() for k, t in half.state_dict().items()})
    embedded = half.bert.embeddings.word_embeddings(token_batch(half, LENGTHS)["input_ids"]).detach()
    inputs = {"inputs_embeds": embedded, "attention_mask": token_batch(half, LENGTHS)["attention_mask"]}
    found = PureModel(half, inputs, training=False)(float32_copies(trainable(half))).logits
    expected = PureModel(exact, {**inputs, "inputs_embeds": embedded.float()}, training=False)({}).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert PureModel(half, inputs, training=False)({}).logits.dtype == torch.bfloat16


def test_slow_derivative_agrees_on_wide_models():
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS["opt"]).double()
    problem = network_problem(model)
    v, leaves = problem.direction(), {k: p.requires_grad_() for k, p in problem.params.items()}
    by_hand = slow_directional(problem.losses(leaves), leaves.values(), v.values())
    assert relative_error(ForwardMode().directional(problem, v), by_hand) <= 1e-10
