"""`examples/benchmarks/overhead.py`: rows that claim a meta-gradient compute it; every row runs; tables stay small."""

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from amal_hf.metagrad import DoubleBackward, MetaProblem, PureModel, RNGState, find_head, trainable

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmarks" / "overhead.py"
TOLERANCE = {"difference": 2e-3, "Betty": 2e-2}  # of float32 outputs, and of float32 losses at Betty's own radius
PACKAGES = {"TorchOpt": "torchopt", "Betty": "betty"}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


@pytest.fixture
def steps(module, monkeypatch):
    """The rows, on a network whose rows differ from the start."""
    found = module("_overhead_steps")
    monkeypatch.setitem(found.TINY, "initializer_range", 0.3)
    return found


def asked_by(steps, name, clean=8):
    """∂V/∂λ `[N, K]` that a row's step computes on the first batch, the same one for every row."""
    stepper = steps.Stepper(steps.Scene("tiny", 16, batch=8, clean=clean), name, seed=3)
    torch.manual_seed(5)  # dropout
    if stepper.row.rival:
        stepper.step()
        return stepper.trainer.asked
    seen = []
    stepper.trainer.weigher.mixing.update = lambda rows, gradient: seen.append(gradient)
    stepper.step()
    return seen[0]


def by_definition(steps, head_only, clean):
    """The double backward on the same batch, dropout included; V on the first `clean` clean rows."""
    scene = steps.Scene("tiny", 16, batch=8, clean=clean)
    stepper = steps.Stepper(scene, "forward, meta 1", seed=3)
    trainer, model, batch = stepper.trainer, stepper.model, stepper.batch
    rows = trainer.data_collator([trainer.clean_dataset[i] for i in range(clean)])
    params = trainable(model)
    if head_only:
        head = find_head(model, steps.model_inputs(batch)).params()
        params = {name: p for name, p in params.items() if name in head}
    model.train()
    torch.manual_seed(5)
    student = PureModel(model, steps.model_inputs(batch), training=True, noise=RNGState(torch.device("cpu")))
    judge = PureModel(model, steps.model_inputs(rows), training=False)
    return DoubleBackward()(
        MetaProblem(
            params=params,
            weights=torch.zeros(8, 2),
            losses=lambda given: trainer.stack(student(given), batch),
            val_loss=lambda given: F.cross_entropy(judge(given).logits, rows["labels"]),
            lr=1.0,
        )
    )


ASKING = [
    "head, meta 1", "forward, meta 1", "difference, meta 1", "double backward, meta 1", "TorchOpt, meta 1",
    "Betty, meta 1", "forward, meta 1/2", "double backward, meta 1/2",
]  # fmt: skip


@pytest.mark.parametrize("name", ASKING)
def test_rows_that_claim_a_meta_gradient_compute_it(name, steps):
    method, share = name.split(", meta ")
    if method in PACKAGES and importlib.util.find_spec(PACKAGES[method]) is None:
        pytest.skip(f"{method} is not installed")
    clean = 8 if share == "1" else 4
    expected = by_definition(steps, steps.ROWS[name].derivative == "head", clean)
    found = asked_by(steps, name, clean)
    assert found.shape == (8, 2) and expected.abs().max() > 0
    assert (found - expected).norm() / expected.norm() <= TOLERANCE.get(method, 1e-4)


def test_every_row_that_asks_claims_what_it_asks(steps):
    """None stands in the table without the check above."""
    claimed = {name.split(",")[0] for name, row in steps.ROWS.items() if row.derivative}
    assert claimed == {name.split(",")[0] for name in ASKING}


def test_head_and_network_are_different_derivatives(steps):
    """Else the comparison above could not tell them apart."""
    head, network = (by_definition(steps, head_only, 8) for head_only in (True, False))
    assert (head - network).norm() / network.norm() > 0.05


def test_a_plain_step_by_hand_is_the_trainers(steps, monkeypatch):
    """`Stepper.step` does what `Trainer.train` does: the same parameters after two steps."""
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        monkeypatch.setitem(steps.TINY, dropout, 0.0)
    scene, settings = steps.Scene("tiny", 16, batch=8), {"learning_rate": 0.1, "optim": "sgd"}  # Adam blows up rounding
    settings["lr_scheduler_type"] = "constant"
    stepper, theirs = steps.Stepper(scene, "plain", **settings), steps.Stepper(scene, "plain", max_steps=2, **settings)
    start = [p.detach().clone() for p in stepper.model.parameters()]
    theirs.trainer.train_dataset = theirs.trainer.train_dataset.select(range(8))
    theirs.trainer.train()
    stepper.step()
    stepper.step()
    pairs = zip(start, stepper.model.parameters(), theirs.model.parameters(), strict=True)
    apart, moved = zip(*(((a - b).abs().max(), (a - before).abs().max()) for before, a, b in pairs), strict=True)
    assert max(apart) <= 1e-6 and max(moved) > 1e-2


def test_denoise_steps_with_the_sources_it_adds(steps):
    stepper = steps.Stepper(steps.Scene("tiny", 16, batch=8), "denoise")
    before = [p.detach().clone() for p in stepper.model.parameters()]
    stepper.step()
    assert stepper.trainer.stack.names == (*(f"rules/{i}" for i in range(10)), "probe", "clean")
    assert not all(map(torch.equal, before, stepper.model.parameters()))


def test_counts_of_forwards(steps):
    rows = steps.ROWS
    assert rows["difference, meta 1/2"].forwards(1) / 3 == pytest.approx(2.17, abs=0.01)
    assert rows["forward, meta 1/2"].forwards(1) / 3 == 2.5
    assert rows["denoise"].forwards(0) == 3
    assert rows["plain"].forwards(0) == 3
    assert rows["trust"].forwards(5) == pytest.approx(3.4)


def test_ratios_are_of_each_repeat(module):
    overhead = module("overhead")
    took = {"plain": [1.0, 2.0], "due": [3.0, 4.0], "between": [1.0, 3.0]}
    assert overhead.ratios({"seconds": took}, 1) == [3.0, 2.0]
    assert overhead.ratios({"seconds": took}, 5) == pytest.approx([(3 + 4) / 5, (4 + 12) / 5 / 2])
    assert overhead.ratios({"seconds": {"plain": [2.0], "due": [3.0]}}, 0) == [1.5]


def test_report_says_what_is_missed(module):
    overhead = module("overhead")
    scene = vars(module("_overhead_steps").Scene("tiny", 16))
    cells = [{"row": "plain", "scene": scene, "device": "CPU", "memory": {"all": 100.0, "above": 50.0}}]
    for name, due, room in (("forward, meta 1/2", 3.0, 150.0), ("double backward, meta 1/2", 12.0, 400.0)):
        took = {"plain": [1.0] * 3, "due": [due] * 3, "between": [1.0] * 3}
        cells.append({**cells[0], "row": name, "seconds": took, "memory": {"all": room, "above": room - 50}})
    cells.append({**cells[0], "row": "Betty, meta 1", "seconds": {"error": "ModuleNotFoundError: No module"}})
    text = overhead.report(cells)
    assert "| forward, meta 1/2 | 1 | 3.00 | 3.00–3.00 | 2.50 | +20% | 1.50 | 2.00 | ≤ 2.50: missed by 0.50 |" in text
    assert "| forward, meta 1/2 | 10 | 1.20 |" in text
    assert "4.0 x faster than the double backward, 0.38 of its memory (≥ 3 and ≤ 0.5: met)" in text
    assert "not measured: ModuleNotFoundError: No module" in text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_million_rows_are_small_and_stream(module):
    overhead = module("overhead")  # a fresh process for each: what a used one frees or loads is not the table's
    few, many = (overhead.apart(1, overhead.table, num_rows) for num_rows in (10_000, 1_000_000))
    assert many["table"] == pytest.approx(6e6 / 2**20)
    assert max(many["saving"], many["loading"]) <= 0.25 * many["table"] + 0.5
    assert many["step"] <= 5 * few["step"] + 1  # ms; 100 times the rows


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_that_is_used_for_a_moment_is_seen(module):
    measure = module("_overhead_measure")
    with measure.anonymous(every=1e-4) as seen:
        big = torch.ones(2**26)  # 256 MiB
        del big
    assert 230 <= seen() <= 280
    assert 230 <= measure._peak(lambda: torch.ones(2**26)) - measure.resident() <= 280


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_quick(tmp_path, steps, module):
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    there = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=there)
    absent = 2 * sum(importlib.util.find_spec(package) is None for package in PACKAGES.values())
    assert f"{len(steps.ROWS)} of {len(steps.ROWS)} rows, {absent} not measured" in done.stdout, (
        done.stdout + done.stderr
    )
    cells = {path: json.loads(path.read_text()) for path in tmp_path.glob("tiny-16-fp32/*.json")}
    assert {cell["row"] for cell in cells.values()} == set(steps.ROWS)
    for cell in cells.values():
        if "seconds" in cell and "error" not in cell["seconds"]:
            assert all(len(took) == 2 and min(took) > 0 for took in cell["seconds"].values())
            assert all(math.isfinite(part) for part in cell["memory"].values())
    lost, *kept = (path for path, cell in cells.items() if not module("overhead")._error(cell))  # others run again
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = subprocess.run(command, capture_output=True, text=True, timeout=900, env=there)
    assert lost.is_file() and {path: path.stat().st_mtime_ns for path in kept} == before, again.stderr
    assert "| trust | 5 |" in (tmp_path / "table.md").read_text()
