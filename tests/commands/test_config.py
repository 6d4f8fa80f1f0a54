"""CONFIG.yaml and flags: every value is of its field's type, and what is wrong is one line that says what to do."""

from __future__ import annotations

import re

import pytest

from amal_hf.cli import main
from amal_hf.commands._config import read_config

NONSENSE = {
    # what stands in the file: the field that is named
    "classes: air": "classes",
    "classes: {air: 0}": "classes",
    "classes: [1, 2]": "classes",
    "classes: [null]": "classes",
    "num_hidden_layers: -1": "num_hidden_layers",
    "num_hidden_layers: 1e30": "num_hidden_layers",
    "num_train_epochs: -1": "num_train_epochs",
    "num_train_epochs: .inf": "num_train_epochs",
    "eval_steps: 0": "eval_steps",
    "logging_steps: 0": "logging_steps",
    "per_device_train_batch_size: 0": "per_device_train_batch_size",
    "per_device_eval_batch_size: -7": "per_device_eval_batch_size",
    "gradient_accumulation_steps: 0": "gradient_accumulation_steps",
    "max_steps: 1e30": "max_steps",
    "max_steps: 1000000000000000000000000000000": "max_steps",
    "max_steps: 2.5": "max_steps",
    "max_steps: -2": "max_steps",
    "seed: true": "seed",
    "seed: '5'": "seed",
    "seed: 010": "seed",
    "seed: 2020-01-01": "seed",
    "learning_rate: '5e-4'": "learning_rate",
    "learning_rate: .nan": "learning_rate",
    "learning_rate: [1.0]": "learning_rate",
    "learning_rate: -1.0": "learning_rate",
    "center: .nan": "center",
    "log_weights: []": "log_weights",
    "freeze_embeddings: 2": "freeze_embeddings",
    "method: null": "method",
    "method: [trust]": "method",
    "data: [1]": "data",
    "data: 5": "data",
    "votes_column: {a: b}": "votes_column",
    "temperature: [2]": "temperature",
    "eval_strategy: never": "eval_strategy",
    "optim: adamww_torch": "optim",
    "clamp: [0, .inf]": "clamp",
    "mixing_start: [a]": "mixing_start",
    "report_to: 5": "report_to",
    "parallelism_config: x": "parallelism_config",
    "lerning_rate: 1": "lerning_rate",
    "1: 2": "1",
    "null: 2": "None",
    "seed: 1\nseed: 2": "seed",
    "sources: {a: {loss: entropy, loss: entropy}}": "loss",
    "sources: [a]": "sources",
    "sources: {1: {loss: entropy}}": "sources",
    "sources: {null: {loss: entropy}}": "sources",
    "sources: {x: entropy}": "sources.x",
    "sources: {x: {loss: entropie}}": "sources.x.loss",
    "sources: {x: {loss: [entropy]}}": "sources.x.loss",
    "sources: {x: {loss: cross_entropy, colum: a}}": "sources.x.colum",
    "sources: {x: {loss: cross_entropy, column: [a]}}": "sources.x.column",
    "sources: {label: {loss: cross_entropy, column: a}}": "sources.label",
    "votes_column: v\nsources: {rules: {loss: entropy}}": "sources.rules",
    "metric_for_best_model: acuracy": "metric_for_best_model",
    "save_strategy: best": "metric_for_best_model",
    "dataloader_drop_last: true": "dataloader_drop_last",
    "prediction_loss_only: true": "prediction_loss_only",
    "load_best_model_at_end: true": "CONFIG.yaml",
}


@pytest.mark.parametrize("text", NONSENSE)
def test_refused_in_one_line(text, written, tmp_path, capsys):
    assert main(["train", written(f"output_dir: {tmp_path / 'run'}\n{text}")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert re.match(rf"amal-hf train: `{re.escape(NONSENSE[text])}`: expected .*found .*\. ?\S", error), error
    assert re.search(r"(?:[.?] |\. )[A-Z].*[.?)\]']?$", error.strip()), f"not said what to do: {error}"
    assert not (tmp_path / "run").exists()


def test_said_where(written, capsys):
    path = written("data: x\n\nseed: two\n")
    assert main(["train", path]) == 2
    assert f"{path}, line 3" in capsys.readouterr().err


SUGGESTED = {
    ("lerning_rate: 1", ()): "Did you mean `learning_rate`?",
    ("classes: air", ()): "Did you mean [air]?",
    ("seed: '5'", ()): "Did you mean 5, without quotes?",
    ("seed: 5.0", ()): "Did you mean 5?",
    ("classes: [1, two]", ()): "Write every word in quotes.",
    ("optim: adamw", ()): "Did you mean `adamw_torch`?",
    ("sources: {x: {loss: cross_entropi}}", ()): "Did you mean `cross_entropy`?",
    ("", ("--learning_rat", "3")): "Did you mean `--learning_rate`?",
}


@pytest.mark.parametrize("text, flags", SUGGESTED, ids=str)
def test_what_was_meant(text, flags, written, capsys):
    assert main(["train", written(text), *flags]) == 2
    assert SUGGESTED[text, flags] in capsys.readouterr().err


FLAGS = {
    ("--learning_rate", "abc"): "learning_rate",
    ("--learning_rate",): "learning_rate",
    ("--learning_rate", "nan"): "learning_rate",
    ("--max_steps", "1e30"): "max_steps",
    ("--max_steps", "2.5"): "max_steps",
    ("--fp16", "maybe"): "fp16",
    ("--classes",): "classes",
    ("--learn", "3"): "--learn",
    ("--config",): "config",
    ("stray.yaml", "another.yaml"): "another.yaml",
    ("--seed", "[1]"): "seed",
}


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_flags_are_refused_in_one_line(flags, written, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stray.yaml").write_text("")
    assert main(["train", *flags]) == 2
    error = capsys.readouterr().err
    assert f"`{FLAGS[flags]}`" in error and error.count("\n") == 1 and len(error) < 400


@pytest.mark.parametrize("command", ["demo", "label", "teach"])
def test_other_commands_know_their_flags(command, capsys):
    assert main([command, "--sed", "3"]) == 2
    error = capsys.readouterr().err
    assert "`--sed`" in error and error.count("\n") == 1


def test_words_stay_words_and_numbers_numbers(written):
    data, args, _ = read_config(
        [
            written(
                "learning_rate: 5e-4\nclasses: [no, yes, 007, 2020-01-01]\neval_strategy: no\nfreeze_embeddings: yes\n"
            )
        ]
    )
    assert args.learning_rate == 5e-4
    assert data.classes == ["no", "yes", "007", "2020-01-01"]
    assert args.eval_strategy == "no" and data.freeze_embeddings is True


@pytest.mark.parametrize("form", [("{}",), ("--config", "{}"), ("--config={}",)], ids=["place", "flag", "equals"])
def test_the_file_is_named_in_either_way(form, written):
    path = written("data: x\nseed: 4\n")
    data, args, _ = read_config([each.format(path) for each in form] + ["--seed", "5", "--classes", "1", "two"])
    assert (data.data, args.seed, data.classes) == ("x", 5, ["1", "two"])


def test_one_file_only(written):
    path = written("data: x\n")
    with pytest.raises(ValueError, match="one file, found 2"):
        read_config([path, "--config", path])


def test_a_file_in_another_encoding(tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes("classes: [é]".encode("latin-1"))
    assert main(["train", str(tmp_path / "config.yaml")]) == 2
    assert "`CONFIG.yaml`" in capsys.readouterr().err
