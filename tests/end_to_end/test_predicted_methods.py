"""The methods "l2r", "meta-weight-net" and "network" inside the trainer: they train, split, resume and refuse."""

from __future__ import annotations

import planted
import pytest
import torch
from planted import furthest, identical, parameters, table_of

from amal_hf import AMALConfig
from amal_hf.mixing import MetaWeightNet, Reweight, WeightNetwork

MADE = {"l2r": Reweight, "meta-weight-net": MetaWeightNet, "network": WeightNetwork}
each = pytest.mark.parametrize("method", MADE)
LEARNS = [method for method in MADE if method != "l2r"]  # l2r keeps nothing


@each
@pytest.mark.parametrize("moves", ["head", "all"])
def test_method_trains_and_moves_its_weights(method, moves, build, student, losses):
    trainer = build({"method": method, "lookahead_params": moves}, losses=losses())
    assert type(trainer.weigher.mixing) is MADE[method]
    start = {k: v.clone() for k, v in trainer.weigher.mixing.state().items()}
    trainer.train()
    assert identical(parameters(trainer), dict(student().named_parameters()))
    assert bool(identical(trainer.weigher.mixing.state(), start)) is (method in LEARNS)
    weights = table_of(trainer)
    spoken = weights[~weights.isnan()]
    assert spoken.isfinite().all() and (spoken >= 0).all() and spoken.std() > 0


@pytest.mark.parametrize(
    "method",
    [
        *LEARNS,
        pytest.param(
            "l2r",
            marks=pytest.mark.xfail(
                raises=AssertionError,
                strict=True,
                reason="l2r divides by the sum over the rows at hand, a micro-batch's",
            ),
        ),
    ],
)
def test_sixteen_rows_at_once_or_in_parts(method, build, student, rows, losses):
    def trained(batch, accumulation):
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        settings = {"method": method, **split, "lookahead": "none", "probe_weight": 0.0, "meta_start": 1}
        trainer = build(settings, model=student().double(), train_dataset=rows(64, wrong=0.4), losses=losses())
        trainer.train()
        return parameters(trainer) | trainer.weigher.mixing.state() | {"last": table_of(trainer)}

    whole, *parts = (trained(*split) for split in [(16, 1), (4, 4)])
    for other in parts:
        assert furthest(whole, other) < 1e-6


@each
def test_resumed_is_uninterrupted(method, build, rows, losses):
    settings = {"method": method, "meta_every": 1, "save_strategy": "steps", "save_steps": 8, "num_train_epochs": 3}

    def made():
        train = rows(40, wrong=0.4)
        return build(settings, model=planted.make_student(dropout=0.2), train_dataset=train, losses=losses())

    def ends(trainer):
        return parameters(trainer) | trainer.weigher.state_dict() | {"weights": table_of(trainer)}

    whole, resumed = made(), made()
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-8")
    assert identical(ends(whole), ends(resumed)) == []


@pytest.mark.parametrize("mixing", ["reweight", *LEARNS])
def test_no_table_to_refresh(mixing):
    with pytest.raises(ValueError, match="`refresh`: expected it with a method that reads it, found 'epoch'"):
        AMALConfig("out", method="custom", mixing=mixing, refresh="epoch")


@pytest.mark.parametrize("mixing", LEARNS)
def test_a_mixing_by_name_has_a_network_s_step(mixing):
    named, by_mixing = AMALConfig("out", method=mixing), AMALConfig("out", method="custom", mixing=mixing)
    assert named.resolved().mixing_lr == by_mixing.resolved().mixing_lr == 1e-3
    assert AMALConfig("out", method="custom", mixing=mixing, mixing_lr=0.01).resolved().mixing_lr == 0.01


def test_weights_of_flipped_labels_are_smaller(build, rows):
    """A teacher beside labels of which 40 % lie: the network weighs the lies less."""
    train = rows(96, wrong=0.4)
    settings = {"method": "network", "num_train_epochs": 6, "learning_rate": 5e-3}
    trainer = build(settings, train_dataset=train)
    trainer.train()
    label = table_of(trainer)[:, 0]
    right = torch.tensor(train["label"]) == torch.tensor(train["truth"])
    above = label[right][:, None] - label[~right][None]
    assert ((above > 0).double() + 0.5 * (above == 0).double()).mean() > 0.8
