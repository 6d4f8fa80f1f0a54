"""What the benchmarks share: settings, runs that survive a kill, one training method, intervals, tables."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from scipy import stats
from transformers import AutoTokenizer, PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from amal_hf import AMALConfig, AMALTrainer, Loss
from amal_hf._files import replaced_folder, write_json, write_whole
from amal_hf.commands.train import default_model, load_student
from amal_hf.data.load import load_splits
from amal_hf.data.overlap import text_key
from amal_hf.epoch_schedule import GROUP, refresh_table

BATCH, EVAL_BATCH = 32, 128
AMAL_KAPPA = 1.5  # the authors' step on λ: alpha * lr / rows of a group
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
"""On a CPU that others use too, only the time of this process's own work compares methods."""


@dataclass(frozen=True)
class Settings:
    """What all methods share on one data set; its hash names the runs it belongs to."""

    layers: int
    freeze_embeddings: bool
    learning_rate: float
    steps: int  # 0: so many epochs over the training rows
    epochs: int
    max_length: int
    rows: int  # of the training split; 0: all
    bf16: bool
    batch: int = BATCH

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """One run; `case`: what distinguishes runs of a method and a seed, e.g. clean rows per class."""

    dataset: str
    method: str
    case: str
    seed: int
    settings: Settings

    def path(self, out: Path) -> Path:
        return out / self.dataset / f"{self.method}-{self.case}-{self.seed}.json"

    def result(self, out: Path) -> dict[str, Any] | None:
        path = self.path(out)
        found = json.loads(path.read_text()) if path.is_file() else None
        return found if found and found["config"] == self.settings.hash else None


def options(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """What every benchmark can be asked."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder per data set")
    parser.add_argument("--scale", choices=["cpu", "full"], default="cpu")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, help="default: runs/NAME-SCALE")
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--report", action="store_true", help="only read what is there")
    return parser


def settled(parser: argparse.ArgumentParser, scales: Mapping[str, Mapping[str, Any]], name: str) -> argparse.Namespace:
    """The options given, and the scale's values for those that are not."""
    given = parser.parse_args()
    scale = "quick" if given.quick else given.scale
    for option, values in scales[scale].items():
        setattr(given, option, getattr(given, option, None) or values)
    given.out = given.out or Path(f"runs/{name}-{scale}")
    for folder in given.datasets:
        if not (given.data / folder).is_dir():
            parser.error(f"--datasets: expected a folder {folder!r} in {str(given.data)!r}, found none")
    return given


@cache
def code_state() -> str:
    """The commit of the code, with "+" where tracked files differ from it; "" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    said = [
        subprocess.run([*git, *command], capture_output=True, text=True, check=False)
        for command in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return "" if said[0].returncode else said[0].stdout.strip() + "+" * bool(said[1].stdout.strip())


Run = Callable[[Job, Path, Path], dict[str, Any]]
"""(job, data, out) -> what is kept of it: `metric`, `seconds` and whatever else."""


def attempt(run: Run, job: Job, data: Path, out: Path) -> None:
    """Run a job that nobody has done, failed at or taken."""
    path = job.path(out)
    claim, error = path.with_suffix(".claim"), path.with_suffix(".error")
    with locked(claim, wait=False) as mine:
        if not mine:
            return
        if not error.is_file() and not job.result(out):
            label = f"{job.dataset:8s} {job.method:20s} {job.case:>4s} seed {job.seed}"
            try:
                found = run(job, data, out)
                write_json(path, {**found, "config": job.settings.hash, "code": code_state()})
                print(f"{label}: {found['metric']:.1f} in {found['seconds']:.0f} s", flush=True)
            except Exception:
                told = traceback.format_exc()
                write_whole(error, lambda p: p.write_text(told))
                print(f"{label}: failed: {told.splitlines()[-1]}", flush=True)
        claim.unlink()  # while it is held: who comes next finds the result or the error


def work(run: Run, jobs: list[Job], data: Path, out: Path, parent: int | None) -> None:
    """Take jobs from the list that all workers share, as long as `parent` lives."""
    code_state()  # of the code that was loaded, not of what the checkout is by the time a run ends
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    for job in jobs:
        if parent is None or os.getppid() == parent:
            attempt(run, job, data, out)


def work_together(run: Run, jobs: list[Job], data: Path, out: Path, workers: int) -> None:
    """All jobs, `workers` at once, one thread each; a job that failed before is tried again."""
    for job in jobs:
        job.path(out).with_suffix(".error").unlink(missing_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=work, args=(run, jobs, data, out, os.getpid()), daemon=True) for _ in range(workers - 1)
    ]
    for process in others:
        process.start()
    work(run, jobs, data, out, None)
    for process in others:
        process.join()


def carry_out(
    given: argparse.Namespace, jobs: list[Job], run: Run, report: Callable[[list[dict[str, Any]]], str]
) -> None:
    """Do what is not done yet (unless only a report is asked for); then print the report, and what is missing."""
    if not given.report:
        work_together(run, jobs, given.data, given.out, given.jobs)
    found = [result for job in jobs if (result := job.result(given.out))]
    failed = [path for job in jobs if (path := job.path(given.out).with_suffix(".error")).is_file()]
    if found:
        print(report(found))
    print(f"\n{len(found)} of {len(jobs)} runs, {len(failed)} failed", *failed, sep="\n  ")


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by one process if it is not there while the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock"), wait=True):
        if not path.exists():
            for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            if path.suffix:
                write_whole(path, make)
            else:
                with replaced_folder(path, "benchmark") as scratch:
                    make(scratch / "made")
    return path


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold `path` with this process's number in it; False where another holds it. The dead hold nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def without_shared_texts(source: Path, *columns: str) -> dict[str, Dataset]:
    """The splits of a data set: train keeps no text of validation or test, validation none of test."""
    loaded = load_splits(str(source))
    taken: set[str] = set()
    kept = {}
    for split in ("test", "validation", "train"):
        keys = list(map(text_key, loaded[split]["text"]))
        kept[split] = (
            loaded[split].select_columns([*columns]).select([i for i, key in enumerate(keys) if key not in taken])
        )
        taken |= set(keys)
    return kept


def make_trainer(
    given: Settings,
    classes: Sequence[str],
    rows: Dataset,
    losses: Mapping[str, Loss],
    seed: int,
    steps: int,
    *,
    model: PreTrainedModel | None = None,
    clean: Dataset | None = None,
    **mixture: Any,
) -> AMALTrainer:
    """The trainer all methods share, before its first step; `mixture`: fields of `AMALConfig` (default: weights 1)."""
    set_seed(seed)
    args = AMALConfig(
        tempfile.gettempdir(),  # nothing is saved
        max_steps=steps, learning_rate=given.learning_rate, weight_decay=0.01, warmup_steps=0.1, seed=seed,
        per_device_train_batch_size=given.batch, per_device_eval_batch_size=EVAL_BATCH, bf16=given.bf16,
        use_cpu=not torch.cuda.is_available(), save_strategy="no",
        eval_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        dataloader_num_workers=0, dataloader_pin_memory=False, **{"method": "fixed", "log_weights": False, **mixture},
    )  # fmt: skip
    trainer = AMALTrainer(
        model=model or load_student(default_model(), classes, given.layers, given.freeze_embeddings),
        args=args,
        losses=losses,
        train_dataset=rows,
        clean_dataset=clean,
        processing_class=AutoTokenizer.from_pretrained(default_model()),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def learn(*args: Any, prepare: Callable[[AMALTrainer], object] = lambda trainer: None, **kwargs: Any) -> AMALTrainer:
    """The one training method all methods share; arguments of `make_trainer`, and what to do with it before."""
    trainer = make_trainer(*args, **kwargs)
    prepare(trainer)
    trainer.train()
    return trainer


class RefreshAt(TrainerCallback):
    """A pass of `refresh="epoch"` before each of the given steps."""

    def __init__(self, trainer: AMALTrainer, steps: Sequence[int]) -> None:
        self.trainer, self.due = trainer, set(steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.due:
            self.due.remove(state.global_step)
            refresh_table(self.trainer)


def authors(batch: int, learning_rate: float, steps: int) -> dict[str, Any]:
    """AMAL's table and passes, but passes after one and two thirds of the steps, not after every ten epochs.

    `steps` are 2 to 6 epochs here. κ = αη/N stays theirs: their α = 1500 goes with the learning rate of SGD.

    Args:
        batch: rows of a pass that are taken together.
    """
    return {
        "method": "amal",
        "refresh_every": steps,
        "mixing_lr": AMAL_KAPPA * GROUP * batch / learning_rate,
        "prepare": lambda trainer: trainer.add_callback(RefreshAt(trainer, [steps // 3, 2 * steps // 3])),
    }


def predict(trainer: Any, rows: Dataset) -> np.ndarray:
    """Logits `[N, C]` of `rows` in their order."""
    # grouped by length, `Trainer.predict` too answers in the order of its groups (transformers 5.23)
    trainer.args.train_sampling_strategy = "random"
    logits = trainer.predict(rows).predictions
    return logits[0] if isinstance(logits, tuple) else logits


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the 95 % t-interval (NaN of fewer than two)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(half)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    return row(["---"] + ["---:"] * (columns - 1))


def cell(value: tuple[float, float] | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    mean, half = value
    return number(mean, digits) if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def plain(value: Any) -> Any:
    """NaN as null, all the way down."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
