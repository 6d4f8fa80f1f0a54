"""Logits are found in whatever a module returns, by name or by shape, or the module is refused by name."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers import CLASSES, DECODER, HIDDEN, LENGTHS, SIZES, build, network_problem, relative_error, token_batch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from amal_hf.metagrad import DoubleBackward, ForwardMode, PureModel, find_head, head_or_reason, model_outputs

LOGITS, LOSS, STATES = torch.zeros(2, 3), torch.tensor(0.5), torch.ones(2, 5, 4)
Named = namedtuple("Named", ["features", "logits"])

RETURNED = {
    "a tensor": LOGITS,
    "logits alone": (LOGITS,),
    "loss and logits": (LOSS, LOGITS),
    "a loss per device": (LOSS[None], LOGITS),
    "a loss per row": [torch.ones(2), LOGITS],
    "logits and states": (LOGITS, (STATES, STATES)),
    "of an encoder-decoder": (LOSS, LOGITS, ((STATES, STATES),), STATES),
    "a dictionary": {"loss": LOSS, "logits": LOGITS, "features": torch.ones(2, 7)},
    "a ModelOutput": SequenceClassifierOutput(loss=LOSS, logits=LOGITS, hidden_states=(STATES,)),
    "a named tuple": Named(torch.ones(2, 7), LOGITS),
    "an object": SimpleNamespace(logits=LOGITS, loss=LOSS),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_logits_are_found(kind):
    outputs = model_outputs(RETURNED[kind])
    assert outputs.logits is LOGITS and "loss" not in outputs


REFUSED = {
    "features and logits": ((torch.ones(2, 7), LOGITS), r"found 0: \[2, 7\], 1: \[2, 3\]"),
    "states": (STATES, r"found 0: \[2, 5, 4\]"),
    "one number a row": ((LOSS, torch.ones(2)), r"found 0: \[\], 1: \[2\]"),
    "an encoder": (
        {"last_hidden_state": STATES, "pooler_output": LOGITS},
        r"found last_hidden_state: \[2, 5, 4\], pool",
    ),
    "logits of tokens": ({"logits": STATES}, r"found logits: \[2, 5, 4\]"),
    "nothing": (None, r"found output: NoneType"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_logits_is_refused(kind):
    raw, found = REFUSED[kind]
    with pytest.raises(
        ValueError, match=rf"`model`: expected a forward that returns logits \[N, C\], {found}.*AutoModelFor"
    ):
        model_outputs(raw)


class Own(nn.Module):
    """A module of the user's that returns its own loss beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("mlp")
        self.config = self.inner.config

    def forward(self, **inputs):
        logits = self.inner(**inputs).logits
        return logits.square().mean(), logits


def test_a_module_that_returns_its_loss_is_differentiated():
    torch.manual_seed(0)
    model = Own()
    assert relative_error(ForwardMode()(problem := network_problem_of(model)), DoubleBackward()(problem)) <= 1e-10
    head = find_head(model, token_batch(model, LENGTHS))
    assert head is not None and head.weight == "inner.classifier.weight"


def network_problem_of(model):
    return network_problem(SimpleLogits(model))


class SimpleLogits(nn.Module):
    """What `network_problem` reads its clean logits from."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, **inputs):
        return model_outputs(self.inner(**inputs))


def test_tuples_are_asked_for():
    torch.manual_seed(0)
    model = build("bert").eval()
    inputs = token_batch(model, LENGTHS)
    expected = PureModel(model, inputs, training=False)({}).logits
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert torch.equal(PureModel(model, inputs, training=False)({}).logits, expected)
    assert find_head(model, inputs).weight == "classifier.weight"


# ---- heads of other families ----

T5 = transformers.T5Config(vocab_size=60, num_labels=CLASSES, d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=1,
                           num_heads=2, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip
BART = transformers.BartConfig(vocab_size=60, num_labels=CLASSES, d_model=HIDDEN, encoder_layers=1, decoder_layers=1,
                               encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                               decoder_ffn_dim=32, max_position_embeddings=24, **DECODER)  # fmt: skip
FUNNEL = transformers.FunnelConfig(vocab_size=60, num_labels=CLASSES, d_model=HIDDEN, n_head=2, d_head=8, d_inner=32,
                                   block_sizes=[1, 1], num_decoder_layers=1)  # fmt: skip
OPT = transformers.OPTConfig(**{k: v for k, v in SIZES.items() if k not in ("intermediate_size", "initializer_range")},
                             **DECODER, word_embed_proj_dim=HIDDEN, ffn_dim=32)  # fmt: skip
OTHER = {
    "t5": (T5, "classification_head.out_proj.weight"),
    "bart": (BART, "classification_head.out_proj.weight"),
    "funnel": (FUNNEL, "classifier.linear_out.weight"),
    "opt": (OPT, "score.weight"),
}


@pytest.mark.parametrize("name", OTHER)
def test_head_of_other_families(name):
    torch.manual_seed(0)
    config, weight = OTHER[name]
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    inputs = token_batch(model, (7, 5))
    last = inputs["attention_mask"].sum(1) - 1
    inputs["input_ids"][torch.arange(2), last] = config.eos_token_id if name in ("t5", "bart") else 5
    found = head_or_reason(model, inputs)
    assert not isinstance(found, str) and found.weight == weight


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "LoraConfig"])
def test_head_under_peft_is_the_active_copy(kind):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = {"r": 2, "target_modules": ["query"]} if kind == "LoraConfig" else {"num_virtual_tokens": 3}
    model = peft.get_peft_model(build("bert").float(), getattr(peft, kind)(task_type="SEQ_CLS", **settings))
    head = find_head(model, token_batch(model, LENGTHS))
    assert head is not None and head.weight.endswith("classifier.modules_to_save.default.weight")
    assert head.module.weight.requires_grad


def test_why_there_is_no_head():
    peft = pytest.importorskip("peft")
    model = build("bert")
    inputs = token_batch(model, LENGTHS)
    model.classifier.requires_grad_(False)
    assert head_or_reason(model, inputs) == "the logits come from 'classifier', which is frozen"
    tied = build("mlp-tied")
    assert head_or_reason(tied, inputs) == "no layer of TiedMLP puts out the logits as they are"
    settings = peft.LoraConfig(r=2, target_modules=["query", "classifier"])
    adapted = peft.get_peft_model(build("bert").float(), settings)
    assert "which is frozen" in head_or_reason(adapted, inputs)
    assert find_head(adapted, inputs) is None
    assert head_or_reason(with_last(nn.Identity()), inputs).weight == "inner.classifier.weight"
    reason = head_or_reason(with_last(nn.Tanh()), inputs)
    assert reason == "the logits come from 'last', a Tanh and no plain linear layer"


def with_last(last: nn.Module) -> nn.Module:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = build("mlp"), last
            self.config = self.inner.config

        def forward(self, **inputs):
            return self.last(self.inner(**inputs).logits)

    return Around()
