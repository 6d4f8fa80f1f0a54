"""`amal-hf train`, killed after given steps and gone on from: `python killed_train.py CONFIG FOLDER STEP [STEP ...]`.

FOLDER/whole is the uninterrupted run, FOLDER/STEP the one that was killed then. Every run is forked, so that no run
costs the imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import TrainerCallback

import amal_hf.commands._config
import amal_hf.commands._summary  # noqa: F401
from amal_hf.cli import main

KILLED = 77


def dying_at(step: int) -> type[TrainerCallback]:
    class Dies(TrainerCallback):
        """Ends the process as a power cut would, after a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os._exit(KILLED)

    return Dies


def forked(work: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(argv: list[str], step: int) -> int:
    transformers.trainer.DEFAULT_CALLBACKS.append(dying_at(step))
    return main(argv)


def run(config: str, folder: Path, steps: list[int]) -> None:
    assert forked(lambda: main(["train", config, "--output_dir", str(folder / "whole")])) == 0
    for step in steps:
        argv = ["train", config, "--output_dir", str(folder / str(step))]
        assert forked(lambda argv=argv, step=step: killed(argv, step)) == KILLED  # type: ignore[misc]
        assert not (folder / str(step) / "model.safetensors").exists()
        assert forked(lambda argv=argv: main([*argv, "--resume_from_checkpoint", "true"])) == 0  # type: ignore[misc]


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), [int(each) for each in sys.argv[3:]])
