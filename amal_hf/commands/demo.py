"""`amal-hf demo`: whom to trust, learned on the embedded corpus in a few minutes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging

from amal_hf._files import run_folder, write_json, write_own
from amal_hf._progress import name_bars
from amal_hf.commands.train import DataConfig, default_model, load_student, source_losses, train_run
from amal_hf.config import AMALConfig
from amal_hf.corpus import load_corpus
from amal_hf.data.columns import tokenized
from amal_hf.denoising import CLEAN_LABEL, clean_share, with_clean_rows
from amal_hf.losses import CrossEntropy, Loss, LossStack
from amal_hf.metrics import classification_metrics
from amal_hf.trainer import AMALTrainer

ALPHAS = (0.25, 0.75)
"""Beside the equal mix, which is alpha = 0.5."""


@dataclass
class DemoConfig:
    """Settings of the demo.

    Args:
        output_dir: run folder.
        model: encoder (default: MiniLM-L6, from its PyPI package or the Hub).
        num_hidden_layers, epochs, learning_rate, seed: the same for every run.
    """

    output_dir: str = field(default="runs/demo", metadata={"help": "Run folder"})
    model: str = field(default="", metadata={"help": "Encoder (default: MiniLM-L6, offline if its package is there)"})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers kept of the encoder"})
    epochs: float = field(default=3.0, metadata={"help": "Epochs of every run"})
    learning_rate: float = field(default=5e-4, metadata={"help": "Learning rate of every run"})
    seed: int = field(default=0, metadata={"help": "Seed of corpus and runs"})


def run_demo(config: DemoConfig) -> list[dict[str, Any]]:
    """`_run_demo`, in a folder of its own: an earlier demo's is replaced, nothing else."""
    with run_folder(config.output_dir, "demo", {"model": config.model}):
        return _run_demo(config)


def _run_demo(config: DemoConfig) -> list[dict[str, Any]]:
    """Run every method, print the table, and write run folder and report.

    Returns:
        one dictionary per method: `method`, `runs`, `accuracy`, `macro_f1`, `ece`, `seconds`.
    """
    from amal_hf.report import write_report

    logging.set_verbosity_error()
    model = config.model or default_model()
    data = DataConfig(
        model=model,
        num_hidden_layers=config.num_hidden_layers,
        freeze_embeddings=True,
        votes_column="weak_labels",
        teacher_columns=["teacher_logits"],
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    corpus = load_corpus(config.seed)
    parts = DatasetDict({name: tokenized(split, tokenizer, ["text"], 64) for name, split in corpus.items()})
    losses = source_losses(data)
    print(
        f"{len(parts['train'])} training rows, {len(parts['train'].features['label'].names)} classes; 40 % of their "
        f"labels are wrong.\nSources: {', '.join(losses)}. Clean rows: {len(parts['clean'])} decide, "
        f"{len(parts['selection'])} select, {len(parts['test'])} test.\n",
        flush=True,
    )
    # the incumbents train on the clean rows as well, as the learned run does, and as often
    share, classes = clean_share(len(parts["clean"]), len(parts["train"])), parts["clean"].features["label"]
    labels = torch.as_tensor(parts["clean"]["label"][:])
    given = {**parts, "train": with_clean_rows(parts["train"], parts["clean"], labels, classes.num_classes, share)}
    mix = partial(_fixed, given, data, config, {**losses, "clean": CrossEntropy(CLEAN_LABEL)})
    equal = mix("equal mix", 0.5)
    table = [mix("label only", 0.0), equal, _best_alpha(equal, mix)]
    print("\n> learned weights", flush=True)
    args = _settings(config, config.output_dir)
    started = time.perf_counter()
    _, metrics = train_run(parts, data, args, losses, prepare=quiet, command="demo")
    learned = {"method": "learned weights", "runs": 1, "learned": True, "seconds": time.perf_counter() - started}
    table.append(learned | metrics["test"])
    numbers = {**metrics, "comparison": table}
    write_own(Path(config.output_dir) / "metrics.json", lambda path: write_json(path, numbers))
    page = write_report(config.output_dir)
    print(format_table(table))
    print(f"\nrun folder  {config.output_dir}\nreport      {page}   <- open this: what was trusted where")
    return table


def _settings(config: DemoConfig, output_dir: str, **mixture: Any) -> AMALConfig:
    return AMALConfig(
        output_dir,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=config.learning_rate,
        warmup_steps=0.1,
        logging_steps=15,
        save_strategy="no",
        disable_tqdm=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        **mixture,
    )


def _fixed(
    parts: Mapping[str, Dataset], data: DataConfig, config: DemoConfig, losses: dict[str, Loss], name: str, alpha: float
) -> dict[str, Any]:
    """One run with hand-set weights: the label 1 − alpha, clean rows 1, every other source alpha."""
    print(f"\n> {name}", flush=True)
    started = time.perf_counter()
    sources = LossStack(losses, parts["train"][0]).names
    weights = {"label": 1 - alpha, "clean": 1.0}
    with tempfile.TemporaryDirectory() as scratch:
        set_seed(config.seed)
        trainer = AMALTrainer(
            model=load_student(data.model, parts["clean"].features["label"].names, data.num_hidden_layers, True),
            args=_settings(
                config, scratch, method="fixed", mixing_start=[weights.get(source, alpha) for source in sources]
            ),
            losses=losses,
            train_dataset=parts["train"],
            clean_dataset=parts["clean"],
            eval_dataset=parts["selection"],
            processing_class=AutoTokenizer.from_pretrained(data.model),
            compute_metrics=classification_metrics,
        )
        quiet(trainer)
        trainer.train()
        selected = trainer.evaluate()["eval_accuracy"]
        tested = trainer.predict(parts["test"]).metrics
    numbers = {k: tested[f"test_{k}"] for k in ("accuracy", "macro_f1", "ece")}
    return {"method": name, "runs": 1, "selection": selected, "seconds": time.perf_counter() - started, **numbers}


def _best_alpha(equal: dict[str, Any], mix: Callable[[str, float], dict[str, Any]]) -> dict[str, Any]:
    """The incumbent: label 1 − α, everything else α, α chosen on the selection rows."""
    tried = {a: mix(f"alpha = {a}", a) for a in ALPHAS} | {0.5: equal}
    alpha = max(tried, key=lambda a: tried[a]["selection"])
    seconds = sum(run["seconds"] for run in tried.values())
    return tried[alpha] | {"method": f"best fixed alpha ({alpha})", "runs": len(tried), "seconds": seconds}


def quiet(trainer: AMALTrainer) -> None:
    """Keep the progress bars, leave the log lines to the run folder."""
    name_bars(trainer, logs=False)


def format_table(table: list[dict[str, Any]]) -> str:
    """The comparison as text, one method a line."""
    head = f"\n{'method':28s}{'runs':>6s}{'accuracy':>10s}{'macro-F1':>10s}{'ECE':>8s}{'seconds':>9s}"
    lines = [
        f"{m['method']:28s}{m['runs']:6d}{m['accuracy']:10.3f}{m['macro_f1']:10.3f}{m['ece']:8.3f}{m['seconds']:9.0f}"
        for m in table
    ]
    return "\n".join([head, *lines])
