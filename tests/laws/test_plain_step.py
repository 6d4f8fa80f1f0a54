"""What a step asks beside `Trainer`: operations, waits for the device, calls of this package; and its logs."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import SETTINGS, make_losses, make_rows, make_student, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

import amal_hf

READ = "aten._local_scalar_dense.default"
BUDGET = {"fixed": 30, "denoise": 30, "trust": 100}  # between lookaheads; no read more than a plain step's
CALLS = {"fixed": 130, "denoise": 160, "trust": 200}  # of functions of this package, between lookaheads
HOUSE = str(Path(amal_hf.__file__).parent)
LONG = {"max_steps": 14, "logging_steps": 100, "num_train_epochs": 1}
STEP = 12  # after the first lookahead (2) and the next one (12): 0 is the first


class Operations(TorchDispatchMode):
    """How often each operation is run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def steps_of(trainer: Trainer) -> list[Counter[str]]:
    """The operations of every training step."""
    found, step = [], trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        with Operations() as seen:
            loss = step(*args, **kwargs)
        found.append(seen.count)
        return loss

    trainer.training_step = counted  # type: ignore[method-assign]
    trainer.train()
    return found


@pytest.fixture
def plain(tmp_path) -> Counter[str]:
    settings = {name: value for name, value in {**SETTINGS, **LONG}.items() if "meta" not in name}
    rows = make_rows(128).select_columns(["input_ids", "attention_mask", "label"])
    args = TrainingArguments(str(tmp_path / "plain"), **settings)
    trainer = Trainer(make_student(), args, train_dataset=rows, processing_class=make_tokenizer())
    return steps_of(trainer)[STEP]


@pytest.mark.parametrize("method", BUDGET)
def test_a_step_is_a_plain_step(method, plain, build):
    rows = make_rows(128, tokens=method != "denoise")
    clean = make_rows(12, seed=1, tokens=method != "denoise")
    settings = {**LONG, "method": method} | ({"meta_every": 10, "meta_start": 2} if method == "trust" else {})
    found = steps_of(build(settings, train_dataset=rows, clean_dataset=clean, losses=make_losses()))
    assert found[STEP - 1 if method == "trust" else STEP].total() - plain.total() <= BUDGET[method]
    assert found[STEP - 1 if method == "trust" else STEP][READ] <= plain[READ]
    if method == "trust":
        assert found[STEP].total() - plain.total() > BUDGET[method], "no lookahead: the comparison is empty"


@pytest.mark.parametrize("rows", [8, 32])
@pytest.mark.parametrize("method", CALLS)
def test_a_step_is_few_calls(method, rows, build):
    """From one optimizer step's batch to the next one's, collating included: as many for any number of rows."""
    settings = {**LONG, "method": method, "per_device_train_batch_size": rows}
    settings |= {"meta_every": 10, "meta_start": 2} if method == "trust" else {}
    given = {"train_dataset": make_rows(16 * rows, tokens=method != "denoise"), "losses": make_losses()}
    trainer = build(settings, clean_dataset=make_rows(12, seed=1, tokens=method != "denoise"), **given)
    began, calls, drawn = [], [0], trainer.get_batch_samples

    def counted(frame: Any, event: str, _: Any) -> None:
        calls[0] += event == "call" and frame.f_code.co_filename.startswith(HOUSE)

    def watched(*args: Any) -> Any:
        began.append(calls[0])
        return drawn(*args)

    trainer.get_batch_samples = watched
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        trainer.train()
    finally:
        sys.setprofile(before)
    ordinary = min(after - now for now, after in pairwise(began[3:]))
    assert 0 < ordinary <= CALLS[method]


@pytest.mark.parametrize("method", ["fixed", "trust"])
def test_a_loss_in_the_log_is_the_mean_of_steps_that_computed_it(method, build):
    """Not thinned by the steps between two logs, on which no source's loss is computed."""
    seen: dict[int, list[float]] = {}
    settings = {"method": method, "logging_steps": 3, "learning_rate": 0.0, "max_steps": 6}
    trainer = build({**settings, "meta_start": 0, "meta_every": 10}, train_dataset=make_rows(48), losses=make_losses())
    original = trainer.compute_loss

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            logits = model(**trainer.model_inputs(inputs)).logits
        label = torch.nn.functional.cross_entropy(logits, inputs["labels"]).item()
        seen.setdefault(trainer.state.global_step, []).append(label)
        return original(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    logged = [log["loss/label"] for log in trainer.state.log_history if "loss/label" in log]
    assert logged == pytest.approx([seen[2][0], seen[5][0]], rel=1e-5)
