"""The head is found by what it computes, on every architecture."""

from __future__ import annotations

import pytest
import torch
from helpers import CLASSES, HIDDEN, LENGTHS, build, captured, token_batch
from torch import nn

from amal_hf.metagrad import Head, HeadTap, find_head

HEADS = {
    "mlp": ("classifier.weight", "classifier.bias"),
    "bert": ("classifier.weight", "classifier.bias"),
    "distilbert": ("classifier.weight", "classifier.bias"),
    "roberta": ("classifier.out_proj.weight", "classifier.out_proj.bias"),
    "electra": ("classifier.out_proj.weight", "classifier.out_proj.bias"),
    "albert": ("classifier.weight", "classifier.bias"),
    "deberta-v2": ("classifier.weight", "classifier.bias"),
    "modernbert": ("classifier.weight", "classifier.bias"),
    "xlnet": ("logits_proj.weight", "logits_proj.bias"),
    "gpt2": ("score.weight", None),
    "llama": ("score.weight", None),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def lora(name: str = "bert") -> nn.Module:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=2, target_modules=["query", "value"])
    return peft.get_peft_model(build(name), settings).double()


def check(model: nn.Module, names: tuple[str, str | None]) -> Head:
    """The head has these names, is trainable, and makes the logits from what `HeadTap` caught."""
    inputs = token_batch(model, LENGTHS)
    head, features, logits = captured(model, inputs)
    assert head.names == names
    parameters = dict(model.named_parameters())
    assert head.params().keys() == {name for name in names if name}
    assert all(parameters[name] is p and p.requires_grad for name, p in head.params().items())
    assert features.shape == (len(LENGTHS), HIDDEN) and logits.shape == (len(LENGTHS), CLASSES)
    torch.testing.assert_close(head.logits(head.params(), features), logits, rtol=0, atol=1e-12)
    weight, bias = parameters[names[0]], parameters[names[1]] if names[1] else 0.0
    torch.testing.assert_close(features @ weight.T + bias, logits, rtol=0, atol=1e-12)
    return head


@pytest.mark.parametrize("name, names", HEADS.items())
def test_head_of(name, names):
    check(build(name), names)


def test_head_of_a_lora_model_is_the_active_copy():
    model = lora()
    stem = "base_model.model.classifier.modules_to_save.default"
    head = check(model, (f"{stem}.weight", f"{stem}.bias"))
    with torch.no_grad():  # the other copy is frozen and computes nothing
        model.base_model.model.classifier.original_module.weight.add_(1.0)
    check(model, head.names)


@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2"])
def test_a_frozen_head_is_none(name):
    model = build(name)
    inputs = token_batch(model, LENGTHS)
    head = find_head(model, inputs)
    head.module.weight.requires_grad_(False)
    assert find_head(model, inputs) is None


def test_logits_that_no_layer_makes_are_none():
    assert find_head(build("mlp-tied"), token_batch(build("mlp-tied"), LENGTHS)) is None  # a slice of a layer's output

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("mlp")
            self.config = self.inner.config

        def forward(self, **inputs):
            return self.inner(**inputs).logits * 2

    assert find_head(Scaled(), token_batch(build("mlp"), LENGTHS)) is None


def test_a_subclass_of_linear_is_not_a_plain_head():
    """A quantized or adapted layer computes more than W h + b."""

    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = build("mlp")
    model.classifier = Odd(HIDDEN, CLASSES).double()
    assert find_head(model, token_batch(model, LENGTHS)) is None


def test_features_are_what_the_model_pools():
    """A decoder's features are those of the last real token, under padding on either side."""
    model = build("gpt2").eval()
    right = token_batch(model, LENGTHS)
    shifts = [max(LENGTHS) - n for n in LENGTHS]
    left = {k: torch.stack([r.roll(s) for r, s in zip(t, shifts, strict=True)]) for k, t in right.items()}
    for inputs in (right, left):
        _, features, _ = captured(model, inputs)
        hidden = model.transformer(**inputs).last_hidden_state
        for i, mask in enumerate(inputs["attention_mask"]):
            torch.testing.assert_close(features[i], hidden[i, mask.nonzero().max()], rtol=0, atol=1e-12)


def test_the_tap_keeps_the_last_forward_and_closes():
    model = build("bert", dropout=0.1).train()
    inputs = token_batch(model, LENGTHS)
    head = find_head(model, inputs)
    with HeadTap(head) as tap:
        with pytest.raises(RuntimeError, match="the head was not called during the forward"):
            tap.features(torch.zeros(len(LENGTHS), CLASSES))
        model(**inputs)
        logits = model(**inputs).logits
    features = tap.features(logits)
    assert not features.requires_grad
    torch.testing.assert_close(head.logits(head.params(), features), logits, rtol=0, atol=1e-12)
    model(**inputs)
    assert torch.equal(tap.features(logits), features), "the tap is closed"
    with pytest.raises(RuntimeError, match=r"the output of 'classifier.weight' is not where the logits come from"):
        tap.features(logits + 1)


def test_the_tap_follows_half_precision_logits():
    """Logits that were cast after the head (accelerate returns float32) are still recognised."""
    model = build("bert").bfloat16().eval()
    inputs = token_batch(model, LENGTHS)
    head = find_head(model, inputs)
    with torch.no_grad(), HeadTap(head) as tap:
        logits = model(**inputs).logits
    assert torch.equal(tap.features(logits.float()), tap.features(logits))
