"""A finished run on disk: model, weights, scores, corrected rows and what the report reads."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from datasets import Dataset

from amal_hf._files import parts_of_run, write_json, write_tensors
from amal_hf._progress import no_bars
from amal_hf.data.columns import weights_dataset
from amal_hf.denoising import PROBE
from amal_hf.losses import Distillation, LabelingFunctions, MajorityVote
from amal_hf.report import write_report, write_teacher_table, write_trust_table
from amal_hf.run_folder.corrected import (
    annotate_rows,
    class_names,
    clean_predictions,
    corpus_of,
    count_clean,
    list_suspects,
)
from amal_hf.run_folder.format import FORMAT


def save_run(trainer: Any, test_dataset: Dataset | None) -> dict[str, dict[str, float]]:
    """Scores by split, of a trainer that has trained; its run folder is written, with the report."""
    parts = {"train": trainer.given_rows, "clean": trainer.clean_dataset}
    others = {"selection": trainer.eval_dataset, "test": test_dataset}
    parts |= {name: split for name, split in others.items() if isinstance(split, Dataset)}
    metrics = write_run(trainer, parts, trainer.weigher.clock.elapsed())
    if trainer.is_world_process_zero():
        write_report(trainer.args.output_dir)
    return metrics


def write_run(
    trainer: Any,
    parts: Mapping[str, Dataset],
    seconds: float,
    command: str = "train",
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Model, tokenizer, weights, metrics, card and what the report reads, in `args.output_dir`: all of it, or nothing.

    Args:
        baseline: what `metrics.json` says of a plain baseline, where one was measured.

    Returns:
        the metrics of the selection rows and of the test rows, where there are any; and "baseline".
    """
    metrics: dict[str, Any] = {
        name: _measured(trainer.predict(parts[name])) for name in ("selection", "test") if name in parts
    }
    metrics |= {"baseline": dict(baseline)} if baseline else {}
    explained = annotate_rows(trainer)  # every process predicts its share
    name, leads = Path(trainer.args.output_dir).name, trainer.is_world_process_zero()
    ready = parts_of_run(trainer.args.output_dir, command, leads, trainer.accelerator.wait_for_everyone)
    with no_bars(), ready as run_dir:
        trainer.save_model(str(run_dir), _internal_call=True)
        if leads:
            _write_parts(trainer, parts, explained, metrics, seconds, run_dir)
            given, trainer.args.output_dir = trainer.args.output_dir, str(run_dir)
            try:  # the card is written where the arguments say
                trainer.create_model_card(model_name=name, tasks="text-classification")
            finally:
                trainer.args.output_dir = given
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return metrics


def _write_parts(
    trainer: Any,
    parts: Mapping[str, Dataset],
    explained: Dataset,
    metrics: Mapping[str, Any],
    seconds: float,
    run_dir: Path,
) -> None:
    write_json(run_dir / "metrics.json", metrics)
    rows = len(parts["train"])  # the user's own; the clean rows stand behind them
    ids, weights = trainer.weigher.positions.ids[:rows], trainer.weigher.history.last_weights()[:rows]
    write_tensors(run_dir / "weights.safetensors", {"row_id": ids, "weights": weights})
    weights_dataset(ids, weights, trainer.stack.names).save_to_disk(run_dir / "weights")
    write_json(run_dir / "history.json", trainer.weigher.history.curves())
    explained.save_to_disk(run_dir / "rows")
    corpus = corpus_of(explained, trainer.stack.names, class_names(trainer))
    list_suspects(corpus).to_csv(run_dir / "suspects.csv")
    if (of_teachers := clean_predictions(trainer, trainer.model.config.num_labels)) is not None:
        of_teachers.save_to_disk(run_dir / "clean")
    write_json(run_dir / "run.json", _describe(trainer, parts, seconds))
    write_trust_table(run_dir)
    write_teacher_table(run_dir)


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of `Trainer.predict` that a run keeps: accuracy, macro-F1, ECE, loss in nats."""
    keep = ("accuracy", "macro_f1", "ece", "loss")
    return {k.removeprefix("test_"): v for k, v in metrics.items() if k.removeprefix("test_") in keep}


def _measured(predicted: Any) -> dict[str, float]:
    """The scores of a split, its number of rows, and how many classes the student names on them."""
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    named = {"classes_named": len({*logits.argmax(-1).tolist()})} if logits.ndim == 2 else {}
    return {**scores_of(predicted.metrics), "rows": len(logits), **named}


def _describe(trainer: Any, parts: Mapping[str, Dataset], seconds: float) -> dict[str, Any]:
    sources, args = trainer.stack.names, trainer.args
    labels = (n for n, loss in trainer.stack.losses.items() if loss.columns == ("labels",))
    blocks = {name: sources[block] for name, block in trainer.stack.slices.items()}
    columns: dict[tuple[str, ...], str] = {("labels",): "label", (PROBE,): "probe"}
    asserts: dict[str, str | None] = {}
    teachers = count()
    for name, loss in trainer.stack.losses.items():
        for position, source in enumerate(blocks[name]):
            if isinstance(loss, LabelingFunctions):
                asserts[source] = f"votes/{position}"
            elif isinstance(loss, MajorityVote):
                asserts[source] = "majority"
            elif isinstance(loss, Distillation):
                asserts[source] = f"teachers/{next(teachers)}"
            else:
                asserts[source] = columns.get(loss.columns)
    packages = ("amal-hf", "torch", "transformers", "datasets", "accelerate", "snorkel")
    return {
        "format": FORMAT,
        "name": Path(args.output_dir).name,
        "classes": class_names(trainer),
        "sources": list(sources),
        "primary": next(labels, None),
        "method": args.method,
        "config": json.loads(args.describe()),
        "data": {name: len(part) for name, part in parts.items()},
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "seed": args.seed,
        "seconds": seconds,
        "meta_share": trainer.weigher.clock.share(),
        **trainer.stack.temperatures.values(),
        "asserts": asserts,
        "clean": count_clean(parts["clean"], trainer.stack.losses, blocks),
    }
