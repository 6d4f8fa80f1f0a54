"""`TextReader`: the encoder through which the label model sees rows, and its features `[N, H]`, read once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file, logging

from amal_hf._files import could_not_write, write_tensors
from amal_hf._progress import no_bars
from amal_hf.denoising.reader import encode_rows, get_encoder, warn_empty
from amal_hf.models.student import quiet_loading

logger = logging.get_logger(__name__)

RowReader = Callable[[Dataset], Tensor]
"""Rows -> features `[N, H]` of unit length, float32, on the CPU; 0 of a row with nothing to read."""
STUDENT = "student"
AT_ONCE = 10_000  # rows hashed at a time


class SentenceEncoder(NamedTuple):
    """What the files of a sentence encoder say of how it is read: the folder of its weights, pooling and prompt."""

    subfolder: str = ""
    pooling: str = "mean"
    prompt: str = ""

    @classmethod
    def of(cls, name: str) -> SentenceEncoder:
        """As its `modules.json` and `config_sentence_transformers.json` say; the defaults where there are none."""
        modules = _json(name, "modules.json")
        if not isinstance(modules, list) or not modules:
            return cls()
        of_kind = {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
        pooling = _json(name, f"{of_kind.get('Pooling', '1_Pooling')}/config.json") or {}
        config = _json(name, "config_sentence_transformers.json") or {}
        prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name"), "")
        kinds = {"cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
        named = str(pooling.get("pooling_mode", "")).removesuffix("token")
        found = [kind for kind, key in kinds.items() if pooling.get(key) or named == kind]
        return cls(of_kind.get("Transformer", ""), found[0] if found else "mean", str(prompt or ""))


@dataclass(frozen=True)
class TextReader:
    """An encoder that makes features of rows: `reader(rows)` is `[N, H · layers]`, of unit length, on the CPU.

    The features are those of half precision, kept in the cache of `datasets` under a fingerprint of everything that
    they depend on: weights, tokenizer, tokens or texts, layers, pooling. Read again, they are the same numbers.

    Args:
        model: a classifier or an encoder; only its encoder is read.
        tokenizer: its own.
        text_columns, max_length, bf16, pooling, prompt: as for `encode_rows`.
        layers: as for `encode_rows`; (): None.
        texts: it reads the texts of the rows, though they have tokens, which are another tokenizer's.
    """

    model: nn.Module
    tokenizer: Any
    text_columns: Sequence[str]
    max_length: int
    bf16: bool = False
    layers: Sequence[int] = ()
    pooling: str = "mean"
    prompt: str = ""
    texts: bool = False

    def __call__(self, rows: Dataset) -> Tensor:
        if self.texts:
            rows = rows.select_columns([*self.text_columns])
        path = self._path(rows)
        found = None if path is None else _read(path, len(rows))
        if not _everywhere(found is not None):
            found = self._encode(rows)
            if path is not None and PartialState().is_local_main_process:
                _keep(path, found)
        assert found is not None
        warn_empty(found, self.text_columns)
        return found.float()

    def _encode(self, rows: Dataset) -> Tensor:
        return encode_rows(
            self.model,
            self.tokenizer,
            rows,
            self.text_columns,
            self.max_length,
            bf16=self.bf16,
            layers=[*self.layers] or None,
            pooling=self.pooling,
            prompt=self.prompt,
        ).half()

    def _path(self, rows: Dataset) -> Path | None:
        """Where the features of these rows are kept; None: nowhere, since its weights are in parts or packed."""
        encoder = get_encoder(self.model)
        state = encoder.state_dict()
        if any(type(tensor) is not Tensor for tensor in state.values()):
            return None
        asked = [*self.layers, self.pooling, self.prompt, self.bf16, self.max_length, *self.text_columns]
        digest = xxhash.xxh3_128(json.dumps([asked, type(encoder).__name__, torch.__version__]).encode())
        digest.update(f"{getattr(encoder, 'config', '')}{_described(self.tokenizer)}".encode())
        for name, tensor in state.items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        names = {"input_ids", *self.tokenizer.model_input_names} & {*rows.column_names}
        columns = sorted(names) if "input_ids" in names else [*self.text_columns]
        for batch in rows.select_columns(columns).with_format(None).iter(AT_ONCE):
            digest.update(json.dumps(batch, default=str).encode())
        return Path(datasets.config.HF_DATASETS_CACHE) / "amal_hf" / f"features-{digest.hexdigest()}.safetensors"


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors `[H]` as a reader: `reader(rows)` is `[N, H]`, of unit length."""

    column: str

    def __call__(self, rows: Dataset) -> Tensor:
        """Features `[N, H]`; a row without a vector (null) has features 0.

        Raises:
            ValueError: what is no vector, vectors of several lengths, or a number that is none.
        """
        values = rows.with_format(None)[self.column][:]
        lengths = {len(v) if isinstance(v, list) else -1 for v in values if v is not None}
        if len(lengths) != 1 or min(lengths) < 1:
            raise ValueError(
                f"`reader`: expected vectors of one length in column {self.column!r}, found lengths "
                f"{sorted(lengths)[:5]} (-1: no vector). Name a column of vectors, or an encoder."
            )
        nothing = [0.0] * min(lengths)
        try:
            found = torch.from_numpy(np.array([nothing if v is None else v for v in values], dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`reader`: expected numbers in the vectors of column {self.column!r}, found: {error}. Mend the column."
            ) from error
        if not found.isfinite().all():
            row = int((~found.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"`reader`: expected finite numbers in column {self.column!r}, found others in row {row}. Mend the "
                "column; leave a row without a vector empty."
            )
        return nn.functional.normalize(found, dim=1)


def open_reader(args: Any, model: nn.Module, tokenizer: Any, train: Dataset, clean: Dataset) -> RowReader:
    """What makes features `[N, H]` of rows, as the settings `reader...` of an `AMALConfig` say.

    Args:
        args: the settings in force.
        model: the student as it starts, on its device.
        tokenizer: the student's.
        train, clean: the rows that will be read.

    Raises:
        ValueError: a column that only one of them has, or an encoder that cannot read them.
        FileNotFoundError: no such encoder.
    """
    columns = {*train.column_names} & {*clean.column_names}
    if args.reader in {*train.column_names} | {*clean.column_names}:
        if args.reader not in columns:
            raise ValueError(
                f"`reader`: expected the column {args.reader!r} in training and clean rows, found it in one of them. "
                "Add it to the other."
            )
        return VectorColumn(args.reader)
    if not args.reader and (name := whole_checkpoint(model)):
        try:
            return _reader(name, *load_reader(name), args, tokenizer, columns, like=model)
        except (OSError, ValueError) as error:  # nobody asked for it
            logger.warning(f"The label model reads the student, not the whole checkpoint that it was cut from: {error}")
    if args.reader in ("", STUDENT):
        return _reader("", model, tokenizer, args, tokenizer, columns, like=model)
    return _reader(args.reader, *load_reader(args.reader), args, tokenizer, columns, like=model)


def _reader(
    name: str, encoder: nn.Module, own: Any, args: Any, tokenizer: Any, columns: set[str], like: nn.Module
) -> TextReader:
    """An encoder with a tokenizer of its `own` as the reader of rows with these columns.

    Args:
        name: of its checkpoint; "": it is the student.
        tokenizer: that of the rows' tokens.
        like: the model on whose device it reads.

    Raises:
        ValueError: it needs the texts, and the rows have tokens alone.
    """
    usual = SentenceEncoder.of(name) if name else SentenceEncoder()
    prompt = args.reader_prompt or usual.prompt
    pooling = usual.pooling if args.reader_pooling == "auto" else args.reader_pooling
    texts = bool(prompt) or _described(own) != _described(tokenizer)
    if texts and not {*args.text_columns} <= columns:
        raise ValueError(
            f"`reader`: expected the texts {[*args.text_columns]} in training and clean rows, since "
            f"{name or 'the student'!r} has a prompt, or a tokenizer of its own, found tokens alone. Keep the texts "
            "beside them, or set reader='student' without a prompt."
        )
    encoder, layers = encoder.to(next(like.parameters()).device), tuple(args.reader_layers)
    return TextReader(encoder, own, args.text_columns, args.max_length, args.bf16, layers, pooling, prompt, texts)


def whole_checkpoint(model: nn.Module) -> str:
    """The checkpoint of a student cut to its first layers; "": it is whole, or what it was cut from is gone."""
    whole = getattr(model, "get_base_model", lambda: model)()
    config = getattr(whole, "config", None)
    name = getattr(config, "name_or_path", "")
    layers = getattr(config, "num_hidden_layers", None)
    if not name or not isinstance(layers, int):
        return ""
    try:
        there = AutoConfig.from_pretrained(name, trust_remote_code=False)  # else it asks, where code comes with it
    except (OSError, ValueError):
        return ""
    depth, alike = getattr(there, "num_hidden_layers", 0), type(there) is type(config)
    return name if alike and depth > layers else ""


def check_reader(args: Any, columns: Iterable[str]) -> None:
    """The reader that the settings name is there, and what else they say of it is read, before anything is loaded.

    Raises:
        FileNotFoundError: it is no column, no folder, and no name on the Hub.
        ValueError: layers, pooling or prompt of a column of vectors.
    """
    name = args.reader
    if name in columns:
        unread = {"reader_layers": [], "reader_prompt": "", "reader_pooling": "auto"}
        if wrong := [each for each, usual in unread.items() if getattr(args, each) != usual]:
            raise ValueError(
                f"`{wrong[0]}`: expected an encoder that it is for, found the column {name!r} of vectors as `reader`. "
                "Leave it out."
            )
    elif name and name != STUDENT:
        try:
            AutoConfig.from_pretrained(name, subfolder=SentenceEncoder.of(name).subfolder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_there(name, error) from error


def load_reader(name: str) -> tuple[nn.Module, Any]:
    """An encoder in float32, frozen, and its tokenizer.

    Raises:
        FileNotFoundError: no such folder, and no such model on the Hub (or no way to it).
        ValueError: weights are missing.
    """
    try:
        with quiet_loading(), no_bars():
            model, found = AutoModel.from_pretrained(
                name,
                subfolder=SentenceEncoder.of(name).subfolder,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_there(name, error) from error
    if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
        raise ValueError(
            f"`reader`: expected all weights of {type(model).__name__} in {name!r}, found none for {missing[:5]}. Do "
            "its config.json and its weights belong together?"
        )
    return model.requires_grad_(False), tokenizer


def _not_there(name: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"`reader`: expected a column of vectors, a folder or a name on the Hub, or 'student', found {name!r}: "
        f"{' '.join(str(error).split())}"
    )


def _described(tokenizer: Any) -> str:
    """Everything that decides on a tokenizer's tokens, but for how the last texts were cut and padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), str(tokenizer)])
    described = json.loads(backend.to_str())
    return json.dumps({**described, "truncation": None, "padding": None}, sort_keys=True)


def _json(name: str, file: str) -> Any:
    """A file of a model, None where there is none."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        path = cached_file(name, file, _raise_exceptions_for_gated_repo=False, **quiet)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read(path: Path, rows: int) -> Tensor | None:
    """Features that were kept; None where there are none, or the file is damaged."""
    try:
        found = load_file(path).get("features")
    except (OSError, SafetensorError):
        return None
    return found if found is not None and found.dim() == 2 and len(found) == rows else None


def _keep(path: Path, features: Tensor) -> None:
    """Write features; a cache that cannot be written costs the next run its time, and nothing else."""
    try:
        write_tensors(path, {"features": features})
    except Exception as error:
        if not could_not_write(error):
            raise
        logger.warning(f"The features of the rows are not kept: {error}. Set HF_DATASETS_CACHE to where there is room.")


def _everywhere(here: bool) -> bool:
    """Whether it is so on every process of a launch."""
    state = PartialState()
    if state.num_processes == 1:
        return here
    return bool(gather(torch.tensor([float(here)], device=state.device)).min() > 0)
