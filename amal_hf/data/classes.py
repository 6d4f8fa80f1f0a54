"""Class answers of labels, votes and annotators: one reader, by name, whatever file they come from."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict
from transformers.utils import logging

from amal_hf import _checks
from amal_hf.data.class_columns import NOTHING, has_negative, replaced

logger = logging.get_logger(__name__)

MAX_CLASSES = 1000
"""Most classes that are found in a column of labels; more must be listed in `classes`."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def spelled(value: Any) -> str | None:
    """A value as text, the same from every file format: 1.0 is "1", `["x"]` and `{"choices": ["x"]}` are "x".

    Returns:
        None where a cell is empty: None, NaN, an empty text, an empty list.

    Raises:
        ValueError: several values in one row.

    Example:
        >>> [spelled(v) for v in (1, 1.0, " Spam ", True, ["x"], {"choices": ["x"]}, float("nan"), "")]
        ['1', '1', 'Spam', 'True', 'x', 'x', None, None]
    """
    if isinstance(value, Mapping):
        if set(value) != {"choices"}:
            raise ValueError(f"expected one class in a row, found {str(dict(value))[:60]}")
        value = value["choices"]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) > 1:
            raise ValueError(f"expected one class in a row, found {len(value)}: {str(list(value))[:60]}")
        return spelled(value[0]) if len(value) else None
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split()) or None


class ClassReader:
    """Class names in the order of their indices, and what index a value means.

    A value is read by name, case and white space forgiven where that is unambiguous; then as a number ("01", 1.0 and
    "1" are the class "1"); then as a position 0..C-1, unless a name is a number itself. Booleans are the names "True"
    and "False". Nothing, -1 and -100 (unless these are names) are no label.

    Args:
        names: C class names, two or more.

    Raises:
        ValueError: a name twice, or fewer than two names.

    Example:
        >>> read = ClassReader(["ham", "spam"])
        >>> read("spam"), read(" SPAM"), read(1), read("1.0"), read(["ham"]), read(-1), read(None)
        (1, 1, 1, 1, 0, None, None)
        >>> ClassReader(["1", "2", "3"])(1.0)
        0
        >>> read("spma")
        Traceback (most recent call last):
        ValueError: `classes`: expected a class of ['ham', 'spam'], found 'spma' (1 row, nearest 'spam'). Correct ...
    """

    def __init__(self, names: Sequence[Any]) -> None:
        if isinstance(names, str) or not len(names):
            raise ValueError(f"`classes`: expected a list of class names, found {names!r}. List them: [ham, spam].")
        self.names = [spelled(name) or "" for name in names]
        if len(self.names) == 1:
            raise ValueError(
                f"`classes`: expected two classes or more, found only {self.names}. Label rows of another class; names "
                "that differ in case alone are kept apart where `classes` lists them."
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1 or not name]
        if twice:
            raise ValueError(f"`classes`: expected every name once, found {list(names)}. Drop or rename {twice}.")
        self._exact = {name: i for i, name in enumerate(self.names)}
        self._loose = _unambiguous(name.casefold() for name in self.names)
        self._numbers = _unambiguous(_number(name) for name in self.names)
        self.numbered = bool(self._numbers)

    def __call__(self, value: Any) -> int | None:
        index = self.index(text) if (text := spelled(value)) is not None else None
        if index == -1:
            raise ValueError(self.refusal({str(text): 1}))
        return index

    def index(self, text: str) -> int | None:
        """The class that `text` (as `spelled`) means, None where that is no label, -1 where it is no class."""
        number = _number(text)
        for key, known in ((text, self._exact), (text.casefold(), self._loose), (number, self._numbers)):
            if key is not None and key in known:
                return known[key]
        if number in NOTHING:
            return None
        if not self.numbered and number is not None and number.isdecimal() and int(number) < len(self.names):
            return int(number)
        return -1

    def exactly(self, text: str) -> bool:
        """Whether `text` is a name letter by letter, or a number."""
        return text in self._exact or _number(text) is not None

    def refusal(self, odd: Mapping[str, int], where: str = "") -> str:
        """What to tell of spellings (and their rows) that are no class."""
        parts = []
        for text, rows in Counter(odd).most_common(5):
            close = difflib.get_close_matches(text.casefold(), [key for key in self._loose if key], 1, 0.5)
            hint = f", nearest {self.names[self._loose[close[0]]]!r}" if close else ""
            parts.append(f"{text[:60]!r} ({rows} row{'s' * (rows != 1)}{hint})")
        more = f" and {len(odd) - 5} more spellings" if len(odd) > 5 else ""
        return (
            f"`classes`: expected a class of {_checks.few(self.names)}, found {', '.join(parts)}{more}{where}. Correct "
            "the rows, or list every class in `classes`, in the order of its index."
        )


def name_classes(splits: DatasetDict, column: str, classes: Sequence[Any] | None) -> DatasetDict:
    """The splits with `column` a `ClassLabel` of `classes`; None: the names one split has, or `infer_classes`.

    Raises:
        ValueError: a label that is not among the classes; without `classes`, splits that name or order them otherwise.
    """
    holding = {name: split for name, split in splits.items() if column in split.column_names}
    given = None if classes is None else ClassReader(classes)
    if not holding:
        return splits
    reader = given or ClassReader(infer_classes(holding, column))
    feature, forgiven = ClassLabel(names=reader.names), Counter[str]()
    named = {}
    for name, split in holding.items():
        if split.features[column] == feature and not has_negative(split, column):
            named[name] = split
            continue
        places, texts = answers(split, column, name)
        rows = np.bincount(places, minlength=len(texts))
        indices = [None if text is None else reader.index(text) for text in texts]
        odd = {str(texts[i]): int(rows[i]) for i, index in enumerate(indices) if index == -1}
        if odd:
            raise ValueError(reader.refusal(odd, f" in column {column!r} of {name!r}"))
        forgiven.update(
            {t: int(rows[i]) for i, t in enumerate(texts) if t is not None and rows[i] and not reader.exactly(t)}
        )
        made = pa.array(indices, pa.int64()).take(pa.array(places))
        named[name] = replaced(split, column, made, feature)
    if forgiven:
        logger.warning(_merged(forgiven, column, reader))
    return DatasetDict({name: named.get(name, split) for name, split in splits.items()})


def infer_classes(splits: Mapping[str, Dataset], column: str) -> list[str]:
    """Names of the classes in a column of labels: a `ClassLabel`'s, 0..highest of whole numbers, else sorted spellings.

    Spellings that differ in case or white space alone are one class, called as most rows call it.

    Raises:
        ValueError: names in one place and numbers in another, more classes than `MAX_CLASSES`, texts or numbers with a
            fraction instead of classes, or splits whose `ClassLabel`s differ.
    """
    if (known := same_classes(splits, column)) is not None:
        return known
    counts = Counter[str]()
    for name, split in splits.items():
        places, texts = answers(split, column, name)
        for text, rows in zip(texts, np.bincount(places, minlength=len(texts)), strict=True):
            counts.update({text: int(rows)} if text is not None and rows else {})
    if set(counts) == {"-1", "1"}:
        raise ValueError(
            f"`classes`: expected classes 0 to C-1 in column {column!r}, found -1 and 1, where -1 may be a class or no "
            "label. List the classes: ['-1', '1'] where it is one."
        )
    for nothing in NOTHING:
        del counts[nothing]
    if not counts:
        raise ValueError(
            f"`label_column`: expected classes in {column!r}, found no label on any row. Name another column."
        )
    if all(re.fullmatch(r"0|[1-9]\d*", text) for text in counts):
        return _positions(counts, column)
    numbers = [text for text in counts if _number(text) is not None and not re.match(r"0\d", text)]
    if all(text.isdecimal() for text in counts) and len({_number(text) for text in counts}) == len(counts):
        return sorted(counts)  # codes such as 01, 02, 10
    if numbers and len(numbers) < len(counts):
        found = sorted(counts)
        raise ValueError(
            f"`classes`: expected names or numbers in column {column!r}, found both: {_checks.few(found)}. List the "
            "names in the order of their numbers."
        )
    if odd := [number for number in numbers if "." in number or number.startswith("-")]:
        raise ValueError(
            f"`classes`: expected classes in column {column!r}, found numbers such as {odd[0]}. List them as names "
            "in `classes` where they are classes."
        )
    called: dict[str, str] = {}
    for text, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        called.setdefault(text.casefold(), text)
    _bounded(len(called), sum(counts.values()), column)
    return sorted(called.values())


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
            f"{'; '.join(f'{name}: {_checks.few(names)}' for name, names in maps.items())}. Pass `classes` in one "
            "order: labels are then matched by name."
        )
    return first


def answers(dataset: Dataset, column: str, where: str = "") -> tuple[np.ndarray, list[str | None]]:
    """Which of the distinct answers each row gives, `[N]`, and these as `spelled`, the last of them None: missing.

    Raises:
        ValueError: several answers in one row.
    """
    feature, values = dataset.features[column], dataset.select_columns([column]).with_format("arrow")[:].column(0)
    if pa.types.is_null(values.type):
        return np.zeros(len(dataset), int), [None]
    nested = pa.types.is_nested(values.type)
    try:
        encoded = pa.chunked_array(
            [pa.array([spelled(v) for v in values.to_pylist()], pa.string())] if nested else values.chunks,
            pa.string() if nested else values.type,
        )
        encoded = encoded.combine_chunks().dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        if isinstance(feature, ClassLabel):  # its own order of classes may be another
            texts = [None if index is None or index < 0 else feature.int2str(index) for index in distinct]
        else:
            texts = [spelled(value) for value in distinct]
    except ValueError as error:
        raise ValueError(
            f"`{column}`: {error}{f' in {where!r}' * bool(where)}. Keep one class a row; a column of several is a task "
            "of several labels."
        ) from error
    places = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return places, [*texts, None]


def _positions(counts: Mapping[str, int], column: str) -> list[str]:
    highest, distinct = max(map(int, counts)), len(counts)
    if highest >= max(2 * distinct + 8, 20) or highest >= MAX_CLASSES:
        raise ValueError(
            f"`classes`: expected classes 0 to C-1 in column {column!r}, found {distinct} whole numbers up to "
            f"{highest} ({counts[str(highest)]} row(s)). Correct the rows, or list them in `classes` if they are names."
        )
    return [str(c) for c in range(highest + 1)]


def _bounded(distinct: int, rows: int, column: str) -> None:
    if distinct > MAX_CLASSES or (distinct > 50 and 2 * distinct > rows) or 20 < distinct == rows:
        raise ValueError(
            f"`label_column`: expected at most {MAX_CLASSES} classes, each on several rows, found {distinct} in {rows} "
            f"rows of {column!r}. Name the column of the class, or list `classes`."
        )


def _merged(forgiven: Mapping[str, int], column: str, reader: ClassReader) -> str:
    parts = ", ".join(
        f"{text!r} as {reader.names[reader.index(text) or 0]!r} ({rows} row{'s' * (rows != 1)})"
        for text, rows in sorted(forgiven.items(), key=lambda each: -each[1])[:10]
    )
    return f"`{column}`: spellings that differ in case or white space are read as one class: {parts}."


def _number(text: str) -> str | None:
    """A number's one spelling, "01" and "1.0" as "1"; None of what is none."""
    if not _NUMBER.fullmatch(text):
        return None
    sign, plain = ("-", text[1:]) if text[0] == "-" else ("", text.lstrip("+"))
    whole, _, part = plain.partition(".")
    part, whole = part.rstrip("0"), whole.lstrip("0") or "0"
    return (sign if (whole, part) != ("0", "") else "") + whole + ("." + part) * bool(part)


def _unambiguous(keys: Iterable[str | None]) -> dict[str | None, int]:
    """Key -> its place, of keys that stand in one place alone."""
    listed = list(keys)
    counts = Counter(listed)
    return {key: i for i, key in enumerate(listed) if key is not None and counts[key] == 1}
