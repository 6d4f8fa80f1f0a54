"""Users' data as splits with one vocabulary of columns: text, label, votes, teachers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk

from amal_hf._files import check_writable

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}
VOTES = "weak_labels"
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_splits(data: str) -> DatasetDict:
    """Load `data`, whatever it is.

    Args:
        data: one of
            - a `save_to_disk` folder (a data set or a dictionary of splits);
            - a WRENCH folder (`train.json`, `valid.json`, `test.json`, `label.json`);
            - a folder of `train|validation|test.jsonl|csv|parquet`, each maybe `.gz`;
            - one such file, which becomes `train`;
            - anything else: a name on the Hub.
            Beside a file `train.csv`, Snorkel's matrix `train.L.npy` or `L_train.npy` `[N, M]` becomes its column
            `weak_labels`.

    Raises:
        ValueError: a folder without anything that can be read, or a matrix that does not fit its table.
        FileNotFoundError: a path that is not there.
    """
    path = Path(data)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(data)
            return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
        if (path / "label.json").is_file():
            return _wrench(path)
        return _folder(path)
    if path.is_file():
        return DatasetDict(train=_file(path))
    if path.is_absolute() or data.startswith(".") or path.suffix in {*READERS, ".gz"}:
        raise FileNotFoundError(
            f"`data`: expected a file, a folder or a name on the Hub, found no {data!r}. Check the path: it is read "
            f"relative to {Path.cwd()}."
        )
    check_writable("HF_HOME", datasets.config.HF_DATASETS_CACHE)
    return load_dataset(data)


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _file(path: Path) -> Dataset:
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"`data`: expected one of {sorted(READERS)} (or .gz of these), found {path.name!r}.")
    check_writable("HF_HOME", datasets.config.HF_DATASETS_CACHE)
    table = load_dataset(reader, data_files=str(path), split="train")
    matrices = _matrices(path)
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
            f"of shape {list(votes.shape)}{least}."
        )
    if len(votes) != len(table):
        raise ValueError(
            f"`{name}`: expected {len(table)} rows of votes, as many as {path.name!r} has; found {len(votes)}. "
            "Apply the functions to this very file, in its order."
        )
    return table.add_column(VOTES, list(votes))


def _folder(path: Path) -> DatasetDict:
    found, idle = DatasetDict(), {*path.glob("*.L.npy"), *path.glob("L_*.npy")}
    for split, names in SPLIT_NAMES.items():
        files = [p for n in names for p in sorted(path.glob(f"{n}.*")) if _suffix(p) in READERS]
        if files:
            found[split] = _file(files[0])
            idle -= {*_matrices(files[0])}
    if "train" not in found:
        raise ValueError(
            f"`data`: expected train.jsonl, .csv or .parquet, a WRENCH or a save_to_disk folder in {str(path)!r}, "
            f"found {sorted(p.name for p in path.iterdir())[:10]}."
        )
    if idle:
        raise ValueError(
            f"`data`: expected a table beside every matrix of votes, found none for {sorted(m.name for m in idle)}. A "
            "table train.csv takes train.L.npy or L_train.npy."
        )
    info = path / "info.json"
    if info.is_file() and (classes := json.loads(info.read_text()).get("classes")):
        return name_classes(found, "label", classes)
    return found


def _wrench(path: Path) -> DatasetDict:
    """`{id: {"label", "weak_labels", "data": {"text", ...}}}` per split; `label.json`: index -> name."""
    classes = [
        name for _, name in sorted(json.loads((path / "label.json").read_text()).items(), key=lambda i: int(i[0]))
    ]
    splits = DatasetDict()
    for split, names in SPLIT_NAMES.items():
        file = next((path / f"{n}.json" for n in names if (path / f"{n}.json").is_file()), None)
        if file is not None:
            rows = json.loads(file.read_text())
            splits[split] = Dataset.from_list(
                [
                    {"id": key, **row["data"], "label": row["label"], "weak_labels": row["weak_labels"]}
                    for key, row in rows.items()
                ]
            )
    return name_classes(splits, "label", classes)


def name_classes(splits: DatasetDict, column: str, classes: Sequence[str] | None) -> DatasetDict:
    """Make `column` a `ClassLabel` with `classes`; None: the names one split has, or those found in the data, sorted.

    Raises:
        ValueError: a label that is not among the classes; without `classes`, splits that name or order them otherwise.
    """
    holding = {name: split for name, split in splits.items() if column in split.column_names}
    if not holding:
        return splits
    if classes is None:
        classes = same_classes(holding, column)
    maps = [s.features[column] for s in holding.values() if isinstance(s.features[column], ClassLabel)]
    if len(maps) == len(holding) and all(classes is None or each.names == list(classes) for each in maps):
        return splits
    said = {name: [_said(v, split.features[column]) for v in split[column]] for name, split in holding.items()}
    values = sorted({v for labels in said.values() for v in labels if v is not None}, key=lambda v: (str(type(v)), v))
    if classes is None:
        numbers = [v for v in values if isinstance(v, int)]
        counted = len(numbers) == len(values)
        if numbers and not counted:
            raise ValueError(
                f"`classes`: expected names or numbers in column {column!r}, found both: {values[:3]} ... "
                f"{values[-3:]}. List the names in the order of their numbers."
            )
        classes = [str(v) for v in (range(max(numbers, default=-1) + 1) if counted else values)]
    to_index: dict[str | int, int] = {str(name): i for i, name in enumerate(classes)}
    to_index |= {i: i for i in range(len(classes))}
    unknown = [v for v in values if v not in to_index]
    if unknown:
        raise ValueError(
            f"`classes`: expected labels among {list(classes)}, found {unknown[:5]} in column {column!r}. "
            "List every class, in the order of its index."
        )
    feature = ClassLabel(names=[str(c) for c in classes])

    def convert(split: Dataset, labels: list[str | int | None]) -> Dataset:
        indices = [None if v is None else to_index[v] for v in labels]
        encoded = split.add_column("_class", indices).remove_columns(column).rename_column("_class", column)
        return encoded.cast_column(column, feature)

    return DatasetDict({name: convert(s, said[name]) if name in holding else s for name, s in splits.items()})


def same_classes(splits: Mapping[str, Dataset], column: str = "label") -> list[str] | None:
    """The class names of the splits (or data sets), in order; None where no split names its classes.

    Args:
        splits: name -> data set, from one folder or from several.

    Raises:
        ValueError: two splits with other names, or the same in another order: an index would mean two classes.

    Example:
        >>> first, second = (Dataset.from_dict({"label": [0]}).cast_column("label", ClassLabel(names=names))
        ...                  for names in (["ham", "spam"], ["spam", "ham"]))
        >>> same_classes({"train": first, "test": second})
        Traceback (most recent call last):
        ValueError: `classes`: expected the same classes in the same order in every split, found train: ['ham', ...
    """
    named = {name: split.features.get(column) for name, split in splits.items()}
    maps = {name: feature.names for name, feature in named.items() if isinstance(feature, ClassLabel)}
    first = next(iter(maps.values()), None)
    if any(names != first for names in maps.values()):
        raise ValueError(
            "`classes`: expected the same classes in the same order in every split, found "
            f"{'; '.join(f'{name}: {names}' for name, names in maps.items())}. Pass `classes` in one order: labels are "
            "then matched by name."
        )
    return first


def _said(value: Any, feature: Any) -> str | int | None:
    """A label by its name, or by its index where it has none; None where it is missing."""
    if value is None or value == -100 or value != value:
        return None
    if isinstance(feature, ClassLabel):
        return feature.int2str(value)
    # a CSV column of integers with gaps is read as floats
    return int(value) if isinstance(value, float) and value.is_integer() else value


def hold_out(split: Dataset, rows: int, seed: int, column: str = "label") -> tuple[Dataset, Dataset]:
    """`rows` labelled rows of `split`, stratified by class and drawn by `seed`, and the rest.

    Raises:
        ValueError: fewer rows than that, or a class too rare to stratify.
    """
    if not 0 < rows < len(split):
        raise ValueError(
            f"`clean_rows`/`selection_rows`: expected 1 to {len(split) - 1} rows to hold out, found {rows}."
        )
    try:
        parts = split.train_test_split(test_size=rows, seed=seed, stratify_by_column=column)
    except ValueError as error:
        raise ValueError(
            f"`clean_rows`/`selection_rows`: cannot draw {rows} of {len(split)} rows stratified by {column!r}: {error}"
        ) from error
    return parts["test"], parts["train"]
