"""A million rows, ten labeling functions: how fast are they voted on, and does memory stay where it is?

    python examples/benchmarks/labeling_throughput.py --rows 1000000 --functions 10

Writes invented rows to disk, runs `amal-hf label` on a tenth of them and on all, each in a process of its own whose
memory is watched, then Snorkel's own appliers on the first rows in this process. Needs Linux and psutil.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from datasets import Dataset, disable_progress_bars
from snorkel.labeling import LFApplier, PandasLFApplier

from amal_hf.labeling import apply_functions, load_functions, vote_matrix
from amal_hf.labeling.voter import rows_of

VOCABULARY, WORDS = 2000, 15
FUNCTIONS = """
from snorkel.labeling import LabelingFunction

def function(j):
    found, label = f"word{{j}} ", j % 2
    return LabelingFunction(f"word{{j}}", lambda x: label if found in x.text else -1)

FUNCTIONS = [function(j) for j in range({count})]
"""


def write_rows(path: Path, rows: int, seed: int = 0) -> Path:
    """Rows `{"id", "text"}` as JSONL, a block at a time; frequent words are common, as in any text."""
    rng, block = np.random.default_rng(seed), 10_000
    with path.open("w") as file:
        for start in range(0, rows, block):
            words = rng.zipf(1.3, (min(block, rows - start), WORDS)) % VOCABULARY
            for i, row in enumerate(words, start):
                file.write(json.dumps({"id": i, "text": " ".join(f"word{w}" for w in row) + " ."}) + "\n")
    return path


def watched(command: list[str], cache: Path) -> tuple[float, float, float]:
    """Seconds, and the greatest sums over the process and its children of anonymous and of all resident MiB."""
    started, private, resident = time.perf_counter(), 0.0, 0.0
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        os.set_blocking(run.stderr.fileno(), False)
        told = b""
        while run.poll() is None:
            sizes = list(_sizes(psutil.Process(run.pid)))
            private = max(private, sum(rss - shared for rss, shared in sizes) / 2**20)
            resident = max(resident, sum(rss for rss, _ in sizes) / 2**20)
            told = (told + (run.stderr.read() or b""))[-2000:]  # an unread pipe stops who writes to it
            time.sleep(0.05)
    if run.returncode:
        raise RuntimeError(told.decode(errors="replace"))
    return time.perf_counter() - started, private, resident


def _sizes(root: psutil.Process) -> Iterator[tuple[int, int]]:
    try:
        for process in [root, *root.children(recursive=True)]:
            memory = process.memory_info()
            yield memory.rss, memory.shared
    except psutil.NoSuchProcess:
        return


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def against_snorkel(data: Path, lfs: Path, rows: int) -> None:
    """Snorkel's appliers and ours on the first rows, one process each, the same votes."""
    functions = load_functions(lfs)
    frame = pd.read_json(data, lines=True, nrows=rows)
    dataset = Dataset.from_pandas(frame)
    plain = rows_of(dataset, range(rows))
    runs: dict[str, Callable[[], Any]] = {
        "snorkel PandasLFApplier": lambda: PandasLFApplier(functions).apply(frame, progress_bar=False),
        "snorkel LFApplier, rows in memory": lambda: LFApplier(functions).apply(plain, progress_bar=False),
        "apply_functions, disk to disk": lambda: vote_matrix(apply_functions(functions, dataset, num_classes=2)),
    }
    votes = []
    for name, work in runs.items():
        seconds, said = timed(work)
        votes.append(np.asarray(said))
        print(f"  {name:36s} {rows / seconds:9,.0f} rows/s")
    assert all((each == votes[0]).all() for each in votes), "votes differ"
    print(f"  the same votes on {rows:,} rows; where PandasLFApplier's time goes, µs a row:")
    whole = timed(lambda: PandasLFApplier(functions).apply(frame, progress_bar=False))[0]
    empty = timed(lambda: frame.apply(lambda x: 0, axis=1))[0]
    looks = timed(lambda: frame.apply(lambda x: _look(x, len(functions)), axis=1))[0] - empty
    ours = timed(lambda: sum(_look(x, len(functions)) for x in plain))[0]
    made = timed(lambda: rows_of(dataset, range(rows)))[0]
    for name, seconds in {
        "all": whole,
        "a Series per row": empty,
        f"x.text on it, {len(functions)} times": looks,
        "a plain row instead": made,
        f"x.text on that, {len(functions)} times": ours,
    }.items():
        print(f"    {name:34s} {1e6 * seconds / rows:6.1f}")


def _look(row: Any, times: int) -> int:
    for _ in range(times):
        row.text  # noqa: B018
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--functions", type=int, default=10)
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--snorkel_rows", type=int, default=100_000, help="rows for Snorkel's own appliers")
    parser.add_argument("--label_models", default="majority,snorkel,cage")
    given = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lfs = place / "lfs.py"
        lfs.write_text(FUNCTIONS.format(count=given.functions))
        for rows in (given.rows // 10, given.rows):
            data, out = write_rows(place / f"{rows}.jsonl", rows), place / f"out{rows}"
            command = [sys.executable, "-m", "amal_hf", "label", str(lfs), str(data), "--output_dir", str(out)]
            command += ["--classes", "even", "odd", "--num_proc", str(given.num_proc)]
            seconds, private, resident = watched([*command, "--label_models", given.label_models], place / "cache")
            voting = json.loads((out / "summary.json").read_text())["splits"]["train"]["seconds"]
            print(
                f"amal-hf label, {rows:,} rows x {given.functions} functions, {given.num_proc} process(es): "
                f"{rows / voting:,.0f} rows/s voting, {seconds:.0f} s in all; "
                f"peak memory {private:,.0f} MiB, {resident:,.0f} MiB with pages of files",
                flush=True,
            )
        sample = min(given.snorkel_rows, given.rows)
        print(f"one process, the first {sample:,} rows" + (" (a sample)" if sample < given.rows else ""), flush=True)
        against_snorkel(place / f"{given.rows}.jsonl", lfs, sample)


if __name__ == "__main__":
    main()
