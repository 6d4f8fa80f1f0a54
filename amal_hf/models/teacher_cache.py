"""A teacher read once: logits (and features) of every text, in files named by a fingerprint of all that they depend on.

Rows are read longest first, in shards. A shard is one `datasets.map` into a file that appears whole or not at all: a
killed run reuses those that are there, and the processes of `accelerate launch` each write their own. The columns in
the data's order of rows are one more file; while it is there, no teacher is loaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import xxhash
from accelerate import PartialState
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor, nn
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from amal_hf._files import write_json
from amal_hf._files.lock import Busy, scratch_folder
from amal_hf.models.pooling import pooled_layers
from amal_hf.models.teacher import Teacher, model_inputs

logger = logging.get_logger(__name__)

SHARD_ROWS, MOST_SHARDS = 512, 64
WAIT = 0.5  # seconds between two looks whether another run has ended
ROW, LENGTH = "row", "length"
Rows = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]
"""A batch of rows, by column."""

FLOATS = List(Value("float32"))
LOGITS, POOLED, HIDDEN = "logits", "pooled", "hidden"
KINDS: dict[str, Any] = {LOGITS: FLOATS, POOLED: FLOATS, HIDDEN: List(FLOATS)}
"""Columns a teacher can fill: `[N, C]`, `[N, H]` and `[N, L, H]`."""


@dataclass(frozen=True)
class Reading:
    """What of a teacher is read, and how: with the texts, all that its columns depend on.

    Args:
        teacher: the teacher.
        order: its outputs in the data's order of classes, `[C]`.
        kinds: which of `KINDS`.
        layers: for "hidden", which layers (empty: the embeddings and every layer).
        max_length: tokens read of each text.
        dtype: precision of weights and arithmetic; what is kept is float32.
    """

    teacher: Teacher
    order: tuple[int, ...]
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    max_length: int
    dtype: torch.dtype

    def describe(self, texts: Dataset) -> dict[str, Any]:
        """Everything the columns depend on, as JSON."""
        return {
            "teacher": self.teacher.fingerprint,
            "text": text_hash(texts),
            "rows": len(texts),
            "order": list(self.order),
            "kinds": list(self.kinds),
            "layers": list(self.layers) if HIDDEN in self.kinds else [],
            "max_length": self.max_length,
            "dtype": str(self.dtype),
        }


def text_hash(texts: Dataset) -> str:
    """Hash of every text in its row and column."""
    digest = xxhash.xxh3_128()
    for name in texts.column_names:
        for batch in texts.select_columns([name]).iter(4096):
            strings = [None if text is None else str(text) for text in batch[name]]
            digest.update(json.dumps(strings).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def described_in(manifest: Path) -> dict[str, Any] | None:
    """What a cache's manifest says of it; None where there is none that can be read."""
    try:
        found = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def damage(file: Path, rows: int, columns: Sequence[str], classes: int) -> str:
    """What is wrong with a file of columns; "" where it holds so many rows, and finite logits `[C]` or null.

    Args:
        columns: those that it should have.
        classes: C.
    """
    try:
        found = Dataset.from_file(str(file))
        if [*found.column_names] != [*columns] or len(found) != rows:
            return f"{len(found)} rows of {found.column_names}"
        values = found.select_columns([LOGITS]).with_format("arrow")[:].column(0) if LOGITS in columns else None
    except Exception as error:  # whatever a damaged file makes a reader raise
        return f"what cannot be read ({type(error).__name__})"
    if values is None:
        return ""
    widths, numbers = {*pc.list_value_length(values.drop_null()).unique().to_pylist()}, pc.list_flatten(values)
    if widths - {classes}:
        return f"{sorted(widths)} logits a row instead of {classes}"
    broken = numbers.null_count or not np.isfinite(np.asarray(numbers)).all()
    return "logits that are no finite numbers" if broken else ""


class Reader:
    """A teacher's two passes over rows: texts to tokens, and tokens to columns."""

    def __init__(self, model: nn.Module, tokenizer: Any, reading: Reading) -> None:
        self.model, self.tokenizer, self.reading = model, tokenizer, reading
        self.device = next(model.parameters()).device
        self.inputs = [name for name in tokenizer.model_input_names if name in model_inputs(model)]
        self.longest = min(
            reading.max_length,
            tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None) or reading.max_length,
        )
        self.pad = DataCollatorWithPadding(tokenizer)
        self.alone = tokenizer.pad_token_id is None  # many decoders: each row is read by itself, nothing is padded
        config: Any = model.config
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        counted = {LENGTH: Value("int32"), ROW: Value("int64")}
        self.token_features = Features({name: List(Value("int64")) for name in self.inputs} | counted)
        self.features = Features({kind: KINDS[kind] for kind in reading.kinds})

    def tokens(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Texts -> the model's inputs; none where a text is None."""
        numbers = rows.pop(ROW)
        texts = [row for row in zip(*rows.values(), strict=True) if None not in row]
        encoded: Iterator[tuple[list[int], ...]] = iter([])
        if texts:
            found = self.tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=self.longest)
            encoded = zip(*(found[name] for name in self.inputs), strict=True)
        nothing: tuple[list[int], ...] = tuple([] for _ in self.inputs)
        read = [nothing if None in row else next(encoded) for row in zip(*rows.values(), strict=True)]
        columns = dict(zip(self.inputs, map(list, zip(*read, strict=True)), strict=True))
        return columns | {LENGTH: [len(row[0]) for row in read], ROW: numbers}

    @torch.inference_mode()
    def outputs(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The model's inputs -> columns; None where there are no tokens."""
        asked = [i for i, length in enumerate(rows[LENGTH]) if length]
        columns: dict[str, list[Any]] = {kind: [None] * len(rows[LENGTH]) for kind in self.reading.kinds}
        if asked:
            given = [{name: rows[name][i] for name in self.inputs} for i in asked]
            parts = [[row] for row in given] if self.alone else [given]
            read = [self._columns(self._padded(part)) for part in parts]
            found = {kind: torch.cat([part[kind] for part in read]) for kind in read[0]}
            broken = (~found[LOGITS].isfinite().all(1)).nonzero().flatten().tolist()
            if broken:
                raise ValueError(
                    f"`teacher`: expected finite logits, found NaN or infinity from {self.reading.teacher.name!r} on "
                    f"row {rows[ROW][asked[broken[0]]]}: {found[LOGITS][broken[0]].tolist()}. Its weights are broken, "
                    f"or overflow in {self.reading.dtype}: try without bf16."
                )
            for kind, values in found.items():
                for i, value in zip(asked, values.numpy(), strict=True):
                    columns[kind][i] = value
        return columns

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if self.alone:
            return {name: torch.tensor([row[name] for row in rows], device=self.device) for name in self.inputs}
        return dict(self.pad(rows).to(self.device))

    def _columns(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds, layers = self.reading.kinds, self.reading.layers
        outputs = self.model(**inputs, output_hidden_states=len(kinds) > 1)
        found = {LOGITS: outputs.logits[:, list(self.reading.order)]}
        for kind in kinds[1:]:
            hidden = outputs.hidden_states
            chosen = [-1] if kind == POOLED else list(layers or range(len(hidden)))
            vectors = pooled_layers(hidden, inputs.get("attention_mask"), chosen)
            found[kind] = vectors[:, 0] if kind == POOLED else vectors
        return {kind: values.float().cpu() for kind, values in found.items()}


class TeacherCache:
    """Columns of one teacher on one list of texts, in `root`/fingerprint.

    Args:
        root: folder of all caches.
        texts: text columns of every row, in the order in which the tokenizer takes them; where the first is None the
            teacher is not asked and abstains.
        reading: what is read.

    Raises:
        ValueError: the folder says that it holds something else (e.g. of another text).
    """

    def __init__(self, root: Path, texts: Dataset, reading: Reading) -> None:
        self.texts, self.reading = texts, reading
        self.described = reading.describe(texts)
        self.fingerprint = xxhash.xxh3_128(json.dumps(self.described, sort_keys=True).encode()).hexdigest()
        self.folder = root / self.fingerprint
        self.file, self.shards, self.manifest = (self.folder / n for n in ("columns.arrow", "shards", "teacher.json"))
        found = described_in(self.manifest)
        if found is not None and found != self.described:
            different = {k: (v, found.get(k)) for k, v in self.described.items() if found.get(k) != v}
            raise ValueError(
                f"`cache_dir`: expected in {self.folder} what {reading.teacher.name!r} says of these texts, found that "
                f"it differs in {sorted(different)} (expected, found: {different}). The folder was moved or edited: "
                "delete it."
            )

    @property
    def complete(self) -> bool:
        """Whether the file is there and holds what it should; a damaged one is taken away, and read anew."""
        kinds, classes = self.reading.kinds, len(self.reading.order)
        if not self.file.is_file():
            return False
        odd = damage(self.file, len(self.texts), kinds, classes)
        if odd or described_in(self.manifest) is None:
            logger.warning(
                f"`cache_dir`: expected what {self.reading.teacher.name!r} says of {len(self.texts)} texts in "
                f"{self.file}, found {odd or f'no {self.manifest.name} beside it'}. It is read anew."
            )
            self.file.unlink(missing_ok=True)
            return False
        return True

    def columns(self) -> Dataset:
        """The columns, from the file."""
        return Dataset.from_file(str(self.file))

    def fill(self, model: nn.Module, tokenizer: Any, batch_size: int, state: PartialState, title: str) -> None:
        """Read the teacher on every text that no file has yet; every process its shards, the first joins them.

        Args:
            title: what is read, for the progress bar.

        Raises:
            ValueError: a row whose logits are no finite numbers.
        """
        with ExitStack() as alone:
            if state.is_main_process:
                self._wait(alone)
                write_json(self.manifest, self.described)
            self._fill(Reader(model, tokenizer, self.reading), batch_size, state, title)

    def _wait(self, alone: ExitStack) -> None:
        """Go on as the one run that fills this cache; what another has filled meanwhile is read."""
        place, waits = self.folder.with_name(f".{self.fingerprint}"), False
        while True:
            try:
                alone.enter_context(scratch_folder(place, "cache_dir", "teach"))
                return
            except Busy:
                if not waits:
                    logger.warning(
                        f"`cache_dir`: another run reads the same teacher into {self.folder}: waiting for it."
                    )
                waits = True
                time.sleep(WAIT)

    def _fill(self, read: Reader, batch_size: int, state: PartialState, title: str) -> None:
        with state.main_process_first():
            if not (there := self.complete):
                numbered = self.texts.add_column(ROW, np.arange(len(self.texts)))
                tokens = self._map(numbered, read.tokens, "tokens", read.token_features, 1000, f"{title}: tokens")
        if there:
            state.wait_for_everyone()
            return
        longest_first = np.argsort(-np.asarray(tokens[LENGTH][:]), kind="stable")
        count = min(MOST_SHARDS, -(-len(tokens) // SHARD_ROWS))
        parts = np.array_split(longest_first, count)
        for i in range(state.process_index, count, state.num_processes):
            self._read(tokens, read, parts, i, batch_size, title)
        state.wait_for_everyone()
        if state.is_main_process:
            read_all = [self._read(tokens, read, parts, i, batch_size, title) for i in range(count)]
            joined = concatenate_datasets(read_all).select(np.argsort(longest_first))
            joined.flatten_indices(cache_file_name=str(self.file), new_fingerprint=self.fingerprint)
            for name in ["tokens", *(f"read-{i}-of-{count}" for i in range(count))]:
                (self.shards / f"{name}.arrow").unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                self.shards.rmdir()
        state.wait_for_everyone()

    def _read(
        self, tokens: Dataset, read: Reader, parts: Sequence[Any], i: int, batch_size: int, title: str
    ) -> Dataset:
        rows, name = tokens.select(parts[i]), f"read-{i}-of-{len(parts)}"
        return self._map(rows, read.outputs, name, read.features, batch_size, f"{title}: part {i + 1} of {len(parts)}")

    def _map(self, rows: Dataset, function: Rows, name: str, features: Features, size: int, title: str) -> Dataset:
        """`datasets.map` into a file of this cache; it is read where it is there already."""
        self.shards.mkdir(parents=True, exist_ok=True)
        file = self.shards / f"{name}.arrow"
        if file.is_file() and damage(file, len(rows), tuple(features), len(self.reading.order)):
            file.unlink(missing_ok=True)
        return rows.map(
            function,
            batched=True,
            batch_size=size,
            remove_columns=rows.column_names,
            features=features,
            cache_file_name=str(file),
            load_from_cache_file=True,
            new_fingerprint=f"{self.fingerprint}-{name}",
            desc=title,
        )
