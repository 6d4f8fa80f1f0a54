"""Help comes at once and lists everything; versions and typing errors are answered."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import amal_hf
from amal_hf.cli import ABOUT, main

HEAVY = ("torch", "transformers", "datasets", "numpy", "pandas")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["tarin"], ["report", "--help"], ["denoise", "--help"]])
def test_answers_without_a_model_library(argv):
    code = f"import sys; from amal_hf.cli import main; main({argv!r})"
    code += f"; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_less_than_a_second_of_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "amal_hf", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("command", ABOUT)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: amal-hf {command}")
    assert max(map(len, out.splitlines())) <= 300


def test_help_of_train_is_in_groups(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--help-all"]) == 0
    everything = capsys.readouterr().out
    for title in ("Data", "Sources", "Models", "Method", "Training"):
        assert f"\n{title}" in short and f"\n{title}" in everything
    assert "--adam_beta1" not in short and "--adam_beta1" in everything
    assert short.count("\n") < 150


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["amal-hf", amal_hf.__version__]


def test_the_nearest_command(capsys):
    assert main(["tarin"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean `amal-hf train" in error and error.count("\n") == 1


def test_the_package_gives_every_name_it_lists():
    assert {name for name in amal_hf.__all__ if not hasattr(amal_hf, name)} == set()
    assert {*amal_hf.__all__} <= {*dir(amal_hf)}
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = amal_hf.nothing_such
