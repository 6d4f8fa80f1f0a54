"""`amal-hf train` on real votes, as README prints it, only shorter: everything the run folder promises is there."""

import json
from pathlib import Path

import datasets
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, pipeline

from amal_hf.cli import main

ROOT = Path(__file__).parents[2]
YOUTUBE = ROOT.parent / "shared" / "data" / "youtube"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not YOUTUBE.is_dir(), reason="the youtube votes are not beside this checkout"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "votes"
    given = [str(ROOT / "examples" / "votes_only.yaml"), "--data", str(YOUTUBE), "--output_dir", str(out)]
    assert main(["train", *given, "--num_train_epochs", "2"]) == 0
    return out


def test_model_loads_and_beats_guessing(run_dir):
    AutoModelForSequenceClassification.from_pretrained(run_dir)
    said = pipeline("text-classification", model=str(run_dir))("check out my channel and subscribe please")
    assert said[0]["label"] in ("HAM", "SPAM")
    assert json.loads((run_dir / "metrics.json").read_text())["test"]["accuracy"] > 0.8  # 0.528 of the rows are ham


def test_weights_join_the_training_rows(run_dir):
    weights = datasets.load_from_disk(str(run_dir / "weights"))
    tensors = load_file(run_dir / "weights.safetensors")
    assert weights["row_id"][:] == tensors["row_id"].tolist() == list(range(1686))
    assert tensors["weights"].shape == (1686, len(weights.column_names) - 1)
    assert set(weights.column_names) == {"row_id", *(f"rules/{j}" for j in range(10)), "probe", "clean"}


def test_report_and_card_are_written(run_dir):
    assert "<svg" in (run_dir / "report.html").read_text()
    card = (run_dir / "README.md").read_text()
    assert "LabelingFunctions" in card and "2202.03250" in card
