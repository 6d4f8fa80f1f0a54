"""Files of rows, damaged and only seemingly so: what is written, and which commands refuse it."""

from __future__ import annotations

import gzip
import json
import os

import numpy as np
import planted
import pyarrow as pa
from fuzz_files import (
    CSV,
    EVERY,
    JSONL,
    LATIN,
    ROWS,
    Damage,
    file,
    fine,
    folder,
    lines,
    linked,
    looped,
    made,
    matrix,
    named_as_file,
    parquet,
    piped,
    prodigy,
    relabelled,
    saved,
    starred,
    studio,
    table,
    wrench,
)

CLASSES = json.dumps({str(i): name for i, name in enumerate(planted.NAMES)})
HALF = gzip.compress(JSONL.encode())
VOTES = np.array([[0, -1]] * 60)
COLUMNS = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
OTHER_NAMES = {"air": "None", "sea": "NA", "land": "nan"}
OTHERS = [{**row, "text": row["text"] + " w0"} for row in ROWS]
UNLABELLED = relabelled(lambda i, row: None if i % 10 == 3 else row["label"])
TWICE = '{"text": "w1", "label": "air", "label": "sea"}\n'
DAMAGES: dict[str, Damage] = {
    # ---- CSV ----
    "one cell too many": file("train.csv", CSV + "w1, w2,air\n"),
    "one cell too few": file("train.csv", CSV + "w1\n"),
    "a trailing comma": file("train.csv", CSV + "w1,air,\n"),
    "an unclosed quote": file("train.csv", CSV + '"w1,air\n'),
    "semicolons": file("train.csv", CSV.replace(",", ";")),
    "tabs": file("train.csv", CSV.replace(",", "\t")),
    "one header twice": file("train.csv", CSV.replace("text,label", "label,label")),
    "an empty header": file("train.csv", CSV.replace("text,label", "text,")),
    "CSV in latin-1": file("train.csv", (CSV + "é,air\n").encode("latin-1")),
    "CSV in UTF-16": file("train.csv", CSV.encode("utf-16")),
    "an empty CSV": file("train.csv", ""),
    "a header alone": file("train.csv", "text,label\n"),
    "bytes for CSV": file("train.csv", bytes(range(256)) * 4),
    "5,000 columns": file("train.csv", "text,label" + "".join(f",c{i}" for i in range(5000)) + "\n" + "".join(
        f"{row['text']},{row['label']}" + ",0" * 5000 + "\n" for row in ROWS), refused=(), rows=ROWS),
    "a label of 10**6": file("train.csv", table(relabelled(lambda i, row: 10**6 if i == 5 else i % 3))),
    "a label of 2**60": file("train.csv", table(relabelled(lambda i, row: 2**60 if i == 5 else i % 3))),
    "a mark before the header, \\r\\n": fine("train.csv", "\ufeff" + CSV.replace("\n", "\r\n") + "\r\n\r\n"),
    "quotes, commas and lines in cells": fine("train.csv", 'text,label\n' + "".join(
        f'"{row["text"]}, ""w2""\nw3",{row["label"]}\n' for row in ROWS),
        [{**row, "text": f'{row["text"]}, "w2"\nw3'} for row in ROWS]),
    "an index": fine("train.csv", "".join(
        f"{i - 1 if i else ''},{line}\n" for i, line in enumerate(CSV.split("\n")[:-1]))),
    "classes None, NA and nan": fine("train.csv", table(relabelled(lambda i, row: OTHER_NAMES[row["label"]])),
                                     relabelled(lambda i, row: OTHER_NAMES[row["label"]]), allowed=("train", "label")),
    "empty cells of labels": fine("train.csv", table(UNLABELLED), UNLABELLED),
    "an empty cell of text": file("train.csv", CSV + ",air\n", refused=("teach", "label")),
    # ---- JSON ----
    "a broken line": file("train.jsonl", JSONL + '{"text": \n'),
    "a line cut short": file("train.jsonl", JSONL[:-9]),
    "numbers for rows": file("train.jsonl", lines([1, 2, 3])),
    "lists for rows": file("train.jsonl", lines([[row["text"], row["label"]] for row in ROWS])),
    "a text for rows": file("train.json", '"air"'),
    "an object of columns": file("train.json", json.dumps(COLUMNS)),
    "an object of objects": file("train.json", json.dumps({"text": {"0": "w1"}, "label": {"0": "air"}})),
    "an object of a list of rows": file("train.json", json.dumps({"data": ROWS})),
    "no JSON": file("train.json", "rows: [a, b]"),
    "JSON in latin-1": file("train.jsonl", LATIN.encode("latin-1")),
    "a lone surrogate": file("train.jsonl", JSONL + '{"text": "\\ud800", "label": "air"}\n'),
    "a lone surrogate in bytes": file("train.jsonl", JSONL + '{"text": "\ud800", "label": "air"}\n'),
    "one name twice": file("train.jsonl", JSONL + TWICE),
    "nested without end": file("train.json", "[" * 100_000),
    "a number of 5,000 digits": file("train.jsonl", JSONL + f'{{"text": "w1", "label": {"9" * 5000}}}\n'),
    "labels in a list and alone": file("train.jsonl", lines(
        relabelled(lambda i, row: [row["label"]] if i % 2 else "air"))),
    "labels of NaN": file("train.jsonl", lines(relabelled(lambda i, row: float("nan"))), refused=("train", "label")),
    "labels of infinity": file("train.jsonl", lines(relabelled(lambda i, row: float("inf") if i == 3 else i % 3))),
    "keys that are missing": fine("train.jsonl", lines([{k: v for k, v in row.items() if v is not None} for row in
                                                        UNLABELLED]), UNLABELLED),
    "a mark and blank lines": fine("train.jsonl", "\ufeff" + JSONL.replace("\n", "\n\n\n")),
    "labels of doccano": fine("train.jsonl", lines(relabelled(lambda i, row: [row["label"]]))),
    "texts that are lists": file("train.jsonl", lines([{**row, "text": row["text"].split()} for row in ROWS]),
                                 refused=("train", "teach")),
    "texts that are numbers": fine("train.jsonl", lines([{**row, "text": i} for i, row in enumerate(ROWS)]),
                                   [{**row, "text": str(i)} for i, row in enumerate(ROWS)], refused=("label",),
                                   allowed=("train", "teach")),
    # ---- compressed ----
    "a .gz cut short": file("train.jsonl.gz", HALF[:-9]),
    "a .gz cut in half": file("train.jsonl.gz", HALF[: len(HALF) // 2]),
    "a .gz with other bytes": file("train.jsonl.gz", HALF[:40] + bytes(40) + HALF[80:]),
    "no .gz": file("train.jsonl.gz", JSONL),
    "an empty .gz": file("train.jsonl.gz", b""),
    # ---- Parquet ----
    "text for Parquet": file("train.parquet", JSONL),
    "an empty Parquet": file("train.parquet", b""),
    "Parquet without rows": parquet(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})),
    "Parquet with a column twice": parquet(pa.Table.from_arrays(
        [pa.array(COLUMNS[name]) for name in ("text", "label", "label")], ["text", "label", "label"])),
    "Parquet of large and encoded texts": parquet(
        pa.table({"text": pa.array(COLUMNS["text"], pa.large_string()),
                  "label": pa.array(COLUMNS["label"]).dictionary_encode()}),
        refused=(), rows=ROWS, allowed=EVERY),
    "Parquet of bytes": parquet(pa.table({"text": pa.array(COLUMNS["text"], pa.binary()), "label": COLUMNS["label"]})),
    # ---- folders ----
    "no train": folder({"dev.jsonl": JSONL}),
    "files of other columns": folder({"train.1.csv": CSV, "train.2.csv": CSV.replace("label", "class", 1)}),
    "two files of one split": folder({"train.1.csv": CSV, "train.2.jsonl": lines(OTHERS)},
                                     refused=(), allowed=EVERY, rows=ROWS + OTHERS),
    "a list of other classes": folder({"train.csv": CSV, "info.json": '{"classes": ["air", "sea"]}'}),
    "classes of no shape": folder({"train.csv": CSV, "info.json": '{"classes": 3}'}),
    "info.json that is none": folder({"train.csv": CSV, "info.json": "{"}),
    "a test split in latin-1": folder({"train.csv": CSV, "test.csv": (CSV + "é,air\n").encode("latin-1")}),
    "a dangling link": made(linked),
    "a link to itself": made(looped),
    "a pipe": made(piped),
    "a folder named as a file": made(named_as_file),
    "a path of glob characters": made(starred, refused=(), allowed=EVERY, rows=ROWS),
    "WRENCH": folder({"label.json": CLASSES, "train.json": wrench(ROWS)}, refused=(), allowed=EVERY, rows=ROWS),
    "WRENCH without train": folder({"label.json": CLASSES}),
    "WRENCH without data": folder({"label.json": CLASSES, "train.json": wrench(
        ROWS, a={"label": 0, "weak_labels": [0]})}),
    "WRENCH of another class": folder({"label.json": CLASSES, "train.json": wrench(
        ROWS, a={"label": 9, "weak_labels": [0, 1], "data": {"text": "w1"}})}),
    "WRENCH classes of no shape": folder({"label.json": '{"a": "b"}', "train.json": wrench(ROWS)}),
    "a saved set": saved(refused=(), allowed=EVERY, rows=ROWS),
    "a saved set without rows": saved(lambda p: (p / "train" / "data-00000-of-00001.arrow").unlink()),
    "a saved set cut short": saved(lambda p: os.truncate(p / "train" / "data-00000-of-00001.arrow", 700)),
    "a saved set with text for rows": saved(lambda p: (p / "train" / "data-00000-of-00001.arrow").write_text(JSONL)),
    "a saved set without state": saved(lambda p: (p / "train" / "state.json").unlink()),
    "a saved set with a list for state": saved(lambda p: (p / "train" / "state.json").write_text("[]")),
    "a saved set of no splits": saved(lambda p: (p / "dataset_dict.json").write_text("{}")),
    "a saved set of other columns": saved(lambda p: (p / "train" / "dataset_info.json").write_text('{"features": {}}'),
                                          refused=(), rows=ROWS),
    # ---- votes ----
    "votes beside the table": matrix(VOTES, refused=(), allowed=("train", "label"), rows=ROWS),
    "votes on other rows": matrix(VOTES[:59]),
    "votes of halves": matrix(VOTES + 0.5),
    "votes of objects": matrix(np.array([[None, 1]] * 60, dtype=object)),
    "votes cut short": matrix(b"\x93NUMPY\x01\x00v\x00"),
    "votes for no class": matrix(VOTES + 7, refused=("train",), rows=ROWS),
    "lfs.json and summary.json of no shape": folder(
        {"train.jsonl": lines([{**row, "weak_labels": [0, -1]} for row in ROWS]), "lfs.json": "[1, 2]",
         "summary.json": "[]"}, refused=("train",), rows=ROWS, flags=("--votes_column", "weak_labels")),
    "lfs.json of other functions": folder(
        {"train.jsonl": lines([{**row, "weak_labels": [0, -1]} for row in ROWS]), "lfs.json": '["a", "b", "c"]'},
        refused=("train",), rows=ROWS, flags=("--votes_column", "weak_labels")),
    # ---- annotation tools ----
    "Label Studio": fine("train.json", json.dumps([studio(row, [row["label"]], [row["label"]]) for row in ROWS])),
    "Label Studio, two annotators": file("train.json", json.dumps([studio(row, ["air"], ["sea"]) for row in ROWS])),
    "Label Studio, two choices": file("train.json", json.dumps([studio(row, ["air", "sea"]) for row in ROWS])),
    "Label Studio, results of no shape": file("train.json", json.dumps([{"data": {"text": "w1"}, "annotations": [3]}])),
    "Prodigy": fine("train.jsonl", lines([prodigy(row, [row["label"]]) for row in ROWS])),
    "Prodigy, some ignored": fine("train.jsonl", lines(
        [prodigy(row, [row["label"]] if row["label"] else ["air"], "accept" if row["label"] else "ignore")
         for row in UNLABELLED]), UNLABELLED),
    "Prodigy, two annotators": file("train.jsonl", lines(
        [prodigy(row, [name]) for row in ROWS for name in ("air", "sea")])),
    "Prodigy, one class alone": file("train.jsonl", lines([{"text": row["text"], "label": "air", "answer": (
        "accept" if row["label"] == "air" else "reject")} for row in ROWS])),
}  # fmt: skip
