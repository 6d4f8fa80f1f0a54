"""Two processes under `accelerate launch` are one process with the same rows per step; what cannot be so is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from planted import furthest, identical
from safetensors.torch import load_file

from amal_hf import AMALTrainer

SCRIPTS = Path(__file__).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
from launched import BY_ACCELERATE, BY_TRANSFORMERS, CASES, SPLIT, ended, posterior  # noqa: E402


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """One launch of every case on two processes (gloo)."""
    folder = tmp_path_factory.mktemp("launched")
    # --multi_gpu is how it starts several processes at all; the script then asks for the CPU
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]  # fmt: skip
    done = subprocess.run([*launch, SCRIPTS / "launched.py", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


WAYS = [("", case) for case in CASES] + [(way, case) for way in (BY_TRANSFORMERS, BY_ACCELERATE) for case in SPLIT]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_two_processes_are_one(way, case, launched, tmp_path):
    """Each with the whole student (DDP), or with a part of every parameter (FSDP2)."""
    first, second = (load_file(launched / way / f"{case}-2-{rank}.safetensors") for rank in (0, 1))
    assert identical(first, second) == [], "the processes differ"
    alone, logs = ended(tmp_path, case, processes=1)
    # trust sharpens what it computes in float32: exp(τ · a unit vector), products over sources
    assert furthest(alone, first) < (1e-5 if "trust" in case or case == "stream" else 1e-6)
    together = json.loads((launched / way / f"{case}-2-0.json").read_text())
    for mine, theirs in zip(logs, together, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", BY_ACCELERATE])
def test_two_processes_continue_where_they_stopped(way, launched):
    for rank in (0, 1):
        whole, resumed = (load_file(launched / way / f"{name}-{rank}.safetensors") for name in ("whole", "resumed"))
        assert identical(whole, resumed) == []
    kept = {path.name for path in (launched / way / "whole").iterdir()}
    assert kept == {"checkpoint-10", "checkpoint-15"}
    files = {path.name for path in (launched / way / "whole" / "checkpoint-15").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "amal_state.safetensors"} <= files


@pytest.mark.slow
def test_two_processes_share_the_reading_of_rows(launched, tmp_path):
    alone = posterior(tmp_path)
    for rank in (0, 1):
        assert furthest(alone, load_file(launched / f"posterior-{rank}.safetensors")) < 1e-5


@pytest.fixture
def launched_with(monkeypatch):
    """Nothing is launched: what is faked is that the accelerator says so."""
    prepared = AMALTrainer.create_accelerator_and_postprocess

    def faked(way, fsdp2=False):
        def create(trainer):
            prepared(trainer)
            setattr(trainer, f"is_{way}_enabled", True)

        monkeypatch.setattr(AMALTrainer, "create_accelerator_and_postprocess", create)
        monkeypatch.setattr("amal_hf.data.validate.by_fsdp2", lambda trainer: fsdp2)

    return faked


@pytest.mark.parametrize("way", ["fsdp", "deepspeed"])
@pytest.mark.parametrize("learns", [True, False])
def test_parameters_that_cannot_be_put_together_are_refused(way, learns, build, launched_with):
    """ZeRO, and FSDP as it was before FSDP2."""
    launched_with(way)
    if not learns:
        build({"method": "fixed"})
        return
    with pytest.raises(ValueError, match=rf"`{way}`: expected whole rows .* Use FSDP2 \(fsdp=True\), or plain data"):
        build({"method": "trust"})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "amal-step", "lookahead_params": "all"}, "`lookahead_params`: 'all' .*lookahead_params='head'"),
        ({"method": "trust", "lookahead": "optimizer"}, "`lookahead`: 'optimizer' .*lookahead='none'"),
    ],
)
def test_what_reads_every_parameter_is_refused_where_each_is_in_parts(settings, told, build, launched_with):
    launched_with("fsdp", fsdp2=True)
    with pytest.raises(ValueError, match=told):
        build(settings)


def test_data_parallel_is_refused(build, monkeypatch):
    """One process that sees two devices is what makes `Trainer` wrap the model in `nn.DataParallel`."""
    made = AMALTrainer.create_accelerator_and_postprocess

    def sees_two(trainer):
        made(trainer)
        trainer.args._n_gpu = 2

    monkeypatch.setattr(AMALTrainer, "create_accelerator_and_postprocess", sees_two)
    with pytest.raises(ValueError, match=r"`nn.DataParallel`.*accelerate launch"):
        build({"method": "fixed"})
