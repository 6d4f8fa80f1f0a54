"""The price of a step: ours, what one writes by hand, and other ways to the same meta-gradient, beside a plain one.

    python examples/benchmarks/overhead.py --quick                # a tiny random model, a minute
    python examples/benchmarks/overhead.py                        # 2 cores
    python examples/benchmarks/overhead.py --scale gpu            # fp32 and bf16
    python examples/benchmarks/overhead.py --table                # weights of 10^4, 10^6 and 10^8 rows; 3 GB
    python examples/benchmarks/overhead.py --report               # the tables of what is there

Every row is measured in processes of its own, on a GPU in this one: in one, plain steps and steps of the row take turns
and each repeat gives a ratio (median and quartiles are shown); in another the peak of memory. Plain is `Trainer` with
cross-entropy: forward, backward, clipping, AdamW. A row whose lookahead comes every n steps is timed with and without
one, and n - 1 of the latter are added to one of the former. Batch 32, dropout on. "Floor" counts forwards (a backward
is 2 of them, a JVP 3: the forward again and its derivative) beside the 3 of a plain step; the distance is how far the
time is from it. The head's meta-gradient is another one than the network's: of the last layer alone. All rows of the
network's compute the same.

Two rivals are optional; without them their rows say so: `pip install torchopt`, and, with pip < 24.1 (later ones refuse
its metadata), `pip install --no-deps --ignore-requires-python betty-ml==0.2.0`.

Each row is one JSON under --out; a stopped benchmark goes on where it stopped, and tries what failed again.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from _overhead_measure import bookkeeping, memory, seconds, table
from _overhead_steps import DOUBLE, ROWS, SLOW_ROWS, Scene

from amal_hf._files import write_json, write_whole

BOOKED = ("fixed", "trust", "denoise")
BOOKED_SHARE, MEMORY = 0.01, 1.10
SIZES = (10**4, 10**6, 10**8)
Cell = dict[str, Any]

SCALES: dict[str, list[tuple[Scene, Sequence[str]]]] = {
    "quick": [(Scene("tiny", 16, batch=8, clean=16), tuple(ROWS))],
    "cpu": [
        (Scene("minilm", 64), tuple(ROWS)),
        (Scene("minilm", 128), SLOW_ROWS),
        (Scene("bert-base", 64), SLOW_ROWS),
        (Scene("bert-base", 128), SLOW_ROWS),
    ],
    "gpu": [
        (Scene(model, length, precision), SLOW_ROWS)
        for length in (128, 64)
        for precision in ("bf16", "fp32")
        for model in ("bert-base", "minilm")
    ],
}


# ---- every measurement in a process of its own, on a CPU ----


def _work(pipe: Connection, threads: int, measure: Callable[..., Cell], given: tuple[Any, ...]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    pipe.send(tried(measure, given))


def tried(measure: Callable[..., Cell], given: tuple[Any, ...]) -> Cell:
    """`measure(*given)`, and nothing left of it on the GPU; where it fails, its last words as `error`."""
    try:
        return measure(*given)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0], "traceback": traceback.format_exc()}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def apart(threads: int, measure: Callable[..., Cell], *given: Any) -> Cell:
    """`measure(*given)` in a fresh process; where it fails, its last words as `error`."""
    # what imports have made of CUDA does not outlive a fork
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(["_overhead_measure"])
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, threads, measure, given), daemon=True)
    process.start()
    theirs.close()
    try:
        found: Cell = mine.recv()
    except EOFError:
        process.join()
        found = {"error": f"the process ended with code {process.exitcode}"}
    process.join()
    return found


def cell(scene: Scene, name: str, given: argparse.Namespace) -> Cell:
    """Time, memory and (of some rows) bookkeeping of one row."""
    on_gpu, threads = torch.cuda.is_available(), f"CPU, {given.threads or torch.get_num_threads()} threads"
    found: Cell = {"row": name, "scene": vars(scene), "device": torch.cuda.get_device_name() if on_gpu else threads}

    def asked(measure: Callable[..., Cell], *more: Any) -> Cell:
        row = scene, name, *more
        return tried(measure, row) if on_gpu else apart(given.threads, measure, *row)

    found["memory"] = asked(memory)
    if "error" in found["memory"] or name == "plain":
        return found
    repeats = (2, 2) if given.quick else (given.least, given.most)
    found["seconds"] = asked(seconds, given.seconds, *repeats)
    if name in BOOKED:
        found["bookkeeping"] = asked(bookkeeping, 2 if given.quick else 5)
    return found


def run(plan: list[tuple[Scene, str]], given: argparse.Namespace) -> None:
    for scene, name in plan:
        path = place(given.out, scene, name)
        if path.is_file() and not _error(json.loads(path.read_text())):
            continue
        found = cell(scene, name, given)
        write_json(path, found)
        print(f"{path.parent.name:22s} {name:28s} {_error(found) or 'measured'}", flush=True)


def place(out: Path, scene: Scene, name: str) -> Path:
    return out / f"{scene.model}-{scene.length}-{scene.precision}" / f"{name.replace('/', '-')}.json"


def _error(found: Cell) -> str:
    parts = (found.get(part, {}) for part in ("memory", "seconds", "bookkeeping"))
    return next((part["error"] for part in parts if "error" in part), "")


# ---- what was found ----


def ratios(found: Cell, every: int) -> list[float]:
    """Of each repeat: a step beside a plain one, with a lookahead every `every` steps (0: a row without)."""
    took = found["seconds"]
    if not every:
        return [due / plain for due, plain in zip(took["due"], took["plain"], strict=True)]
    parts = zip(took["due"], took["between"], took["plain"], strict=True)
    return [(due + (every - 1) * between) / every / plain for due, between, plain in parts]


def report(cells: list[Cell]) -> str:
    """Markdown: one table per model, length and precision, and what follows from it."""
    lines: list[str] = []
    scenes = {json.dumps(each["scene"]): None for each in cells}
    for scene in scenes:
        here = {each["row"]: each for each in cells if json.dumps(each["scene"]) == scene}
        told, device = Scene(**json.loads(scene)), next(iter(here.values()))["device"]
        lines += [f"\n### {told.model}, length {told.length}, batch {told.batch}, {told.precision}, {device}\n"]
        if steps := [took for each in here.values() for took in each.get("seconds", {}).get("plain", [])]:
            lines += [f"A plain step takes {1e3 * median(steps):,.0f} ms.\n"]
        lines += [_line(["step", "every", "time", "quartiles", "floor", "distance", "memory", "step's own", "target"])]
        lines += [_line(["---", *["---:"] * 7, "---"])]
        plain = here.get("plain", {})
        for name, found in here.items():
            lines += [_line(entry) for entry in entries(name, found, {} if _error(plain) else plain)]
        lines += ["", *conclusions(here)]
    return "\n".join(lines)


def entries(name: str, found: Cell, plain: Cell) -> list[list[str]]:
    """One line per `meta_every` of a row."""
    if error := _error(found):
        return [[name, *["–"] * 7, f"not measured: {error}"]]
    beside = [f"{found['memory'][part] / plain['memory'][part]:.2f}" if plain else "–" for part in ("all", "above")]
    if name == "plain":
        held = [f"{found['memory'][part]:,.0f} MiB" for part in ("all", "above")]
        return [[name, "–", "1.00", "–", "1.00", "–", *held, ""]]
    lines = []
    for every in ROWS[name].every or (0,):
        each, floor = ratios(found, every), ROWS[name].forwards(every) / 3
        low, middle, high = quantiles(each, method="inclusive") if len(each) > 1 else each * 3
        verdict, target = "", ROWS[name].targets.get(every)
        if target is not None:
            verdict = f"≤ {target:.2f}: {'met' if middle <= target else f'missed by {middle - target:.2f}'}"
            if name in ("trust", "denoise") and plain:
                verdict += f"; memory ≤ {MEMORY:.2f}: {'met' if float(beside[0]) <= MEMORY else 'missed'}"
        often, spread = str(every) if every else "–", f"{low:.2f}–{high:.2f}"
        lines.append([name, often, f"{middle:.2f}", spread, f"{floor:.2f}", f"{middle / floor - 1:+.0%}",
                      *beside, verdict])  # fmt: skip
    return lines


def conclusions(here: dict[str, Cell]) -> list[str]:
    """Ours beside the double backward, and the time outside forward and backward."""
    lines = []
    for share in ("1/2", "1"):
        slow = here.get(f"{DOUBLE}, meta {share}")
        for ours in ("head", "forward", "difference"):
            fast = here.get(f"{ours}, meta {share}")
            if not slow or not fast or _error(slow) or _error(fast):
                continue
            times = median(ratios(slow, 1)) / median(ratios(fast, 1))
            room = fast["memory"]["all"] / slow["memory"]["all"]
            verdict = "met" if times >= 3 and room <= 0.5 else "missed"
            of_head = " (of the head alone)" if ours == "head" else ""
            lines.append(f"- {ours}{of_head}, meta {share}, every step: {times:.1f} x faster than the {DOUBLE}, "
                         f"{room:.2f} of its memory (≥ 3 and ≤ 0.5: {verdict})")  # fmt: skip
    for name in BOOKED:
        booked = here.get(name, {}).get("bookkeeping")
        if booked and "error" not in booked:
            share = sum(booked[part] for part in ("weights", "commit", "collate")) / booked["step"]
            verdict = "met" if share <= BOOKED_SHARE else f"missed by {share - BOOKED_SHARE:.1%}"
            parts = ", ".join(f"{part} {1e3 * booked[part]:.2f} ms" for part in ("weights", "commit", "collate"))
            lines.append(f"- {name}: {share:.2%} of a step outside forward and backward ({parts}; ≤ 1 %: {verdict})")
    return lines


def measure_tables(out: Path, sizes: Sequence[int], threads: int) -> str:
    """The table of weights at every size, each in a fresh process, as Markdown."""
    columns = ("table", "step", "record", "positions", "saving", "loading")
    heads = ["rows", "table MiB", "update + weights ms", "history ms", "positions ms", "saving + MiB", "loading + MiB"]
    lines = ["\n### Weights of all rows x 3 sources, float16\n", _line(heads), _line(["---:"] * 7)]
    for size in sizes:
        found = apart(threads, table, size)
        write_json(out / "table" / f"{size}.json", found)
        told = [f"{found[name]:,.3f}" for name in columns] if "error" not in found else [found["error"], *["–"] * 5]
        lines.append(_line([f"{size:,}", *told]))
    return "\n".join(lines)


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, two repeats")
    parser.add_argument("--table", action="store_true", help="measure the table of all rows instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of --table")
    parser.add_argument("--out", type=Path, help="default: runs/overhead-SCALE")
    parser.add_argument("--models", nargs="+", help="other than the scale's: minilm, bert-base, tiny")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="NAME", help="; ".join(ROWS))
    parser.add_argument("--seconds", type=float, help="per row: no repeat begins after them (CPU 20, GPU 3)")
    parser.add_argument("--least", type=int, default=3, help="repeats, whatever they take")
    parser.add_argument("--most", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="of each process; default PyTorch's")
    parser.add_argument("--report", action="store_true", help="only read what is there")
    given = parser.parse_args()
    given.scale = "quick" if given.quick else given.scale
    given.seconds = {"cpu": 20.0, "gpu": 3.0, "quick": 0.0}[given.scale] if given.seconds is None else given.seconds
    given.out = given.out or Path(f"runs/overhead-{given.scale}")
    if given.scale == "gpu" and not torch.cuda.is_available():
        parser.error("--scale: 'gpu' expects a CUDA device, found none; use 'cpu'")
    return given


def planned(given: argparse.Namespace) -> list[tuple[Scene, str]]:
    """Scene and row of every cell, in order; "plain" is always among a scene's rows."""
    plan = []
    for scene, names in SCALES[given.scale]:
        if scene.model in (given.models or [scene.model]) and scene.length in (given.lengths or [scene.length]):
            picked = [name for name in ROWS if name in (given.rows or names) or name == "plain"]
            plan += [(scene, name) for name in picked]
    return plan


def main() -> None:
    given = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Python < 3.13: the server that forks the processes does not look where this script lies
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if given.table:
        print(measure_tables(given.out, given.sizes, given.threads))
        return
    plan = planned(given)
    if not given.report:
        run(plan, given)
    found = [json.loads(path.read_text()) for each in plan if (path := place(given.out, *each)).is_file()]
    text = report(found)
    print(text)
    if found:
        write_whole(given.out / "table.md", lambda path: path.write_text(text + "\n"))
    print(f"\n{len(found)} of {len(plan)} rows, {sum(bool(_error(each)) for each in found)} not measured")


if __name__ == "__main__":
    main()
