"""An optimizer step is a mean over its rows, however they are split into micro-batches and over processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.state import GradientState
from torch.utils.data import DataLoader, RandomSampler

from amal_hf._distributed import everyones, first_of_each
from amal_hf._window import PADDING, Window

SCRIPTS = Path(__file__).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
from windows import CASES, ended  # noqa: E402


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("rows", [26, *(pytest.param(n, marks=pytest.mark.slow) for n in (25, 16, 3))])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_batch_is_the_sum_of_its_parts(name, rows, tmp_path):
    """Llama counts labels itself (`num_items_in_batch`), BERT does not."""
    whole, logs = ended(tmp_path, rows, 16, 1, name=name)
    for batch, accumulated in ((4, 4), (1, 16), (8, 2)):
        split, told = ended(tmp_path, rows, batch, accumulated, name=name)
        assert furthest(whole, split) < 1e-14
        assert logs == pytest.approx(told, abs=1e-6)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Also where neither the rows nor the micro-batches go round."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]  # fmt: skip
    done = subprocess.run([*launch, SCRIPTS / "windows.py", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (rows, batch, accumulated, settings) in CASES.items():
        two, logs = torch.load(tmp_path / f"{name}.pt")
        scale = 1 if "split_batches" in settings.get("accelerator_config", {}) else 2
        steps = {k: v for k, v in settings.items() if k == "max_steps"}
        one, told = ended(tmp_path, rows, batch * scale, accumulated, train_sampling_strategy="sequential", **steps)
        assert furthest(one, two) < 1e-14, name
        assert logs == pytest.approx(told, abs=1e-6), name


# ---- which rows are padding: every process' loader, one after the other ----


def windows(rows, batch, accumulated, processes, draws=None, skip=0, **how):
    """(ids, padding, N) of every window of every process, as `Trainer` draws them."""
    found = []
    for index in range(processes):
        data = [{"id": i} for i in range(rows)]
        sampler = range(rows) if draws is None else RandomSampler(data, replacement=True, num_samples=draws)
        torch.manual_seed(0)
        drop = how.get("drop_last", False)
        loader = DataLoader(data, batch_size=batch, sampler=sampler, drop_last=drop, generator=torch.Generator())
        keys = ("even_batches", "split_batches")
        loader = prepare_data_loader(
            loader, num_processes=processes, process_index=index, **{k: how[k] for k in keys if k in how}
        )
        loader = skip_first_batches(loader, skip) if skip and skip < len(loader) else loader
        accelerator = SimpleNamespace(
            num_processes=processes, process_index=index, gradient_state=GradientState(), device=torch.device("cpu")
        )
        iterator, mine = iter(loader), []
        for start in range(0, len(loader), accumulated):  # as `Trainer` does: never more than there are
            batches = [next(iterator) for _ in range(min(accumulated, len(loader) - start))]
            window = Window.of(accelerator, batches)
            ids = torch.cat([b["id"] for b in batches])
            padding = torch.cat([b.get(PADDING, torch.zeros(len(b["id"]), dtype=torch.bool)) for b in batches])
            mine.append((ids, padding, window.num_rows))
        found.append(mine)
    return found


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("how", [{}, {"split_batches": True}, {"drop_last": True}], ids=str)
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("rows", "batch", "accumulated"), [(26, 6, 1), (26, 6, 2), (7, 6, 4), (2, 6, 1), (36, 6, 1)])
def test_every_row_counts_once_an_epoch(rows, batch, accumulated, processes, how, skip):
    """With and without a start in the middle, where accelerate wraps the loader."""
    found = windows(rows, batch, accumulated, processes, skip=skip, **how)
    counted = torch.cat([ids[~padding] for mine in found for ids, padding, _ in mine] or [torch.empty(0)])
    assert len(counted) == len(counted.unique())
    if not how.get("drop_last"):
        once = batch * (1 if how else processes)
        assert len(counted) == (rows - once if skip and rows > once else rows)
    for same in zip(*found, strict=True):
        assert {num_rows for *_, num_rows in same} == {sum(int((~padding).sum()) for _, padding, _ in same)}


def test_a_row_that_is_drawn_twice_counts_twice():
    """A sampler with replacement, which draws another number of rows than the data set has."""
    for draws in (5, 26, 41):
        found = windows(20, 4, 1, 2, draws=draws)
        assert sum(int((~padding).sum()) for mine in found for _, padding, _ in mine) == draws
        ids = torch.cat([ids[~padding] for mine in found for ids, padding, _ in mine])
        assert draws < 20 or len(ids.unique()) < len(ids)


def test_one_process_has_no_padding():
    ((*whole, last),) = windows(26, 4, 1, 1)
    assert not any(padding.any() for _, padding, _ in (*whole, last)) and last[2] == 2


# ---- what the processes tell one another ----


def test_a_row_that_comes_twice_is_not_dropped():
    losses, index = torch.tensor([[1.0], [2.0], [1.0], [3.0]]), torch.tensor([7, 2, 7, 0])
    every, all_losses = everyones(Accelerator(cpu=True), index, losses)
    assert every is index and all_losses is losses


def test_first_of_each_position():
    assert first_of_each(torch.tensor([3, 3, 0, -1, -1, 0])).tolist() == [True, False, True, True, True, False]
