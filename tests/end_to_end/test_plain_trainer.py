"""With every weight on the label, `AMALTrainer` is `Trainer`; keeping a history of weights changes nothing."""

from __future__ import annotations

import pytest
from planted import SETTINGS, identical, parameters
from transformers import Trainer, TrainingArguments

ONE_HOT = {"method": "fixed", "mixing_start": [1.0, 0.0]}


def plain(folder, model, rows, tokenizer, **settings):
    """What `Trainer` makes of the same rows: it never sees another source than the label."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **{**{k: v for k, v in SETTINGS.items() if "meta" not in k}, **settings}),
        train_dataset=rows.select_columns(["input_ids", "attention_mask", "label"]),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("batch", [8, 6])  # 6: the mean divides by what is no power of two, and the last batch is short
def test_all_weight_on_the_label_is_trainer_bit_for_bit(kind, batch, build, student, rows, tokenizer, tmp_path):
    settings = {"per_device_train_batch_size": batch, "weight_decay": 0.01}
    train = rows(32, wrong=0.4)
    ours = build({**ONE_HOT, **settings}, model=student(kind, dropout=0.2), train_dataset=train)
    ours.train()
    theirs = plain(tmp_path / "plain", student(kind, dropout=0.2), train, tokenizer, **settings)

    assert identical(parameters(ours), parameters(theirs)) == []
    untrained = dict(student(kind, dropout=0.2).named_parameters())
    assert identical(parameters(ours), untrained), "nothing was trained: the comparison is empty"
    logged = [[round(log["loss"], 5) for log in t.state.log_history if "loss" in log] for t in (ours, theirs)]
    assert logged[0] == logged[1]


def test_votes_that_weigh_nothing_leave_no_trace(build, student, rows, losses, tokenizer, tmp_path):
    train = rows(24, wrong=0.4)
    fixed = {"method": "fixed", "mixing_start": [1.0, 0.0]}  # [primary, every other source]
    ours = build(fixed, model=student(dropout=0.2), losses=losses(), train_dataset=train, clean_dataset=None)
    ours.train()
    theirs = plain(tmp_path / "plain", student(dropout=0.2), train, tokenizer)
    assert identical(parameters(ours), parameters(theirs)) == []


def test_a_second_source_with_weight_is_felt(build, student, rows, tokenizer, tmp_path):
    """The acceptance test above can fail."""
    train = rows(32, wrong=0.4)
    ours = build({"method": "fixed", "mixing_start": [1.0, 1e-3]}, model=student(dropout=0.2), train_dataset=train)
    ours.train()
    theirs = plain(tmp_path / "plain", student(dropout=0.2), train, tokenizer)
    assert identical(parameters(ours), parameters(theirs))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_accumulated_rows_count_once(kind, build, student, rows):
    """1 × 8 and 2 × 4 rows give the same step. Plain `Trainer` scales BERT's twice (transformers#47688).

    In float64: Adam would blow up the rounding of gradients that are zero (BERT's key biases).
    """

    def trained(batch, accumulation):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = build({**ONE_HOT, **settings}, model=student(kind).double(), train_dataset=rows(32))
        trainer.train()
        return parameters(trainer)

    whole, halves = trained(8, 1), trained(4, 2)
    assert max((whole[k] - halves[k]).abs().max().item() for k in whole) < 1e-6


@pytest.mark.parametrize("method", ["trust", "amal-step", "amal"])
def test_history_of_weights_is_only_looked_at(method, build, student, rows, losses):
    def trained(log_weights):
        settings = {"method": method, "log_weights": log_weights, "refresh_every": 1}
        trainer = build(settings, model=student(dropout=0.2), losses=losses(), train_dataset=rows(32, wrong=0.4))
        trainer.train()
        return parameters(trainer), trainer.weigher.mixing.state()

    (with_log, weights_with), (without, weights_without) = trained(True), trained(False)
    assert identical(with_log, without) == []
    assert identical(weights_with, weights_without) == []
    at_the_start = build({"method": method}, losses=losses(), train_dataset=rows(32)).weigher.mixing.state()
    assert identical(weights_with, at_the_start), "no weight moved: the comparison is empty"
