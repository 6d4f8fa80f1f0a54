"""Whether a forward has a forward-mode derivative, and kinks, is tried and not guessed; nothing is left behind."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers import DECODER, HIDDEN, LENGTHS, SIZES, build, token_batch
from torch import nn

from amal_hf.build import make_lookahead
from amal_hf.lookahead.probe import has_kinks, without_forward_mode
from amal_hf.metagrad import FiniteDifference, ForwardMode

SMOOTH = ("bert", "roberta", "electra", "albert", "deberta-v2", "modernbert", "xlnet", "gpt2", "llama")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def opt() -> nn.Module:
    sizes = {k: v for k, v in SIZES.items() if k not in ("intermediate_size", "initializer_range")}
    config = transformers.OPTConfig(**sizes, **DECODER, word_embed_proj_dim=HIDDEN, ffn_dim=32)
    return transformers.AutoModelForSequenceClassification.from_config(config).train()


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SIZES, **DECODER, num_key_value_heads=2, num_local_experts=2)
    return transformers.AutoModelForSequenceClassification.from_config(config).train()


class Twice(torch.autograd.Function):
    """An operation of the user's, with a backward and no forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Around(nn.Module):
    def __init__(self, last) -> None:
        super().__init__()
        self.inner, self.last = build("mlp").float(), last
        self.config = self.inner.config

    def forward(self, **inputs):
        return self.last(self.inner(**inputs).logits)


def state_of(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modes = [m.training for m in model.modules()]
    return {k: t.detach().clone() for k, t in tensors.items()}, modes, torch.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*SMOOTH, "distilbert"])
def test_the_usual_encoders_have_a_rule(name, dtype):
    model = build(name, dropout=0.1).to(dtype)
    assert without_forward_mode(model, token_batch(model, LENGTHS)) is None


@pytest.mark.parametrize(("name", "kinks"), [*((name, False) for name in SMOOTH), ("distilbert", True), ("opt", True)])
def test_kinks_are_seen(name, kinks):
    model = opt() if name == "opt" else build(name)
    assert has_kinks(model, token_batch(model, LENGTHS)) is kinks


MISSING = {"a custom operation": lambda: Around(Twice.apply), "mixture of experts": mixtral,
           "hidden from autograd": lambda: Around(lambda z: z * z.detach().exp())}  # fmt: skip


@pytest.mark.parametrize("kind", MISSING)
def test_what_has_no_rule_is_differenced(kind, caplog):
    """`z.detach()`: forward mode does not see what a difference sees."""
    model = MISSING[kind]()
    inputs = token_batch(model, LENGTHS)
    told = without_forward_mode(model, inputs)
    assert told and "\n" not in told
    lookahead, log = made(model, inputs, "auto", caplog)
    assert isinstance(lookahead.estimator, FiniteDifference)
    assert "FiniteDifference on all trainable parameters: forward mode was tried: " in log
    assert told.split(" by ")[0] in log  # on fewer rows another number
    with pytest.raises(ValueError, match=r"`estimator`: 'forward' expects a forward-mode rule .*Set estimator='diff"):
        made(model, inputs, "forward", caplog)


def made(model, inputs, estimator, caplog):
    args = SimpleNamespace(seed=0, data_seed=None, meta_batch_size=2, lookahead_params="all", estimator=estimator,
                           gradient_checkpointing=False)  # fmt: skip
    logger = logging.getLogger("amal_hf.build")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        made = make_lookahead(model, torch.tensor([0, 1]), dict, inputs, args, "no")
    finally:
        logger.removeHandler(caplog.handler)
    return made, caplog.text


def test_it_is_asked_of_make_lookahead(caplog):
    model = build("bert")
    assert isinstance(made(model, token_batch(model, LENGTHS), "auto", caplog)[0].estimator, ForwardMode)
    model = opt()
    assert made(model, token_batch(model, LENGTHS), "difference", caplog)[0].estimator == FiniteDifference(kinks=True)


@pytest.mark.parametrize("name", ["mlp-norm", "bert"])
def test_nothing_is_left_behind(name):
    """Neither in parameters, running statistics and modes, nor in the random state."""
    model = build(name, dropout=0.3)
    model.eval()
    next(model.children()).train()
    inputs, before = token_batch(model, LENGTHS), state_of(model)
    without_forward_mode(model, inputs), has_kinks(model, inputs)
    after = state_of(model)
    assert before[1] == after[1] and torch.equal(before[2], after[2])
    assert before[0].keys() == after[0].keys() and all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert all(p.grad is None for p in model.parameters())


def test_a_head_that_the_optimizer_does_not_move_is_refused():
    model = build("bert")
    args = SimpleNamespace(seed=0, data_seed=None, meta_batch_size=2, lookahead_params="head", probe_weight=0.0)
    labels, inputs = torch.tensor([0, 1]), token_batch(model, LENGTHS)
    body = torch.optim.AdamW(model.bert.parameters())
    with pytest.raises(ValueError, match=r"`optimizers`: .*found classifier.weight in none of its 1 groups"):
        make_lookahead(model, labels, dict, inputs, args, "no", optimizer=body)
    whole = torch.optim.AdamW(model.parameters())
    for optimizer in (whole, None):
        found = make_lookahead(model, labels, dict, inputs, args, "no", optimizer=optimizer)
        assert found.head.weight == "classifier.weight"
