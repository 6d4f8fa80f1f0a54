"""CAGE trained beside the student in an `AMALTrainer` run: SPEAR's losses as sources, mixed per row."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import planted
import pytest
import torch
from transformers import TrainerCallback

from amal_hf import CrossEntropy
from amal_hf.labeling.cage import CAGE
from amal_hf.labeling.joint import JointCAGE
from amal_hf.losses import Agreement, Entropy, PosteriorLabel, Unlabelled


def rows(n: int = 32):
    """Planted rows; every fourth has a gold class."""
    made = planted.make_rows(n)
    return made.add_column("gold", [t if i % 4 == 0 else None for i, t in enumerate(made["truth"])])


def parts():
    train = rows()
    fitted = CAGE.fit(train["weak_labels"][:], 3)
    # all functions alike: only gold and the student can tell them apart
    joint = JointCAGE(replace(fitted, theta=torch.ones_like(fitted.theta)), quality=None, lr=0.05)
    losses = {
        "gold": CrossEntropy("gold"),
        "entropy": Unlabelled(Entropy()),
        "cage label": Unlabelled(joint.source(PosteriorLabel("cage"))),
        "cage": joint.source(Agreement("cage")),
    }
    return train, joint, losses


class Watch(TrainerCallback):
    """θ after every optimizer step, and how many rows each step of θ saw. Comes before the `JointCAGE`."""

    def __init__(self, joint: JointCAGE) -> None:
        self.joint, self.seen, self.moves = joint, [], []

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append([len(votes) for votes, _, _ in self.joint.rows])

    def on_step_end(self, args, state, control, **kwargs):
        self.moves.append(self.joint.theta.detach().clone())


@pytest.mark.parametrize(
    ("settings", "micro_batches"),
    [
        pytest.param({"method": "fixed"}, [8], id="fixed"),
        pytest.param({"method": "trust"}, [8], id="trust"),
        pytest.param({"method": "amal-step"}, [8], id="amal-step"),
        pytest.param({"method": "amal-step", "lookahead_params": "all"}, [8], id="whole-network"),
        pytest.param({"method": "amal", "refresh_every": 1}, [8], id="amal-epochs"),
        pytest.param({"method": "trust", "gradient_accumulation_steps": 2}, [8, 8], id="accumulation"),
    ],
)
def test_theta_steps_once_a_step_on_the_rows_of_the_step(settings, micro_batches, build):
    train, joint, losses = parts()
    watch = Watch(joint)
    trainer = build(settings, losses=losses, train_dataset=train, callbacks=[watch, joint])
    trainer.train()
    assert watch.seen == [micro_batches] * trainer.state.global_step
    path = torch.stack([joint.start, *watch.moves])
    assert (path.diff(dim=0).abs().sum((1, 2)) > 0).all()
    assert not joint.rows


def test_the_posterior_and_the_student_teach_one_another(build):
    train, joint, losses = parts()
    truth, votes = np.array(train["truth"][:]), np.array(train["weak_labels"][:])
    trainer = build({"method": "fixed", "num_train_epochs": 6}, losses=losses, train_dataset=train, callbacks=[joint])

    def surprise() -> float:
        """Mean −log of the posterior's probability for the true class."""
        return -joint.cage.posterior(votes)[torch.arange(len(truth)), truth].log().mean().item()

    assert surprise() == pytest.approx(math.log(3))
    trainer.train()
    assert surprise() < 0.5


def test_a_resumed_run_goes_on_with_theta(build, tmp_path):
    settings = {"method": "trust", "save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    train, whole, losses = parts()
    build(settings, folder=tmp_path / "run", losses=losses, train_dataset=train, callbacks=[whole]).train()
    train, resumed, losses = parts()
    again = build(settings, folder=tmp_path / "run", losses=losses, train_dataset=train, callbacks=[resumed])
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert torch.equal(whole.theta, resumed.theta)
