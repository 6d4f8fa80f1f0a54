"""Features of a row are those of its text read alone, whatever the encoder, the rows beside it, or their padding."""

from __future__ import annotations

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from amal_hf.denoising.reader import encode_rows, get_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
WORDS += ["iota", "kappa", "word"]
TEXTS = ["alpha beta gamma", "alpha", "delta epsilon zeta eta theta iota kappa", "beta beta", "alpha kappa gamma",
         "iota theta eta zeta", "gamma", "kappa iota theta eta zeta epsilon delta gamma beta alpha alpha"]  # fmt: skip
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 24, "pad_token_id": 0,
         "initializer_range": 0.2}  # fmt: skip
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
DROP = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
FUNNEL = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1, 1], "num_decoder_layers": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 3.0}
BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 24}  # fmt: skip
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES, **DROP),
    "roberta": transformers.RobertaConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(vocab_size=len(WORDS), dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    "deberta-v2": transformers.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "xlnet": transformers.XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=2, n_head=2, d_inner=32),
    "funnel": transformers.FunnelConfig(vocab_size=len(WORDS), **FUNNEL),
    "gpt2": transformers.GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=24, **IDS),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=2, eos_token_id=3),
    "t5": transformers.T5Config(vocab_size=len(WORDS), **T5, **IDS),
    "bart": transformers.BartConfig(vocab_size=len(WORDS), init_std=0.2, **BART, **IDS),
}  # fmt: skip


def read(*given, **settings):
    """Features, and which rows have any."""
    features = encode_rows(*given, **settings)
    return features, features.any(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_tokenizer(pad: bool = True, special: bool = True, **rest) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"pad_token": "[PAD]"} if pad else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **named, **rest
    )


def build(name: str) -> nn.Module:
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[name]).train()


def rows_of(texts) -> Dataset:
    return Dataset.from_dict({"text": texts})


def alone(encoder: nn.Module, tokenizer, texts, **asked) -> torch.Tensor:
    """Every text by itself, without padding: the mean of its hidden states, of unit length."""
    was, found = encoder.training, []
    encoder.eval()
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), **asked)[0]
        found.append(F.normalize(states.float().mean(1), dim=1)[0])
    encoder.train(was)
    return torch.stack(found)


@pytest.mark.parametrize("pad", [True, False], ids=["padded", "no pad token"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "funnel"])
def test_features_are_those_of_the_text_alone(name, pad):
    model, tokenizer = build(name), make_tokenizer(pad, padding_side="left")
    features, there = read(model, tokenizer, rows_of(TEXTS))
    assert there.all() and features.dtype == torch.float32
    torch.testing.assert_close(features, alone(get_encoder(model), tokenizer, TEXTS), rtol=0, atol=2e-5)
    assert (features[0] - features[3]).norm() > 1e-3, "the features tell nothing apart"
    assert all(m.training for m in model.modules()), "a trace is left"


@pytest.mark.parametrize("name", ["bert", "gpt2", "funnel", "xlnet"])
def test_features_do_not_depend_on_the_other_rows(name):
    model, tokenizer = build(name), make_tokenizer()
    whole, _ = read(model, tokenizer, rows_of(TEXTS))
    for order in ([7, 1], [1, 6, 0], [3]):
        part, _ = read(model, tokenizer, rows_of([TEXTS[i] for i in order]))
        torch.testing.assert_close(part, whole[order], rtol=0, atol=2e-5)


def test_states_for_other_positions_than_the_tokens():
    """Funnel pools them; it can read no text of four tokens."""
    model, tokenizer, long = build("funnel"), make_tokenizer(), [" ".join(TEXTS[2:]), " ".join(TEXTS[:4] * 2)]
    features, there = read(model, tokenizer, rows_of([*TEXTS, *long]))
    assert there.all() and features.isfinite().all()
    torch.testing.assert_close(features[-2:], alone(model.funnel, tokenizer, long), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "roberta"])
def test_adapters_are_read(name):
    targets = {"bert": ["query"], "roberta": ["query"], "gpt2": ["c_attn"], "t5": ["q"]}[name]
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, init_lora_weights=False)
    model, tokenizer = get_peft_model(build(name), lora), make_tokenizer()
    features, _ = read(model, tokenizer, rows_of(TEXTS))
    torch.testing.assert_close(features, alone(get_encoder(model), tokenizer, TEXTS), rtol=0, atol=2e-5)
    with model.disable_adapter():
        without, _ = read(model, tokenizer, rows_of(TEXTS))
    assert (features - without).norm() > 1e-2
    assert features.shape == (len(TEXTS), 16)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_learned_prompt_is_left_out(kind):
    """Its tokens are no part of the text, and have no place in its mask."""
    torch.manual_seed(0)
    model = get_peft_model(plain := build("bert"), kind(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3))
    features, _ = read(model, make_tokenizer(), rows_of(TEXTS))
    torch.testing.assert_close(features, alone(plain.bert, make_tokenizer(), TEXTS), rtol=0, atol=2e-5)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2", "funnel"])
def test_rows_without_text_are_zero_and_told(name, special):
    texts = ["alpha beta", "", None, "   ", "\u200b"[:0], "gamma", "\n\t"]
    features, there = read(build(name), make_tokenizer(special=special), rows_of(texts))
    assert there.tolist() == [True, False, False, False, False, True, False]
    assert features.isfinite().all() and not features[~there].any()
    torch.testing.assert_close(features[there].norm(dim=1), torch.ones(2))
    features, there = read(build(name), make_tokenizer(special=special), rows_of([None, None]))
    assert features.shape == (2, 16) and not features.any() and not there.any()
    assert read(build(name), make_tokenizer(), rows_of([]).cast_column("text", rows_of(["a"]).features["text"]))[
        0
    ].shape == (0, 16)


def test_rows_in_tokens_are_read_as_they_are():
    model, tokenizer = build("bert"), make_tokenizer()
    texts = [*TEXTS, ""]
    tokens = Dataset.from_dict(dict(tokenizer(texts)))
    features, there = read(model, tokenizer, tokens)
    expected, told = read(model, tokenizer, rows_of(texts))
    assert torch.equal(there, told) and not there[-1]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_pairs_are_read_as_pairs():
    model, tokenizer = build("bert"), make_tokenizer()
    pairs = Dataset.from_dict({"one": ["alpha", "alpha", None], "two": ["beta gamma", None, None]})
    features, there = read(model, tokenizer, pairs, ("one", "two"))
    assert there.tolist() == [True, True, False]
    ids = tokenizer("alpha", "beta gamma", return_tensors="pt")
    model.eval()
    expected = F.normalize(model.bert(**ids)[0].mean(1), dim=1)[0]
    torch.testing.assert_close(features[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float64, 1e-5)])
def test_half_precision_weights(dtype, near):
    model = build("bert")
    exact, _ = read(model, make_tokenizer(), rows_of(TEXTS))
    features, there = read(model.to(dtype), make_tokenizer(), rows_of(TEXTS))
    assert features.dtype == torch.float32 and there.all()
    assert (features - exact).norm(dim=1).max() < near


def test_under_autocast():
    model = build("bert")
    exact, _ = read(model, make_tokenizer(), rows_of(TEXTS))
    features, _ = read(model, make_tokenizer(), rows_of(TEXTS), bf16=True)
    assert 0 < (features - exact).norm(dim=1).max() < 0.05


def test_what_overflows_is_no_number_of_ours():
    model = build("bert").half()
    with torch.no_grad():
        model.bert.encoder.layer[-1].output.LayerNorm.weight.fill_(6e4)
    features, there = read(model, make_tokenizer(), rows_of(TEXTS))
    assert features.isfinite().all() and not there.all() and not features[~there].any()


def test_a_text_longer_than_the_positions_is_cut():
    for name in ("bert", "roberta", "gpt2"):
        features, there = read(build(name), make_tokenizer(), rows_of(["alpha " * 50, "alpha"]), max_length=512)
        assert there.all() and features.isfinite().all()


def test_layers_stand_side_by_side():
    model, tokenizer = build("bert"), make_tokenizer()
    features, _ = read(model, tokenizer, rows_of(TEXTS), layers=(1, 2))
    last, _ = read(model, tokenizer, rows_of(TEXTS))
    assert features.shape == (len(TEXTS), 32)
    torch.testing.assert_close(features[:, 16:] * 2**0.5, last, rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(TEXTS)))
    with pytest.raises(ValueError, match=r"`layers`: expected numbers from 0 \(embeddings\) to 2"):
        read(model, tokenizer, rows_of(TEXTS), layers=(7,))


@pytest.mark.parametrize(("depth", "layers"), [(3, (-1,)), (4, (3, -1)), (6, (4, -1)), (12, (8, -1))])
def test_the_usual_layers_of_a_deep_encoder(depth, layers):
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**{**SIZES, "num_hidden_layers": depth})).eval()
    usual, _ = read(model, make_tokenizer(), rows_of(TEXTS), layers=None)
    named, _ = read(model, make_tokenizer(), rows_of(TEXTS), layers=layers)
    if len(layers) == 2:  # the middle one is twice as long
        named = F.normalize(named * torch.tensor([2.0, 1.0]).repeat_interleave(16), dim=1)
    torch.testing.assert_close(usual, named, rtol=0, atol=1e-6)


def test_an_encoder_that_returns_its_last_states_alone_is_read_there():
    model = Own(lambda states: {"last_hidden_state": states})
    usual, _ = read(model, make_tokenizer(), rows_of(TEXTS), layers=None)
    assert torch.equal(usual, read(model, make_tokenizer(), rows_of(TEXTS))[0])


class Own(nn.Module):
    """A user's module: an embedding, and what `returns` makes of its states."""

    def __init__(self, returns) -> None:
        super().__init__()
        self.embed, self.returns = nn.Embedding(len(WORDS), 16), returns

    def forward(self, input_ids, attention_mask):
        return self.returns(self.embed(input_ids))


RETURNS = {
    "states": lambda states: states,
    "tuple": lambda states: (states, states.mean(1)),
    "last_hidden_state": lambda states: {"last_hidden_state": states},
    "hidden_states": lambda states: {"logits": states.mean(1), "hidden_states": (states * 0, states)},
    "hidden_states tensor": lambda states: {"logits": states.mean(1), "hidden_states": states},
}


@pytest.mark.parametrize("returns", RETURNS)
def test_a_module_of_the_users(returns):
    model, tokenizer = Own(RETURNS[returns]), make_tokenizer()
    features, _ = read(model, tokenizer, rows_of(TEXTS))
    expected = [F.normalize(model.embed(torch.tensor(tokenizer(t)["input_ids"])).mean(0), dim=0) for t in TEXTS]
    torch.testing.assert_close(features, torch.stack(expected).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("returns", [lambda s: s.mean(1), lambda s: {"logits": s.mean(1)}, lambda s: (s.mean(1),)])
def test_a_module_without_hidden_states_is_refused(returns):
    with pytest.raises(ValueError, match=r"`model`: expected hidden states \[N, T, H\] from Own, found .*AutoModel"):
        read(Own(returns), make_tokenizer(), rows_of(TEXTS))


def test_a_module_around_an_encoder():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"student": build("bert")})

    model, tokenizer = Around(), make_tokenizer()
    features, _ = read(model, tokenizer, rows_of(TEXTS))
    torch.testing.assert_close(features, alone(model.inner["student"].bert, tokenizer, TEXTS), rtol=0, atol=2e-5)
