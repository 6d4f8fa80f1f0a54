"""Stopped anywhere and continued is uninterrupted, bit for bit: parameters, optimizer, λ, clean rows, random state."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted
import pytest
import torch
from planted import identical, parameters, table_of
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten
from transformers.trainer_utils import HPSearchBackend, get_last_checkpoint

from amal_hf import Distillation

STEPS = 12
METHODS: dict[str, dict[str, Any]] = {
    "trust": {"method": "trust", "meta_every": 3, "meta_start": 2},
    "amal-step": {"method": "amal-step"},
    "amal-step, whole network": {
        "method": "amal-step", "lookahead_params": "all", "lookahead": "optimizer-exact", "estimator": "difference",
    },
    "shared": {"method": "shared", "normalize": "mean"},
    "amal": {"method": "amal", "refresh_every": 1, "mixing_lr": 1500.0},
    "l2r": {"method": "l2r"},
    "network": {"method": "network", "meta_every": 2},
    "trust, temperature learned": {"method": "trust", "meta_every": 3, "meta_start": 2},
}  # fmt: skip


def ends(trainer: Any) -> dict[str, torch.Tensor]:
    """Everything a further step would depend on."""
    held = parameters(trainer) | trainer.weigher.state_dict() | {"weights": table_of(trainer)}
    for name in ("optimizer", "lr_scheduler"):
        leaves, _ = tree_flatten(getattr(trainer, name).state_dict())
        held |= {
            f"{name}/{i}": torch.as_tensor(leaf)
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, (int, float, torch.Tensor))
        }
    numpy_state = torch.as_tensor(np.random.get_state()[1].astype(np.int64))
    return held | {"torch": torch.get_rng_state(), "python": torch.tensor(random.getstate()[1]), "numpy": numpy_state}


def made(build, method: str, **settings: Any) -> Any:
    """40 rows, 4 at a time, 3 batches a step: an epoch has 4 steps, and the last of them one batch only."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "num_train_epochs": 3}
    losses = planted.make_losses()
    if method.endswith("learned"):
        losses["teacher"] = Distillation("teacher_logits", temperature="learned")
    return build(
        {**METHODS[method], **split, "save_strategy": "steps", "save_steps": 1, **settings},
        model=planted.make_student(dropout=0.2),
        train_dataset=planted.make_rows(40, wrong=0.4),
        losses=losses,
    )


def resumed_and_whole_agree(method, stops, build):
    whole = made(build, method)
    whole.train()
    expected = ends(whole)
    assert whole.state.global_step == STEPS
    for stop in stops:
        resumed = made(build, method, save_strategy="no")
        _ = torch.rand(7), random.random(), np.random.rand()  # the random state it was built with must not matter
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
        assert identical(ends(resumed), expected) == [], f"stopped after step {stop}"


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in ("trust", "denoise", "fixed") else pytest.mark.slow) for m in METHODS]
)
def test_stopped_within_an_epoch_and_at_its_end(method, build):
    resumed_and_whole_agree(method, (3, 4), build)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stopped_after_any_step(method, build):
    resumed_and_whole_agree(method, range(1, STEPS), build)


def test_stopped_twice(build):
    """A run continued from a continued run, each in its own folder."""
    whole = made(build, "trust")
    whole.train()
    folder = whole.args.output_dir
    for stop in (5, 9):
        part = made(build, "trust")
        part.train(resume_from_checkpoint=f"{folder}/checkpoint-{stop}")
        folder = part.args.output_dir
    assert identical(ends(part), ends(whole)) == []


def test_the_last_checkpoint_is_found(build, tmp_path):
    first = made(build, "trust", max_steps=5)
    first.train()
    again = made(lambda settings, **given: build(settings, folder=Path(first.args.output_dir), **given), "trust")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert get_last_checkpoint(first.args.output_dir).endswith(f"checkpoint-{STEPS}")


# ---- best checkpoints, limits, trials ----


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_best_and_newest_are_kept(limit, build, rows):
    """Steps 2, 4 ... 8; the second is best. What `Trainer` would keep is kept, and nothing hidden is left."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_score", "greater_is_better": True}
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = build({"method": "amal-step", **often, **best, "save_total_limit": limit}, eval_dataset=rows(12, seed=2))
    trainer.compute_metrics = lambda _: {"score": -abs(trainer.state.global_step - 4)}
    trainer.train()

    kept = sorted(path.name for path in Path(trainer.args.output_dir).iterdir() if path.is_dir())
    named = {None: [2, 4, 6, 8], 1: [4], 2: [4, 8]}[limit]
    assert kept == [f"checkpoint-{step}" for step in named]
    assert trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-4"
    told = (Path(trainer.args.output_dir) / "checkpoint-4" / "trainer_state.json").read_text()
    assert f'"best_model_checkpoint": "{trainer.args.output_dir}/checkpoint-4"' in told
    stored = load_file(f"{trainer.args.output_dir}/checkpoint-4/amal_state.safetensors")
    assert torch.equal(trainer.weigher.mixing.table, stored["table"])


def test_a_checkpoint_written_again_is_the_new_one(build):
    first = made(build, "trust", max_steps=3)
    first.train()
    old = Path(first.args.output_dir) / "checkpoint-3"
    (old / "left over").write_text("from another run")
    again = made(lambda settings, **given: build(settings, folder=old.parent, **given), "trust", max_steps=3)
    again.train(resume_from_checkpoint=str(old.parent / "checkpoint-2"))
    assert not (old / "left over").exists() and (old / "trainer_state.json").is_file()


def test_only_the_model_is_kept_where_only_it_is_wanted(build):
    trainer = build({"save_strategy": "steps", "save_steps": 4, "save_only_model": True})
    trainer.train()
    kept = {path.name for path in (Path(trainer.args.output_dir) / "checkpoint-4").iterdir()}
    assert "model.safetensors" in kept and "trainer_state.json" in kept and "optimizer.pt" not in kept


def test_pushes_know_the_folder_by_its_name(build, monkeypatch):
    trainer = build({"save_strategy": "steps", "save_steps": 4})
    pushed = []
    monkeypatch.setattr(type(trainer), "_push_from_checkpoint", lambda self, folder: pushed.append(Path(folder)))
    trainer.args.push_to_hub = True
    monkeypatch.setattr(type(trainer), "push_to_hub", lambda self, **kwargs: None)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert [p.name for p in pushed] == ["checkpoint-4", "checkpoint-8"]
    assert all((p / "trainer_state.json").is_file() for p in pushed)


def test_trials_have_folders_of_their_own(build, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: {})
    trainer = build({"save_strategy": "steps", "save_steps": 8}, model_init=lambda: planted.make_student())
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, lambda trial: f"trial-{trial.number}"
    trainer._hp_search_setup = lambda trial: None
    starts = []
    for number in (0, 1):
        trainer._trial = SimpleNamespace(number=number)
        trainer.train(trial=trainer._trial)
        starts.append(parameters(trainer) | trainer.weigher.mixing.state())
        assert (Path(trainer.args.output_dir) / f"trial-{number}" / "checkpoint-8" / "trainer_state.json").is_file()
    assert identical(*starts) == []
