"""Damaged files of rows, and files that only look damaged, with what stands in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

Rows = list[dict[str, Any]]
EVERY = ("train", "label", "teach")


def plain_rows() -> Rows:
    made = planted.make_rows(60, tokens=False)
    return [
        {"text": f"{text} w{i % 40}", "label": planted.NAMES[label]}
        for i, (text, label) in enumerate(zip(made["text"], made["label"], strict=True))
    ]


ROWS = plain_rows()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
LATIN = "".join(json.dumps({**row, "text": row["text"] + " é"}, ensure_ascii=False) + "\n" for row in ROWS)


@dataclass(frozen=True)
class Damage:
    """What is written, and what should come of it.

    Args:
        write: a folder to write into -> what is given as `data`.
        refused: the commands that must refuse it.
        allowed: the commands that must run it; of all others either will do.
        rows: what stands in it, where it is run.
        flags: of `amal-hf train`.
    """

    write: Callable[[Path], Path]
    refused: tuple[str, ...] = EVERY
    allowed: tuple[str, ...] = ()
    rows: Rows | None = None
    flags: tuple[str, ...] = ()


def file(name: str, content: str | bytes, **told: Any) -> Damage:
    """One file, at times in a folder of its own."""

    def write(place: Path) -> Path:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path if "/" not in name else path.parent

    return Damage(write, **told)


def fine(name: str, content: str | bytes, rows: Rows = ROWS, **told: Any) -> Damage:
    return file(name, content, **{"refused": (), "allowed": EVERY, "rows": rows, **told})


def folder(files: dict[str, str | bytes], **told: Any) -> Damage:
    def write(place: Path) -> Path:
        for name, content in files.items():
            path = place / "rows" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place / "rows"

    return Damage(write, **told)


def parquet(table: pa.Table, **told: Any) -> Damage:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return file("train.parquet", sink.getvalue().to_pybytes(), **told)


def saved(spoil: Callable[[Path], object] = lambda place: None, **told: Any) -> Damage:
    def write(place: Path) -> Path:
        DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(str(place / "rows"))
        spoil(place / "rows")
        return place / "rows"

    return Damage(write, **told)


def matrix(votes: Any, **told: Any) -> Damage:
    def write(place: Path) -> Path:
        (place / "train.csv").write_text(CSV)
        if isinstance(votes, bytes):
            (place / "L_train.npy").write_bytes(votes)
        else:
            np.save(place / "L_train.npy", votes, allow_pickle=True)
        return place / "train.csv"

    return Damage(write, flags=("--votes_column", "weak_labels"), **told)


def made(write: Callable[[Path], Path], **told: Any) -> Damage:
    return Damage(write, **told)


def linked(place: Path) -> Path:
    (place / "rows").mkdir()
    (place / "rows" / "train.jsonl").symlink_to(place / "nothing.jsonl")
    return place / "rows"


def piped(place: Path) -> Path:
    os.mkfifo(place / "train.jsonl")
    return place / "train.jsonl"


def looped(place: Path) -> Path:
    (place / "train.jsonl").symlink_to(place / "train.jsonl")
    return place / "train.jsonl"


def starred(place: Path) -> Path:
    (place / "star*[a]? {b}").mkdir()
    (place / "star*[a]? {b}" / "train.jsonl").write_text(JSONL)
    return place / "star*[a]? {b}"


def named_as_file(place: Path) -> Path:
    (place / "rows" / "train.csv").mkdir(parents=True)
    return place / "rows"


def relabelled(change: Callable[[int, dict[str, Any]], Any]) -> Rows:
    return [{**row, "label": change(i, row)} for i, row in enumerate(ROWS)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: Rows) -> str:
    return (
        ",".join(rows[0])
        + "\n"
        + "".join(",".join("" if v is None else str(v) for v in row.values()) + "\n" for row in rows)
    )


def studio(row: dict[str, Any], *choices: list[str]) -> dict[str, Any]:
    said = [{"result": [{"type": "choices", "value": {"choices": some}}], "was_cancelled": False} for some in choices]
    return {"id": 1, "data": {"text": row["text"]}, "annotations": said, "predictions": []}


def prodigy(row: dict[str, Any], accept: list[str], answer: str = "accept") -> dict[str, Any]:
    options = [{"id": name, "text": name} for name in planted.NAMES]
    return {"text": row["text"], "_input_hash": hash(row["text"]), "options": options, "accept": accept,
            "answer": answer, "_view_id": "choice"}  # fmt: skip


def wrench(rows: Rows, **changed: Any) -> str:
    made = {
        str(i): {"label": planted.NAMES.index(row["label"]), "weak_labels": [0, -1], "data": {"text": row["text"]}}
        for i, row in enumerate(rows)
    }
    return json.dumps({**made, **changed})
