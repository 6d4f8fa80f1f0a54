"""The student of a run leaves the house: `torch.export`, ONNX and `pipeline`, from the run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from planted import NAMES, SETTINGS, make_rows, make_student, make_tokenizer
from torch.export import Dim
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from amal_hf import AMALConfig
from amal_hf.commands.train import DataConfig, default_model, prepare, train_run
from amal_hf.models import student_from_teacher

INPUTS = ("input_ids", "attention_mask")
EXACT = 1e-4


def train(folder: Path, rows: Dataset, model: str, **given: Any) -> Path:
    """A run of a few steps from label and teacher; its folder."""
    DatasetDict(train=rows).save_to_disk(folder / "data")
    data = DataConfig(
        data=str(folder / "data"), model=model, teacher_columns=["teacher_logits"], clean_rows=4, selection_rows=2,
    )  # fmt: skip
    args = AMALConfig(str(folder / "run"), **{"method": "trust", **SETTINGS, "max_steps": 3, **given})
    data, parts, losses = prepare(data, args)
    train_run(parts, data, args, losses)
    return folder / "run"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, list[str]]:
    """Run folder and texts of several lengths."""
    folder = tmp_path_factory.mktemp("tiny")
    make_student().save_pretrained(folder / "student")
    make_tokenizer().save_pretrained(folder / "student")
    rows = make_rows(42, wrong=0.3, tokens=False).remove_columns(["weak_labels", "truth"])
    return train(folder, rows, str(folder / "student")), rows["text"][:5]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> tuple[Path, list[str]]:
    """MiniLM's first two layers, trained a little."""
    if not Path(default_model()).is_dir():
        pytest.skip("the offline MiniLM is not installed")
    folder = tmp_path_factory.mktemp("minilm")
    student_from_teacher(default_model(), [0, 1], NAMES).save_pretrained(folder / "student")
    AutoTokenizer.from_pretrained(default_model()).save_pretrained(folder / "student")
    rows = make_rows(42, tokens=False).remove_columns(["weak_labels", "truth"])
    said = ["the plane landed", "ships at anchor in the bay", "a long road across the hills, and then the valley"]
    rows = rows.remove_columns("text").add_column("text", [f"{said[i % 3]}, {i}" for i in range(42)])
    return train(folder, rows, str(folder / "student"), learning_rate=1e-4), rows["text"][:5]


STUDENTS = ["tiny", pytest.param("minilm", marks=pytest.mark.slow)]


@pytest.fixture(params=STUDENTS)
def student(request) -> tuple[Path, Any, Any, list[str]]:
    """Run folder, its model and tokenizer, and texts."""
    run_dir, texts = request.getfixturevalue(request.param)
    model = AutoModelForSequenceClassification.from_pretrained(run_dir).eval()
    return run_dir, model, AutoTokenizer.from_pretrained(run_dir), texts


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Several rows of several lengths, padded; one row; as many tokens as a row may have."""
    long = " ".join(texts * 20)
    each = [texts, texts[:1], [long, texts[0]]]
    return [
        {k: v for k, v in tokenizer(said, padding=True, truncation=True, max_length=32, return_tensors="pt").items()
         if k in INPUTS} for said in each
    ]  # fmt: skip


def shapes() -> dict[str, dict[int, Dim]]:
    """Any number of rows, of any length."""
    rows, tokens = Dim("rows", min=1, max=1024), Dim("tokens", min=2, max=32)
    return {name: {0: rows, 1: tokens} for name in INPUTS}


def test_export_of_the_student_agrees_with_it(student, tmp_path):
    _, model, tokenizer, texts = student
    tried = batches(tokenizer, texts)
    program = torch.export.export(model, (), tried[0], dynamic_shapes=shapes())
    torch.export.save(program, tmp_path / "student.pt2")
    again = torch.export.load(tmp_path / "student.pt2").module()
    for batch in tried:
        with torch.no_grad():
            expected = model(**batch).logits
            torch.testing.assert_close(program.module()(**batch).logits, expected, rtol=0, atol=EXACT)
            torch.testing.assert_close(again(**batch).logits, expected, rtol=0, atol=EXACT)


def test_onnx_of_the_student_agrees_with_it(student, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime", reason="what runs the exported file")
    _, model, tokenizer, texts = student
    tried = batches(tokenizer, texts)
    torch.onnx.export(
        model, (), str(tmp_path / "student.onnx"), kwargs=tried[0], dynamo=True, dynamic_shapes=shapes(),
        input_names=list(INPUTS), output_names=["logits"],
    )  # fmt: skip
    session = runtime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    for batch in tried:
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(**batch).logits, rtol=0, atol=EXACT)


def test_pipeline_says_the_classes_names(student):
    run_dir, model, tokenizer, texts = student
    said = pipeline("text-classification", model=str(run_dir), top_k=None)(texts)
    for text, scores in zip(texts, said, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(1)[0]
        found = {each["label"]: each["score"] for each in scores}
        assert set(found) == set(NAMES)
        torch.testing.assert_close(torch.tensor([found[name] for name in NAMES]), expected, rtol=0, atol=1e-5)
