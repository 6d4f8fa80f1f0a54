"""What is wrong is said at the door: the argument in backticks, before a step is taken, and never a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
import yaml
from datasets import DatasetDict
from planted import make_losses, make_rows, make_student
from transformers import TrainingArguments

from amal_hf import AMALConfig, AMALTrainer, CrossEntropy, Distillation, LabelingFunctions
from amal_hf.cli import main
from amal_hf.commands._config import read_config
from amal_hf.commands.train import DataConfig, divide, load_student, source_losses
from amal_hf.data.classes import name_classes
from amal_hf.data.load import load_splits
from amal_hf.data.split import hold_out
from amal_hf.losses import LossStack
from amal_hf.mixing import Shared


def changed(column: str, values: Any, seed: int = 0) -> Any:
    return make_rows(16, seed).remove_columns(column).add_column(column, values)


def frozen() -> Any:
    model = make_student()
    model.classifier.requires_grad_(False)
    return model


VOTES = make_losses("label", "rules")
GIVEN: dict[str, Any] = {
    "losses": make_losses("label"),
    "train_dataset": make_rows(8),
    "clean_dataset": make_rows(9, 1),
}
LABELS = [i % 3 for i in range(16)]

# what is wrong: (argument named in the message, what was done)
AT_CONSTRUCTION: dict[str, tuple[str, Callable[[Any], Any]]] = {
    # -- data --
    "no rows": ("train_dataset", lambda b: b(train_dataset=make_rows(8).select([]))),
    "no training set": ("train_dataset", lambda b: b(train_dataset=None)),
    "missing column": ("train_dataset", lambda b: b(train_dataset=make_rows(8).remove_columns("teacher_logits"))),
    "labels that name no class": ("classes", lambda b: b(train_dataset=changed("label", ["weather"] * 16))),
    "label outside the classes": ("train_dataset", lambda b: b(train_dataset=changed("label", [*LABELS[1:], 3]))),
    "negative label": ("train_dataset", lambda b: b(train_dataset=changed("label", [*LABELS[1:], -2]))),
    "teacher of other classes": (
        "train_dataset",
        lambda b: b(train_dataset=changed("teacher_logits", [[0.0, 1.0]] * 16)),
    ),
    "votes of several lengths": (
        "train_dataset",
        lambda b: b(losses=VOTES, train_dataset=changed("weak_labels", [[0, 1]] * 15 + [[0]])),
    ),
    "vote for no class": (
        "weak_labels",
        lambda b: b(losses=VOTES, train_dataset=changed("weak_labels", [[0, 1, 3]] * 16)),
    ),
    "vote below abstaining": (
        "weak_labels",
        lambda b: b(losses=VOTES, train_dataset=changed("weak_labels", [[0, 1, -2]] * 16)),
    ),
    "row ids twice": (
        "train_dataset",
        lambda b: b(train_dataset=make_rows(16).add_column("row_id", [0, 0, *range(14)])),
    ),
    "row ids that are words": (
        "train_dataset",
        lambda b: b(train_dataset=make_rows(3).add_column("row_id", ["a", "b", "c"])),
    ),
    "neither tokens nor text": ("text_columns", lambda b: b(train_dataset=make_rows(8).remove_columns("input_ids"))),
    "text without a tokenizer": (
        "text_columns",
        lambda b: b(train_dataset=make_rows(8, tokens=False), processing_class=None),
    ),
    "stream with a table": (
        "train_dataset",
        lambda b: b({"method": "amal-step", "max_steps": 2}, train_dataset=make_rows(8).to_iterable_dataset()),
    ),
    "no clean rows": ("clean_dataset", lambda b: b(clean_dataset=None)),
    "empty clean rows": ("clean_dataset", lambda b: b(clean_dataset=make_rows(8).select([]))),
    "clean rows without a class": ("clean_dataset", lambda b: b(clean_dataset=make_rows(8, 1).remove_columns("label"))),
    "clean rows, one without a class": (
        "clean_dataset",
        lambda b: b(clean_dataset=changed("label", [None, *LABELS[1:]], seed=1)),
    ),
    "clean rows of other classes": (
        "clean_dataset",
        lambda b: b(clean_dataset=changed("label", [7, *LABELS[1:]], seed=1)),
    ),
    "clean rows also trained on": (
        "clean_dataset",
        lambda b: b({"strict": True}, train_dataset=make_rows(8), clean_dataset=make_rows(12)),
    ),
    "evaluation rows also trained on": (
        "eval_dataset",
        lambda b: b({"strict": True}, train_dataset=make_rows(8), eval_dataset={"near": make_rows(8)}),
    ),
    "a dictionary of splits to train on": ("train_dataset", lambda b: b(train_dataset=DatasetDict(train=make_rows(8)))),
    "a list to train on": ("train_dataset", lambda b: b(train_dataset=make_rows(8).to_list())),
    "two columns of labels": ("train_dataset", lambda b: b(train_dataset=make_rows(9).add_column("labels", [0] * 9))),
    "a column without any value": ("train_dataset", lambda b: b(train_dataset=changed("teacher_logits", [None] * 16))),
    "a teacher of words": ("train_dataset", lambda b: b(train_dataset=changed("teacher_logits", [["a"] * 3] * 16))),
    "a teacher of single numbers": ("train_dataset", lambda b: b(train_dataset=changed("teacher_logits", [0.5] * 16))),
    "a teacher beyond numbers": (
        "train_dataset",
        lambda b: b(train_dataset=changed("teacher_logits", [[float("inf"), 0.0, 0.0]] * 16)),
    ),
    "probabilities that are none": (
        "train_dataset",
        lambda b: b(losses={"teacher": Distillation("teacher_logits", probabilities=True)}),
    ),
    "a single vote for a list": (
        "train_dataset",
        lambda b: b(losses=VOTES, train_dataset=changed("weak_labels", [1] * 16)),
    ),
    "votes that are no whole numbers": (
        "train_dataset",
        lambda b: b(losses=VOTES, train_dataset=changed("weak_labels", [[0.5, 1.0, -1.0]] * 16)),
    ),
    "votes that are not there": (
        "train_dataset",
        lambda b: b(losses=VOTES, train_dataset=make_rows(16).remove_columns("weak_labels")),
    ),
    "row ids that are missing": (
        "train_dataset",
        lambda b: b(train_dataset=make_rows(3).add_column("row_id", [0, None, 2])),
    ),
    "a dictionary of clean splits": ("clean_dataset", lambda b: b(clean_dataset=DatasetDict(train=make_rows(9, 1)))),
    "a list of clean rows": ("clean_dataset", lambda b: b(clean_dataset=make_rows(9, 1).to_list())),
    "a stream of clean rows": ("clean_dataset", lambda b: b(clean_dataset=make_rows(9, 1).to_iterable_dataset())),
    "clean rows without text": ("text_columns", lambda b: b(clean_dataset=make_rows(9, 1).remove_columns("input_ids"))),
    "clean rows that name no class": ("classes", lambda b: b(clean_dataset=changed("label", ["weather"] * 16, seed=1))),
    "evaluation rows in a list": ("eval_dataset", lambda b: b(eval_dataset=make_rows(9, 2).to_list())),
    "evaluation rows of other classes": (
        "eval_dataset",
        lambda b: b(eval_dataset=changed("label", [7, *LABELS[1:]], seed=2)),
    ),
    "one of several evaluation sets of other classes": (
        "eval_dataset['far']",
        lambda b: b(eval_dataset={"near": make_rows(9, 2), "far": changed("label", [7, *LABELS[1:]], seed=2)}),
    ),
    "evaluation rows without text": (
        "text_columns",
        lambda b: b(eval_dataset=make_rows(9, 2).remove_columns("input_ids")),
    ),
    # -- the trainer's other arguments --
    "settings of a plain trainer": ("args", lambda b: AMALTrainer(make_student(), TrainingArguments(), **GIVEN)),
    "settings as a dictionary": ("args", lambda b: AMALTrainer(make_student(), {"method": "trust"}, **GIVEN)),
    "no model": ("model", lambda b: b(model=None)),
    "a model by its name": ("model", lambda b: b(model="bert-base-uncased")),
    "a model without classes": ("model", lambda b: b(model=torch.nn.Linear(2, 3))),
    "a mixing by its name": ("mixing", lambda b: b(mixing="trust")),
    "the class of a mixing": ("mixing", lambda b: b(mixing=Shared)),
    "a file for a folder": ("output_dir", lambda b: b(folder=Path(__file__))),
    "a folder in a file": ("output_dir", lambda b: b(folder=Path(__file__) / "run")),
    "a folder where none can be": ("output_dir", lambda b: b(folder=Path("/proc/run"))),
    # -- sources --
    "a list of losses": ("losses", lambda b: b(losses=[CrossEntropy()])),
    "the name of a loss": ("losses", lambda b: b(losses={"label": "cross_entropy"})),
    "the class of a loss": ("losses", lambda b: b(losses={"label": CrossEntropy})),
    "a source called as the rows are": ("losses", lambda b: b(losses={"row_id": CrossEntropy()})),
    "functions of one name": ("losses", lambda b: b(losses={"r": LabelingFunctions(names=("a", "a", "b"))})),
    "weights of too few classes": (
        "class_weights",
        lambda b: b(losses={"label": CrossEntropy(class_weights=(1.0, 2.0))}),
    ),
    "no sources": ("losses", lambda b: b(losses={})),
    "temperature zero": ("temperature", lambda b: Distillation(temperature=0.0)),
    "unknown kind of distillation": ("kind", lambda b: Distillation(kind="cosine")),
    "mse of probabilities": ("kind", lambda b: Distillation(kind="mse", probabilities=True)),
    "smoothing of one": ("label_smoothing", lambda b: CrossEntropy(label_smoothing=1.0)),
    "negative class weight": ("class_weights", lambda b: CrossEntropy(class_weights=(1.0, -1.0))),
    "too few names": (
        "names",
        lambda b: LossStack({"r": LabelingFunctions(names=("only",))}, {"weak_labels": [0, 1, 2]}),
    ),
    # -- settings --
    "unknown method": ("method", lambda b: b({"method": "magic"})),
    "unknown mixing": ("mixing", lambda b: b({"mixing": "blend"})),
    "unknown constraint": ("constraint", lambda b: b({"constraint": "ball"})),
    "unknown estimator": ("estimator", lambda b: b({"estimator": "guess"})),
    "unknown lookahead": ("lookahead", lambda b: b({"lookahead": "lion"})),
    "unknown normalization": ("normalize", lambda b: b({"normalize": "max"})),
    "starts of another number": ("mixing_start", lambda b: b({"mixing_start": [1.0, 0.5, 0.5]})),
    "step of zero": ("mixing_lr", lambda b: b({"mixing_lr": 0.0})),
    "step not a number": ("mixing_lr", lambda b: b({"mixing_lr": float("nan")})),
    "never a lookahead": ("meta_every", lambda b: b({"meta_every": 0})),
    "start before the start": ("meta_start", lambda b: b({"meta_start": -1})),
    "no clean rows a lookahead": ("meta_batch_size", lambda b: b({"meta_batch_size": 0})),
    "clamp the wrong way": ("clamp", lambda b: b({"clamp": [1.0, 0.0]})),
    "clamp of one": ("clamp", lambda b: b({"clamp": [1.0]})),
    "probe above one": ("probe_weight", lambda b: b({"probe_weight": 1.5})),
    "probe on the whole network": ("probe_weight", lambda b: b({"lookahead_params": "all", "probe_weight": 0.5})),
    "head estimator on the whole network": ("estimator", lambda b: b({"lookahead_params": "all", "estimator": "head"})),
    "network estimator on the head": ("estimator", lambda b: b({"estimator": "forward"})),
    "epochs of refresh on the whole network": ("refresh", lambda b: b({"method": "amal", "lookahead_params": "all"})),
    "epochs of refresh without a table": ("refresh", lambda b: b({"method": "trust", "refresh": "epoch"})),
    "steps between lookaheads in words": ("meta_every", lambda b: b({"meta_every": "often"})),
    "half a step between lookaheads": ("meta_every", lambda b: b({"meta_every": 2.5})),
    "half a clean row": ("meta_batch_size", lambda b: b({"meta_batch_size": 0.5})),
    "no repetition": ("refresh_repeats", lambda b: b({"method": "amal", "refresh_repeats": 0})),
    "no tokens": ("max_length", lambda b: b({"max_length": 0})),
    "a step in words": ("mixing_lr", lambda b: b({"mixing_lr": "small"})),
    "a probe in words": ("probe_weight", lambda b: b({"probe_weight": "half"})),
    "a start in words": ("mixing_start", lambda b: b({"mixing_start": ["a"]})),
    "a start below nothing": ("mixing_start", lambda b: b({"mixing_start": [1.0, -0.5]})),
    "a start that is no number": ("mixing_start", lambda b: b({"mixing_start": [float("nan")]})),
    "a clamp in words": ("clamp", lambda b: b({"method": "amal-step", "clamp": ["a", "b"]})),
    "a column for columns": ("text_columns", lambda b: b({"text_columns": "text"})),
    "a list for a method": ("method", lambda b: b({"method": ["trust"]})),
    "several estimators": ("estimator", lambda b: b({"estimator": ["head"]})),
    # -- loading --
    "hold out of single rows": ("clean_rows", lambda b: hold_out(make_rows(3), 9, seed=0)),
    "hold out less than nothing": ("clean_rows", lambda b: DataConfig(clean_rows=-7)),
    "label among no classes": (
        "classes",
        lambda b: name_classes(DatasetDict(train=changed("label", ["fire"] * 16)), "label", planted.NAMES),
    ),
    "no such split": (
        "clean_split",
        lambda b: divide(DatasetDict(train=make_rows(99)), DataConfig(clean_split="clean"), seed=0),
    ),
    "no label column": (
        "label_column",
        lambda b: divide(DatasetDict(train=make_rows(99).remove_columns("label")), DataConfig(), seed=0),
    ),
    "unknown loss": ("sources.x.loss", lambda b: source_losses(DataConfig(), {"x": {"loss": "hinge"}})),
    "unknown argument of a loss": (
        "sources.x",
        lambda b: source_losses(DataConfig(), {"x": {"loss": "cross_entropy", "colour": 1}}),
    ),
    "a loss that is no mapping": ("sources.x", lambda b: source_losses(DataConfig(), {"x": "cross_entropy"})),
    "nothing that says anything": ("sources", lambda b: source_losses(DataConfig(train_on_labels=False))),
}


WHAT_IS_EXPECTED_IS_TO_BE_DONE = {
    "smoothing of one", "negative class weight", "too few names", "clamp the wrong way", "clamp of one",
    "epochs of refresh without a table", "hold out of single rows",
    "a loss that is no mapping",
}  # fmt: skip
IN_OTHER_WORDS = {"mse of probabilities", "unknown argument of a loss"}


@pytest.mark.parametrize("case", AT_CONSTRUCTION)
def test_refused_at_the_door(case, build, tmp_path):
    """One line: the argument, what was expected, what was found, what to do. And no run folder."""
    argument, wrong = AT_CONSTRUCTION[case]
    with pytest.raises((ValueError, OSError)) as error:
        wrong(build)
    message = str(error.value)
    assert f"`{argument}`" in message
    told = {"expected": ("expected", "reads", "works", "closed form"), "found": ("found", "missing")}
    for what, words in told.items() if case not in IN_OTHER_WORDS else ():
        assert any(word in message for word in words), f"not said what was {what}: {message}"
    assert case in WHAT_IS_EXPECTED_IS_TO_BE_DONE or re.search(r"[.:)] [A-Z][^.]*\.?", message), (
        f"not said what to do: {message}"
    )
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_there_are_enough_of_them():
    assert len(AT_CONSTRUCTION) >= 100


AT_THE_FIRST_STEP = {
    "frozen head": ("lookahead_params", {"method": "trust"}, frozen, "adamw_torch"),
    "lookahead of another optimizer": ("lookahead", {"lookahead": "optimizer"}, make_student, "rmsprop"),
    "function that averages": ("losses", {"method": "trust"}, make_student, "adamw_torch"),
}


@pytest.mark.parametrize("case", AT_THE_FIRST_STEP)
def test_refused_before_anything_moved(case, build):
    """What only the model or the optimizer in training can tell."""
    argument, settings, model, optim = AT_THE_FIRST_STEP[case]
    losses = make_losses("label", "teacher")
    if argument == "losses":
        losses["mean"] = lambda outputs, batch: outputs.logits.mean()
    trainer = build({**settings, "optim": optim, "meta_start": 0}, model=model(), losses=losses)
    before = planted.parameters(trainer)
    with pytest.raises(ValueError, match=f"`{argument}`"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert planted.identical(planted.parameters(trainer), before) == []


def test_no_path_is_taken_for_a_name_on_the_hub(tmp_path):
    for missing in (str(tmp_path / "nothing"), "./nothing", "nothing.jsonl", "nothing.csv.gz"):
        with pytest.raises(FileNotFoundError, match="`data`"):
            load_splits(missing)


def test_folders_and_files_that_hold_no_rows(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    for useless in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="`data`"):
            load_splits(str(useless))


def test_overlap_is_a_warning_unless_strict(build):
    with pytest.warns(UserWarning, match="8 of clean's rows also stand in train"):
        build(train_dataset=make_rows(8), clean_dataset=make_rows(8))


# ---- the command line ----


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with `train.jsonl` and a student beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = make_rows(60, tokens=False).remove_columns(["truth"])
    with (folder / "train.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    make_student().save_pretrained(folder / "student")
    planted.make_tokenizer().save_pretrained(folder / "student")
    return folder


BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "method": {"method": "magic"},
    "estimator": {"estimator": "guess"},
    "temperature": {"teacher_columns": ["teacher_logits"], "temperature": 0},
    "train_dataset": {"teacher_columns": ["no_such_column"]},
    "clean_split": {"clean_split": "clean"},
    "clean_rows": {"clean_rows": -60},
    "classes": {"classes": ["air", "sea"]},
    "sources.x.loss": {"sources": {"x": {"loss": "hinge"}}},
    "sources.x.colour": {"sources": {"x": {"loss": "entropy", "colour": 1}}},
    "learning_rat": {"learning_rat": 1e-3},
    "mixing_start": {"mixing_start": [1.0, 0.5, 0.2, 0.1]},
    "data": {"data": "./no/such/folder"},
    "model": {"model": "no/such-model"},
}


def refused(argv, capsys):
    """Exit status 2 and one line on stderr (beside progress bars); returns that line."""
    status = main(argv)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.strip() and "it/s" not in line and "examples" not in line]
    assert status == 2
    assert "Traceback" not in error
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize("argument", BAD_SETTINGS)
def test_train_refuses_in_one_line(argument, corpus, tmp_path, capsys):
    good = {"data": str(corpus), "model": str(corpus / "student"), "output_dir": str(tmp_path / "run")}
    good |= {"clean_rows": 4, "selection_rows": 4, "report_to": "none"}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**good, **BAD_SETTINGS[argument]}))
    line = refused(["train", str(config)], capsys)
    assert line.startswith("amal-hf train: ") and f"`{argument}`" in line
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_train_refuses_votes_for_no_class(corpus, tmp_path, capsys):
    """Votes for class 3 where three classes are known; rows without votes are no error."""
    rows = [{"text": f"w{i}", "label": i % 3, "weak_labels": None if i == 1 else [i % 4, -1]} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = refused(
        ["train", "--data", str(tmp_path), "--model", str(corpus / "student"), "--votes_column", "weak_labels",
         "--clean_rows", "2", "--selection_rows", "2", "--output_dir", str(tmp_path / "run")], capsys
    )  # fmt: skip
    assert "`weak_labels" in line


@pytest.mark.parametrize(
    "text",
    ["method: [trust", "- a\n- list\n", "just a sentence", "a: b: c"],
    ids=["unclosed", "list", "sentence", "colons"],
)
def test_what_is_no_configuration(text, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert "`CONFIG.yaml`" in refused(["train", str(config)], capsys)


def test_missing_files_and_unknown_flags(tmp_path, capsys):
    assert "`CONFIG.yaml`" in refused(["train", str(tmp_path / "none.yaml")], capsys)
    assert "`RUN_DIR`" in refused(["report"], capsys)
    assert "--colour" in refused(["train", "--colour", "red"], capsys)
    assert refused(["report", str(tmp_path / "no_run")], capsys)


def test_unknown_command_shows_the_known_ones(capsys):
    assert main(["tarin"]) == 2
    assert "'tarin'" in (error := capsys.readouterr().err) and "train CONFIG.yaml" in error
    assert main(["--help"]) == 0


def test_flags_win_over_the_file(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("data: x\nlearning_rate: 1e-3\nmixing_start: [0.3, 0.7]\nsources: {a: {loss: entropy}}\n")
    data, args, sources = read_config([str(config), "--learning_rate", "5e-4", "--report_to", "none"])
    assert isinstance(args, AMALConfig)
    assert (data.data, args.learning_rate, args.mixing_start) == ("x", 5e-4, [0.3, 0.7])
    assert sources == {"a": {"loss": "entropy"}}


def test_a_student_of_other_classes_gets_a_fresh_head(corpus):
    assert load_student(str(corpus / "student"), ["a", "b"]).classifier.out_features == 2


def test_a_good_configuration_runs(corpus, tmp_path, capsys):
    """The refusals above are not for want of anything else."""
    config = tmp_path / "config.yaml"
    settings = {
        "data": str(corpus), "model": str(corpus / "student"), "output_dir": str(tmp_path / "run"),
        "votes_column": "weak_labels", "teacher_columns": ["teacher_logits"], "clean_rows": 4, "selection_rows": 4,
        "max_steps": 2, "report_to": "none", "use_cpu": True, "classes": planted.NAMES,
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    assert main(["train", str(config), "--logging_steps", "1"]) == 0
    assert "selection" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    assert torch.isfinite(
        torch.tensor(json.loads((tmp_path / "run" / "metrics.json").read_text())["selection"]["loss"])
    )
