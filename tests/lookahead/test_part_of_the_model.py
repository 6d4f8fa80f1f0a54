"""An optimizer over a part of the model: what it does not move is, for the clean rows, as good as frozen."""

from __future__ import annotations

import planted
import pytest
import torch
from planted import furthest, parameters, table_of

STEP = {"method": "amal-step", "center": False, "meta_every": 1, "max_grad_norm": 0.0, "num_train_epochs": 2,
        "learning_rate": 0.01}  # fmt: skip


def ended(folder, lookahead, where, frozen):
    """λ and parameters of a run whose optimizer has the head at one rate and the pooler at another."""
    model = planted.make_student()
    body = {name: p for name, p in model.named_parameters() if not name.startswith(("classifier", "bert.pooler"))}
    for p in body.values():
        p.requires_grad_(not frozen)
    groups = [{"params": [*model.classifier.parameters()], "lr": 0.01},
              {"params": [*model.bert.pooler.parameters()], "lr": 0.003, "weight_decay": 0.2}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = planted.make_trainer(
        folder, {**STEP, "lookahead": lookahead, "lookahead_params": where}, model=model,
        train_dataset=planted.make_rows(24, wrong=0.4), optimizers=(optimizer, schedule),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in body.items()}
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in body.items())
    return {"table": table_of(trainer), **parameters(trainer)}


@pytest.mark.parametrize("where", ["all", "head"])
@pytest.mark.parametrize("lookahead", ["none", "sgd", "optimizer", "optimizer-exact"])
def test_what_the_optimizer_does_not_move_is_frozen_for_the_lookahead_too(lookahead, where, tmp_path):
    part = ended(tmp_path / "part", lookahead, where, frozen=False)
    frozen = ended(tmp_path / "frozen", lookahead, where, frozen=True)
    assert part["table"].nan_to_num(nan=1.0).ne(1).any(), "no weight moved: nothing is shown"
    assert furthest(part, frozen) < 1e-5
