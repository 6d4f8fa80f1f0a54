"""Settings that follow from other settings: changed later, switched off, or odd, they take effect or are refused.

What else the kind lists stands elsewhere:

    trials of a search: tests/end_to_end/test_trainer.py::test_trials_of_a_search_do_not_inherit_weights
    no setting chooses another method: tests/models/test_train_teachers.py::test_no_setting_chooses_another_method
    part of the model: tests/lookahead/test_part_of_the_model.py::test_what_the_optimizer_does_not_move_is_frozen_for_the_lookahead_too
    groups with their own rates: tests/metagrad/test_virtual_step.py::test_a_plain_step_takes_every_group_s_rate
    bfloat16 weights: tests/metagrad/test_finite_difference.py::test_of_half_precision_weights_it_is_as_exact_as_in_float32
    departure from forward mode: tests/metagrad/test_finite_difference.py::test_departure_from_forward_mode_is_what_is_promised
    a short last micro-batch: tests/test_window.py::test_a_batch_is_the_sum_of_its_parts
    every row counts once an epoch: tests/test_window.py::test_every_row_counts_once_an_epoch
    a row twice in a batch: tests/test_window.py::test_a_row_that_comes_twice_is_not_dropped
    weights of the best model: tests/end_to_end/test_trainer.py::test_best_model_comes_with_its_weights
"""  # noqa: E501

from __future__ import annotations

import json
from dataclasses import replace

import planted
import pytest
import torch

from amal_hf import AMALConfig, classification_metrics
from amal_hf.mixing import Table
from amal_hf.mixing.base import Rows
from amal_hf.weigher import Weigher
from amal_hf.weight_history import KEPT, WeightHistory

# ---- given later ----


@pytest.mark.parametrize("method", ["fixed", "shared", "amal-step", "trust"])
def test_a_method_that_is_set_later_is_the_one_that_runs(method, build):
    first = build({"method": method, "meta_batch_size": None})
    first.train()
    later = build({"method": "trust" if method != "trust" else "shared", "meta_batch_size": None})
    later.args.method = method
    later.train()
    assert planted.identical(planted.parameters(later), planted.parameters(first)) == []
    assert json.loads(later.args.describe()) == json.loads(first.args.describe())


def test_a_copy_with_one_setting_changed_is_that_setting(tmp_path):
    args = AMALConfig(str(tmp_path), method="denoise", learning_rate=1e-3)
    changed = replace(args, learning_rate=3e-4)
    assert changed.learning_rate == 3e-4 and changed.method == "denoise"
    assert json.loads(changed.describe()) == json.loads(args.describe())


# ---- rows that come twice ----


@pytest.mark.parametrize("constraint", ["box", "simplex"])
def test_a_row_that_is_drawn_twice_takes_a_step_along_both_gradients(constraint):
    start, step = torch.tensor([0.4, 0.6]), 0.1
    table = Table(5, start, constraint, step, (0.0, 1.0))
    gradient = torch.tensor([[0.5, -0.3], [-1.0, 0.7], [0.2, 0.4], [0.1, -0.9]])
    index = torch.tensor([3, 1, 3, 0])  # row 3: 0.7 and 0.1
    mask = torch.ones(4, 2, dtype=torch.bool)
    rows = Rows(index, torch.zeros(4, 2), mask, torch.zeros(4, 2, 2), torch.zeros(4, 2))
    table.update(rows, gradient)
    summed = {0: [0.1, -0.9], 1: [-1.0, 0.7], 3: [0.7, 0.1]}
    for row in range(5):
        wanted = start - step * torch.tensor(summed.get(row, [0.0, 0.0]))
        if constraint == "simplex":  # two sources: the excess is shared
            wanted = (wanted - (wanted.sum() - 1) / 2).clamp(0, 1)
        torch.testing.assert_close(table.table[row], wanted)


def test_a_source_that_abstains_stays_where_it_is_for_a_row_twice():
    table = Table(2, torch.tensor([0.4, 0.6]), "box", 0.1, (0.0, 1.0))
    mask = torch.tensor([[True, False], [True, False]])
    rows = Rows(torch.tensor([1, 1]), torch.zeros(2, 2), mask, torch.zeros(2, 2, 2), torch.zeros(2, 2))
    table.update(rows, torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(table.table, torch.tensor([[0.4, 0.6], [0.2, 0.6]]))


# ---- what is switched off ----


def denoised(build, **settings):
    trainer = build(
        {"method": "denoise", "num_train_epochs": 1, **settings},
        train_dataset=planted.make_rows(24, wrong=0.3, tokens=False),
        clean_dataset=planted.make_rows(12, 1, tokens=False),
        compute_metrics=classification_metrics,
    )
    trainer.train()
    return trainer


def test_without_a_log_of_weights_labels_are_corrected_all_the_same(build):
    with_log, without = denoised(build), denoised(build, log_weights=False)
    one, other = with_log.corrected_dataset(), without.corrected_dataset()
    assert "trust" not in other.column_names and other["label"][:] == one["label"][:]
    torch.testing.assert_close(*(torch.tensor(corpus["probabilities"][:]) for corpus in (one, other)))
    assert without.save_run(planted.make_rows(9, 2, tokens=False))["test"]["rows"] == 9


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_run_that_logs_nothing_has_its_end_in_the_history(strategy, build, tmp_path):
    trainer = denoised(build, logging_strategy=strategy, logging_steps=500)
    trainer.save_run(planted.make_rows(9, 2, tokens=False))
    history = json.loads((tmp_path / "run0" / "history.json").read_text())
    assert history["step"] == [trainer.state.global_step]
    assert trainer.weigher.history.flush(0, None) == {}, "nothing waits"


def test_what_nobody_logs_takes_no_more_than_so_much_room():
    history = WeightHistory(["label"], None)
    covered = torch.ones(4, 1, dtype=torch.bool)
    for i in range(KEPT + 5):  # the first five are forgotten: all that is kept is 1
        part = torch.full((4, 1), float(i >= 5))
        history.record(torch.zeros(4), part, covered)
        history.record_losses(torch.zeros(4), part, covered)
    summary = history.flush(1, None)
    assert summary["weight/label"] == summary["loss/label"] == 1.0


def test_rows_seen_after_the_best_model_keep_their_weights():
    history = WeightHistory(["a", "b"], 3)
    nan = float("nan")
    history.last_weights().copy_(torch.tensor([[0.9, 0.9], [0.5, nan], [nan, nan]]))
    history.load({"last_weights": torch.tensor([[0.1, nan], [nan, nan], [nan, nan]])}, [])
    wanted = torch.tensor([[0.1, nan], [0.5, nan], [nan, nan]])
    assert torch.equal(history.last_weights().nan_to_num(9), wanted.nan_to_num(9))


@pytest.mark.parametrize(
    "odd",
    [
        {"prediction_loss_only": True},
        pytest.param({"eval_do_concat_batches": False}, marks=pytest.mark.slow),
        pytest.param({"dataloader_drop_last": True}, marks=pytest.mark.slow),
    ],
)
def test_settings_of_evaluation_are_not_those_of_the_corpus(odd, build):
    """24 rows in batches of 7, of which the last is short: all of them are corrected and measured."""
    size = {"per_device_eval_batch_size": 7, "per_device_train_batch_size": 4}
    usual, trainer = denoised(build, **size), denoised(build, **size, **odd)
    assert trainer.corrected_dataset()["label"][:] == usual.corrected_dataset()["label"][:]
    test = planted.make_rows(9, 2, tokens=False)
    assert trainer.save_run(test)["test"] == pytest.approx(usual.save_run(test)["test"], abs=1e-5)
    assert all(getattr(trainer.args, name) == value for name, value in odd.items()), "what was set stays set"


def test_metrics_of_batches_that_are_not_joined(build):
    usual = denoised(build)
    rows = planted.make_rows(9, 2, tokens=False)
    wanted = usual.evaluate(rows)
    usual.args.eval_do_concat_batches, usual.args.per_device_eval_batch_size = False, 4
    found = usual.evaluate(rows)
    for name in ("eval_accuracy", "eval_macro_f1", "eval_ece", "eval_rows"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-6)


# ---- the loss is ours ----


def test_smoothing_and_a_loss_function_are_refused_where_they_would_change_evaluation_alone(build):
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`: expected 0, found 0.1.*CrossEntropy\("):
        build({"label_smoothing_factor": 0.1})
    with pytest.raises(ValueError, match="`compute_loss_func`: expected none, found a function"):
        build(compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_step_is_weighted_as_the_others_are(accumulation, build):
    """`normalize="mean"`: a row's weights sum to 1 in the mean, from the first step on."""

    def losses_of(**settings):
        settings |= {"method": "fixed", "logging_steps": 1, "gradient_accumulation_steps": accumulation}
        trainer = build(settings)
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    found = losses_of(normalize="mean", mixing_start=[3.0, 5.0])
    assert found == pytest.approx(losses_of(normalize="none", mixing_start=[0.375, 0.625]), rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "amal-step", "mixing_start": [3.0, 5.0], "clamp": [0.0, 9.0]},
        {"method": "shared", "mixing_start": [3.0, 5.0], "clamp": [0.0, 9.0]},
        {"method": "l2r"},
        {"method": "meta-weight-net"},
    ],
    ids=lambda settings: settings["method"],
)
def test_so_it_is_where_weights_read_losses(settings, accumulation, build, monkeypatch):
    """Σλ starts at 8 (of two sources or two sigmoids at 2 or 1): before the first step it is divided by that."""
    seen = []
    weigh = Weigher.weigh
    monkeypatch.setattr(Weigher, "weigh", lambda *given: seen.append(weigh(*given)) or seen[-1])
    trainer = build({**settings, "normalize": "mean", "gradient_accumulation_steps": accumulation, "max_steps": 3})
    trainer.train()
    steps = [seen[i * accumulation : (i + 1) * accumulation] for i in range(3)]
    means = [torch.cat(parts).sum(1).mean().item() for parts in steps]
    assert means == pytest.approx([1, 1, 1], abs=0.35), means
