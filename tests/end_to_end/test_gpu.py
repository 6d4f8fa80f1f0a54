"""What only a GPU can show. Elsewhere the tests of this file skip; `AMAL_HF_TESTS_ON=gpu` trains all others' on it."""

from __future__ import annotations

import warnings

import planted
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from planted import furthest, parameters, table_of

from amal_hf import CrossEntropy
from amal_hf.models import TeachConfig, teach

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ON_IT = {"use_cpu": False}
METHODS = ["fixed", "trust", "denoise", "amal-step", "meta-weight-net"]


def trained(build, settings, **given):
    trainer = build({**ON_IT, "num_train_epochs": 1, **settings}, **given)
    assert trainer.args.device.type == "cuda"
    trainer.train()
    return trainer


def ends(trainer):
    return parameters(trainer) | {"table": table_of(trainer)}


@pytest.mark.parametrize("moves", ["head", "all"])
def test_the_gpu_trains_as_the_cpu_does(moves, build):
    settings = {"method": "amal-step", "lookahead_params": moves}
    there = ends(trained(build, settings))
    here = build({**settings, "use_cpu": True, "num_train_epochs": 1})
    here.train()
    assert furthest(ends(here), there) < 1e-3


def test_a_step_waits_for_the_gpu_no_more_often_than_it_must(build):
    """The logits and the columns come once; then the loss and its gradient are looked at, whose numbers end a run."""
    trainer = build({**ON_IT, "method": "trust", "max_steps": 4, "meta_every": 10})
    counted: list[int] = []
    step = trainer.training_step

    def watched(*args, **kwargs):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                return step(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            counted.append(sum("synchroniz" in str(each.message) for each in seen))

    trainer.training_step = watched
    trainer.train()
    assert max(counted[1:]) <= 12, counted


def test_states_of_eight_bits(build):
    pytest.importorskip("bitsandbytes")
    settings = {"method": "amal-step", "optim": "adamw_bnb_8bit"}
    few, many = table_of(trained(build, settings)), table_of(trained(build, {"method": "amal-step"}))
    assert few.nan_to_num(1.0).ne(1).any() and (few - many).abs().nan_to_num().max() < 0.05
    with pytest.raises(ValueError, match="`lookahead`"):
        trained(build, {**settings, "lookahead": "optimizer"})


def test_a_compiled_student(build):
    settings = {"method": "trust"}
    eager = ends(trained(build, settings, model=planted.make_student().double()))
    compiled = ends(trained(build, {**settings, "torch_compile": True}, model=planted.make_student().double()))
    assert furthest(eager, compiled) < 1e-5


def test_a_function_of_the_users_meets_the_models_device(build):
    scale = torch.full((planted.CLASSES,), 0.5, device="cuda")
    losses = {"label": CrossEntropy(), "own": lambda outputs, batch: -(outputs.logits.log_softmax(-1) * scale).sum(-1)}
    trained(build, {"method": "trust"}, losses=losses)


def test_a_teacher_reads_on_the_cpu_where_that_is_asked_for(tmp_path, monkeypatch):
    """Also where this process has met the GPU before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    assert PartialState().device.type == "cuda"
    planted.make_student().save_pretrained(tmp_path / "t")
    planted.make_tokenizer().save_pretrained(tmp_path / "t")
    rows = planted.make_rows(8, tokens=False).select_columns(["text"])
    read = {}
    for on_cpu in (True, False):
        config = TeachConfig(cache_dir=str(tmp_path / str(on_cpu)), use_cpu=on_cpu, label_column="")
        monkeypatch.setattr("amal_hf.models.teacher.free_memory", lambda device: read.update(last=device) or 2**34)
        teach(rows, [str(tmp_path / "t")], config)
        assert read["last"].type == ("cpu" if on_cpu else "cuda")
