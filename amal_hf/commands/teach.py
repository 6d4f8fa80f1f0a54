"""`amal-hf teach`: teachers and a data set in, the data set with the teachers' columns out."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, Value

from amal_hf._files import check_output, replaced_folder, write_json
from amal_hf.commands._flags import settings
from amal_hf.data.classes import name_classes
from amal_hf.data.load import load_splits
from amal_hf.models.read_teachers import TeachConfig, teach_splits

USAGE = "amal-hf teach TEACHER [TEACHER ...] DATA --output_dir OUT"


def run(argv: Sequence[str]) -> int:
    """`amal-hf teach TEACHER [TEACHER ...] DATA --output_dir OUT [--field value ...]`."""
    count = next((i for i, each in enumerate(argv) if each.startswith("-")), len(argv))
    config = settings("teach", TeachConfig, argv[count:])
    *teachers, data = argv[:count] or [""]
    if not teachers or not config.output_dir:
        raise ValueError(
            f"`TEACHER DATA`: expected teachers, then a data set, and --output_dir, found {[*argv]}. Usage: {USAGE}"
        )
    check_output(config.output_dir, "teach", {"DATA": data, "TEACHER": teachers})
    splits = _labelled(load_splits(data), config)
    taught = teach_splits(splits, teachers, config)
    state = PartialState()
    if state.is_main_process:
        read = (config.splits or ["train"])[0]
        there = {*splits[read].column_names}
        added = [c for c in taught[read].column_names if c not in there]
        with replaced_folder(config.output_dir, "teach") as scratch:
            taught.save_to_disk(scratch / "made")
            write_json(scratch / "made" / "teachers.json", {"teachers": teachers, "columns": added})
        print(f"columns {', '.join(added)}   data set {config.output_dir}")
    state.wait_for_everyone()
    return 0


def _one_name(holding: Sequence[Dataset], column: str) -> bool:
    """Whether the lists of a column name one class each, as annotation tools write them: `["x"]`, `{"choices": [..]}`.

    Lists of numbers, and of several names, are labels of several classes.
    """
    labels = [value["choices"] if isinstance(value, dict) and {*value} == {"choices"} else value
            for split in holding for value in split[column] if value is not None]  # fmt: skip
    return all(
        isinstance(value, list) and len(value) < 2 and all(isinstance(v, str) for v in value) for value in labels
    )


def _labelled(splits: DatasetDict, config: TeachConfig) -> DatasetDict:
    """Labels that are words or numbers of classes get names; numbers with a point are a regression's."""
    holding = [split for split in splits.values() if config.label_column in split.column_names]
    feature = holding[0].features[config.label_column] if holding else None
    if not isinstance(feature, (Value, ClassLabel)) and not _one_name(holding, config.label_column):
        return splits
    if isinstance(feature, Value) and feature.dtype.startswith("float") and not config.classes:
        values = holding[0].select_columns([config.label_column]).with_format("arrow")[:].column(0)
        # a CSV column of classes with gaps is read as floats
        if not values.null_count or not pc.all(pc.equal(values, pc.floor(values))).as_py():
            return splits
    return name_classes(splits, config.label_column, config.classes or None)
