"""Runs that are killed at random moments and continued: `python killed.py FOLDER KILLS SEED` prints what was found.

Every run is a process of its own, forked so that 50 of them cost no 50 imports, and killed by SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

sys.path.insert(0, str(Path(__file__).parents[2]))
import planted

STEPS = 120


class Begun(TrainerCallback):
    """Calls back once training has begun."""

    def __init__(self, told: Callable[[], object]) -> None:
        self.told = told

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told()


def train(folder: Path, told: Callable[[], object] = lambda: None) -> dict[str, torch.Tensor]:
    """Train, or go on from the last checkpoint; a checkpoint after every step, two kept."""
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    trainer = planted.make_trainer(
        folder, {"method": "trust", "meta_every": 3, **settings}, model=planted.make_student(dropout=0.2)
    )
    trainer.add_callback(Begun(told))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    return planted.parameters(trainer) | trainer.weigher.state_dict()


def damaged(checkpoint: Path, names: set[str]) -> list[str]:
    """What is missing in a checkpoint or cannot be read."""
    found = {path.name for path in checkpoint.iterdir()}
    wrong = sorted(found ^ names)
    for path in (checkpoint / name for name in found & names):
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix in (".pt", ".pth", ".bin") and (broken := zipfile.ZipFile(path).testzip()):
                wrong.append(f"{path.name}: {broken}")
        except Exception as error:
            wrong.append(f"{path.name}: {error}")
    return wrong


def killed_after(folder: Path, wait: Callable[[], float]) -> bool:
    """One run, killed some time after it began to train; whether it was still running."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(folder, lambda: os.write(writes, b"!"))
        except BaseException as error:
            print(f"the run failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writes)
    assert os.read(reads, 1) == b"!", "the run ended before it began to train"
    os.close(reads)
    time.sleep(wait())
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), "a run failed by itself"
    return os.WIFSIGNALED(status)


def main(folder: Path, kills: int, seed: int) -> None:
    draw, told = random.Random(seed), {"kills": 0, "finished": 0, "while saving": 0, "damaged": [], "resumed": []}
    reference = train_once(folder / "reference")
    names = {path.name for path in (folder / "reference" / f"checkpoint-{STEPS}").iterdir()}
    run = folder / "run"
    while told["kills"] < kills:
        if not killed_after(run, lambda: draw.uniform(0, 1)):  # it came to its end: begin another
            told["finished"] += 1
            shutil.rmtree(run)
            continue
        told["kills"] += 1
        told["while saving"] += (run / ".unfinished").exists()
        for checkpoint in run.glob("checkpoint-*"):
            told["damaged"] += [f"{checkpoint.name}: {what}" for what in damaged(checkpoint, names)]
        last = get_last_checkpoint(run)
        told["resumed"].append(int(last.split("-")[-1]) if last else 0)
    told["same end"] = not planted.identical(train_once(run), reference)
    told["left over"] = [path.name for path in run.iterdir() if path.name.startswith(".")]
    print(json.dumps(told))


def train_once(folder: Path) -> dict[str, torch.Tensor]:
    """A run in a process of its own, so that this one never starts PyTorch's threads before it forks."""
    result = folder.with_suffix(".pt")
    child = os.fork()
    if child == 0:
        torch.save(train(folder), result)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return torch.load(result, weights_only=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
