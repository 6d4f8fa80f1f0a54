"""Rows as features `[N, H]`: what an encoder makes of their texts, mean over tokens, of unit length."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from datasets.utils import tqdm
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import logging

from amal_hf.metagrad.functional import in_mode
from amal_hf.models.pooling import check_layers, token_pooled

logger = logging.get_logger(__name__)

AT_ONCE = 2048  # rows in tokens
BATCH = 128
DEEP = 4  # layers, from which on a middle one tells classes apart that the last does not
MIDDLE = 2.0  # length of the middle layer's features beside the last's
SHORTEST = 16  # tokens; what pools its states to fewer positions (Funnel) can read no shorter text


def encode_rows(
    model: nn.Module,
    tokenizer: Any,
    rows: Dataset,
    text_columns: Sequence[str] = ("text",),
    max_length: int = 128,
    *,
    bf16: bool = False,
    layers: Sequence[int] | None = (-1,),
    pooling: str = "mean",
    prompt: str = "",
) -> Tensor:
    """Features `[N, H]` of unit length, float32, on the CPU.

    A row's features are its tokens' hidden states as one vector (by default their mean) and owe nothing to the rows
    beside it. A row without text (null, empty, blank, or no token but those that the tokenizer adds) has features 0.
    Every process of a launch reads its share of the rows, and has the features of all.

    Args:
        model: a classifier, an encoder, or one with adapters; only its encoder is read, in eval mode, in its weights'
            precision. Of an encoder-decoder that is the encoder; tokens of a learned prompt are left out.
        tokenizer: the model's.
        rows: with `input_ids` (and what else the tokenizer made), else with `text_columns`.
        text_columns: one, or two that are read as a pair.
        max_length: tokens kept per row; fewer where the model has fewer positions.
        bf16: read under bfloat16 autocast.
        layers: whose hidden states; several stand side by side, `[N, H · layers]`. -1 is the last, 0 the embeddings.
            None: the one at two thirds of the depth, at twice the length, and the last, where there are four and more;
                else the last.
        pooling: of the last layer: "mean", "cls" (the first token's state) or "last"; those below are means.
        prompt: put before the (first) text of every row.

    Raises:
        ValueError: a model that returns no hidden states, or has not these layers.
    """
    reader = _Reader(model, tokenizer, text_columns, max_length, bf16, layers, pooling, prompt)
    here = PartialState()
    # parameters in parts are put together by all processes at once: then all of them read the same
    alone = any(isinstance(p, DTensor) for p in model.parameters())
    processes, index = (1, 0) if alone else (here.num_processes, here.process_index)
    share = -(-len(rows) // processes)
    # the last rows again where they do not go round: every process gathers as many
    own = (share * index + np.arange(share)).clip(max=len(rows) - 1)
    starts = tqdm(range(0, share, AT_ONCE), desc="Reading texts", disable=not here.is_main_process)
    parts = [reader(rows.select(own[start : start + AT_ONCE])) for start in starts]
    found = torch.cat([torch.empty(0, reader.width), *parts])
    return gather(found.to(here.device)).cpu()[: len(rows)] if processes > 1 else found


def warn_empty(features: Tensor, text_columns: Sequence[str]) -> None:
    """Say how many rows have no text to read: their features `[N, H]` are 0."""
    empty = int((~features.any(1)).sum())
    if empty:
        logger.warning(f"`{'`, `'.join(text_columns)}`: {empty} of {len(features)} rows have no text to read.")


def get_encoder(model: nn.Module) -> nn.Module:
    """The module whose forward makes hidden states `[N, T, H]` of `input_ids`: below the head, with its adapters.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> type(get_encoder(BertForSequenceClassification(BertConfig(vocab_size=9, **size)))).__name__
        'BertModel'
    """
    if hasattr(model, "get_base_model"):  # PEFT's: adapters within the layers stay, virtual tokens before them do not
        return get_encoder(model.get_base_model())  # type: ignore[operator]
    if not isinstance(model, PreTrainedModel):  # a module of the user's around one, or one by itself
        inner = [m for m in model.modules() if isinstance(m, PreTrainedModel) or hasattr(m, "get_base_model")]
        only_one = bool(inner) and {*inner} <= {*inner[0].modules()}
        return get_encoder(inner[0]) if only_one else model
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


class _Reader:
    """A chunk of rows -> features `[n, H]`."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        text_columns: Sequence[str],
        max_length: int,
        bf16: bool,
        layers: Sequence[int] | None,
        pooling: str,
        prompt: str,
    ) -> None:
        self.model, self.encoder, self.tokenizer = model, get_encoder(model), tokenizer
        self.text_columns, self.bf16, self.layers = text_columns, bf16, (-1,) if layers is None else tuple(layers)
        self.pooling, self.prompt = pooling, prompt
        self.depth = getattr(getattr(self.encoder, "config", None), "num_hidden_layers", -1)
        parameter = next(model.parameters())
        self.device = parameter.device
        accepted = inspect.signature(self.encoder.forward).parameters
        self.takes_all = any(p.kind == p.VAR_KEYWORD for p in accepted.values())
        self.accepted = set(accepted)
        config = getattr(self.encoder, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            # as RoBERTa counts them: positions begin behind the padding's
            first = (getattr(config, "pad_token_id", None) or 0) + 1 if _counts_from_padding(self.encoder) else 0
            max_length = min(max_length, positions - first)
        self.max_length = min(max_length, getattr(tokenizer, "model_max_length", None) or max_length)
        self.empty = {tuple(tokenizer(*[""] * n)["input_ids"]) for n in {1, len(text_columns)}} | {()}
        # without a token to pad with, or with states for other positions than those of the tokens, rows are read beside
        # rows of their own length only
        self.pads, self.shortest = getattr(tokenizer, "pad_token_id", None) is not None, 1
        ids = tokenizer("word " * SHORTEST, truncation=True, max_length=self.max_length)
        probe = {name: [value] for name, value in ids.items()} if ids["input_ids"] else {"input_ids": [[0] * SHORTEST]}
        with in_mode(model, training=False), torch.no_grad():
            if layers is None:
                self.layers = self._usual_layers(self._tensors(probe))
            self.lengths = (1.0,) * len(self.layers) if layers is not None else (MIDDLE, 1.0)[-len(self.layers) :]
            states = self._states(self._tensors(probe))
        if any(s.shape[1] != len(probe["input_ids"][0]) for s in states):
            self.pads, self.shortest = False, SHORTEST
        self.width = sum(s.shape[-1] for s in states)

    def __call__(self, rows: Dataset) -> Tensor:
        tokens = self._tokens(rows)
        lengths = [0 if tuple(ids) in self.empty else len(ids) for ids in tokens["input_ids"]]
        found = torch.zeros(len(lengths), self.width)
        with in_mode(self.model, training=False), torch.no_grad():
            for batch in self._batches(lengths):
                read = self._features({name: [values[i] for i in batch] for name, values in tokens.items()})
                found[batch] = torch.where(read.isfinite().all(1, keepdim=True), read, 0.0)  # half weights overflow
        return found

    def _tokens(self, rows: Dataset) -> dict[str, list[Any]]:
        if "input_ids" in rows.column_names:
            names = [name for name in self.tokenizer.model_input_names if name in rows.column_names]
            return {name: [list(v)[: self.max_length] for v in rows[name][:]] for name in {*names, "input_ids"}}
        columns = [["" if text is None else str(text) for text in rows[c][:]] for c in self.text_columns]
        blank = [not any(text.strip() for text in texts) for texts in zip(*columns, strict=True)]
        columns[0] = [self.prompt + text for text in columns[0]]
        tokens = dict(self.tokenizer(*columns, truncation=True, max_length=self.max_length))
        tokens["input_ids"] = [[] if b else ids for b, ids in zip(blank, tokens["input_ids"], strict=True)]
        return tokens

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions of rows with a text, those of like length together."""
        order = [int(i) for i in np.argsort(lengths, kind="stable") if lengths[i]]
        alike = lambda i: self.pads or max(lengths[i], self.shortest)  # noqa: E731
        groups = [list(group) for _, group in groupby(order, key=alike)]
        for group in groups:
            yield from (group[start : start + BATCH] for start in range(0, len(group), BATCH))

    def _tensors(self, picked: Mapping[str, Any]) -> dict[str, Tensor]:
        """One batch, on the device, padded on the right: a decoder counts its positions from the left."""
        longest = max(map(len, picked["input_ids"]))
        if self.pads or longest < self.shortest:
            how = {} if self.pads else {"padding": "max_length", "max_length": self.shortest}
            padded = self.tokenizer.pad(dict(picked), padding_side="right", return_attention_mask=True, **how)
        else:
            padded = {**picked, "attention_mask": [[1] * len(ids) for ids in picked["input_ids"]]}
        return {name: torch.as_tensor(values, device=self.device) for name, values in padded.items()}

    def _features(self, picked: Mapping[str, Any]) -> Tensor:
        inputs = self._tensors(picked)
        pooled = []
        for layer, length, states in zip(self.layers, self.lengths, self._states(inputs), strict=True):
            mask = nn.functional.adaptive_max_pool1d(inputs["attention_mask"].float(), states.shape[1])
            pooling = self.pooling if layer in (-1, self.depth) else "mean"
            pooled.append(length * nn.functional.normalize(token_pooled(states.float(), mask, pooling), dim=1))
        return nn.functional.normalize(torch.cat(pooled, 1), dim=1).cpu()

    def _forward(self, inputs: Mapping[str, Tensor], every_layer: bool) -> Any:
        asked: dict[str, Any] = {"output_hidden_states": True} if every_layer else {}
        given = {k: v for k, v in {**inputs, **asked, "use_cache": False}.items() if self._accepts(k)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.encoder(**given)

    def _usual_layers(self, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The layer at two thirds of the depth and the last, where there are four and all see the same positions."""
        output = self._forward(inputs, every_layer=True)
        named = output.get("hidden_states") if isinstance(output, Mapping) else None
        every = [*named] if isinstance(named, tuple | list) else []
        depth = len(every) - 1
        alike = depth >= DEEP and all(isinstance(s, Tensor) and s.shape == every[-1].shape for s in every)
        return (round(2 * depth / 3), -1) if alike else (-1,)

    def _states(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Hidden states of the chosen layers, each `[n, T, H]`."""
        output = self._forward(inputs, every_layer=self.layers != (-1,))
        found = _hidden_states(output, self.layers)
        if found is None:
            names = sorted(output) if isinstance(output, Mapping) else [type(output).__name__]
            what = "hidden states [N, T, H]" if self.layers == (-1,) else "the hidden states of every layer"
            raise ValueError(
                f"`model`: expected {what} from {type(self.encoder).__name__}, found {names}. Return them as "
                "`hidden_states` from its forward, or read another encoder (any AutoModel)."
            )
        return found

    def _accepts(self, name: str) -> bool:
        if isinstance(self.encoder, PreTrainedModel):  # what it takes beside its signature it hands to its layers
            return name in self.accepted or name == "output_hidden_states"
        return name in self.accepted or (self.takes_all and name != "use_cache")


def _hidden_states(output: Any, layers: tuple[int, ...]) -> list[Tensor] | None:
    """What a forward returned, as hidden states `[n, T, H]` of the layers; None where there are none in it."""
    named = output if isinstance(output, Mapping) else {}
    every = named.get("hidden_states")
    if layers != (-1,):
        if not isinstance(every, tuple | list):
            return None
        check_layers(layers, len(every) - 1)
        return [every[layer] for layer in layers]
    last = named.get("last_hidden_state")
    if last is None:
        last = every[-1] if isinstance(every, tuple | list) else every
    if not named:
        last = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(last, Tensor) or last.dim() != 3 or not last.is_floating_point():
        return None
    return [last]


def _counts_from_padding(encoder: nn.Module) -> bool:
    """Whether a token's position is counted from behind the padding's (RoBERTa and its kin)."""
    embeddings = getattr(encoder, "embeddings", None)
    return getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None) is not None
