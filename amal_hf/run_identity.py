"""What a checkpoint belongs to: its method, sources, classes and rows. Another run than that does not go on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from amal_hf._files import write_json
from amal_hf._types import LABELS
from amal_hf.data.columns import LABEL_ALIASES, values_of
from amal_hf.denoising import CLEAN_LABEL, LOG_POSTERIOR, PROBE, without_clean_rows

IDENTITY_FILE = "amal_run.json"
ROW_HASHES, CLEAN_HASHES = "row_hashes", "clean_hashes"
"""Hashes of what each row holds, `[rows]` and `[M]`: tensors beside what is learned of them."""
CURE = "Go on with what it had, or start anew."
_ODD = np.uint64(0x9E3779B97F4A7C15)


def row_hashes(rows: Dataset, columns: Sequence[str]) -> Tensor:
    """A hash of what each row holds in some columns, whatever their order, `[rows]`.

    Example:
        >>> rows = Dataset.from_dict({"text": ["a", "b", "a"], "votes": [[1, -1], None, [1, -1]]})
        >>> hashes = row_hashes(rows, ["text", "votes"])
        >>> (hashes[0] == hashes[2]).item(), (hashes[0] == hashes[1]).item()
        (True, False)
    """
    total = np.zeros(len(rows), np.uint64)
    with np.errstate(over="ignore"):
        for place, column in enumerate(sorted(columns), 1):
            total += _mixed(_hashed(values_of(rows, column)) + np.uint64(place) * _ODD)
    return torch.from_numpy(total.view(np.int64).copy())


def _hashed(values: pa.ChunkedArray) -> np.ndarray:
    """A hash of each value, `[N]`; a list's depends on the order of its entries."""
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        numbers = pc.fill_null(pc.cast(values, pa.float64(), safe=False), float("nan"))
        return np.ascontiguousarray(numbers.to_numpy()).view(np.uint64)
    if not hasattr(kind, "value_type"):
        texts = [str(each) for each in values.to_pylist()]
        return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    entries = _hashed(pc.list_flatten(values))
    starts = np.cumsum(lengths) - lengths
    within = (np.arange(len(entries)) - np.repeat(starts, lengths)).astype(np.uint64)
    with np.errstate(over="ignore"):
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(entries + (within + np.uint64(1)) * _ODD))])
        return sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers whose bits depend on all bits of those given (the finaliser of splitmix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))


def _content(rows: Any, text: Sequence[str], sources: Sequence[str]) -> Tensor | None:
    """Hashes of the texts (tokens, where there are none) and of what the sources read, `[rows]`; None of a stream."""
    if not isinstance(rows, Dataset):
        return None
    names = {LABELS if name in LABEL_ALIASES else name: name for name in rows.column_names}
    read = {*text} & {*names} or {"input_ids"} & {*names}
    read |= ({*sources} & {*names}) - {LOG_POSTERIOR, PROBE, CLEAN_LABEL}
    return row_hashes(rows, [names[name] for name in read])


class RunIdentity:
    """Method, sources, classes and hashes of the rows of a trainer's run.

    Args:
        trainer: an `AMALTrainer` whose rows are ready.
    """

    def __init__(self, trainer: Any) -> None:
        config, text = trainer.model.config, trainer.args.text_columns
        self.described = {
            "method": trainer.settings.method,
            "sources": list(trainer.stack.names),
            "classes": [str(name) for _, name in sorted((getattr(config, "id2label", None) or {}).items())],
        }
        train, asked = trainer.train_dataset, trainer.weigher.mixing.learns or trainer.weigher.posterior
        self.rows = _content(without_clean_rows(train), text, trainer.stack.columns)
        self.clean = _content(trainer.clean_dataset, text, [LABELS]) if asked else None

    def tensors(self) -> dict[str, Tensor]:
        """The hashes, for safetensors."""
        held = {ROW_HASHES: self.rows, CLEAN_HASHES: self.clean}
        return {name: hashes for name, hashes in held.items() if hashes is not None}

    def write(self, folder: Path) -> None:
        """The description, as JSON, into a checkpoint's folder."""
        write_json(folder / IDENTITY_FILE, self.described)

    def check(self, folder: Path, held: Mapping[str, Tensor]) -> None:
        """A checkpoint, `held` its tensors, is of this method, these sources, classes and clean rows.

        Raises:
            ValueError: naming what differs.
        """
        kept = json.loads((folder / IDENTITY_FILE).read_text())
        for name, now in self.described.items():
            if kept[name] != now:
                raise ValueError(f"{_expected(name, folder)}, {kept[name]}, found {now}. {CURE}")
        if self.clean is not None and CLEAN_HASHES in held:
            _compare(held[CLEAN_HASHES], self.clean, _expected("clean rows", folder))

    def check_rows(self, folder: Path, held: Mapping[str, Tensor], place: Tensor) -> None:
        """A checkpoint, `held` its tensors, is of these rows; each stood at a `place` of `[rows]` when it was written.

        Raises:
            ValueError: how many rows differ.
        """
        if self.rows is not None and ROW_HASHES in held:
            before = held[ROW_HASHES][place[: len(self.rows)]]
            advice = " Rows in another order are known by a column `row_id`."
            _compare(before, self.rows, _expected("rows", folder), advice)


def _compare(before: Tensor, now: Tensor, expected: str, advice: str = "") -> None:
    if len(before) != len(now):
        raise ValueError(f"{expected}, {len(before)}, found {len(now)}. {CURE}")
    if other := int((before != now).sum()):
        raise ValueError(f"{expected}, found {other} of {len(now)} with another text or other answers. {CURE}{advice}")


def _expected(what: str, folder: Path) -> str:
    return f"`resume_from_checkpoint`: expected the {what} of the run that wrote {str(folder)!r}"
