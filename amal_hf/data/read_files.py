"""Files of rows as people have them: CSV, JSON lines and Parquet to a `Dataset`, or one line that says why not.

Nothing is guessed: "None", "NA" and "01" stay text, only an empty CSV cell is missing, and a row of another length than
the header is refused with its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from amal_hf.data.classes import spelled
from amal_hf.data.exports import plain_rows

_INTEGER, _FLOAT = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?")
_LONGEST_FIELD = 2**31 - 1


def suffix(path: Path) -> str:
    """The ending that says how a file is read, without `.gz`."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_file(path: Path) -> Dataset:
    """The rows of a file, whatever characters its path has.

    Raises:
        ValueError: it cannot be read: file, line where there is one, cause, and what to do.
    """
    reader = READERS.get(suffix(path))
    if reader is None:
        raise ValueError(
            f"`data`: expected one of {sorted(READERS)} (or .gz of these), found {path.name!r}. Convert the file."
        )
    with one_line(path):
        table = reader(path)
    if not len(table):
        raise ValueError(f"`data`: expected rows in {path.name!r}, found none. Fill the file, or remove it.")
    return table


def read_parts(paths: Sequence[Path]) -> Dataset:
    """The rows of several files of one split, one after the other.

    Raises:
        ValueError: as `read_file`, or files of other columns or types.
    """
    parts = [read_file(path) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if set(part.column_names) != set(first.column_names):
            odd = sorted(set(part.column_names) ^ set(first.column_names))
            raise ValueError(
                f"`data`: expected the columns of {paths[0].name!r} in {path.name!r} too, found {odd} in one of them "
                "alone. Give the files of a split the same columns, or keep one of them."
            )
    for column in first.column_names:
        if len({str(part.features[column]) for part in parts}) > 1:
            parts = [_as_text(part, column, paths) for part in parts]
    return concatenate_datasets([part.select_columns(first.column_names) for part in parts])


def read_json(path: Path) -> Any:
    """What stands in a JSON file.

    Raises:
        ValueError: it is none.
    """
    with one_line(path):
        return _parsed(_text(path), path)


@contextmanager
def one_line(path: str | Path) -> Iterator[None]:
    """Whatever a reader raises ends as one `ValueError` that names the file and the cause."""
    try:
        yield
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(
            f"`data`: expected text in UTF-8 in {str(path)!r}, found {found}. Save it in UTF-8: "
            "iconv -f latin1 -t utf-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"`data`: expected a whole .gz file, found that {str(path)!r} is none ({error}). Compress it anew."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise
        causes = [str(each) for each in (error, error.__cause__, error.__context__) if each is not None and str(each)]
        cause = " ".join((causes[-1] if type(error).__module__.startswith("datasets") else (causes or [repr(error)])[0])
                         .split())[:200]  # fmt: skip
        raise ValueError(
            f"`data`: expected rows in {str(path)!r}, found what cannot be read: {cause}. Repair or convert the file."
        ) from error


def _bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _text(path: Path) -> str:
    raw = _bytes(path)
    if b"\0" in raw:
        raise ValueError(
            f"`data`: expected text in {str(path)!r}, found bytes of zero: a binary file, or UTF-16. Save it as UTF-8."
        )
    return raw.decode("utf-8-sig")


def _parsed(text: str, path: Path) -> Any:
    """The value that a text of JSON stands for; no name may stand twice in an object, where the last would win."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise ValueError(
                f"`data`: expected every name once in an object of {path.name!r}, found twice: {twice[:5]}. Drop or "
                "rename one."
            )
        return made

    return json.loads(text, object_pairs_hook=once)


def _read_csv(path: Path) -> Dataset:
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(rows, [])
        _check_header(path, header)
        kept = []
        for row in rows:
            if len(row) != len(header) and row:
                raise ValueError(
                    f"`data`: expected {len(header)} cells in line {rows.line_num} of {path.name!r}, as its header "
                    f"has, found {len(row)}. Put cells with commas between quotation marks."
                )
            kept.append(row) if row else None
    except csv.Error as error:
        raise ValueError(
            f"`data`: expected CSV in {path.name!r}, found at line {rows.line_num}: {error}. Close the quotation mark, "
            "and double those inside a cell."
        ) from error
    return Dataset(pa.table({name: _cells(cells) for name, *cells in zip(header, *kept, strict=True)}))


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) == 1 and (mark := next((m for m in ";\t|" if m in header[0]), None)):
        raise ValueError(
            f"`data`: expected cells with commas between them in {path.name!r}, found {mark!r} in its header. Save it "
            "with commas."
        )
    if header and not header[0]:
        header[0] = "Unnamed: 0"  # the index, as pandas writes it
    odd = sorted({name for name in header if not name.strip() or header.count(name) > 1})
    if odd or not header:
        raise ValueError(
            f"`data`: expected a header of different names in {path.name!r}, found {'twice or empty: ' * bool(odd)}"
            f"{odd or 'none'}. Name every column once."
        )


def _cells(cells: list[str]) -> pa.Array:
    """A column of CSV: whole numbers, numbers or booleans where every cell is one as a program writes it, else text."""
    filled = [cell for cell in cells if cell != ""]
    kinds: list[tuple[Callable[[str], Any], pa.DataType, Callable[[str], Any]]] = [
        (_INTEGER.fullmatch, pa.int64(), int),
        (_FLOAT.fullmatch, pa.float64(), float),
        (lambda cell: cell in ("True", "False"), pa.bool_(), "True".__eq__),
    ]
    for belongs, kind, read in kinds:
        if filled and all(map(belongs, filled)):
            return pa.array([read(cell) if cell != "" else None for cell in cells], kind)
    return pa.array([cell if cell != "" else None for cell in cells], pa.string())


def _read_json(path: Path) -> Dataset:
    text, rows = _text(path), []
    if text.lstrip()[:1] == "[":
        rows = _parsed(text, path)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                rows.append(_parsed(line, path)) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`data`: expected a JSON object in line {number} of {path.name!r}, found {line.strip()[:40]!r} "
                    f"({error.msg}). Write one object a line."
                ) from error
    odd = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if odd is not None:
        raise ValueError(
            f"`data`: expected an object in every row of {path.name!r}, found {str(rows[odd])[:40]!r} in row {odd}. "
            'Write rows as {"text": ..., "label": ...}.'
        )
    alone = text.lstrip()[:1] == "{" and len(rows) == 1 and len(rows[0]) > 1
    if alone and all(isinstance(value, (list, dict)) for value in rows[0].values()):
        raise ValueError(
            f"`data`: expected one object a row in {path.name!r}, found one object of columns. Write one object a line."
        )
    rows = [*plain_rows(rows, path.name)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Dataset(pa.table({name: _values(name, [row.get(name) for row in rows]) for name in names}))


def _values(name: str, values: list[Any]) -> pa.Array:
    """A column of JSON; names and numbers side by side become text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        kinds = {type(value) for value in values if value is not None}
        if not kinds <= {str, int, float, bool}:
            raise ValueError(
                f"`data`: expected values of one kind in column {name!r}, found "
                f"{sorted(kind.__name__ for kind in kinds)}. Write all rows alike."
            ) from None
        return pa.array([value if isinstance(value, str) else spelled(value) for value in values], pa.string())


def _read_parquet(path: Path) -> Dataset:
    return Dataset(pq.read_table(io.BytesIO(_bytes(path)) if path.suffix == ".gz" else pa.OSFile(str(path))))


def _as_text(part: Dataset, column: str, paths: Sequence[Path]) -> Dataset:
    values = part.select_columns([column]).with_format("arrow")[:].column(0)
    feature = part.features[column]
    if pa.types.is_nested(values.type):
        raise ValueError(
            f"`data`: expected column {column!r} of one type in {[path.name for path in paths]}, found {values.type} "
            "in one of them alone. Write all files alike."
        )
    filled = values.to_pylist()
    if names := getattr(feature, "names", None):
        filled = [None if value is None or value < 0 else names[value] for value in filled]
    texts = pa.array([v if isinstance(v, str) else spelled(v) for v in filled], pa.string())
    rest = part.remove_columns(column)
    made = Dataset(pa.table({column: texts}))
    return concatenate_datasets([rest, made], axis=1) if rest.column_names else made


READERS: dict[str, Callable[[Path], Dataset]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Ending of a file -> how it is read."""
