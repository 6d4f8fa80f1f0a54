"""How a run ends: signals with a word, readers that go, streams without letters, errors of libraries in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amal_hf.cli import main

RUN = [sys.executable, "-m", "amal_hf"]


@pytest.mark.parametrize(
    "sent, status",
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_a_signal_says_which_checkpoint_is_whole(sent, status, good, written):
    given = {**good, "max_steps": 5000, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # a shell's background jobs ignore it
    run = subprocess.Popen(
        [*RUN, "train", written(given)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    deadline = time.monotonic() + 120
    while not [*Path(good["output_dir"]).glob("checkpoint-*")]:
        assert run.poll() is None and time.monotonic() < deadline, run.stderr.read()
        time.sleep(0.1)
    run.send_signal(sent)
    _, error = run.communicate(timeout=60)
    assert run.returncode == status
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert "stopped." in last and "--resume_from_checkpoint true" in last
    named = Path(last.split("'")[1])
    assert (named / "trainer_state.json").is_file() and (named / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_reader_that_goes_ends_no_training(good, written):
    """`amal-hf train ... 2>&1 | head -c 1`."""
    given = {**good, "logging_steps": 1, "disable_tqdm": False}
    reads, writes = os.pipe()
    run = subprocess.Popen([*RUN, "train", written(given)], stdout=writes, stderr=writes)
    os.close(writes)
    os.read(reads, 1)
    os.close(reads)
    assert run.wait(timeout=120) == 0
    assert (Path(good["output_dir"]) / "report.html").is_file()


def test_help_into_a_reader_that_goes():
    done = subprocess.run(f"{sys.executable} -m amal_hf --help | head -c 1", shell=True, capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.slow
def test_a_class_that_the_terminal_has_no_letters_for(good, written, tmp_path):
    names = ["é", "海", "land"]
    rows = [f'{{"text": "w{i}", "label": "{names[i % 3]}"}}' for i in range(45)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    given = {k: v for k, v in good.items() if k not in ("votes_column", "teacher_columns", "clean_split")}
    given |= {"data": str(tmp_path / "train.jsonl"), "classes": names, "clean_rows": 12, "max_steps": 2}
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*RUN, "train", written(given)], env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout


def test_what_a_good_run_says(good, written):
    """No report of weights, no pin_memory, no line of code, nothing twice; and a last block that can be followed."""
    done = subprocess.run([*RUN, "train", written({**good, "num_hidden_layers": 1})], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for noise in ("UNEXPECTED", "MISSING", "pin_memory", "warnings.warn", "site-packages"):
        assert noise not in done.stderr + done.stdout
    said = [line for line in done.stderr.splitlines() if line.strip() and "it/s" not in line and "examples" not in line]
    assert len(said) == len({*said}), said
    for wanted in ("look wrong", "of 12 rows", "amal-hf denoise", "amal-hf report", "pipeline(", "report.html"):
        assert wanted in done.stdout


def test_the_three_lines_load_the_model(good, written, capsys):
    assert main(["train", written(good)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line == "the model")
    place: dict = {}
    exec(
        "\n".join(line.strip() for line in lines[start + 1 : start + 4]).replace("classify(", "said = classify("), place
    )
    assert place["said"][0]["label"] in good["classes"]


def raising(error: BaseException):
    def read(*_, **__):
        raise error

    return read


@pytest.mark.parametrize("error", [ImportError("no torchao"), RuntimeError("out of memory"), MemoryError()], ids=repr)
def test_errors_of_libraries_are_one_line(error, good, written, monkeypatch, capsys):
    monkeypatch.setattr("amal_hf.commands.train.train_run", raising(error))
    assert main(["train", written(good)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("amal-hf train: ")


def test_an_error_of_ours_keeps_its_traceback(good, written, monkeypatch):
    monkeypatch.setattr("amal_hf.commands.train.train_run", raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        main(["train", written(good)])


def test_the_cause_behind_an_error_of_datasets(good, written, tmp_path, capsys):
    (tmp_path / "train.csv").write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    assert main(["train", written({**good, "data": str(tmp_path / "train.csv")})]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "`data`" in last and "utf" in last.lower(), last


@pytest.mark.parametrize("part", ["config", "weights"])
def test_a_model_folder_whose_parts_do_not_belong_together(part, good, place, tmp_path, written, capsys):
    shutil.copytree(place / "student", tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    changed = {"config": {"intermediate_size": 64}, "weights": {"num_hidden_layers": 3}}[part]
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    assert main(["train", written({**good, "model": str(tmp_path / "student")})]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "`model`" in last and "belong together" in last
