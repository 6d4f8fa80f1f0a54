"""Votes of labeling functions on every row, chunk after chunk, in processes or on a cluster.

The functions are Snorkel's. They are handed plain rows, all of a chunk to one function after another, instead of a
pandas `Series` each: looking an attribute up in it is most of the time that Snorkel's own `PandasLFApplier` takes on
cheap functions. Votes go to disk as they come.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import get_temporary_cache_files_directory
from datasets.utils import tqdm
from snorkel.labeling import LabelingFunction

from amal_hf import _checks
from amal_hf.labeling.checks import VOTES, warn_faults
from amal_hf.labeling.engines import in_processes, through_dask, through_spark
from amal_hf.labeling.functions import check_names
from amal_hf.labeling.voter import Voter

ENGINES = {"processes": in_processes, "dask": through_dask, "spark": through_spark}
ON_ERROR = ("raise", "abstain")


def apply_functions(
    functions: Sequence[LabelingFunction],
    dataset: Dataset,
    num_proc: int = 1,
    *,
    num_classes: int | None = None,
    on_error: str = "raise",
    engine: str = "processes",
    name: str = "data",
    folder: str | Path | None = None,
) -> Dataset:
    """The data set with a column `weak_labels` `[N, M]`: each function's vote on each row, -1 where it abstains.

    Rows are read, voted on and written chunk by chunk: memory does not grow with N.

    Args:
        functions: M Snorkel labeling functions.
        dataset: N rows; a function sees the columns of one as `x.text` and `x["text"]`.
        num_proc: processes, or workers of Dask or Spark.
        num_classes: C; None: any class.
        on_error: "raise" where a function raises, or "abstain" there and warn.
        engine: "processes"; "dask" and "spark" go through Snorkel's `DaskLFApplier` and `SparkLFApplier`, whose
            functions see a pandas `Series` ("dask"). An open Dask client or Spark session is used, else workers start
            here (call it under `if __name__ == "__main__":`). Workers read the data set's files by their path.
        name: what messages call the data set.
        folder: where the votes' file lies (default: one that goes when Python ends).

    Raises:
        ValueError: a function raised or returned anything but -1..C-1, naming it and the row; unknown engine; two
            functions of one name.

    Example:
        >>> from snorkel.labeling import labeling_function
        >>> @labeling_function()
        ... def shouts(x):
        ...     return 1 if x.text.isupper() else -1
        >>> voted = apply_functions([shouts], Dataset.from_dict({"text": ["HELP", "hello"]}))
        >>> voted["weak_labels"][:]  # [N, M]
        [[1], [-1]]
    """
    _checks.one_of("engine", engine, ENGINES)
    _checks.one_of("on_error", on_error, ON_ERROR)
    _checks.positive("num_proc", num_proc)
    names = check_names(functions)
    voter = Voter(functions, dataset, num_classes, on_error, name)
    votes = ENGINES[engine](voter, num_proc)
    small = num_classes is not None and num_classes <= np.iinfo(np.int8).max
    kind = Features({VOTES: List(Value("int8" if small else "int32"), length=len(names))})
    faults = Counter[str]()

    def columns() -> Iterator[dict[str, np.ndarray]]:
        with tqdm(total=len(dataset), desc=f"Voting on {name}", unit=" rows") as bar:
            for some, failed in votes:
                faults.update(failed)
                yield {VOTES: some}
                bar.update(len(some))

    written = write_columns(columns(), kind, folder)
    warn_faults(faults, len(dataset), name)
    return with_columns(dataset, written)


def write_columns(
    chunks: Iterable[dict[str, np.ndarray]], features: Features, folder: str | Path | None = None
) -> Dataset:
    """Columns `[rows, width]` that come chunk by chunk as a data set in a file of its own.

    Args:
        folder: where the file lies (default: one that goes when Python ends).
    """
    place = Path(folder or get_temporary_cache_files_directory())
    place.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=place)
    os.close(handle)
    with ArrowWriter(path=path, features=features) as writer:
        for chunk in chunks:
            arrays = {
                column: pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(values).ravel(), features[column].feature.pa_type), values.shape[1]
                )
                for column, values in chunk.items()
            }
            writer.write_table(pa.table(arrays))
        writer.finalize()
    return Dataset.from_file(path)


def with_columns(dataset: Dataset, added: Dataset) -> Dataset:
    """The columns of both; those of `added` take the place of columns of the same name."""
    kept = dataset.remove_columns([c for c in added.column_names if c in dataset.column_names])
    if not added.column_names:
        return kept
    if not len(dataset):  # `concatenate_datasets` leaves out what has no rows, its columns too
        features = Features({**kept.features, **added.features})
        return Dataset.from_dict({column: [] for column in features}, features=features)
    return concatenate_datasets([kept, added], axis=1) if kept.column_names else added
