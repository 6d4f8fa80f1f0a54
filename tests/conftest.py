"""Fixtures over `planted`: each gives the function that makes the thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import planted
import pytest
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from amal_hf import AMALTrainer


@pytest.fixture
def rows() -> Callable[..., Dataset]:
    return planted.make_rows


@pytest.fixture
def student() -> Callable[..., nn.Module]:
    return planted.make_student


@pytest.fixture
def losses() -> Callable[..., dict[str, Any]]:
    return planted.make_losses


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return planted.make_tokenizer()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., AMALTrainer]:
    """`build({config fields}, **trainer arguments)`: a trainer with a run folder of its own."""
    count = iter(range(1000))

    def made(settings: Mapping[str, Any] | None = None, folder: Path | None = None, **given: Any) -> AMALTrainer:
        return planted.make_trainer(folder or tmp_path / f"run{next(count)}", settings, **given)

    return made
