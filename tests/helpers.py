"""Tiny models, padded batches and bilevel problems in float64, for every test of a meta-gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from amal_hf import CrossEntropy, Distillation, LabelingFunctions, Outputs
from amal_hf._types import Batch, Tensors
from amal_hf.losses import LossStack
from amal_hf.metagrad import (
    AdamStep,
    Head,
    HeadProblem,
    HeadTap,
    NoStep,
    OutputsProblem,
    PureModel,
    SGDStep,
    VirtualStep,
    find_head,
    trainable,
)

VOCAB, CLASSES, HIDDEN = 60, 4, 16
LENGTHS = (7, 3, 5, 6)  # of the training rows: three of four are padded
META_LENGTHS = (4, 7, 5)


# ---- models ----


class MLP(nn.Module):
    """Embeddings, their mean over the unpadded tokens, one hidden layer, one linear head."""

    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=CLASSES, pad_token_id=0, _attn_implementation="eager")
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask[..., None].to(self.embed.weight)
        pooled = (self.embed(input_ids) * real).sum(1) / real.sum(1)
        return self.dropout(torch.tanh(self.norm(self.hidden(pooled))))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        return Outputs(logits=self.classifier(self.encode(input_ids, attention_mask)))


class TiedMLP(MLP):
    """The logits are read off the embedding matrix: one parameter, two places."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.classifier = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.classifier.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        return Outputs(logits=super().forward(input_ids, attention_mask).logits[:, :CLASSES])


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_labels": CLASSES,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,  # far enough from linear for a wrong formula to show
}
DECODER = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def dropouts(p: float) -> dict[str, float]:
    return {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p, "classifier_dropout": p}


def config(name: str, dropout: float = 0.0) -> transformers.PretrainedConfig:
    """The configuration of a two-layer classifier, 16 wide."""
    bert = {**SIZES, **dropouts(dropout)}
    if name == "bert":
        return transformers.BertConfig(**bert)
    if name == "roberta":
        return transformers.RobertaConfig(**bert, pad_token_id=1)
    if name == "electra":
        return transformers.ElectraConfig(**bert, embedding_size=8)
    if name == "albert":
        return transformers.AlbertConfig(**{**bert, "classifier_dropout_prob": dropout}, embedding_size=8)
    if name == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=VOCAB, num_labels=CLASSES, dim=HIDDEN, hidden_dim=32, n_layers=2, n_heads=2,
            max_position_embeddings=24, dropout=dropout, attention_dropout=dropout, seq_classif_dropout=dropout,
        )  # fmt: skip
    if name == "deberta-v2":
        return transformers.DebertaV2Config(
            **bert, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True
        )
    if name == "modernbert":
        special = {"cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
        drop = {"attention_dropout": dropout, "mlp_dropout": dropout, "embedding_dropout": dropout}
        return transformers.ModernBertConfig(
            **SIZES, **special, **drop, classifier_dropout=dropout, global_attn_every_n_layers=2, local_attention=4
        )
    if name == "xlnet":
        return transformers.XLNetConfig(
            vocab_size=VOCAB, num_labels=CLASSES, d_model=HIDDEN, n_layer=2, n_head=2, d_inner=32, dropout=dropout
        )
    if name == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB, num_labels=CLASSES, n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=24,
            attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout, **DECODER,
        )  # fmt: skip
    if name == "llama":
        return transformers.LlamaConfig(**SIZES, **DECODER, num_key_value_heads=2, attention_dropout=dropout)
    raise KeyError(name)


def build(name: str, attn: str | None = None, dropout: float = 0.0) -> nn.Module:
    """A model by name: random weights, float64, train mode. `attn`: its attention; None, the default one."""
    if name in ("mlp", "mlp-norm"):
        return MLP(dropout, norm=name == "mlp-norm").double()
    if name == "mlp-tied":
        return TiedMLP(dropout).double()
    chosen = {} if attn is None else {"attn_implementation": attn}
    return transformers.AutoModelForSequenceClassification.from_config(config(name, dropout), **chosen).double().train()


# ---- batches ----


def token_batch(model: nn.Module, lengths: Iterable[int], seed: int = 0) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `[N, T]`, padded on the right to the longest row."""
    lengths = tuple(lengths)
    ids = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    pad = getattr(model.config, "pad_token_id", 0) or 0  # type: ignore[union-attr]
    return {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}


def supervision(n: int, votes: int = 68, seed: int = 1) -> dict[str, Tensor]:
    """Label, teacher and vote columns of `n` rows, each silent somewhere; function 1 is silent everywhere."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=draw)
    labels[1] = -100
    teacher = torch.randn(n, CLASSES, generator=draw, dtype=torch.float64) * 2
    teacher[2] = torch.nan
    weak = torch.randint(-1, CLASSES, (n, votes), generator=draw)
    weak[0, 0], weak[1, 0] = 2, -1
    weak[:, 1:2] = -1
    return {"labels": labels, "teacher_logits": teacher, "weak_labels": weak}


def sources(k: int) -> tuple[LossStack, int]:
    """Real losses that make K columns (1, 3, or more), and how many of them are votes."""
    losses: dict[str, Any] = {"label": CrossEntropy()}
    if k == 1:
        return LossStack(losses, {}), 1
    losses |= {"teacher": Distillation(temperature=2.0), "rules": LabelingFunctions()}
    return LossStack(losses, {"weak_labels": [0] * (k - 2)}), k - 2


# ---- lookaheads ----


def adam_state(
    model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, steps: int = 3, lr: float = 1e-3, decay: float = 0.1
) -> torch.optim.AdamW:
    """A real AdamW that has trained `model` for a few steps."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=lr, weight_decay=decay, betas=(0.8, 0.95))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def as_lookahead(optimizer: torch.optim.AdamW, params: Tensors, exact: bool) -> AdamStep:
    """The virtual step of `optimizer`; `params` are the tensors it moves, by name."""
    group = optimizer.param_groups[0]
    return AdamStep(
        lr=group["lr"],
        state={name: optimizer.state[p] for name, p in params.items() if p in optimizer.state},
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        exact=exact,
    )


LOOKAHEADS = ("sgd", "sgd-dict", "adam-frozen", "adam-exact", "still")


def lookahead(kind: str, model: nn.Module, inputs: Mapping[str, Tensor], params: Tensors | None = None) -> VirtualStep:
    """A lookahead by name; the Adam ones train `model` for three steps first."""
    params = trainable(model) if params is None else params
    if kind == "sgd":
        return SGDStep(0.3)
    if kind == "sgd-dict":
        draw = torch.Generator().manual_seed(5)
        return SGDStep({k: torch.rand(p.shape, generator=draw, dtype=p.dtype) for k, p in params.items()})
    if kind == "still":
        return NoStep()
    labels = torch.arange(len(inputs["input_ids"])) % CLASSES
    return as_lookahead(adam_state(model, inputs, labels), params, exact=kind == "adam-exact")


# ---- problems ----


def row_weights(n: int, k: int, seed: int = 2) -> Tensor:
    return 0.2 + torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network_problem(
    model: nn.Module,
    k: int = 3,
    lr: float | Tensors | VirtualStep = 0.3,
    training: bool = False,
    lengths: Iterable[int] = LENGTHS,
    order: Tensor | None = None,
    num_rows: int | None = None,
) -> OutputsProblem:
    """The bilevel problem of every trainable parameter, with K real sources.

    `order` permutes the rows of the batch, and the weights with them.
    """
    inputs = token_batch(model, lengths)
    n = len(inputs["input_ids"])
    stack, votes = sources(k)
    batch, weights = supervision(n, votes), row_weights(n, k)
    if order is not None:
        inputs, batch = ({name: t[order] for name, t in d.items()} for d in (inputs, batch))
        weights = weights[order]
    clean = token_batch(model, META_LENGTHS, seed=3)
    answers = torch.arange(len(clean["input_ids"])) % CLASSES
    judge = PureModel(model, clean, training=False)
    return OutputsProblem.through(
        PureModel(model, inputs, training),
        lambda outputs: stack(outputs, batch),
        params={name: p.detach().clone() for name, p in trainable(model).items()},
        weights=weights,
        val_loss=lambda params: F.cross_entropy(judge(params).logits, answers),
        lr=lr,
        num_rows=num_rows,
    )


def captured(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Head, Tensor, Tensor]:
    """The head of `model`, the features `[N, H]` that entered it and the logits `[N, C]`, in eval mode."""
    head = find_head(model, inputs)
    assert head is not None
    with torch.no_grad(), HeadTap(head) as tap:
        logits = PureModel(model, inputs, training=False)({}).logits
    return head, tap.features(logits), logits


def head_problem(
    model: nn.Module, k: int = 3, lr: float | Tensors | VirtualStep = 0.3, order: Tensor | None = None
) -> HeadProblem:
    """The bilevel problem of the final linear layer, on features captured with `HeadTap`."""
    head, features, _ = captured(model, token_batch(model, LENGTHS))
    _, clean, _ = captured(model, token_batch(model, META_LENGTHS, seed=3))
    stack, votes = sources(k)
    batch, weights = supervision(len(features), votes), row_weights(len(features), k)
    if order is not None:
        features, weights, batch = features[order], weights[order], {c: t[order] for c, t in batch.items()}
    answers = torch.arange(len(clean)) % CLASSES
    return HeadProblem.on(
        features,
        lambda logits: stack(Outputs(logits=logits), batch),
        names=head.names,
        params={name: p.detach().clone() for name, p in head.params().items()},
        weights=weights,
        val_loss=lambda params: F.cross_entropy(head.logits(params, clean), answers),
        lr=lr,
    )


def slow_directional(losses: Tensor, params: Iterable[Tensor], direction: Iterable[Tensor]) -> Tensor:
    """D `[N, K]`, one gradient a row and source: ⟨∇ℓ_ik, v⟩ as it is written. `losses` holds its graph."""
    params, direction = list(params), list(direction)
    rows = torch.zeros_like(losses, dtype=torch.float64)
    for i, k in torch.cartesian_prod(*(torch.arange(s) for s in losses.shape)).tolist():
        grads = torch.autograd.grad(losses[i, k], params, retain_graph=True, allow_unused=True)
        rows[i, k] = sum((g * v).sum() for g, v in zip(grads, direction, strict=True) if g is not None)
    return rows


def relative_error(found: Tensor, oracle: Tensor) -> float:
    """‖found − oracle‖ / ‖oracle‖, where the oracle has something to say."""
    assert found.shape == oracle.shape
    assert oracle.norm() > 0, "the oracle is zero: nothing is compared"
    return ((found - oracle).norm() / oracle.norm()).item()


def silent(batch: Batch, k: int) -> Tensor:
    """True where a source says nothing, `[N, K]`."""
    return ~sources(k)[0].mask(batch)
