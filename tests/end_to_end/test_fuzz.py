"""Odd configurations of `amal-hf train`, drawn from a seed: refused in one line, or run; never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import planted
import pytest
import yaml
from fuzz_rounds import Case, Reached, Tally, clocked, judge

from amal_hf import AMALTrainer
from amal_hf.commands._config import AMALConfig, DataConfig
from amal_hf.commands._flags import hints

CONFIGURATIONS = 600
ODD: list[Any] = [
    None, True, False, 0, 1, -1, -7, 2, 7, 10**6, 2**31, 10**30, 0.0, 0.5, 2.5, -0.5, 1e-30, 1e30,
    float("nan"), float("inf"), "", " ", "no", "none", "None", "true", "1", "5e-4", "nan", "air", "é", "海", "..",
    "a,b", "*", "[", "{", "{}", "[a", "`x`", "%s", "{x}", "a\nb", "x" * 500, [], [None], [1, 2], [0.5, float("nan")],
    ["air"], ["air", "air"], ["air", "sea", "land"], [[]], {}, {"air": 0}, {"a": {"b": []}}, {1: 2},
]  # fmt: skip
NEARLY: dict[str, list[Any]] = {
    "classes": [["air", "sea"], ["land", "sea", "air"], ["air", "sea", "land", "fire"], ["Air", "sea", "land"]],
    "clean_rows": [3, 59, 60, 61, 0], "selection_rows": [3, 48, 59, 0], "max_length": [1, 2, 3, 32, 33, 512],
    "num_hidden_layers": [1, 2, 3, 100], "learning_rate": [0, 1e-09, 1, 1000.0], "max_steps": [1, -1, 1000000],
    "method": ["trust", "amal", "amal-step", "shared", "l2r", "network", "fixed", "custom", "Denoise", "plain"],
    "mixing": ["trust", "instance", "fixed"], "clamp": [[0, 1], [1, 0], [0], 3],
    "mixing_start": [1, [1.0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]],
    "eval_strategy": ["epoch", "steps", "no", "Epoch"], "save_strategy": ["best", "epoch"],
    "load_best_model_at_end": [True], "votes_column": ["label", "text", "teacher_logits", "votes", ""],
    "teacher_columns": [["label"], ["weak_labels"], []], "label_column": ["text", "Label"],
    "text_columns": [["text", "text"], ["label"], ["texts"], []], "test_split": ["train", "validation", ""],
    "clean_split": ["train", "test"], "selection_split": ["train", "dev"],
    "temperature": [0, 1, "learned", "1", -1, 1000000000.0], "train_on_labels": [False],
    "teacher": ["none", "air/sea", "."], "student": [{"from": "teacher"}, {"from": "teacher", "layers": [9]}, "air"],
    "model": ["", ".", "air", "./air"], "data": [".", "", "train.jsonl", "~", "*.jsonl", "./air", "student"],
    "resume_from_checkpoint": [True, False, "true", "."], "optim": ["sgd", "adafactor", "adamw"],
    "warmup_steps": [0.1, 1000000000, 1.5], "report_to": [["none"], "all", "tensorbord"],
    "per_device_train_batch_size": [1, 60, 1000000], "logging_steps": [0.5, 1], "bf16": [True], "fp16": [True],
    "seed": [4294967295],
}  # fmt: skip
NAMES: list[Any] = ["sources", "Sources", "lr", "learning_rat", "classes ", "", "data.path", 1, None, True, 2.5]
SOURCES: list[Any] = [
    {"loss": "entropy"}, {"loss": "cross_entropy", "column": "label"}, {"loss": "hinge"}, {"los": "entropy"}, {}, [],
    None, "entropy", {"loss": None}, {"loss": ["entropy"]}, {"loss": "distillation", "temperature": -1},
    {"loss": "distillation", "column": "teacher_logits", "temperature": [2]}, {"loss": "majority_vote", "column": 3},
    {"loss": "labeling_functions", "names": "abc"}, {"loss": "cross_entropy", "class_weights": [1.0, "a"]},
    {"loss": "cross_entropy", "label_smoothing": float("nan")}, {"loss": "cross_entropy", 1: 2},
]  # fmt: skip
# they leave this process in another state, or another machine in another one
LEFT_ALONE = {"full_determinism", "push_to_hub", "hub_token", "local_rank", "output_dir", "enable_jit_checkpoint"} | {
    "fsdp", "fsdp_config", "deepspeed"
}  # fmt: skip


def odd_configuration(draw: random.Random, good: dict[str, Any], fields: list[str]) -> dict[Any, Any]:
    """A good one with one to three things changed."""
    given: dict[Any, Any] = dict(good)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.random()
        if kind < 0.3:
            name, values = draw.choice([*NEARLY.items()])
            given[name] = draw.choice(values)
        elif kind < 0.8:
            given[draw.choice(fields)] = draw.choice(ODD)
        elif kind < 0.9:
            given["sources"] = {draw.choice(["x", "label", "rules", "teacher", 1, None, ""]): draw.choice(SOURCES)}
        elif kind < 0.95:
            given[draw.choice(NAMES)] = draw.choice(ODD)
        else:
            given.pop(draw.choice([*given]), None)
    return given


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    rows = planted.make_rows(60, tokens=False).remove_columns(["truth"])
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    planted.make_student().save_pretrained(tmp_path / "student")
    planted.make_tokenizer().save_pretrained(tmp_path / "student")
    return {
        "data": str(tmp_path / "train.jsonl"), "model": str(tmp_path / "student"), "output_dir": str(tmp_path / "run"),
        "votes_column": "weak_labels", "teacher_columns": ["teacher_logits"], "classes": planted.NAMES,
        "clean_rows": 12, "selection_rows": 12, "max_steps": 2, "report_to": "none", "use_cpu": True,
    }  # fmt: skip


@pytest.mark.slow
def test_odd_configurations(good, tmp_path, monkeypatch, capsys):
    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr(AMALTrainer, "train", reached)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    draw, tally, config = random.Random(0), Tally(), tmp_path / "config.yaml"
    fields = sorted({*hints([DataConfig, AMALConfig])} - LEFT_ALONE)
    with clocked():
        for number in range(CONFIGURATIONS):
            given = odd_configuration(draw, good, fields) if number else good
            config.write_text(yaml.safe_dump(given, allow_unicode=True))
            changed = {name: value for name, value in given.items() if name not in good or good[name] != value}
            wrong = None if number else False
            judge(Case(f"{changed!r:.200}", ["train", str(config)], wrong, lambda: "", tmp_path), tally, capsys)
    with capsys.disabled():
        print(f"\n{CONFIGURATIONS} odd configurations: {tally}")
    tally.check(CONFIGURATIONS)
