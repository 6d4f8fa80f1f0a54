"""Planted lies are found: 40 % of the labels flipped, a teacher who knows, thirty clean rows."""

from __future__ import annotations

import planted
import pytest
import torch
from planted import table_of
from sklearn.metrics import roc_auc_score

SETTINGS = {"num_train_epochs": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 16}


def learned(build, seed, **settings):
    """Weights of label and teacher `[N, 2]`, and which labels lie `[N]`."""
    train = planted.make_rows(96, seed=10 * seed, wrong=0.4)
    trainer = build(
        {**SETTINGS, "seed": seed, **settings},
        model=planted.make_student(hidden=32, seed=seed),
        train_dataset=train,
        clean_dataset=planted.make_rows(30, seed=10 * seed + 1),
    )
    trainer.train()
    lies = torch.tensor(train["label"][:]) != torch.tensor(train["truth"][:])
    assert 0.25 < lies.float().mean() < 0.55
    return table_of(trainer), lies


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lies_weigh_less(build, seed):
    weights, lies = learned(build, seed)
    label, teacher = weights.T
    assert label[lies].mean() < 0.5 * label[~lies].mean()
    assert roc_auc_score(~lies, label) >= 0.9
    assert label[lies].mean() < 0.5 * teacher[lies].mean(), "the two contradict each other there: who is believed?"


def test_a_table_learns_it_too(build):
    """AMAL's own form, without a record of the sources: slower, so less is asked for."""
    weights, lies = learned(build, 0, method="amal-step")
    assert roc_auc_score(~lies, weights[:, 0]) > 0.75


@pytest.mark.parametrize("settings", [{"method": "fixed"}, {"meta_start": 10_000}], ids=["fixed", "never steered"])
def test_without_clean_rows_no_source_gains_weight(build, settings):
    """The tests above can fail: agreement alone does not say who lies."""
    weights, lies = learned(build, 0, **settings)
    label, teacher = weights.T
    assert label[lies].mean() > 0.8 * teacher[lies].mean()
