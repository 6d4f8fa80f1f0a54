"""40 % wrong labels and a good teacher on trec: does the label's weight know, and does it help?

    python examples/benchmarks/noisy_labels.py DATA_DIR/trec --seeds 0 1 2

Per seed: a 6-layer MiniLM is fine-tuned on the noisy labels (the teacher), then 2-layer students learn from the
label alone, from fixed mixtures, and with learned weights. Half of `validation` steers, half selects. Every run is
kept as JSON under --out; a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from amal_hf import AMALConfig, AMALTrainer, CrossEntropy, Distillation, classification_metrics
from amal_hf.commands.train import default_model, load_student
from amal_hf.data.load import load_splits
from amal_hf.data.split import hold_out
from amal_hf.data.tokens import tokenized

METHODS: dict[str, dict[str, Any]] = {
    "label only": {"method": "fixed", "mixing_start": [1.0, 0.0]},
    "learned (trust)": {"method": "trust"},
    "alpha = 0.5": {"method": "fixed", "mixing_start": [0.5, 0.5]},
    "teacher only": {"method": "fixed", "mixing_start": [0.0, 1.0]},
    "amal-step": {"method": "amal-step"},
    "alm-kd": {"method": "alm-kd"},
}


def settings(folder: Path, seed: int, epochs: float, lr: float) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "scratch"), "num_train_epochs": epochs, "learning_rate": lr, "seed": seed,
        "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128, "warmup_steps": 0.1,
        "save_strategy": "no", "report_to": "none", "logging_steps": 50, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def corrupt(labels: list[int], num_classes: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share `noise` moved to another class, uniformly; and which ones, both `[N]`."""
    rng = np.random.default_rng(seed)
    flipped = rng.random(len(labels)) < noise
    moved = (np.asarray(labels) + rng.integers(1, num_classes, len(labels))) % num_classes
    return np.where(flipped, moved, labels), flipped


def splits(data: str, seed: int, noise: float) -> tuple[dict[str, Dataset], np.ndarray, list[str]]:
    loaded = load_splits(data)
    classes = loaded["train"].features["label"].names
    noisy, flipped = corrupt(loaded["train"]["label"][:], len(classes), noise, seed)
    train = loaded["train"].select_columns(["text"]).add_column("label", noisy.tolist())
    clean, selection = hold_out(loaded["validation"], len(loaded["validation"]), seed)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    parts = {"train": train, "clean": clean, "selection": selection, "test": loaded["test"]}
    return {k: tokenized(v, tokenizer, ["text"], 64) for k, v in parts.items()}, flipped, classes


def teach(parts: dict[str, Dataset], classes: list[str], folder: Path, seed: int) -> np.ndarray:
    """Logits `[N, C]` on the training rows of a 6-layer model fine-tuned on their noisy labels."""
    cached = folder / "teacher.npy"
    if not cached.is_file():
        set_seed(seed + 100)
        trainer = Trainer(
            load_student(default_model(), classes),
            TrainingArguments(**settings(folder, seed + 100, 3, 1e-4)),
            train_dataset=parts["train"],
            processing_class=AutoTokenizer.from_pretrained(default_model()),
            compute_metrics=classification_metrics,
        )
        trainer.train()
        (folder / "teacher.json").write_text(json.dumps(trainer.predict(parts["test"]).metrics))
        np.save(cached, trainer.predict(parts["train"]).predictions)
    return np.load(cached)


def student(
    parts: dict[str, Dataset],
    classes: list[str],
    flipped: np.ndarray,
    folder: Path,
    seed: int,
    epochs: float,
    mixture: dict[str, Any],
) -> dict[str, float]:
    set_seed(seed)
    trainer = AMALTrainer(
        model=load_student(default_model(), classes, 2),
        args=AMALConfig(**settings(folder, seed, epochs, 2e-4), **mixture),
        losses={"label": CrossEntropy(), "teacher": Distillation("teacher_logits", temperature=2.0)},
        train_dataset=parts["train"],
        clean_dataset=parts["clean"],
        eval_dataset=parts["selection"],
        processing_class=AutoTokenizer.from_pretrained(default_model()),
        compute_metrics=classification_metrics,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    weight = torch.tensor(trainer.weights["label"][:]).numpy()
    metrics = trainer.predict(parts["test"]).metrics
    return {
        "accuracy": 100 * metrics["test_accuracy"],
        "macro_f1": 100 * metrics["test_macro_f1"],
        "selection": 100 * trainer.evaluate()["eval_accuracy"],
        "auroc": float(roc_auc_score(~flipped, weight)),
        "weight_clean": float(weight[~flipped].mean()),
        "weight_flipped": float(weight[flipped].mean()),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the trec splits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--epochs", type=float, default=8, help="of the students")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/noisy_labels"))
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in given.seeds:
        folder = given.out / f"{Path(given.data).name}-{given.noise}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        parts, flipped, classes = splits(given.data, seed, given.noise)
        parts["train"] = parts["train"].add_column("teacher_logits", teach(parts, classes, folder, seed).tolist())
        for method in given.methods:
            result = folder / f"{method}-{given.epochs:g}.json"
            if not result.is_file():
                result.write_text(
                    json.dumps(student(parts, classes, flipped, folder, seed, given.epochs, METHODS[method]))
                )
            found.setdefault(method, []).append(json.loads(result.read_text()))
            print(seed, method, {k: round(v, 3) for k, v in found[method][-1].items()}, flush=True)
    print(f"\n{'method':18s}{'accuracy':>16s}{'macro-F1':>16s}{'AUROC of label weight':>24s}{'seconds':>9s}")
    for method, runs in found.items():
        cells = [_spread([r[k] for r in runs], d) for k, d in (("accuracy", 1), ("macro_f1", 1), ("auroc", 3))]
        seconds = statistics.mean(r["seconds"] for r in runs)
        print(f"{method:18s}{cells[0]:>16s}{cells[1]:>16s}{cells[2]:>24s}{seconds:9.0f}")


def _spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
