"""Where labeling functions run: in processes of this machine, through Dask, through Spark.

Each engine yields votes `[rows, M]` in the order of rows, and how often which function raised. Snorkel's cluster
appliers lose which function raised on which row, and take any negative vote as an abstention; so functions go to them
inside a guard that marks what went wrong, and marked rows are voted on again here, where the error can be raised.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

import dill
import numpy as np
from datasets import Dataset
from snorkel.labeling import LabelingFunction

from amal_hf.labeling.functions import FunctionFile
from amal_hf.labeling.voter import LARGEST, Voter, is_vote, rows_of
from amal_hf.labeling.watch import Places, Watch, ended

Votes = Iterator[tuple[np.ndarray, Counter[str]]]
CHUNK_ROWS = 1000
BLOCK_ROWS = 100_000  # rows whose votes a cluster sends back at once
FAILED = LARGEST + 1


def spans(rows: int, size: int) -> list[range]:
    """0..rows-1 in ranges of at most `size`."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_processes(voter: Voter, num_proc: int) -> Votes:
    """Votes of `num_proc` processes; a few chunks each are under way at any time.

    Functions of a file that a command was given never vote in the command's own process, which they could end.
    """
    rows = len(voter.dataset)
    chunks = spans(rows, max(1, min(CHUNK_ROWS, math.ceil(rows / (4 * num_proc)))))
    if (num_proc == 1 or len(chunks) <= 1) and not isinstance(voter.functions, FunctionFile):
        yield from map(voter, chunks)
        return
    pending: deque[Any] = deque()
    places = Places(num_proc)
    watch = Watch(places, [function.name for function in voter.functions], voter.name)
    # dill, as `datasets` uses: functions written in a notebook or in a test have no module to be found in
    with ProcessPoolExecutor(num_proc, initializer=_install, initargs=(dill.dumps(voter), places)) as pool, ended():
        try:
            for span in chunks:
                pending.append(pool.submit(_vote, span))
                if len(pending) > 4 * num_proc:
                    yield watch.result(pending.popleft())
            while pending:
                yield watch.result(pending.popleft())
        except BrokenProcessPool as error:
            raise OSError(
                "`functions`: expected processes that live until every row is voted on, found that one died: of memory "
                "or of a function that ends it. Mend that function, or try fewer processes in num_proc."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_voter: Voter | None = None
_places: Places | None = None


def _install(voter: bytes, places: Places) -> None:
    global _voter, _places
    _voter, _places = dill.loads(voter), places
    places.claim()


def _vote(span: range) -> tuple[np.ndarray, Counter[str]]:
    assert _voter is not None and _places is not None
    try:
        return _voter(span, _places.note)
    finally:
        _places.note(-1, span)


def through_dask(voter: Voter, num_workers: int) -> Votes:
    """Votes of Snorkel's `DaskLFApplier`; its functions see a pandas `Series`."""
    with cluster("dask", num_workers) as client:
        import cloudpickle
        import dask
        import dask.dataframe as dd
        from snorkel.labeling.apply.dask import DaskLFApplier

        by_value(voter.functions, cloudpickle)
        applier = DaskLFApplier(guarded(voter))
        for block in spans(len(voter.dataset), BLOCK_ROWS):
            # text stays text: Dask would make Arrow strings of every column of objects, lists too
            with dask.config.set({"dataframe.convert-string": False}):
                read = partial(_frame, voter.dataset)
                frame = dd.from_map(read, parts(block, num_workers), meta=read(range(0)))
                votes = applier.apply(frame, scheduler=client)
            yield mended(voter, block, votes)


def through_spark(voter: Voter, num_workers: int) -> Votes:
    """Votes of Snorkel's `SparkLFApplier`."""
    with cluster("spark", num_workers) as session:
        from pyspark import cloudpickle
        from snorkel.labeling.apply.spark import SparkLFApplier

        by_value(voter.functions, cloudpickle)
        applier = SparkLFApplier(guarded(voter))
        for block in spans(len(voter.dataset), BLOCK_ROWS):
            pieces = parts(block, num_workers)
            rows = session.sparkContext.parallelize(pieces, len(pieces)).flatMap(partial(rows_of, voter.dataset))
            yield mended(voter, block, applier.apply(rows))


@contextmanager
def cluster(engine: str, num_workers: int, scheduler: str = "") -> Iterator[Any]:
    """A Dask client or Spark session: the one that is open, else one for the time of the block; None for processes.

    Args:
        engine: "processes", "dask" or "spark".
        num_workers: workers to start on this machine, where none run yet.
        scheduler: address of a running Dask scheduler or Spark master to open instead.

    Raises:
        ValueError: Dask or PySpark is not installed.
    """
    if engine == "processes":
        yield None
        return
    with (_dask if engine == "dask" else _spark)(num_workers, scheduler) as opened:
        yield opened


@contextmanager
def _dask(num_workers: int, scheduler: str) -> Iterator[Any]:
    try:
        import dask.dataframe  # noqa: F401
        from dask.distributed import Client
    except ImportError as error:
        raise ValueError(f"`engine`: 'dask' needs Dask: pip install 'amal-hf[dask]' ({error}).") from error
    try:
        found = Client.current()
    except ValueError:  # none is open
        local = {"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(scheduler) if scheduler else Client(**local) as client:
            yield client
    else:
        yield found


@contextmanager
def _spark(num_workers: int, scheduler: str) -> Iterator[Any]:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(f"`engine`: 'spark' needs Java and PySpark: pip install pyspark ({error}).") from error
    found = SparkSession.getActiveSession()
    if not scheduler:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the first python3 of the path
    master = scheduler or f"local[{num_workers}]"
    session = found or SparkSession.builder.master(master).appName("amal-hf label").getOrCreate()
    try:
        yield session
    finally:
        if found is None:
            session.stop()


def parts(block: range, num_workers: int) -> list[range]:
    """A block in ranges, four a worker."""
    size = max(1, math.ceil(len(block) / (4 * num_workers)))
    return [range(start, min(start + size, block.stop)) for start in range(block.start, block.stop, size)]


def guarded(voter: Voter) -> list[LabelingFunction]:
    """The functions, each returning `FAILED` where it raises or names no class."""
    return [LabelingFunction(each.name, partial(_attempt, each, voter.highest)) for each in voter.functions]


def _attempt(function: LabelingFunction, highest: int, row: Any) -> int:
    try:
        vote = function(row)
    except Exception:
        return FAILED
    return int(vote) if is_vote(vote, highest) else FAILED


def mended(voter: Voter, block: range, votes: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    """Votes `[rows, M]`, the rows with failures voted on again: that says what is wrong, or abstains and counts."""
    failed = np.flatnonzero((votes == FAILED).any(1))
    faults = Counter[str]()
    if len(failed):
        votes[failed], faults = voter([block[i] for i in failed])
    return votes, faults


def by_value(functions: Sequence[LabelingFunction], cloudpickle: Any) -> None:
    """Workers cannot import a user's file: its functions travel whole."""
    if isinstance(functions, FunctionFile):
        cloudpickle.register_pickle_by_value(sys.modules[functions.module])


def _frame(dataset: Dataset, span: range) -> Any:
    return dataset.with_format("pandas")[span.start : span.stop]
