"""`amal-hf train --resume_from_checkpoint`: killed anywhere and gone on from is uninterrupted, bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import planted
import pytest
from safetensors.torch import load_file

from amal_hf.cli import main

SCRIPT = Path(__file__).parent / "scripts" / "killed_train.py"
STEPS = 18


def resumed_is_whole(steps: list[int], method: str, good, written, tmp_path) -> None:
    given = {**good, "max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "method": method}
    argv = [sys.executable, str(SCRIPT), written(given), str(tmp_path), *map(str, steps)]
    subprocess.run(argv, check=True, timeout=590)
    for step in steps:
        for name in ("model.safetensors", "weights.safetensors"):
            expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / str(step) / name)
            assert planted.identical(found, expected) == [], f"killed after step {step}: {name}"
        one, other = ((tmp_path / folder / "metrics.json").read_text() for folder in ("whole", str(step)))
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("method", ["denoise", "trust"])
def test_killed_and_gone_on_from(method, good, written, tmp_path):
    """Within an epoch, at its end (an epoch has 9 steps of denoise and 8 of trust), and after the last step."""
    resumed_is_whole([3, 8, STEPS], method, good, written, tmp_path)


@pytest.mark.slow
def test_killed_at_random_moments(good, written, tmp_path):
    resumed_is_whole(random.Random(0).sample(range(3, STEPS + 1), 15), "denoise", good, written, tmp_path)


@pytest.fixture
def finished(good, written):
    given = {**good, "save_strategy": "steps", "save_steps": 2}
    config = written(given)
    assert main(["train", config]) == 0
    return config, Path(good["output_dir"])


def test_a_finished_run_trains_no_step_more(finished, capsys):
    config, folder = finished
    before = load_file(folder / "model.safetensors")
    capsys.readouterr()
    assert main(["train", config, "--resume_from_checkpoint", "true"]) == 0
    assert "6 steps were trained before" in capsys.readouterr().out
    assert planted.identical(load_file(folder / "model.safetensors"), before) == []
    assert not (folder / "checkpoint-7").exists()


def test_a_checkpoint_by_its_name(finished, capsys):
    config, folder = finished
    before = load_file(folder / "model.safetensors")
    assert main(["train", config, "--resume_from_checkpoint", str(folder / "checkpoint-2")]) == 0
    assert planted.identical(load_file(folder / "model.safetensors"), before) == []


@pytest.mark.parametrize("said", ["true", "no/such/checkpoint"])
def test_nothing_to_go_on_from(said, good, written, capsys):
    assert main(["train", written(good), "--resume_from_checkpoint", said]) == 2
    error = capsys.readouterr().err
    assert "`resume_from_checkpoint`" in error and error.count("\n") == 1
    assert not Path(good["output_dir"]).exists()
