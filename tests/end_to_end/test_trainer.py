"""`AMALTrainer` as a `Trainer`: methods, logs, checkpoints, callbacks, data of every kind."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import planted
import pytest
import torch
from datasets import Dataset
from planted import furthest, identical, parameters, table_of
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers import trainer as hf_trainer

from amal_hf import CrossEntropy, Distillation, classification_metrics
from amal_hf.losses import FunctionLoss
from amal_hf.mixing import Shared
from amal_hf.weigher import Weigher

SOON = {"refresh_every": 1}  # the authors' schedule would wait for ten epochs


# ---- methods keep their promise ----


@pytest.mark.parametrize(
    ("method", "learns"),
    [("fixed", False), ("trust", True), ("amal", True), ("amal-step", True), ("alm-kd", True), ("shared", True)],
)
def test_method_trains_and_moves_its_weights(method, learns, build, student):
    trainer = build({"method": method, **SOON})
    start = {k: v.clone() for k, v in trainer.weigher.mixing.state().items()}
    trainer.train()

    assert trainer.weigher.mixing.learns is learns
    assert identical(parameters(trainer), dict(student().named_parameters()))
    now = trainer.weigher.mixing.state()
    if learns:
        assert identical(now, start)
    else:
        assert table_of(trainer).eq(1).all()
    weights = table_of(trainer)
    assert weights.isfinite().all() and (weights >= 0).all()
    if method in ("alm-kd", "shared"):
        assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-5)
    if method == "shared":
        per_step = {tuple(row.tolist()) for row in weights}
        assert len(per_step) <= 4  # a vector a step, four steps in the last epoch


def test_a_table_in_half_precision_is_the_table_to_its_rounding(build):
    half, whole = build({"method": "amal-step", "table_dtype": "float16"}), build({"method": "amal-step"})
    for trainer in (half, whole):
        trainer.train()
    assert half.weigher.mixing.table.dtype == half.weigher.history.last_weights().dtype == torch.float16
    assert (half.weigher.mixing.table.float() - whole.weigher.mixing.table).abs().max() < 2e-2
    assert (whole.weigher.mixing.table - 1).abs().max() > 0.1


def test_centring_holds_the_mean_weight(build):
    def mean(**settings):
        trainer = build({"method": "amal-step", "num_train_epochs": 4, "mixing_lr": 0.02, **settings})
        trainer.train()
        return trainer.weigher.mixing.table.mean(0)

    held, free = mean(), mean(center=False)
    assert (held - 1).abs().max() < 1e-5
    assert (free - 1).abs().max() > 1e-3


def test_normalize_row_shares_one_unit(build, monkeypatch):
    """What the loss uses sums to one on every row; what is kept is λ as learned."""
    trainer = build({"method": "trust", "normalize": "row"})
    used = []
    original = Weigher.normalized
    monkeypatch.setattr(Weigher, "normalized", lambda *a, **k: used.append(original(*a, **k)) or used[-1])
    trainer.train()
    assert all(torch.allclose(w.sum(1).cpu(), torch.ones(len(w)), atol=1e-5) for w in used)


def test_before_meta_start_nothing_moves(build):
    trainer = build({"method": "amal-step", "meta_start": 6})
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen[state.global_step] = trainer.weigher.mixing.table.clone()

    trainer.add_callback(Look())
    trainer.train()
    assert all(seen[step].eq(1).all() for step in range(1, 7))
    assert not seen[7].eq(1).all()


def test_lookaheads_come_every_meta_every_steps(build):
    trainer = build({"method": "trust", "meta_start": 1, "meta_every": 3, "num_train_epochs": 2})
    trainer.train()  # of eight steps: 1, 4, 7
    assert int(trainer.weigher.lookahead.lookaheads) == 3


def test_clean_rows_are_encoded_before_the_training_forward(build):
    trainer, seen = build({"method": "trust", "meta_start": 0, "meta_every": 1, "max_steps": 2}), []
    trainer.model.register_forward_hook(lambda model, *_: seen.append((model.training, torch.is_grad_enabled())))
    trainer.train()
    encoded, training = (False, False), (True, True)
    assert seen[-3:] == [training, encoded, training]


@pytest.mark.parametrize("lookahead", ["none", "sgd"])
def test_the_graph_of_the_clean_rows_is_gone_before_the_training_forward(lookahead, build):
    """And micro-batches share it; unless the lookahead follows the gradient of each: then it waits for that."""
    settings = {"method": "amal-step", "lookahead": lookahead, "lookahead_params": "all", "estimator": "difference"}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer, seen = build({**settings, "max_steps": 2}), []
    trainer.model.register_forward_hook(lambda model, *_: seen.append((model.training, torch.is_grad_enabled())))
    trainer.train()
    judge, probe, training = (False, True), (True, False), (True, True)
    shared = [judge, probe, probe, training, probe, probe, training]
    once = [probe]  # is the model smooth?
    assert seen == once + 2 * (shared if lookahead == "none" else 2 * [training, judge, probe, probe])
    held = vars(trainer.weigher.lookahead).values()
    assert not [v for v in held if isinstance(v, dict)]  # a direction is as large as the model: not kept between steps


@pytest.mark.parametrize("params", ["head", pytest.param("all", marks=pytest.mark.slow)])
def test_a_temperature_is_learned_beside_the_weights(params, build, losses):
    hot = losses() | {"teacher": Distillation(temperature="learned")}
    settings = {"method": "trust", "meta_every": 1, "meta_start": 0, "lookahead_params": params, "logging_steps": 1}
    ends = {}
    for micro, times in ((16, 1), (4, 4)):
        split = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": times}
        trainer = build({**settings, **split}, losses=hot, model_init=lambda: planted.make_student())
        trainer.train()
        ends[micro] = {name: tensor.clone() for name, tensor in trainer.weigher.state_dict().items()}
        told = [log["temperature/teacher"] for log in trainer.state.log_history if "temperature/teacher" in log]
        assert told[0] == pytest.approx(2.0) and len({round(t, 6) for t in told}) > 3
        trainer.train()  # afresh
        assert identical(trainer.weigher.state_dict(), ends[micro]) == []
    assert furthest(ends[4], ends[16]) < 1e-4


@pytest.mark.parametrize("settings", [{"method": "fixed"}, {"method": "amal", **SOON}])
def test_a_temperature_to_learn_needs_a_lookahead_in_the_step(settings, build, losses):
    with pytest.raises(ValueError, match="`temperature`: 'learned' expects a lookahead"):
        build(settings, losses=losses() | {"teacher": Distillation(temperature="learned")})


def test_mixing_of_ones_own_starts_afresh_at_every_run(build):
    mine = Shared(torch.tensor([0.5, 0.5]), "simplex", step=0.2, clamp=(0.0, 1.0))
    trainer = build(mixing=mine, model_init=lambda: planted.make_student())
    trainer.train()
    first = {k: v.clone() for k, v in trainer.weigher.mixing.state().items()}
    trainer.train()
    assert identical(trainer.weigher.mixing.state(), first) == []
    assert not torch.equal(first["shared"], torch.tensor([0.5, 0.5]))


# ---- what it tells ----


def test_log_has_the_weights(build, losses):
    trainer = build(losses=losses())
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs
    for log in logs:
        for group in ("label", "teacher", "rules"):
            assert math.isfinite(log[f"loss/{group}"]) and math.isfinite(log[f"weight/{group}"])
            low, middle, high = (log[f"weight/{group}/q{q}"] for q in (10, 50, 90))
            assert low <= middle <= high
        assert 0 <= log["meta_time_share"] < 1
    assert logs[-1]["meta_time_share"] > 0


def test_logged_loss_is_the_mean_over_the_rows_that_source_covers(build, rows, losses):
    """With weights fixed at one, `loss` is the sum over sources of their mean per row of the batch."""
    train = rows(16)
    settings = {"method": "fixed", "logging_steps": 1, "per_device_train_batch_size": 16, "num_train_epochs": 1}
    trainer = build(settings, train_dataset=train, losses=losses("label", "teacher"))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(log["loss/label"] + log["loss/teacher"], rel=1e-5)


def test_weights_join_with_the_rows_by_row_id(build, rows, losses):
    train = rows(32, wrong=0.4)
    trainer = build(train_dataset=train, losses=losses())
    trainer.train()
    weights = trainer.weights
    assert weights.column_names == ["row_id", "label", "teacher", "rules/0", "rules/1", "rules/2"]
    assert weights["row_id"][:] == list(range(32))
    for votes, row in zip(train["weak_labels"], weights, strict=True):
        said = [vote != -1 for vote in votes]
        assert [row[f"rules/{j}"] is not None for j in range(3)] == said
    assert any(-1 in votes for votes in train["weak_labels"])


def test_ones_own_row_ids_in_any_order(build, rows):
    """Sparse, shuffled ids give the run that 0..N-1 give, told by those ids."""
    ids = [7 + 3 * i for i in range(32)]
    ids = [ids[i] for i in torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist()]

    def trained(train):
        trainer = build({"method": "amal-step"}, train_dataset=train)
        trainer.train()
        return trainer

    counted, named = trained(rows(32, wrong=0.4)), trained(rows(32, wrong=0.4).add_column("row_id", ids))
    assert named.weights["row_id"][:] == ids
    assert torch.equal(table_of(counted), table_of(named))


def test_no_weights_without_a_log_of_them(build):
    trainer = build({"log_weights": False})
    trainer.train()
    assert "weight/label" not in trainer.state.log_history[0]
    with pytest.raises(ValueError, match="`log_weights`"):
        _ = trainer.weights


def test_model_card_names_the_sources(build):
    trainer = build()
    trainer.train()
    trainer.create_model_card()
    card = (planted.Path(trainer.args.output_dir) / "README.md").read_text()
    assert "| label |" in card and "| teacher |" in card and "2202.03250" in card


# ---- evaluation, selection, callbacks ----


def test_evaluation_is_the_models_own(build, rows):
    trainer = build(eval_dataset=rows(24, seed=2), compute_metrics=classification_metrics)
    trainer.train()
    metrics = trainer.evaluate()
    predicted = trainer.predict(rows(24, seed=2))
    labels = torch.as_tensor(predicted.label_ids)
    expected = F.cross_entropy(torch.as_tensor(predicted.predictions), labels)
    assert metrics["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["eval_accuracy"] == (predicted.predictions.argmax(-1) == predicted.label_ids).mean()


def test_evaluation_without_a_label_among_the_sources(build, rows, losses):
    trainer = build(
        eval_dataset=rows(24, seed=2), losses=losses("teacher", "rules"), compute_metrics=classification_metrics
    )
    trainer.train()
    assert {"eval_loss", "eval_accuracy", "eval_macro_f1", "eval_ece"} <= set(trainer.evaluate())


def test_several_evaluation_sets(build, rows):
    trainer = build({"eval_strategy": "epoch"}, eval_dataset={"near": rows(12, seed=2), "far": rows(12, seed=3)})
    trainer.train()
    logged = set().union(*trainer.state.log_history)
    assert {"eval_near_loss", "eval_far_loss"} <= logged


def test_raw_text_is_tokenized_here(build, rows):
    told = {split: rows(n, seed=seed, tokens=False) for split, n, seed in (("t", 16, 0), ("m", 9, 1), ("e", 9, 2))}
    trainer = build(train_dataset=told["t"], clean_dataset=told["m"], eval_dataset=told["e"])
    trainer.train()
    assert table_of(trainer).isfinite().all()
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("method", ["trust", "amal-step", "shared"])
def test_best_model_comes_with_its_weights(method, build, rows):
    keep = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    best_first = {"metric_for_best_model": "eval_epoch_passed", "greater_is_better": False}
    trainer = build({"method": method, "num_train_epochs": 3, **keep, **best_first}, eval_dataset=rows(12, seed=2))
    after = {}

    class Look(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            after.setdefault("parameters", parameters(trainer))
            after.setdefault("last", table_of(trainer))

    trainer.compute_metrics = lambda _: {"epoch_passed": trainer.state.global_step}
    trainer.add_callback(Look())
    trainer.train()

    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert identical(parameters(trainer), after["parameters"]) == []
    assert torch.equal(table_of(trainer), after["last"])
    stored = hf_state(trainer.state.best_model_checkpoint)
    learned = trainer.weigher.mixing.state()
    assert identical(learned, {k: stored[k] for k in learned}) == []
    final = hf_state(f"{trainer.args.output_dir}/checkpoint-12")
    assert identical(learned, {k: final[k] for k in learned}), "the last weights are the best ones: nothing was shown"


def hf_state(checkpoint):
    from safetensors.torch import load_file

    return load_file(f"{checkpoint}/amal_state.safetensors")


def test_early_stopping(build, rows):
    stop = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = build({**stop, **best, "learning_rate": 1e-2}, eval_dataset=rows(12, seed=2))
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.global_step < trainer.state.max_steps


def test_saving_changes_nothing(build):
    """A run that keeps checkpoints is the run that keeps none."""

    def trained(**settings):
        trainer = build({"method": "trust", "meta_every": 3, **settings}, model=planted.make_student(dropout=0.2))
        trainer.train()
        return parameters(trainer) | trainer.weigher.mixing.state()

    assert identical(trained(), trained(save_strategy="steps", save_steps=1)) == []


# ---- runs anew: model_init, trials ----


def test_every_run_starts_afresh(build):
    trainer = build(model_init=lambda: planted.make_student())
    trainer.train()
    first = parameters(trainer) | trainer.weigher.mixing.state() | {"last": table_of(trainer)}
    trainer.train()
    second = parameters(trainer) | trainer.weigher.mixing.state() | {"last": table_of(trainer)}
    assert identical(first, second) == []
    assert [log["step"] for log in trainer.weigher.history.summaries] == [2, 4, 6, 8]


def test_trials_of_a_search_do_not_inherit_weights(build, rows, monkeypatch):
    """A search over κ through `hyperparameter_search`, with a backend that tries a list."""
    tried = []

    class Listed:
        def ensure_available(self):
            pass

        def run(self, trainer, n_trials, direction):
            runs = []
            for number, kappa in enumerate([0.0001, 0.5, 0.0001]):
                trainer.objective = None
                trainer.train(trial=SimpleNamespace(number=number, params={"mixing_lr": kappa}))
                runs.append(trainer.compute_objective(trainer.evaluate()))
                tried.append({k: v.clone() for k, v in trainer.weigher.mixing.state().items()})
            return runs

    backend = hf_trainer.HPSearchBackend.OPTUNA
    monkeypatch.setitem(hf_trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, backend, Listed)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer = build({"method": "amal-step"}, model_init=lambda: planted.make_student(), eval_dataset=rows(12, seed=2))
    runs = trainer.hyperparameter_search(hp_space=lambda trial: trial.params, n_trials=3, backend="optuna")

    assert len(runs) == 3 and runs[0] == runs[2] != runs[1]
    assert identical(tried[0], tried[2]) == []
    assert (tried[0]["table"] - 1).abs().max() < 0.01 < (tried[1]["table"] - 1).abs().max()


# ---- data of every kind ----


def test_missing_labels_are_masked(build, rows):
    train = rows(32)
    labels = [None if i % 4 == 1 else label for i, label in enumerate(train["label"])]
    train = train.remove_columns("label").add_column("label", labels)
    trainer = build(train_dataset=train)
    trainer.train()
    silent = table_of(trainer)[:, 0].isnan()
    assert silent.tolist() == [label is None for label in labels]


@pytest.mark.parametrize("missing", [0, 3])
def test_a_row_without_teacher_is_masked(missing, build, rows):
    """Whichever row it is: the first one too."""
    train = rows(16)
    teacher = [None if i == missing else logits for i, logits in enumerate(train["teacher_logits"])]
    trainer = build(train_dataset=train.remove_columns("teacher_logits").add_column("teacher_logits", teacher))
    trainer.train()
    assert table_of(trainer)[:, 1].isnan().nonzero().flatten().tolist() == [missing]


@pytest.mark.parametrize("missing", [0, 3])
def test_a_row_without_votes_is_masked(missing, build, rows, losses):
    train = rows(16)
    votes = [None if i == missing else row for i, row in enumerate(train["weak_labels"])]
    train = train.remove_columns("weak_labels").add_column("weak_labels", votes)
    trainer = build(train_dataset=train, losses=losses("label", "rules"))
    trainer.train()
    assert table_of(trainer)[missing, 1:].isnan().all()


def test_a_stream_of_rows(build, rows):
    train = rows(32, wrong=0.4)
    settings = {"method": "trust", "max_steps": 6}
    trainer = build(settings, train_dataset=train.to_iterable_dataset())
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["weight/label"] != log["weight/teacher"]
    with pytest.raises(ValueError, match="`train_dataset`"):
        _ = trainer.weights


def test_ones_own_collator(build, tokenizer):
    calls = []

    def collate(features):
        calls.append(sorted(features[0]))
        width = max(len(f["input_ids"]) for f in features)
        pad = lambda name: torch.tensor([f[name] + [0] * (width - len(f[name])) for f in features])  # noqa: E731
        return {"input_ids": pad("input_ids"), "attention_mask": pad("attention_mask")}

    mine, theirs = build(data_collator=collate, processing_class=None), build()
    mine.train()
    theirs.train()
    assert calls and all(keys == ["attention_mask", "input_ids"] for keys in calls)
    assert identical(parameters(mine), parameters(theirs)) == []


def test_ones_own_loss_function(build, rows):
    def margin(outputs, batch):
        """Multi-class hinge loss, `[N]`."""
        own = outputs.logits.gather(1, batch["truth"][:, None])
        return F.relu(1 - own + outputs.logits).sum(1) - 1

    trainer = build(
        {"method": "amal-step"}, losses={"label": CrossEntropy(), "margin": FunctionLoss(margin, ("truth",))}
    )
    trainer.train()
    assert trainer.stack.names == ("label", "margin")
    assert table_of(trainer).isfinite().all()


def test_a_bare_function_is_a_loss(build):
    def confident(outputs, batch):
        """−log of the largest probability, `[N]`."""
        return -outputs.logits.log_softmax(-1).amax(-1)

    trainer = build(losses={"label": CrossEntropy(), "confident": confident})
    trainer.train()
    assert (table_of(trainer)[:, 1] == 1).all()  # trust weighs what asserts no class as it was told to


# ---- lookaheads and estimators ----


@pytest.mark.parametrize("lookahead", ["none", "sgd", "optimizer", "optimizer-exact"])
@pytest.mark.parametrize("moves", ["head", "all"])
def test_every_lookahead(lookahead, moves, build):
    settings = {"method": "amal-step", "lookahead": lookahead, "lookahead_params": moves, "meta_start": 2}
    trainer = build(settings, model=planted.make_student(dropout=0.1))
    trainer.train()
    table = trainer.weigher.mixing.table
    assert table.isfinite().all() and not table.eq(1).all()


def test_estimators_of_one_derivative_agree(build):
    """Forward mode, differences and double backward move the weights alike, dropout included."""

    def table(estimator):
        settings = {"method": "amal-step", "lookahead_params": "all", "estimator": estimator, "max_steps": 4}
        trainer = build(settings, model=planted.make_student(dropout=0.2))
        with sdpa_kernel(SDPBackend.MATH):  # a GPU's fused kernels draw other masks
            trainer.train()
        return trainer.weigher.mixing.table

    exact = table("double")
    assert (exact - 1).abs().max() > 1e-2
    assert torch.allclose(table("forward"), exact, atol=1e-4)
    assert torch.allclose(table("difference"), exact, atol=5e-3)


def test_trust_on_the_whole_network(build):
    trainer = build({"method": "trust", "lookahead_params": "all"})
    trainer.train()
    assert trainer.settings.probe_weight == 0
    assert table_of(trainer).std() > 0


@pytest.mark.parametrize("lookahead", ["sgd", "optimizer"])
def test_ones_own_optimizer(lookahead, build, student):
    model = student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    settings = {"method": "amal-step", "lookahead": lookahead}
    trainer = build(settings, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert not trainer.weigher.mixing.table.eq(1).all()


def test_ones_own_adam_with_groups(build, student):
    model = student()
    head, body = model.classifier.parameters(), model.bert.parameters()
    optimizer = torch.optim.AdamW([{"params": head, "lr": 1e-2}, {"params": body, "lr": 1e-3}])
    settings = {"method": "amal-step", "lookahead": "optimizer-exact", "lookahead_params": "all", "meta_start": 2}
    trainer = build(settings, model=model, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.weigher.mixing.table.isfinite().all() and not trainer.weigher.mixing.table.eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"method": "trust", "meta_start": 0}, {"method": "amal-step"}])
def test_student_in_another_precision(settings, dtype, build, student):
    trainer = build(settings, model=student().to(dtype))
    trainer.train()
    assert table_of(trainer).isfinite().all() and table_of(trainer).std() > 0


def test_autocast(build, student):
    for moves in ("head", "all"):
        settings = {"method": "amal-step", "lookahead": "optimizer", "lookahead_params": moves, "bf16": True}
        trainer = build(settings, model=student(dropout=0.1))
        trainer.train()
        assert table_of(trainer).isfinite().all() and table_of(trainer).std() > 0


def test_frozen_body(build, student):
    model = student()
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    before = {k: v.clone() for k, v in model.bert.state_dict().items()}
    trainer = build({"method": "trust"}, model=model)
    trainer.train()
    assert identical(dict(trainer.model.bert.state_dict()), before) == []
    assert table_of(trainer).std() > 0


# ---- equivalent ways to the same run ----

SPLITS = [(16, 1), (4, 4), (2, 8)]
STILL = {"method": "amal-step", "lookahead": "none", "center": False}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "trust"}, id="trust"),
        pytest.param({"method": "shared", "lookahead": "none"}, id="shared"),
        pytest.param(STILL, id="amal-step"),
        pytest.param({**STILL, "mixing_scale": "raw", "mixing_lr": 10.0}, id="amal-step, raw"),
        pytest.param(
            {**STILL, "center": True},
            id="amal-step, centred",
            marks=pytest.mark.xfail(
                raises=AssertionError,
                strict=True,
                reason="centring subtracts the mean of the rows at hand, a micro-batch's",
            ),
        ),
    ],
)
def test_sixteen_rows_at_once_or_in_parts(settings, build, student, rows, losses):
    """In float64, so that Adam has no rounding to blow up where a gradient is zero (BERT's key biases)."""

    def trained(batch, accumulation):
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = build(
            {**settings, **split, "meta_every": 2, "meta_start": 1, "num_train_epochs": 2},
            model=student().double(),
            train_dataset=rows(64, wrong=0.4),
            losses=losses(),
        )
        trainer.train()
        return parameters(trainer) | trainer.weigher.mixing.state() | {"last": table_of(trainer)}

    whole, *parts = (trained(*split) for split in SPLITS)
    # trust sharpens what it computes in float32: exp(τ · a unit vector), products over sources
    tolerance = 1e-5 if settings["method"] == "trust" else 1e-6
    for other in parts:
        assert furthest(whole, other) < tolerance


RESUMED = {
    "trust": {"method": "trust", "meta_every": 3},
    "trust, steps before a lookahead": {"method": "trust", "meta_start": 4},
    "amal-step": {"method": "amal-step"},
    "amal-step, whole network, Adam": {
        "method": "amal-step", "lookahead": "optimizer", "lookahead_params": "all", "estimator": "difference",
        "normalize": "mean",
    },
    "shared": {"method": "shared", "normalize": "mean"},
    "amal": {"method": "amal", "refresh_every": 1, "mixing_lr": 1500.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("which", "stop"),  # an epoch has five steps: stop within the first, at its end, within the second
    [(which, 8) for which in RESUMED]
    + [pytest.param(which, stop, marks=pytest.mark.slow) for which in ("trust", "amal") for stop in (4, 5)],
)
def test_resumed_is_uninterrupted(which, stop, build, rows, losses):
    settings = {**RESUMED[which], "save_strategy": "steps", "save_steps": stop, "num_train_epochs": 3}

    def made():
        train = rows(40, wrong=0.4)
        return build(settings, model=planted.make_student(dropout=0.2), train_dataset=train, losses=losses())

    def ends(trainer):
        return parameters(trainer) | trainer.weigher.state_dict() | {"weights": table_of(trainer)}

    whole = made()
    whole.train()
    resumed = made()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
    assert identical(ends(whole), ends(resumed)) == []
    steps = [[s["step"] for s in t.weigher.history.summaries] for t in (whole, resumed)]
    assert steps[0] == steps[1]


def test_a_plain_checkpoint_continues_with_fresh_weights(build):
    whole = build({"save_strategy": "steps", "save_steps": 4})
    whole.train()
    for ours in ("amal_state.safetensors", "amal_history.json", ".amal_hf.json"):
        (planted.Path(whole.args.output_dir) / "checkpoint-4" / ours).unlink()
    resumed = build()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert resumed.state.global_step == 8


def test_a_checkpoint_of_other_rows_is_refused(build, rows):
    whole = build({"method": "amal-step", "save_strategy": "steps", "save_steps": 4})
    whole.train()
    other = build({"method": "amal-step"}, train_dataset=rows(24))
    with pytest.raises(ValueError, match="`resume_from_checkpoint`"):
        other.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")


def test_rows_come_back_as_arrays(build):
    """`weights` is a plain `datasets.Dataset`: to pandas, numpy, parquet."""
    trainer = build()
    trainer.train()
    assert isinstance(trainer.weights, Dataset)
    assert np.isfinite(trainer.weights.to_pandas()["label"]).all()
