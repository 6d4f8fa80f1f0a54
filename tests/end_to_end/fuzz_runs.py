"""Damages of a run folder and of its checkpoints, and which commands must refuse them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.torch import load_file, save_file

BOTH = ("denoise", "report")


@dataclass(frozen=True)
class Damage:
    """What is done to a folder.

    Args:
        spoil: does it.
        refused: the commands that must refuse it; the others must run it.
        same: whether what these write is what they write of the whole folder.
    """

    spoil: Callable[[Path], object]
    refused: tuple[str, ...] = BOTH
    same: bool = True


def text(name: str, content: str | bytes, refused: tuple[str, ...] = BOTH, same: bool = True) -> Damage:
    """A file with other content."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Damage(lambda run: (run / name).write_bytes(raw), refused, same)


def gone(name: str, refused: tuple[str, ...] = BOTH, same: bool = True) -> Damage:
    return Damage(lambda run: remove(run / name), refused, same)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(name: str, refused: tuple[str, ...] = BOTH, by: int = 40, same: bool = True) -> Damage:
    return Damage(lambda run: os.truncate(run / name, max(0, (run / name).stat().st_size - by)), refused, same)


def about(refused: tuple[str, ...] = BOTH, same: bool = True, file: str = "run.json", **changed: Any) -> Damage:
    """A JSON file with other values."""

    def spoil(run: Path) -> None:
        said = json.loads((run / file).read_text())
        (run / file).write_text(json.dumps({**said, **changed}))

    return Damage(spoil, refused, same)


def rows(change: Callable[[dict[str, Any]], Any], refused: tuple[str, ...] = BOTH, same: bool = True,
         folder: str = "rows") -> Damage:  # fmt: skip
    """The rows with other columns."""

    def spoil(run: Path) -> None:
        columns = load_from_disk(str(run / folder)).to_dict()
        columns = change(columns) or columns
        remove(run / folder)
        Dataset.from_dict(columns).save_to_disk(str(run / folder))

    return Damage(spoil, refused, same)


def column(name: str, values: Callable[[list[Any]], list[Any]], refused: tuple[str, ...] = BOTH, same: bool = True,
           folder: str = "rows") -> Damage:  # fmt: skip
    return rows(lambda said: {**said, name: values(said[name])}, refused, same, folder)


def without(name: str, refused: tuple[str, ...] = BOTH, same: bool = True) -> Damage:
    return rows(lambda said: {key: said[key] for key in said if key != name}, refused, same)


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    """The same with another value in the first row."""
    return lambda said: [value, *said[1:]]


def of_all(change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda said: [change(value) for value in said]


def several(run: Path) -> None:
    kept = load_from_disk(str(run / "rows"))
    table = Dataset.from_dict(kept.to_dict())
    remove(run / "rows")
    DatasetDict(train=table).save_to_disk(str(run / "rows"))


NAN = float("nan")
SIDE = ("report",)
NONE: tuple[str, ...] = ()
RESUMED = ("train",)
DAMAGES: dict[str, Damage] = {
    # ---- run.json ----
    "no run.json": gone("run.json"),
    "an empty run.json": text("run.json", ""),
    "bytes for run.json": text("run.json", bytes(range(256))),
    "run.json cut short": cut("run.json"),
    "run.json in latin-1": text("run.json", '{"classes": ["é"]}'.encode("latin-1")),
    "a number for run.json": text("run.json", "3"),
    "a list for run.json": text("run.json", "[]"),
    "nothing in run.json": text("run.json", "{}"),
    "run.json of another program": text("run.json", '{"architectures": ["Bert"], "classes": 3}'),
    "a class too few": about(classes=["air", "sea"]),
    "a class too many": about(classes=["air", "sea", "land", "fire"]),
    "a class twice": about(classes=["air", "sea", "sea"]),
    "an empty class": about(classes=["air", "sea", ""]),
    "classes by number": about(classes=[0, 1, 2]),
    "classes as an object": about(classes={"0": "air", "1": "sea", "2": "land"}),
    "no classes": about(classes=[]),
    "a source too few": about(sources=["label", "teacher", "rules/0", "rules/1", "rules/2", "probe"]),
    "a source too many": about(sources=["label", "teacher", "rules/0", "rules/1", "rules/2", "probe", "clean", "x"]),
    "a source twice": about(sources=["label", "label", "rules/0", "rules/1", "rules/2", "probe", "clean"]),
    "sources of null": about(sources=None),
    "a primary that is none": about(SIDE, primary="who"),
    "a list for the primary": about(SIDE, primary=["label"]),
    "asserts in a list": about(SIDE, asserts=["label"]),
    "asserts of no column": about(SIDE, asserts={"label": "colour"}),
    "asserts of no function": about(SIDE, asserts={"rules/0": "votes/99"}),
    "asserts of a word": about(SIDE, asserts={"rules/0": "votes/x"}),
    "asserts of a number": about(SIDE, asserts={"rules/0": 3}),
    "asserts of no source": about(SIDE, asserts={"who": "label"}),
    "clean votes in a list": about(SIDE, clean=[1]),
    "clean votes of numbers": about(SIDE, clean={"rules/0": 3}),
    "more right than voted": about(SIDE, clean={"rules/0": {"votes": 3, "right": 4}}),
    "fewer than none": about(SIDE, clean={"rules/0": {"votes": -3, "right": -4}}),
    "clean votes of words": about(SIDE, clean={"rules/0": {"votes": "a", "right": "b"}}),
    "a name of null": about(NONE, same=False, name=None),
    "a list for the name": about(SIDE, name=["run"]),
    "a list for the data": about(SIDE, data=[60]),
    "words for the data": about(SIDE, data={"train": "many"}),
    "a list for the versions": about(SIDE, versions=["torch"]),
    "a word for the configuration": about(SIDE, config="denoise"),
    "a word for the seconds": about(SIDE, seconds="long"),
    "no seconds": about(NONE, same=False, seconds=NAN),
    # ---- history.json and metrics.json ----
    "no history.json": gone("history.json", NONE, same=False),
    "an empty history.json": text("history.json", "", SIDE),
    "a list for history.json": text("history.json", "[]", SIDE),
    "a number for the steps": text("history.json", '{"step": 3}', SIDE),
    "a list for the means": about(SIDE, file="history.json", mean=[1]),
    "a line too short": about(SIDE, file="history.json", mean={"label": [1.0]}),
    "a line of words": about(SIDE, file="history.json", mean={"label": ["a", "b", "c", "d"]}),
    "steps of words": about(SIDE, file="history.json", step=["a", "b", "c", "d"]),
    "no metrics.json": gone("metrics.json", NONE, same=False),
    "metrics.json cut short": cut("metrics.json", SIDE),
    "a number for the metrics": text("metrics.json", '{"selection": 3}', SIDE),
    "a word for an accuracy": text("metrics.json", '{"selection": {"accuracy": "good"}}', SIDE),
    "a number for the comparison": text("metrics.json", '{"comparison": 5}', SIDE),
    # ---- rows ----
    "no rows": gone("rows"),
    "a file for the rows": Damage(lambda run: (remove(run / "rows"), (run / "rows").write_text("rows"))),
    "rows of no state": gone("rows/state.json"),
    "rows of an empty state": text("rows/state.json", "{}"),
    "rows cut short": cut("rows/data-00000-of-00001.arrow", by=1500),
    "text for the rows": text("rows/data-00000-of-00001.arrow", "a,b\n"),
    "rows in several splits": Damage(several),
    "none of the rows": rows(lambda said: {key: [] for key in said}),
    **{f"rows without {name}": without(name) for name in ("row_id", "text", "weights", "mask", "label")},
    "rows without corrected": without("corrected", ("denoise",), same=False),
    "weights of another width": column("weights", of_all(lambda w: w[:3])),
    "weights of several widths": column("weights", first([0.1])),
    "weights of words": column("weights", of_all(lambda w: ["a"] * len(w))),
    "weights of nothing": column("weights", first(None)),
    "a weight of infinity": column("weights", first([float("inf")] * 7)),
    "a mask of another width": column("mask", of_all(lambda m: m[:3])),
    "a mask of numbers": column("mask", of_all(lambda m: [2 for _ in m])),
    "corrected of another width": column("corrected", of_all(lambda p: p[:2])),
    "corrected of several widths": column("corrected", first([1.0])),
    "corrected of nothing": column("corrected", first(None)),
    "corrected of NaN": column("corrected", first([NAN, NAN, NAN])),
    "corrected below nothing": column("corrected", first([-1.0, 1.0, 1.0])),
    "corrected of logits": column("corrected", of_all(lambda p: [7.0, 1.0, -3.0])),
    "corrected of words": column("corrected", of_all(lambda p: ["a", "b", "c"])),
    "a label of no class": column("label", first(3)),
    "labels of words": column("label", of_all(lambda c: "air")),
    "labels of halves": column("label", of_all(lambda c: 0.5)),
    "a teacher's class that is none": column("teacher", first(9)),
    "a student's class that is none": column("student", first(9)),
    "a true class that is none": column("true_label", first(9)),
    "a vote for no class": column("votes", first([7, 0, 1])),
    "votes of several widths": column("votes", first([0])),
    "votes of words": column("votes", of_all(lambda v: ["a", "b", "c"])),
    "a row twice": column("row_id", lambda ids: [ids[1], *ids[1:]]),
    "rows by name": column("row_id", of_all(str)),
    "texts of numbers": column("text", of_all(lambda t: 7)),
    "two teachers' classes": column("teachers", of_all(lambda t: [*t, 0])),
    "a teacher too sure": column("teachers_confidence", of_all(lambda t: [7.0])),
    # ---- what neither reads, or what vouches for the folder ----
    "no clean rows": gone("clean", NONE, same=False),
    "clean rows cut short": cut("clean/data-00000-of-00001.arrow", SIDE, by=900),
    "clean rows of no class": column("label", first(9), SIDE, folder="clean"),
    "weights.safetensors cut short": cut("weights.safetensors", NONE),
    "the model cut short": cut("model.safetensors", NONE),
    "a file beside": text("notes.txt", "mine", NONE),
    "no signature": gone(".amal_hf.json", SIDE),
    "a signature cut short": cut(".amal_hf.json", SIDE),
    "a signature of another shape": text(".amal_hf.json", '{"format": 1, "entries": 3}', SIDE),
    "a page of the user's": text("report.html", "mine", SIDE),
    "a corpus of the user's": Damage(
        lambda run: ((run / "denoised").mkdir(), (run / "denoised" / "a").write_text("mine")), ("denoise",)),
    "a file for the corpus": text("denoised", "mine", ("denoise",)),
}  # fmt: skip


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str) -> Damage:
    """A file of tensors with others."""

    def spoil(point: Path) -> None:
        kept = {key: value.clone() for key, value in load_file(point / name).items()}
        save_file(change(kept), point / name)

    return unsigned(Damage(spoil, RESUMED))


def unsigned(damage: Damage) -> Damage:
    """The same in a checkpoint that nothing vouches for."""
    return Damage(lambda point: (damage.spoil(point), (point / ".amal_hf.json").unlink()), damage.refused)


STATE, HISTORY, MODEL, STEPS = "amal_state.safetensors", "amal_history.json", "model.safetensors", "trainer_state.json"
CHECKPOINTS: dict[str, Damage] = {
    "as it is": Damage(lambda point: None, NONE),
    "no such folder": Damage(lambda point: remove(point), RESUMED),
    "a file for the folder": Damage(lambda point: (remove(point), point.write_text("x")), RESUMED),
    **{f"{name} is gone": gone(name, RESUMED) for name in (STEPS, MODEL, STATE, HISTORY)},
    **{f"{name} is empty": text(name, "", RESUMED) for name in (STEPS, MODEL, STATE, HISTORY, "optimizer.pt")},
    **{f"{name} is cut short": cut(name, RESUMED) for name in (STEPS, MODEL, STATE, HISTORY, "optimizer.pt")},
    **{f"{name} is text": text(name, "mine", RESUMED) for name in (STEPS, MODEL, STATE, HISTORY, "scheduler.pt")},
    "unsigned": unsigned(Damage(lambda point: None, NONE)),
    **{f"{name} is cut short, unsigned": unsigned(cut(name, RESUMED))
       for name in (STEPS, MODEL, STATE, "optimizer.pt")},
    "scheduler.pt is text, unsigned": unsigned(text("scheduler.pt", "mine", RESUMED)),
    "a list of steps": unsigned(text(STEPS, "[]", RESUMED)),
    "steps of no step": unsigned(text(STEPS, "{}", RESUMED)),
    "a step of a word": unsigned(about(RESUMED, file=STEPS, global_step="two")),
    "a step below nothing": unsigned(about(RESUMED, file=STEPS, global_step=-2)),
    "an object for the history": unsigned(text(HISTORY, '{"a": 1}', RESUMED)),
    "a history of numbers": unsigned(text(HISTORY, "[1, 2]", RESUMED)),
    "no history": unsigned(text(HISTORY, "[]", NONE)),
    "weights of other rows": tensors(lambda kept: {**kept, "row_ids": kept["row_ids"] + 1000}, STATE),
    "weights of fewer rows": tensors(lambda kept: {**kept, "row_ids": kept["row_ids"][:9].clone()}, STATE),
    "weights of another width": tensors(
        lambda kept: {**kept, "last_weights": kept["last_weights"][:, :2].clone()}, STATE),
    "no row ids": tensors(lambda kept: {k: v for k, v in kept.items() if k != "row_ids"}, STATE),
    "rows of halves": tensors(lambda kept: {**kept, "row_ids": kept["row_ids"] + 0.5}, STATE),
    "a model of another width": tensors(lambda kept: {**kept, "classifier.weight": torch.zeros(5, 16)}, MODEL),
    "a model of other names": tensors(lambda kept: {f"x.{k}": v for k, v in kept.items()}, MODEL),
    "a model that lacks its head": tensors(
        lambda kept: {k: v for k, v in kept.items() if "classifier" not in k}, MODEL),
    "a model of NaN": tensors(lambda kept: {**kept, "classifier.bias": torch.full((3,), NAN)}, MODEL),
}  # fmt: skip
