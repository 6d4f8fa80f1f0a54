"""Users' data as splits with one vocabulary of columns: text, label, votes, teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from transformers.utils import logging

from amal_hf._files import check_writable
from amal_hf.data.classes import name_classes
from amal_hf.data.read_files import READERS, one_line, read_file, read_json, read_parts, suffix

logger = logging.get_logger(__name__)

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
    "clean": ("clean",),
    "selection": ("selection",),
}
VOTES = "weak_labels"


def load_splits(data: str) -> DatasetDict:
    """Load `data`, whatever it is.

    Args:
        data: one of
            - a `save_to_disk` folder (a data set or a dictionary of splits);
            - a WRENCH folder (`train.json`, `valid.json`, `test.json`, `label.json`);
            - a folder of `train|validation|test|clean|selection.jsonl|csv|parquet`, each maybe `.gz`; several files of
              one split (`train.1.csv`, `train.2.csv`) are read one after the other;
            - one such file, which becomes `train`;
            - anything else: a name on the Hub.
            Beside a file `train.csv`, Snorkel's matrix `train.L.npy` or `L_train.npy` `[N, M]` becomes its column
            `weak_labels`.

    Raises:
        ValueError: a folder without anything that can be read, or a matrix that does not fit its table.
        FileNotFoundError: a path that is not there.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            with one_line(path):
                loaded = load_from_disk(str(path))
            return _with_train(loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded), data)
        if (path / "label.json").is_file():
            return _with_train(_wrench(path), data)
        return _folder(path)
    if path.is_file():
        return DatasetDict(train=_file(path))
    if path.is_absolute() or data.startswith((".", "~")) or path.suffix in {*READERS, ".gz"} or path.is_symlink():
        raise FileNotFoundError(
            f"`data`: expected a file, a folder or a name on the Hub, found no {data!r}. Check the path: it is read "
            f"relative to {Path.cwd()}."
        )
    check_writable("HF_HOME", datasets.config.HF_DATASETS_CACHE)
    with one_line(data):
        loaded = load_dataset(data)
    return _with_train(loaded, data)


def _with_train(splits: DatasetDict, data: str) -> DatasetDict:
    if "train" not in splits:
        raise ValueError(
            f"`data`: expected a split 'train' in {data!r}, found {sorted(map(str, splits))}. Rename the split that is "
            "to be trained on."
        )
    return splits


def _file(path: Path) -> Dataset:
    matrices, table = _matrices(path), read_file(path)
    return _with_votes(table, matrices, path) if matrices else table


def _matrices(table: Path) -> list[Path]:
    """Snorkel's matrices that belong to a table."""
    name = table.name.split(".")[0]
    return [m for m in (table.with_name(f"{name}.L.npy"), table.with_name(f"L_{name}.npy")) if m.is_file()]


def _with_votes(table: Dataset, matrices: Sequence[Path], path: Path) -> Dataset:
    """The table with its matrix as a column of votes."""
    if len(matrices) > 1 or VOTES in table.column_names:
        found = [m.name for m in matrices] + [f"column {VOTES!r}"] * (VOTES in table.column_names)
        raise ValueError(f"`data`: expected votes for {path.name!r} in one place, found {found}. Keep one.")
    name = matrices[0].name
    try:
        votes = np.load(matrices[0], allow_pickle=False)
    except (ValueError, EOFError) as error:  # objects, which only a pickle holds: it would run code
        raise ValueError(
            f"`{name}`: expected an array of whole numbers, found what numpy cannot read without pickle ({error}). "
            "Save it anew: np.save(file, L.astype(np.int8))."
        ) from error
    if votes.ndim != 2 or votes.dtype.kind not in "iu" or (votes.size and votes.min() < -1):
        least = f", least {votes.min()}" if votes.size and votes.dtype.kind in "iuf" else ""
        raise ValueError(
            f"`{name}`: expected whole numbers [rows, functions], -1 where a function abstains; found {votes.dtype} "
            f"of shape {list(votes.shape)}{least}. Save Snorkel's matrix L."
        )
    if len(votes) != len(table):
        raise ValueError(
            f"`{name}`: expected {len(table)} rows of votes, as many as {path.name!r} has; found {len(votes)}. "
            "Apply the functions to this very file, in its order."
        )
    return table.add_column(VOTES, list(votes))


def _folder(path: Path) -> DatasetDict:
    found, here = DatasetDict(), sorted(path.iterdir())
    idle = {p for p in here if p.name.endswith(".L.npy") or (p.name.startswith("L_") and p.suffix == ".npy")}
    for split, names in SPLIT_NAMES.items():
        files = [p for n in names for p in here if _belongs(p.name, n) and suffix(p) in READERS]
        if len(files) == 1:
            found[split] = _file(files[0])
            idle -= {*_matrices(files[0])}
        elif files:
            found[split] = read_parts(files)
            logger.warning("`data`: %r is read from %s.", split, ", ".join(f"{p.name!r}" for p in files))
    if "train" not in found:
        raise ValueError(
            f"`data`: expected train.jsonl, .csv or .parquet, a WRENCH or a save_to_disk folder in {str(path)!r}, "
            f"found {sorted(p.name for p in path.iterdir())[:10]}. Name the file or folder of rows."
        )
    if idle:
        raise ValueError(
            f"`data`: expected a table beside every matrix of votes, found none for {sorted(m.name for m in idle)}. "
            "Rename one: a table train.csv takes train.L.npy or L_train.npy."
        )
    info = path / "info.json"
    if info.is_file():
        described = read_json(info)
        if isinstance(described, dict) and "classes" in described:
            return name_classes(found, "label", _listed(described["classes"], info.name))
    return found


def _belongs(name: str, split: str) -> bool:
    """Whether a file holds rows of a split: `train.csv`, `train.2.csv`, `train-00000-of-00002.parquet`."""
    return name.startswith((f"{split}.", f"{split}-0"))


def _listed(classes: object, file: str) -> list[str]:
    """Class names of a list, or of a mapping from 0..C-1 (or to it)."""
    if isinstance(classes, dict) and classes:
        for keys, names in ((classes.keys(), classes.values()), (classes.values(), classes.keys())):
            by = dict(zip(map(str, keys), names, strict=True))
            if {*by} == {str(i) for i in range(len(classes))}:
                return [str(by[str(i)]) for i in range(len(classes))]
    if isinstance(classes, list) and classes and all(isinstance(name, (str, int, float)) for name in classes):
        return [str(name) for name in classes]
    raise ValueError(
        f"`data`: expected a list of class names in {file!r}, or a mapping of 0 to C-1, found {str(classes)[:60]}. "
        "Write them in the order of their indices."
    )


def _wrench(path: Path) -> DatasetDict:
    """`{id: {"label", "weak_labels", "data": {"text", ...}}}` per split; `label.json`: index -> name."""
    classes = _listed(read_json(path / "label.json"), "label.json")
    splits = DatasetDict()
    for split, names in SPLIT_NAMES.items():
        file = next((path / f"{n}.json" for n in names if (path / f"{n}.json").is_file()), None)
        if file is not None:
            rows = read_json(file)
            items = rows.items() if isinstance(rows, dict) else [("", rows)]
            splits[split] = Dataset.from_list([_wrench_row(key, row, file.name) for key, row in items])
    return name_classes(splits, "label", classes)


def _wrench_row(key: str, row: Any, file: str) -> dict[str, Any]:
    parts = {"label", "weak_labels", "data"}
    if not (isinstance(row, dict) and parts <= {*row} and isinstance(row["data"], dict)):
        raise ValueError(
            f"`data`: expected {sorted(parts)} in every row of {file!r}, as WRENCH has them, found {str(row)[:60]} in "
            f"row {key!r}. Write them, or leave out label.json."
        )
    return {"id": key, **row["data"], "label": row["label"], "weak_labels": row["weak_labels"]}
