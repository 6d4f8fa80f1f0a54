"""Teachers on disk: where they are, how large, whose content, and loaded without a pickle."""

from __future__ import annotations

import glob
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
import xxhash
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

CLASSIFIER = "ForSequenceClassification"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "merges.txt")
READ_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.py")
"""Beside weights and vocabulary, what decides on a teacher's logits."""


def find_teachers(names: Sequence[str]) -> list[str]:
    """Folders and Hub names, with `*` expanded to folders in natural order (checkpoint-9 before checkpoint-10).

    Raises:
        FileNotFoundError: a pattern that fits no folder.
        ValueError: no names, or one twice.
    """
    found: list[str] = []
    for name in names:
        if not glob.has_magic(name):
            found.append(name)
            continue
        folders = [path for path in glob.glob(name) if Path(path).is_dir()]
        if not folders:
            raise FileNotFoundError(f"`teacher`: expected folders like {name!r}, found none. Relative to {Path.cwd()}.")
        found += sorted(folders, key=lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", path)])
    if not found or len(set(found)) != len(found):
        raise ValueError(f"`teacher`: expected one or several different teachers, found {found}.")
    return found


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned classifier in a folder.

    Args:
        name: what the user calls it: a folder, or a name on the Hub.
        folder: where its files are.
        config: its configuration.
        trust_remote_code: whether code that comes with it may run.
    """

    name: str
    folder: Path
    config: Any
    trust_remote_code: bool = False

    @classmethod
    def open(cls, name: str, trust_remote_code: bool = False, headless: bool = False) -> Teacher:
        """Find a teacher and check that it is one, before anything is loaded.

        Args:
            headless: whether an encoder without a head will do, because it is fine-tuned before it teaches.

        Raises:
            FileNotFoundError: no such folder, and no such name on the Hub (or no way to it).
            ValueError: no safetensors, no tokenizer, or no sequence classifier.
        """
        folder = Path(name) if Path(name).is_dir() else _from_hub(name)
        there = sorted(path.name for path in folder.iterdir())
        if "config.json" not in there:
            raise ValueError(
                f"`teacher`: expected config.json in {name!r}, found {there[:10]}. Name the folder that "
                "`save_pretrained` wrote; merge an adapter into its model first."
            )
        if not {"model.safetensors", INDEX} & set(there):
            raise ValueError(
                f"`teacher`: expected model.safetensors in {name!r}, found {there[:10]}. A .bin file is a pickle, "
                "which can run code, and is not read: load the model once where you trust it, and save it anew with "
                "`save_pretrained`."
            )
        if not _matching(folder, TOKENIZER_FILES):
            raise ValueError(
                f"`teacher`: expected a tokenizer's vocabulary in {name!r} ({', '.join(TOKENIZER_FILES)}), found "
                f"{there[:10]}. Save the tokenizer it was trained with beside it: `tokenizer.save_pretrained`."
            )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        opened = cls(name, folder, config, trust_remote_code)
        if not (headless or opened.is_classifier):
            raise ValueError(
                f"`teacher`: expected a {CLASSIFIER} model, found {config.architectures} in {name!r}. An encoder "
                "without a trained head has no logits to teach with: name it as `teacher` of `amal-hf train`, which "
                "fine-tunes it on the labels first."
            )
        return opened

    @property
    def is_classifier(self) -> bool:
        """Whether it says that it has a trained head, or does not say what it is."""
        kinds = self.config.architectures or []
        return not kinds or any(kind.endswith(CLASSIFIER) for kind in kinds)

    @property
    def weight_files(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            shards = set(json.loads((self.folder / INDEX).read_text())["weight_map"].values())
            return [self.folder / shard for shard in sorted(shards)]
        return [self.folder / "model.safetensors"]

    @cached_property
    def parameters(self) -> int:
        """Numbers in its weights, from the files' headers."""
        total = 0
        for path in self.weight_files:
            with safe_open(path, framework="pt") as file:
                total += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        return total

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides on its logits: weights, configuration, tokenizer, code."""
        return content_hash([*self.weight_files, *_matching(self.folder, (*TOKENIZER_FILES, *READ_FILES))])

    def check_memory(self, device: torch.device, dtype: torch.dtype) -> None:
        """It fits into the device's free memory.

        Raises:
            ValueError: it does not; with both sizes.
        """
        needed, free = self.parameters * dtype.itemsize, free_memory(device)
        if needed > free:
            raise ValueError(
                f"`teacher`: {self.name!r} takes {_gib(needed)} ({self.parameters / 1e6:.1f} million parameters in "
                f"{str(dtype).removeprefix('torch.')}), expected at most the {_gib(free)} free on {device}. Set bf16, "
                "take a smaller teacher, or run `amal-hf teach` on a larger machine and carry the columns over."
            )

    def tokenizer(self) -> Any:
        """Its own tokenizer.

        Raises:
            ValueError: the tokenizer knows tokens for which the model has no embedding.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        known = getattr(self.config, "vocab_size", len(tokenizer))
        if len(tokenizer) > known:
            raise ValueError(
                f"`teacher`: expected a tokenizer of at most {known} tokens in {self.name!r}, the model's vocabulary, "
                f"found {len(tokenizer)}. It belongs to another model: save the right one there."
            )
        return tokenizer

    def model(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The classifier, frozen, in eval mode.

        Raises:
            ValueError: weights are missing, e.g. of a head that was never trained.
        """
        model, report = AutoModelForSequenceClassification.from_pretrained(
            self.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=self.trust_remote_code,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(
                f"`teacher`: expected all weights of {type(model).__name__} in {self.name!r}, found none for "
                f"{sorted(report['missing_keys'])[:5]}. Fine-tune it first (`amal-hf train`)."
            )
        return model.requires_grad_(False).eval().to(device)


def model_inputs(model: nn.Module) -> set[str]:
    """Names that its forward takes."""
    return set(inspect.signature(model.forward).parameters)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def content_hash(files: Iterable[Path]) -> str:
    """One hash of names and contents; of gigabytes in about the time it takes to read them."""
    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _from_hub(name: str) -> Path:
    try:
        wanted = ["model*.safetensors", INDEX, *TOKENIZER_FILES, *READ_FILES]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # no such name, no network, or a path that is no name
        raise FileNotFoundError(
            f"`teacher`: expected a folder or a name on the Hub, found {name!r}: {error}"
        ) from error


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
