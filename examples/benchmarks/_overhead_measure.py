"""The clocks and scales of `overhead.py`: seconds in turns, peaks of memory, bookkeeping, the table of all rows."""

from __future__ import annotations

import ctypes
import gc
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _overhead_steps import ROWS, Scene, Stepper
from safetensors.torch import load_file

from amal_hf._files import write_tensors
from amal_hf._types import ROW_ID
from amal_hf.data.columns import RowIndex
from amal_hf.mixing import Rows, Table
from amal_hf.weight_history import WeightHistory

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(scene: Scene, name: str, budget: float, least: int, most: int) -> dict[str, Any]:
    """A plain step, one with a lookahead and one between lookaheads, in turns, each repeat in another order.

    Args:
        budget: seconds after which no repeat begins.
        least, most: repeats whatever the time.

    Returns:
        seconds of every repeat: `plain`, `due` and (where there are lookaheads) `between`.
    """
    plain, ours = Stepper(scene, "plain"), Stepper(scene, name)
    turns: dict[str, Callable[[], None]] = {"plain": plain.step, "due": ours.step}
    if ROWS[name].every:
        turns["between"] = lambda: ours.step(due=False)
    for step in turns.values():  # what is made once
        step()
    took: dict[str, list[float]] = {turn: [] for turn in turns}
    started, order = now(), list(turns)
    while len(took["plain"]) < least or (len(took["plain"]) < most and now() - started < budget):
        for turn in order:
            before = now()
            turns[turn]()
            took[turn].append(now() - before)
        order = order[1:] + order[:1]
    return took


def memory(scene: Scene, name: str) -> dict[str, Any]:
    """Peak of a step with a lookahead, MiB: `above` what is held between steps, and `all` of model, optimizer and step.

    On a CPU it is resident memory (`VmHWM`, Linux), where malloc gives back at once what is freed; on a GPU what
    PyTorch has allocated. Libraries are not counted. Call it in a fresh process on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    _warmed(Scene("tiny", 8, scene.precision, batch=2, clean=4), name)  # loads what PyTorch loads at first use
    gc.collect()
    nothing = torch.cuda.memory_allocated() / MIB if on_gpu else resident()
    stepper = _warmed(scene, name)
    held = torch.cuda.memory_allocated() / MIB if on_gpu else resident()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        stepper.step()
        peak = torch.cuda.max_memory_allocated() / MIB
    else:
        peak = _peak(stepper.step)
    return {"above": peak - held, "all": peak - nothing}


def _warmed(scene: Scene, name: str) -> Stepper:
    """With the optimizer's state and the clean rows' features."""
    stepper = Stepper(scene, name)
    stepper.step(rows=2)
    stepper.step(due=False, rows=2)
    gc.collect()
    return stepper


def resident(what: str = "VmRSS") -> float:
    """MiB of this process, after malloc has given back what it can."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status(what)


def _status(what: str) -> float:
    found = re.search(rf"^{what}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{STATUS} has no {what}"
    return int(found[1]) / 1024


def _peak(work: Callable[[], Any]) -> float:
    CLEAR.write_text("5")  # the high-water mark starts again at what is resident now
    work()
    return _status("VmHWM")


def bookkeeping(scene: Scene, name: str, steps: int) -> dict[str, Any]:
    """Seconds of a step, and of those what stands outside forward, backward and optimizer.

    Returns:
        `step`; `weights` (positions, targets, advice, λ, history, gathering); `commit`; `collate` (the sources'
        columns, beside what the model's collator takes).
    """
    stepper = Stepper(scene, name)
    trainer: Any = stepper.trainer
    spent, within = {"weights": 0.0, "commit": 0.0, "collate": 0.0}, set[str]()

    def clocked(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part in within:  # one of them calls another
                return call(*args, **kwargs)
            before = now()
            within.add(part)
            try:
                return call(*args, **kwargs)
            finally:
                within.discard(part)
                spent[part] += now() - before

        return timed

    stepper.step()
    stepper.step(due=False)
    for name in ("read", "weigh", "look_ahead"):
        setattr(trainer.weigher, name, clocked("weights", getattr(trainer.weigher, name)))
    trainer.weigher.commit = clocked("commit", trainer.weigher.commit)
    before = now()
    for _ in range(steps):
        stepper.step(due=False)
    whole = now() - before
    collator, tokens = trainer.data_collator, [_tokens(row) for row in stepper.features]
    for sign, collate, features in ((1, collator, stepper.features), (-1, collator.inner, tokens)):
        before = now()
        for _ in range(steps):
            collate(features)
        spent["collate"] += sign * (now() - before)
    return {"step": whole / steps, **{part: took / steps for part, took in spent.items()}}


def _tokens(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("input_ids", "attention_mask", "label")}


def table(num_rows: int, sources: int = 3, batch: int = 32, visits: int = 200) -> dict[str, Any]:
    """A table of weights in float16, its history and its row ids: what they hold and what a step with them takes.

    Returns:
        `table` MiB; median milliseconds of `step` (update and weights), `record` and `positions` for a batch;
        MiB of memory beyond it while it is `saving` and `loading` (pages of the file that is read are not counted).
    """
    kept = Table(num_rows, torch.full((sources,), 0.5), "box", 0.2, (0.0, 1.0), torch.float16)
    history = WeightHistory([f"s{k}" for k in range(sources)], num_rows, torch.float16)
    index = RowIndex(np.arange(num_rows))
    took: dict[str, list[float]] = {"positions": [], "step": [], "record": []}
    speaks = torch.ones(batch, sources, dtype=torch.bool)
    for _ in range(visits):
        ids = torch.randint(num_rows, (batch,))
        gradient, losses = torch.randn(batch, sources), torch.rand(batch, sources)
        clock = [now()]
        rows = Rows(index({ROW_ID: ids}), losses, speaks, torch.zeros(()), torch.zeros(()))
        clock.append(now())
        kept.update(rows, gradient)
        weights = kept.weights(rows)
        clock.append(now())
        history.record(rows.index, weights, speaks)
        clock.append(now())
        for part, start, end in zip(took, clock, clock[1:], strict=False):
            took[part].append(end - start)
    found: dict[str, Any] = {part: 1e3 * median(each[visits // 10 :]) for part, each in took.items()}
    del history, index
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        before = resident()
        found["saving"] = _peak(lambda: write_tensors(path, kept.state())) - before
        with anonymous() as seen:
            kept.load_state(load_file(path))
        found["loading"] = seen()
    return {"rows": num_rows, "table": kept.table.numel() * kept.table.element_size() / MIB, **found}


@contextmanager
def anonymous(every: float = 0.002) -> Iterator[Callable[[], float]]:
    """MiB of anonymous memory that came on top within the block: the most that a thread saw, looking all the time."""
    gc.collect()
    before = resident("RssAnon")
    most, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(every):
            most[0] = max(most[0], _status("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield lambda: most[0] - before
    finally:
        most[0] = max(most[0], _status("RssAnon"))
        over.set()
        watcher.join()
