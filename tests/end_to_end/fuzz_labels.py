"""Odd labeling functions, rows, classes and flags of `amal-hf label`, with what should come of them."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk
from fuzz_rounds import Case

NAMES = ["air", "land", "sea"]
Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"text": f"{NAMES[i % 3] if i % 7 else 'none'} and {NAMES[i % 5 % 3]} {i}", "label": NAMES[i % 3]}
    for i in range(24)
]
HEAD = "from snorkel.labeling import LabelingFunction, labeling_function\n"
PLAIN = HEAD + "".join(
    f"@labeling_function()\ndef {name}(x):\n    return {c} if '{name}' in x.text else -1\n"
    for c, name in enumerate(NAMES)
)


def odd(body: str, before: str = "") -> str:
    """The plain functions and one more, whose body it is."""
    return before + PLAIN + f"@labeling_function()\ndef odd(x):\n    {body}\n"


# the file of functions, and what its fourth function says of a row; None: to be refused, "": three functions alone
FUNCTIONS: dict[str, tuple[str | bytes | None, Any]] = {
    "as they are": (PLAIN, ""),
    **{
        f"a vote of {said}": (odd(f"return {said}", "import numpy as np, torch, math\n"), None)
        for said in (
            "3", "10**6", "2**31", "2**60", "10**30", "-2", "-100", "0.5", "1.0", "float('nan')", "float('inf')",
            "None", "'air'", "''", "[1]", "[]", "{}", "(0,)", "np.array([1])", "np.array(1.0)", "np.float64(1)",
            "torch.tensor(1)", "torch.tensor([1])", "1j", "x", "b'1'", "labeling_function", "np.nan", "{1}", "...",
        )
    },
    "a tensor on some rows": (odd("return torch.tensor(1) if 'sea' in x.text else 1", "import torch\n"), None),
    "None on the last row": (odd("return None if '23' in x.text else 1"), None),
    "a truth": (odd("return 'sea' in x.text"), lambda text: int("sea" in text)),
    "a numpy number": (odd("return np.int8('sea' in x.text)", "import numpy as np\n"), lambda text: int("sea" in text)),
    "a numpy truth": (odd("return np.bool_(True)", "import numpy as np\n"), lambda text: 1),
    "never": (odd("return -1"), lambda text: -1),
    "prints": (odd("print('`x`: expected'); return 1"), lambda text: 1),
    "by key": (odd("return 2 if x['text'].endswith('3') else -1"), lambda text: 2 if text.endswith("3") else -1),
    "in a list": (PLAIN + "more = [LabelingFunction('odd', lambda x: 1)]\n", lambda text: 1),
    **{
        f"raises {error}": (odd(f"raise {error}"), None)
        for error in (
            "ValueError('a\\nb')", "KeyError('')", "SystemExit(0)", "SystemExit('bye')", "GeneratorExit",
            "StopIteration", "MemoryError", "RecursionError", "Warning('w')", "OSError(28, 'x')",
            "UnicodeDecodeError('utf-8', b'x', 0, 1, 'y')", "ExceptionGroup('g', [ValueError(1)])",
        )
    },
    "calls sys.exit": (odd("import sys; sys.exit(0)"), None),
    "ends its process": (odd("import os; os._exit(0)"), None),
    "ends its process late": (odd("import os; os._exit(0) if '23' in x.text else 0\n    return 1"), None),
    "kills its process": (odd("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), None),
    "without end": (odd("return odd(x)"), None),
    "no such column": (odd("return x.title"), None),
    "no such key": (odd("return x['title']"), None),
    "of two arguments": (PLAIN + "@labeling_function()\ndef odd(x, y):\n    return 1\n", None),
    "of no argument": (PLAIN + "@labeling_function()\ndef odd():\n    return 1\n", None),
    "one name twice": (PLAIN + "again = LabelingFunction('air', lambda x: 0)\n", None),
    "no decorator": ("def air(x):\n    return 0\n", None),
    "empty": ("", None),
    "binary": (bytes(range(256)), None),
    "latin-1": ((PLAIN + "x = 'é'\n").encode("latin-1"), None),
    "broken": (PLAIN + "def (:\n", None),
    "raises at once": (PLAIN + "raise ValueError('a\\n\\nb')\n", None),
    "leaves at once": ("import sys\nsys.exit(0)\n", None),
    "leaves at once by SystemExit": ("raise SystemExit\n", None),
    "no such module": ("import no_such_module_at_all\n" + PLAIN, None),
    "a generator's end at once": ("raise GeneratorExit\n", None),
    "not there": (None, None),
}  # fmt: skip


def named(change: Callable[[int, dict[str, Any]], Any]) -> Callable[[Rows], Rows]:
    return lambda rows: [{**row, "label": change(i, row)} for i, row in enumerate(rows)]


# what is done to the rows, and whether they are to be refused then (None: as the rest says)
DATA: dict[str, tuple[Callable[[Rows], Rows], bool | None]] = {
    "as they are": (lambda rows: rows, False),
    "no labels": (lambda rows: [{"text": row["text"]} for row in rows], False),
    "a label of None": (named(lambda i, row: None if i == 3 else row["label"]), False),
    "numbers": (named(lambda i, row: NAMES.index(row["label"])), False),
    "texts of numbers": (named(lambda i, row: str(NAMES.index(row["label"]))), False),
    "lists": (named(lambda i, row: [row["label"]]), False),
    "choices": (named(lambda i, row: {"choices": [row["label"]]}), False),
    "two in a list": (named(lambda i, row: [row["label"], "air"]), True),
    "a label of 10**6": (named(lambda i, row: 10**6 if i == 3 else i % 3), True),
    "a label of 2**60": (named(lambda i, row: 2**60 if i == 3 else i % 3), True),
    "a label of 2**70": (named(lambda i, row: 2**70 if i == 3 else i % 3), True),
    "labels of halves": (named(lambda i, row: 0.5 * (i % 3)), True),
    "labels -1 and 1": (named(lambda i, row: 2 * (i % 2) - 1), True),
    "names and numbers": (named(lambda i, row: i % 3 if i % 2 else row["label"]), True),
    "a name each": (named(lambda i, row: f"name {i}"), True),
    "a class called None": (named(lambda i, row: "None" if i % 3 else "Air"), True),  # two, and votes for three
    "no rows": (lambda rows: [], True),
    "no text": (lambda rows: [{"label": row["label"]} for row in rows], True),
    "a text of None": (lambda rows: [{**row, "text": None if i == 3 else row["text"]} for i, row in enumerate(rows)],
                       True),
    "texts of numbers alone": (lambda rows: [{**row, "text": i} for i, row in enumerate(rows)], True),
    "an empty text": (lambda rows: [{**row, "text": "" if i == 3 else row["text"]} for i, row in enumerate(rows)],
                      None),
    "names of columns": (lambda rows: [{**row, "a b": i, "class": "x", "self": 0, "é": 1} for i, row in
                                       enumerate(rows)], False),
    "a column __class__": (lambda rows: [{**row, "__class__": "x", "__dict__": "y"} for row in rows], None),
    "5,000 columns": (lambda rows: [{**row, **{f"c{i}": 0 for i in range(5000)}} for row in rows], None),
    "columns of votes": (lambda rows: [{**row, "weak_labels": [0, 1], "cage": [0.5], "majority": "x"} for row in rows],
                         False),
    "one row": (lambda rows: rows[1:2], None),
    "one class": (named(lambda i, row: "air"), True),
}  # fmt: skip

# flags, whether they are to be refused, and the classes they name
FLAGS: dict[str, tuple[list[str], bool | None]] = {
    "none": ([], False),
    **{f"classes {' '.join(c)!r}": (["--classes", *c], wrong) for c, wrong in (
        (["air", "land", "sea"], False), (["AIR", "Land", "sea"], False), (["air", "land"], True),
        (["air", "land", "sea", "fire"], False), (["air", "air", "sea"], True), ([""], True), (["0", "1", "2"], None),
        (["air", "land", "sea", ""], True), ([], True), (["nan", "inf", "None"], True), (["a,b", "land", "sea"], True),
    )},
    **{f"models {m!r}": (["--label_models", m], wrong) for m, wrong in (
        ("majority", False), ("", False), (",", False), ("majority,", False), ("magic", True), ("Majority", True),
        ("cage,cage", False), ("snorkel", None), ("['majority']", True),
    )},
    **{f"{flag} {value!r}": ([f"--{flag}", value], wrong) for flag, value, wrong in (
        ("num_proc", "-1", True), ("num_proc", "10000", True), ("num_proc", "2", False), ("num_proc", "1.5", True),
        ("num_proc", "nan", True), ("num_proc", "two", True), ("seed", "-1", True), ("seed", "1e30", True),
        ("seed", "7", False), ("seed", str(2**40), True), ("engine", "ray", True), ("engine", "", True),
        ("on_error", "ignore", True), ("on_error", "raise", False), ("num_workers", "0", True), ("colour", "red", True),
        ("label_column", "class", None), ("label_column", "text", True), ("label_column", "", None),
        ("out", "x", True), ("label_model", "majority", True),
    )},
    "a word too many": (["more"], True),
    "seed without a value": (["--seed"], True),
}  # fmt: skip
FORMATS = ("jsonl", "json", "csv", "csv.gz", "parquet", "folder", "saved")


def write(rows: Rows, form: str, place: Path) -> Path:
    """The rows as a file, or as a folder."""
    path = place / f"rows.{form}"
    if form == "saved":
        Dataset.from_list(rows).save_to_disk(str(place / "saved"))
        return place / "saved"
    if form == "folder":
        (place / "folder").mkdir()
        for split in ("train", "test"):
            (place / "folder" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return place / "folder"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form.startswith("csv"):
        with (gzip.open if form.endswith("gz") else open)(path, "wt", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else ["text", "label"])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if form == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def reading(out: Path, rows: Rows, fourth: Any, flags: list[str]) -> str:
    """What is not so in the folder that was written; "" where all is."""
    made = load_from_disk(str(out))
    texts = [row["text"] for row in rows]
    wanted = [
        [*(c if name in text else -1 for c, name in enumerate(NAMES)), *([fourth(text)] if fourth else [])]
        for text in texts
    ]
    classes = json.loads((out / "summary.json").read_text())["classes"]
    given = flags[flags.index("--classes") + 1 :] if "--classes" in flags else None
    told = [spoken(row.get("label")) for row in rows]
    if "--label_column" in flags:
        told = [None] * len(rows)
    if given is not None and classes != given:
        return f"classes {classes}"
    if given is None and {*told} - {None} and classes != sorted({*told} - {None}):
        return f"classes {classes}"
    for name, split in made.items():
        if split["text"][:] != texts:
            return f"texts of {name}"
        if split["weak_labels"][:] != wanted:
            return f"votes of {name}"
        if "majority" in split.column_names:
            votes = np.array(wanted)
            counts = np.stack([(votes == c).sum(1) for c in range(len(classes))], 1)
            best = (counts == counts.max(1, keepdims=True)) & (votes >= 0).any(1, keepdims=True)
            with np.errstate(invalid="ignore"):
                shares = best / best.sum(1, keepdims=True)
            if not np.allclose(shares, np.array(split["majority"][:]), equal_nan=True, atol=1e-6):
                return f"majority of {name}"
        if any(told) and given is None:
            here = [None if c is None or c < 0 else split.features["label"].names[c] for c in split["label"][:]]
            if here != told:
                return f"labels of {name}: {here[:4]}, not {told[:4]}"
    return ""


def spoken(label: Any) -> str | None:
    label = label["choices"] if isinstance(label, dict) else label
    label = label[0] if isinstance(label, list) else label
    return None if label is None else str(label)


def cases(count: int, draw: random.Random, root: Path) -> Iterator[Case]:
    """Every oddity alone, in an order that is drawn; then two or three at once."""
    plain = ("as they are", "as they are", "none")
    alone = [(name, *plain[1:]) for name in FUNCTIONS] + [(plain[0], name, plain[2]) for name in [*DATA][1:]]
    alone += [(*plain[:2], name) for name in [*FLAGS][1:]]
    draw.shuffle(alone)
    for number in range(count):
        some = [draw.choice([*FUNCTIONS]), draw.choice([*DATA]), draw.choice([*FLAGS])]
        at_once = tuple(each if draw.random() < 0.6 else usual for each, usual in zip(some, plain, strict=True))
        place = root / f"case{number}"
        place.mkdir()
        yield _case(place, *(alone[number] if number < len(alone) else at_once), draw.choice(FORMATS), draw)


def _case(place: Path, function: str, data: str, flag: str, form: str, draw: random.Random) -> Case:
    text, fourth = FUNCTIONS[function]
    change, refused = DATA[data]
    rows = change(ROWS)
    nested = any(isinstance(value, (list, dict)) for row in rows for value in row.values())
    if (form.startswith("csv") and nested) or (form == "saved" and not rows):
        form = "jsonl"
    path, functions = write(rows, form, place), place / f"lfs_{place.name}.py"
    if text is not None:
        functions.write_bytes(text if isinstance(text, bytes) else text.encode())
    flags, denied = FLAGS[flag]
    processes = [] if "--num_proc" in flags else ["--num_proc", draw.choice(["1", "1", "2"])]
    out = place / "out"
    argv = ["label", str(functions), str(path), *flags, *processes, "--output_dir", str(out)]
    verdicts = {fourth is None, refused, denied}
    wrong = None if None in verdicts else True in verdicts
    named = f"functions {function!r}, rows {data!r} in {form}, flags {flag!r}"
    return Case(named, argv, wrong, lambda: reading(out, rows, fourth, flags), place)
