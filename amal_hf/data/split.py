"""Which rows train, are clean, select and test: as the user named them, and never without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Value
from transformers.utils import logging

from amal_hf import _checks

logger = logging.get_logger(__name__)

CLEAN_SPLITS = ("clean", "validation")
"""Splits whose labels are taken as true where no split is named, the first that is there."""


def hold_out(
    split: Dataset, per_class: int, seed: int, column: str = "label", share: float = 0.5
) -> tuple[Dataset, Dataset]:
    """`per_class` labelled rows of every class, drawn by `seed`, and the rest; both in the split's order.

    Args:
        share: at most this share of a class's rows is held out.

    Raises:
        ValueError: no row could be held out.
    """
    labels = _classes(split, column)
    generator, held, few = np.random.default_rng(seed), [], []
    for each in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == each)
        held.append(generator.permutation(rows)[: min(per_class, int(share * len(rows)))])
        if len(held[-1]) < per_class < len(split):
            few.append(f"{len(held[-1])} of {split.features[column].int2str(int(each))!r} ({len(rows)} rows)")
    if few:
        logger.warning("`clean_rows`/`selection_rows`: of some classes fewer than %d are held out: %s.", per_class,
                       ", ".join(few[:10]))  # fmt: skip
    chosen = np.sort(np.concatenate(held)) if held else np.array([], int)
    if not len(chosen):
        raise ValueError(
            f"`clean_rows`/`selection_rows`: expected to hold out {per_class} rows of every class, found no class with "
            f"two labelled rows among {len(split)}. Label a few rows of every class."
        )
    return split.select(chosen), split.select(np.setdiff1d(np.arange(len(split)), chosen))


def labelled_rows(splits: Mapping[str, Dataset], name: str, column: str = "label") -> Dataset:
    """The rows of a split that have a label; how many have none is printed.

    Raises:
        ValueError: none has one.
    """
    split = splits[name]
    there = _classes(split, column) >= 0 if column in split.column_names else np.zeros(len(split), bool)
    if not there.any():
        raise ValueError(
            f"`{name}`: expected {column!r} on its rows, found none among {len(split)} rows. Name a split with labels."
        )
    if there.all():
        return split
    logger.warning("`%s`: %d of %d rows have no label and are left out.", name, (~there).sum(), len(split))
    return split.select(np.flatnonzero(there))


def clean_split(splits: Mapping[str, Dataset], given: str, rows: int) -> str:
    """The split whose rows are clean: the one that is named, else `clean` or `validation`; "train" to hold out.

    Raises:
        ValueError: no split is called clean, and no number of rows to hold out is given.
    """
    if given:
        return given
    found = next((name for name in CLEAN_SPLITS if name in splits), None)
    if found is not None:
        logger.warning("`clean_split`: the labels of %r are taken as true; name another split if not.", found)
        return found
    if rows:
        return "train"
    raise ValueError(
        f"`clean_split`: expected a split with true labels, named here or called 'clean' or 'validation', found "
        f"{sorted(splits)}. Name one, or hold N rows of every class out of 'train', whose labels you then vouch for: "
        "clean_rows: N."
    )


def check_named(splits: Mapping[str, Dataset], given: Mapping[str, str]) -> None:
    """Splits that are named exist, and are not the one that is trained on.

    Args:
        given: setting -> split.

    Raises:
        ValueError: naming the setting.
    """
    for setting, name in given.items():
        if name == "train":
            raise ValueError(
                f"`{setting}`: expected rows that are not trained on, found 'train'. Name another split, or hold rows "
                "out of it with clean_rows and selection_rows."
            )
        if name and name not in splits:
            raise ValueError(
                f"`{setting}`: expected one of {sorted(set(splits) - {'train'})}, found {name!r}. Choose one of these."
            )


def divided(
    splits: DatasetDict, clean: str, clean_rows: int, selection: str, selection_rows: int, seed: int
) -> dict[str, Dataset]:
    """`train`, `clean` (the clean rows) and, where asked for, `selection`.

    Args:
        splits: rows with a `ClassLabel` column `label`, where they have labels.
        clean, selection: splits; "" for `clean` as `clean_split` says, for `selection` none.
        clean_rows, selection_rows: rows of every class (0: all); `selection_rows` without a split are held out of the
            split of the clean rows.
    """
    origin = clean_split(splits, clean, clean_rows)
    if origin == "train" and "label" in splits["train"].column_names:
        pool = splits["train"]
    else:
        pool = labelled_rows(splits, origin)
    parts = {"train": splits["train"]}
    if selection == origin and clean_rows and not selection_rows:  # the others select
        parts["clean"], parts["selection"] = hold_out(pool, clean_rows, seed)
        return parts
    shared = selection == origin or (not selection and selection_rows > 0)
    if shared:
        parts["selection"], pool = hold_out(pool, selection_rows or len(pool), seed + 1)
        if origin != "train":
            message = "`selection_split`: %d rows of %r select, %d are left to be clean."
            logger.warning(message, len(parts["selection"]), origin, len(pool))
    elif selection:
        chosen = labelled_rows(splits, selection)
        parts["selection"] = hold_out(chosen, selection_rows, seed, share=1.0)[0] if selection_rows else chosen
    if origin == "train":
        parts["clean"], parts["train"] = hold_out(pool, clean_rows, seed)
    else:
        parts["clean"] = hold_out(pool, clean_rows, seed, share=1.0)[0] if clean_rows else pool
    return parts


def tested(splits: Mapping[str, Dataset], name: str) -> Dataset | None:
    """The rows of the test split that can be measured on; None, with a warning, where it has no label at all."""
    try:
        return labelled_rows(splits, name)
    except ValueError:
        logger.warning("`test_split`: no row of %r has a label, so nothing is measured on it.", name)
        return None


def as_text(split: Dataset, column: str, name: str) -> Dataset:
    """The split with a column that holds texts; whole numbers are such, in a file whose texts are all numbers.

    Raises:
        ValueError: it holds anything else.
    """
    kind = split.select_columns([column]).with_format("arrow")[:0].column(0).type
    if pa.types.is_integer(kind):
        return split.cast_column(column, Value("string"))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"`text_columns`: expected texts in column {column!r} of {name!r}, found {kind}. Name another column."
        )
    return split


def check_texts(splits: Mapping[str, Dataset], columns: Sequence[str]) -> dict[str, Dataset]:
    """The splits, their texts as text; rows that are tokens already pass.

    Raises:
        ValueError: a split without a text column, or rows whose text is missing, blank or no text: which ones.
    """
    made = dict(splits)
    for name, split in splits.items():
        if "input_ids" in split.column_names:
            continue
        for column in columns:
            if column not in split.column_names:
                raise ValueError(
                    f"`text_columns`: expected a column {column!r} in {name!r}, found "
                    f"{_checks.few(split.column_names)}. Rename the column of the text, or set text_columns."
                )
        made[name] = as_texts(split, columns, name)
    return made


def as_texts(split: Dataset, columns: Sequence[str], name: str, blank: bool = False) -> Dataset:
    """The split with columns that hold a text on every row.

    Args:
        blank: whether a text may be blank.

    Raises:
        ValueError: rows whose text is missing, blank or no text: which ones.
    """
    for column in columns:
        split = as_text(split, column, name)
        values = split.select_columns([column]).with_format("arrow")[:].column(0)
        empty = pc.is_null(values)
        if not blank:
            empty = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0), True)
        rows = np.flatnonzero(empty.to_numpy() if len(values) else [])
        if len(rows):
            raise ValueError(
                f"`{column}`: expected a text on every row of {name!r}, found {len(rows)} without, e.g. row(s) "
                f"{rows[:5].tolist()} (counted from 0). Fill them, or drop these rows."
            )
    return split


def _classes(split: Dataset, column: str) -> np.ndarray:
    """Classes of a `ClassLabel` column, -1 where there is none, `[N]`."""
    values = split.select_columns([column]).with_format("arrow")[:].column(0)
    return np.asarray(pc.fill_null(values, -1), dtype=int)
