"""Columns of class indices: gaps in them, and another column in their place."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, Value, concatenate_datasets

ANSWERS = "amal_answers_"
"""How columns of distributions begin that were made of annotators' answers: a blank is no news."""
ORDERED = 500
"""Most columns whose order is kept."""
NOTHING = ("-1", "-100")
"""How data sets write "no label", where no class is called so."""


def replaced(split: Dataset, column: str, values: pa.Array, feature: Any) -> Dataset:
    """The split with other values in a column, which keeps its place (but stands last of very many)."""
    if not len(split):
        return Dataset.from_dict(
            {name: [] for name in split.column_names}, features=Features({**split.features, column: feature})
        )
    made = Dataset(pa.table({column: values}), info=DatasetInfo(features=Features({column: feature})))
    rest = split.remove_columns(column)
    if not rest.column_names:
        return made
    beside = concatenate_datasets([rest, made], axis=1)
    # `datasets` puts n columns in order in n² steps
    return beside.select_columns(split.column_names) if len(split.column_names) <= ORDERED else beside


def indexed(split: Dataset, column: str) -> Dataset:
    """The split with a column of class indices as whole numbers, null where there is none; lists stay as they are.

    Raises:
        ValueError: a number with a fraction.

    Example:
        >>> indexed(Dataset.from_dict({"label": [0.0, None, -1.0, 1.0]}), "label")["label"][:]
        [0, None, None, 1]
    """
    values = split.select_columns([column]).with_format("arrow")[:].column(0)
    real, whole = pa.types.is_floating(values.type), pa.types.is_integer(values.type)
    if not real and not (whole and (pc.min(values).as_py() or 0) < 0):
        return split
    nothing = pc.is_in(values, pa.array([int(number) for number in NOTHING]).cast(values.type))
    nothing = pc.or_(nothing, pc.is_nan(values)) if real else nothing
    values = pc.if_else(pc.fill_null(nothing, True), pa.scalar(None, values.type), values)
    if real and (odd := values.filter(pc.not_equal(pc.floor(values), values)).to_pylist()):
        raise ValueError(
            f"`{column}`: expected indices of classes, found numbers with a fraction such as {odd[0]}. Write the "
            "classes, or set the model's num_labels=1 where these numbers are to be learned."
        )
    return replaced(split, column, values.cast(pa.int64()).combine_chunks(), Value("int64"))


def has_negative(split: Dataset, column: str) -> bool:
    """Whether a `ClassLabel` column holds the Hub's -1 for a missing label."""
    least = pc.min(split.select_columns([column]).with_format("arrow")[:].column(0)).as_py()
    return least is not None and least < 0
