"""The slow copy: its average by hand, no trace on the student, and a run with it resumed, split and repeated."""

from pathlib import Path
from types import SimpleNamespace

import planted
import pytest
import torch
from planted import furthest, identical, parameters
from torch.nn import functional as F

from amal_hf import Outputs
from amal_hf.losses import SlowCopy
from amal_hf.slow import SlowModel

BATCH = {
    "input_ids": torch.tensor([[2, 5, 6, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def held(model):
    return parameters(SimpleNamespace(model=model))


# ---- the loss ----


def test_the_loss_by_hand():
    logits, slow = torch.tensor([[1.0, -1.0], [0.0, 0.5]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    rows = SlowCopy()(Outputs(logits=logits), {"input_ids": torch.zeros(2, 3), "slow_logits": slow})
    q = slow.exp() / slow.exp().sum(1, keepdim=True)
    assert torch.allclose(rows, -(q * F.log_softmax(logits, 1)).sum(1))


def test_silent_before_the_copy_speaks():
    logits = torch.randn(2, 3, requires_grad=True)
    batch = {"input_ids": torch.zeros(2, 3)}
    rows = SlowCopy()(Outputs(logits=logits), batch)
    rows.sum().backward()
    assert not SlowCopy().mask(batch).any() and not rows.any() and not logits.grad.any()
    assert torch.equal(SlowCopy().target(batch, 3), torch.zeros(2, 3))


# ---- the average ----


def test_average_by_hand():
    """d_t = min(d, (t + 1) / (t + 10)): 0.1, then 2 / 11, then 0.2."""
    student = planted.make_student()
    slow, name = SlowModel(student, decay=0.2), "classifier.bias"
    expected = student.classifier.bias.detach().clone()
    for step, keep in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):
        with torch.no_grad():
            student.classifier.bias += step + 1.0
        slow.follow()
        expected = keep * expected + (1 - keep) * student.classifier.bias.detach()
        assert torch.allclose(slow.params[name], expected)
    assert int(slow.steps) == 4 and expected.min() > 3


def test_what_is_frozen_is_not_held():
    student = planted.make_student()
    student.get_input_embeddings().requires_grad_(False)
    assert not any("word_embeddings" in name for name in SlowModel(student, 0.9).params)


def test_it_leaves_no_trace():
    student = planted.make_student(dropout=0.5).train()
    slow = SlowModel(student, 0.9)
    with torch.no_grad():
        student.classifier.bias += 1.0
    before, random = held(student), torch.get_rng_state()
    said = slow.logits(BATCH)
    assert torch.equal(said, slow.logits(BATCH))  # no dropout in it
    assert student.training and torch.equal(random, torch.get_rng_state())
    assert identical(before, held(student)) == []
    assert all(p.grad is None for p in student.parameters()) and not said.requires_grad
    student.eval()
    with torch.no_grad():
        assert torch.allclose(said, student(**BATCH).logits - 1.0, atol=1e-6)  # the student has moved on, the copy not


def test_state_goes_round():
    student = planted.make_student()
    slow = SlowModel(student, 0.9)
    with torch.no_grad():
        student.classifier.bias += 1.0
    slow.follow()
    other = SlowModel(planted.make_student(seed=3), 0.9)
    other.load_state({name: tensor.clone() for name, tensor in slow.state().items()})
    assert identical(other.state(), slow.state()) == []
    untouched = {name: tensor.clone() for name, tensor in slow.state().items()}
    slow.load_state({})
    assert identical(slow.state(), untouched) == []


# ---- in a run ----


def made(folder: Path, dropout: float = 0.2, **settings):
    rows = planted.make_rows(24, wrong=0.4).remove_columns("label")
    log_posterior = F.log_softmax(torch.randn(24, 3, generator=torch.Generator().manual_seed(1)), 1)
    settings = {"method": "denoise", "slow_start": 2, "num_train_epochs": 2, "logging_steps": 1, **settings}
    return planted.make_trainer(
        folder,
        settings,
        model=planted.make_student(dropout=dropout).double(),
        losses={**planted.make_losses("rules"), "self": SlowCopy()},
        train_dataset=rows.add_column("evidence", log_posterior.tolist()),
    )


def test_it_speaks_from_its_start_on(tmp_path):
    trainer = made(tmp_path)
    trainer.train()
    spoke = ["loss/self" in logs for logs in trainer.state.log_history if "loss" in logs]
    assert spoke == [False, False, True, True, True, True]
    assert int(trainer._slow.steps) == 6


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resumed_is_uninterrupted(tmp_path, stop):
    """Stopped before the copy speaks, within the second epoch, and after it."""
    whole = made(tmp_path / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    resumed = made(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
    assert identical(parameters(resumed), parameters(whole)) == []
    assert identical(resumed._slow.state(), whole._slow.state()) == []
    assert identical(resumed._amal_state(), whole._amal_state()) == []


def test_two_micro_batches_are_one_batch(tmp_path):
    ends = []
    for size, pieces in ((8, 1), (4, 2)):
        trainer = made(tmp_path / str(size), 0.0, per_device_train_batch_size=size, gradient_accumulation_steps=pieces)
        trainer.train()
        ends.append(parameters(trainer) | trainer._slow.state())
    assert furthest(*ends) < 1e-6
