"""`amal-hf teach`: what a teacher says as columns, exactly, once, and never of another teacher or text."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_from_disk
from planted import NAMES, make_rows, make_student, make_tokenizer, make_trainer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast, pipeline

from amal_hf import Distillation
from amal_hf.commands.teach import run
from amal_hf.commands.train import default_model
from amal_hf.models import TeachConfig, find_teachers, student_from_teacher, teach, teach_splits
from amal_hf.models import teacher as teachers
from amal_hf.models import teacher_cache as cache

ROWS = 40


def texts(n: int = ROWS, seed: int = 0) -> Dataset:
    return make_rows(n, seed, tokens=False).remove_columns(["teacher_logits", "weak_labels"])


def save_teacher(folder: Path, seed: int = 0, names: list[str] = NAMES, tokenizer: Any = None, **config: Any) -> Any:
    """A tiny classifier with its tokenizer in a folder."""
    model = make_student(seed=seed).eval()
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    for key, value in config.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return model


@torch.no_grad()
def outputs(model: Any, tokenizer: Any, said: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: one text at a time, no padding. Logits `[N, C]`, pooled layers `[N, L, H]`."""
    each = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in said]
    hidden = torch.stack([torch.stack([h[0].mean(0) for h in out.hidden_states]) for out in each])
    return torch.cat([out.logits for out in each]), hidden


def tensor(rows: Dataset, column: str) -> torch.Tensor:
    return torch.tensor(np.asarray(rows[column][:], dtype=np.float64)).float()


@pytest.fixture
def teacher(tmp_path):
    folder = tmp_path / "t"
    return str(folder), save_teacher(folder)


@pytest.fixture
def config(tmp_path):
    """`config(**fields)`: every test has a cache of its own."""
    return lambda **given: TeachConfig(cache_dir=str(tmp_path / "cache"), use_cpu=True, **given)


@pytest.fixture
def reads(monkeypatch):
    """Rows that a teacher is run on, one list a call."""
    seen: list[list[int]] = []
    outputs_of = cache.Reader.outputs

    def counted(self, rows):
        seen.append(list(rows[cache.ROW]))
        return outputs_of(self, rows)

    monkeypatch.setattr(cache.Reader, "outputs", counted)
    return seen


def every(reads: list[list[int]]) -> list[int]:
    return [row for call in reads for row in call]


# ---- what is in the columns ----


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_columns_are_the_teacher_s_outputs_in_the_rows_order(teacher, config, batch_size):
    rows = texts()
    found = teach(rows, [teacher[0]], config(batch_size=batch_size, features=["pooled", "hidden"], layers=[0, 2]))
    logits, hidden = outputs(teacher[1], make_tokenizer(), rows["text"][:])
    torch.testing.assert_close(tensor(found, "teacher_logits"), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(tensor(found, "teacher_hidden"), hidden[:, [0, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(tensor(found, "teacher_pooled"), hidden[:, -1], rtol=0, atol=1e-5)
    assert found.select_columns(rows.column_names)[:] == rows[:]


def test_longest_rows_are_read_first_and_none_twice(teacher, config, reads):
    rows = texts()
    teach(rows, [teacher[0]], config(batch_size=8))
    order = every(reads)
    lengths = [len(text.split()) for text in rows["text"][:]]
    assert sorted(order) == list(range(ROWS)) and len(reads) == 5
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)


def test_classes_follow_the_data(tmp_path, config):
    model = save_teacher(tmp_path / "t", names=["land", "AIR", "sea"])
    found = teach(texts(), [str(tmp_path / "t")], config())
    logits, _ = outputs(model, make_tokenizer(), found["text"][:])
    torch.testing.assert_close(tensor(found, "teacher_logits"), logits[:, [1, 2, 0]], rtol=0, atol=1e-5)


def test_every_teacher_reads_with_its_own_tokenizer(tmp_path, config):
    other = dict(zip(planted.VOCABULARY, [*range(5), *reversed(range(5, len(planted.VOCABULARY)))], strict=True))
    tokenizers = [make_tokenizer(), BertTokenizerFast(vocab=other, model_max_length=32)]
    models = [
        save_teacher(tmp_path / "run" / f"checkpoint-{9 + i}", i, NAMES[::-1] if i else NAMES, t)
        for i, t in enumerate(tokenizers)
    ]
    found = teach(texts(), [str(tmp_path / "run" / "checkpoint-*")], config())
    assert find_teachers([str(tmp_path / "run" / "*")]) == [str(tmp_path / "run" / f"checkpoint-{n}") for n in (9, 10)]
    for i, (model, tokenizer) in enumerate(zip(models, tokenizers, strict=True)):
        logits, _ = outputs(model, tokenizer, found["text"][:])
        expected = logits.flip(1) if i else logits
        torch.testing.assert_close(tensor(found, f"checkpoint-{9 + i}_logits"), expected, rtol=0, atol=1e-5)
    named = teach(texts(), [str(tmp_path / "run" / "checkpoint-*")], config(names=["old", "new"]))
    assert {"old_logits", "new_logits"} <= set(named.column_names)


def test_without_class_names_teachers_follow_the_first(tmp_path, config):
    for i in range(2):
        save_teacher(tmp_path / f"t{i}", 0, NAMES if i == 0 else NAMES[::-1])
    weights = load_file(tmp_path / "t1" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, tmp_path / "t1" / "model.safetensors", {"format": "pt"})
    rows = texts().remove_columns("label")
    with pytest.warns(
        UserWarning, match=r"`label_column`: expected 'label'.*in the order of '.*t0': \['air', 'sea', 'la"
    ):
        found = teach(rows, [str(tmp_path / "t0"), str(tmp_path / "t1")], config())
    torch.testing.assert_close(tensor(found, "t0_logits"), tensor(found, "t1_logits"), rtol=0, atol=1e-6)


def test_pairs_of_texts(teacher, config):
    rows = texts().add_column("other", texts(seed=1)["text"][:])
    found = teach(rows, [teacher[0]], config(text_columns=["text", "other"]))
    with torch.no_grad():
        expected = torch.cat(
            [
                teacher[1](**make_tokenizer()(a, b, return_tensors="pt")).logits
                for a, b in zip(rows["text"], rows["other"], strict=True)
            ]
        )
    torch.testing.assert_close(tensor(found, "teacher_logits"), expected, rtol=0, atol=1e-5)


def test_a_teacher_abstains_where_it_is_not_asked(teacher, config, reads):
    rows = texts()
    asked = [i % 3 != 1 for i in range(ROWS)]
    said = [text if ask else None for text, ask in zip(rows["text"], asked, strict=True)]
    rows = rows.remove_columns("text").add_column("text", said).add_column("mine", asked)
    found = teach(rows, [teacher[0]], config(where="mine", features=["hidden"]))
    assert (
        [row is not None for row in found["teacher_logits"]]
        == asked
        == [h is not None for h in found["teacher_hidden"]]
    )
    everywhere = teach(texts(), [teacher[0]], config())
    for ask, row, whole in zip(asked, found["teacher_logits"], everywhere["teacher_logits"], strict=True):
        assert not ask or row == pytest.approx(whole, abs=1e-6)


def test_bf16_is_close_and_kept_apart(teacher, config):
    full, half = (teach(texts(), [teacher[0]], config(bf16=flag)) for flag in (False, True))
    gap = (tensor(full, "teacher_logits") - tensor(half, "teacher_logits")).abs().max()
    assert 0 < gap < 0.1 * tensor(full, "teacher_logits").abs().max()


def test_a_regression_teacher(tmp_path, config):
    model = make_student().eval()
    model.classifier, model.num_labels = torch.nn.Linear(16, 1), 1
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "t")
    make_tokenizer().save_pretrained(tmp_path / "t")
    rows = texts().remove_columns("label").add_column("label", [i / 7 for i in range(ROWS)])
    found = teach(rows, [str(tmp_path / "t")], config())
    logits, _ = outputs(model, make_tokenizer(), rows["text"][:])
    torch.testing.assert_close(tensor(found, "teacher_logits"), logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected a teacher for the data's task, single_label_classification"):
        teach(texts(), [str(tmp_path / "t")], config())


# ---- read once ----


def test_a_second_call_reads_nothing_and_loads_nothing(teacher, config, reads, monkeypatch):
    first = teach(texts(), [teacher[0]], config())
    reads.clear()
    monkeypatch.setattr(teachers.Teacher, "model", lambda *given: pytest.fail("the teacher was loaded"))
    monkeypatch.setattr(teachers.Teacher, "tokenizer", lambda *given: pytest.fail("its tokenizer was loaded"))
    # other columns, another order of columns and another batch size are no other text
    again = teach(
        texts().add_column("more", [0] * ROWS).select_columns(["label", "more", "text"]),
        [teacher[0]],
        config(batch_size=3),
    )
    assert not reads and again["teacher_logits"][:] == first["teacher_logits"][:]
    assert again.column_names == ["label", "more", "text", "teacher_logits"]


def changed_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def changed_tokenizer(folder: Path) -> None:
    words = list(planted.VOCABULARY)
    words[-1], words[-2] = words[-2], words[-1]
    BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, model_max_length=32).save_pretrained(folder)


def changed_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


@pytest.mark.parametrize("change", [changed_weights, changed_tokenizer, changed_config])
def test_a_changed_teacher_is_read_anew(teacher, config, reads, change):
    first = teach(texts(), [teacher[0]], config())
    stamps = {path: path.stat().st_mtime_ns for path in Path(teacher[0]).iterdir()}
    change(Path(teacher[0]))
    for path, stamp in stamps.items():
        os.utime(path, ns=(stamp, stamp))  # content decides, not the clock
    reads.clear()
    again = teach(texts(), [teacher[0]], config())
    assert len(every(reads)) == ROWS and again["teacher_logits"][:] != first["teacher_logits"][:]
    model = AutoModelForSequenceClassification.from_pretrained(teacher[0])
    logits, _ = outputs(model.eval(), AutoTokenizer.from_pretrained(teacher[0]), texts()["text"][:])
    torch.testing.assert_close(tensor(again, "teacher_logits"), logits, rtol=0, atol=1e-5)


def other_text(rows: Dataset) -> Dataset:
    return rows.map(lambda row, i: {"text": "w1 w2"} if i == 5 else row, with_indices=True)


OTHER_TEXTS = {
    "another text": other_text,
    "a row less": lambda rows: rows.select(range(ROWS - 1)),
    "another order": lambda rows: rows.select([1, 0, *range(2, ROWS)]),
}


@pytest.mark.parametrize("change", list(OTHER_TEXTS.values()), ids=list(OTHER_TEXTS))
def test_other_texts_are_read_anew(teacher, config, reads, change):
    teach(texts(), [teacher[0]], config())
    reads.clear()
    rows = change(texts())
    found = teach(rows, [teacher[0]], config())
    assert len(every(reads)) == len(rows)
    logits, _ = outputs(teacher[1], make_tokenizer(), rows["text"][:])
    torch.testing.assert_close(tensor(found, "teacher_logits"), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "setting", [{"max_length": 5}, {"features": ["hidden"]}, {"features": ["hidden"], "layers": [1]}]
)
def test_other_settings_are_read_anew(teacher, config, reads, setting):
    teach(texts(), [teacher[0]], config())
    reads.clear()
    found = teach(texts(), [teacher[0]], config(**setting))
    assert len(every(reads)) == ROWS
    if "layers" in setting:
        assert tensor(found, "teacher_hidden").shape == (ROWS, 1, 16)


def test_a_cache_of_another_text_is_refused(teacher, config, tmp_path):
    """A folder moved by hand under another fingerprint: it says itself what it holds."""
    teach(texts(), [teacher[0]], config())
    (folder,) = (tmp_path / "cache").iterdir()
    teach(texts(seed=1), [teacher[0]], config())
    (other,) = set((tmp_path / "cache").iterdir()) - {folder}
    shutil.rmtree(other)
    folder.rename(other)
    with pytest.raises(ValueError, match=r"`cache_dir`: expected in .* found that it differs in \['text'\]"):
        teach(texts(seed=1), [teacher[0]], config())


def killed(teacher, config, reads, monkeypatch):
    """What a whole run says, after which the same run in parts of 8 rows was killed in its fourth part."""
    monkeypatch.setattr(cache, "SHARD_ROWS", 8)
    whole = teach(texts(), [teacher[0]], config())
    shutil.rmtree(config().root)
    reads.clear()
    outputs_of = cache.Reader.outputs

    def dies(self, rows):
        if len(reads) == 7:
            raise KeyboardInterrupt
        return outputs_of(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.Reader, "outputs", dies)
        teach(texts(), [teacher[0]], config(batch_size=4))
    return whole


def test_a_killed_run_goes_on_where_it_was(teacher, config, reads, monkeypatch):
    whole = killed(teacher, config, reads, monkeypatch)
    assert len(reads) == 7  # three parts of 8 rows, and half of the fourth
    reads.clear()
    again = teach(texts(), [teacher[0]], config(batch_size=4))
    assert len(every(reads)) == ROWS - 3 * 8
    torch.testing.assert_close(tensor(again, "teacher_logits"), tensor(whole, "teacher_logits"), rtol=0, atol=1e-6)
    assert sorted(path.name for path in config().root.glob("*/*")) == ["columns.arrow", "teacher.json"]


def test_processes_share_the_parts(teacher, config, reads, monkeypatch):
    """Process 1 of 2 reads its parts and joins nothing; process 0 reads the others and joins all."""
    monkeypatch.setattr(cache, "SHARD_ROWS", 8)
    alone = teach(texts(), [teacher[0]], config())
    shutil.rmtree(config().root)
    of = []
    for index in (1, 0):
        state = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, device=torch.device("cpu"),
            main_process_first=nullcontext, wait_for_everyone=lambda: None,
        )  # fmt: skip
        monkeypatch.setattr("amal_hf.models.read_teachers.PartialState", lambda cpu=False, state=state: state)
        reads.clear()
        if index == 1:
            with pytest.raises(FileNotFoundError):  # process 0 has not joined them
                teach(texts(), [teacher[0]], config())
        else:
            shared = teach(texts(), [teacher[0]], config())
        of.append(every(reads))
    assert len(of[0]) == 16 and len(of[1]) == 24 and sorted(of[0] + of[1]) == list(range(ROWS))
    torch.testing.assert_close(tensor(shared, "teacher_logits"), tensor(alone, "teacher_logits"), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_accelerate_launch(teacher, config, tmp_path):
    """Two processes, for real: the same columns as one."""
    rows = texts(1100)
    rows.save_to_disk(tmp_path / "data")
    script = tmp_path / "go.py"
    script.write_text("import sys\nfrom amal_hf.commands.teach import run\nraise SystemExit(run(sys.argv[1:]))\n")
    given = [teacher[0], str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--use_cpu", "True"]
    given += ["--cache_dir", str(tmp_path / "shared")]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    done = subprocess.run([*launch, *given], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("columns teacher_logits") == 1
    shared = load_from_disk(str(tmp_path / "out"))["train"]
    alone = teach(rows, [teacher[0]], config())
    torch.testing.assert_close(tensor(shared, "teacher_logits"), tensor(alone, "teacher_logits"), rtol=0, atol=1e-6)


# ---- the command ----


def test_the_command_writes_a_data_set_that_trains(teacher, tmp_path, config, capsys):
    DatasetDict(train=texts(), validation=texts(12, 1), test=texts(9, 2)).save_to_disk(tmp_path / "data")
    out = tmp_path / "out"
    given = [teacher[0], str(tmp_path / "data"), "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache")]
    assert run([*given, "--features", "pooled", "--splits", "train", "test", "--use_cpu", "--bf16", "no"]) == 0
    assert "columns teacher_logits, teacher_pooled" in capsys.readouterr().out
    taught = load_from_disk(str(out))
    assert set(taught["test"].column_names) == {*texts().column_names, "teacher_logits", "teacher_pooled"}
    assert taught["validation"].column_names == texts().column_names
    assert json.loads((out / "teachers.json").read_text())["teachers"] == [teacher[0]]
    trainer = make_trainer(
        tmp_path / "run",
        {"max_steps": 2},
        train_dataset=taught["train"].remove_columns("teacher_pooled"),
        losses={"teacher": Distillation("teacher_logits", temperature=2.0, kind="js")},
        clean_dataset=make_rows(12, seed=1),
    )
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (["land", "air", "sea"] * 4, ["air", "land", "sea"]),
        ([["land"], ["air"], ["sea"]] * 4, ["air", "land", "sea"]),
        ([0, 1, 2] * 4, None),
        ([0.0, None, 2.0, 1.0] * 3, None),
    ],
    ids=["words", "lists of a word", "numbers", "numbers with gaps"],
)
def test_the_command_names_classes_as_training_does(tmp_path, said, names):
    model = save_teacher(tmp_path / "t")
    rows = texts(12).remove_columns("label").add_column("label", said)
    rows.to_json(tmp_path / "data.jsonl")
    given = [str(tmp_path / "t"), str(tmp_path / "data.jsonl"), "--output_dir", str(tmp_path / "out")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run([*given, "--cache_dir", str(tmp_path / "cache"), "--use_cpu", "True"]) == 0
    found = load_from_disk(str(tmp_path / "out"))["train"]
    order = [NAMES.index(name) for name in names] if names else [0, 1, 2]
    logits, _ = outputs(model, make_tokenizer(), rows["text"][:])
    torch.testing.assert_close(tensor(found, "teacher_logits"), logits[:, order], rtol=0, atol=1e-5)
    assert any("name their classes differently" in str(each.message) for each in caught) == (names is None)
    assert isinstance(found.features["label"], ClassLabel)


# ---- at the door ----


def broken_folder(tmp_path: Path, *without: str, **config: Any) -> str:
    save_teacher(tmp_path / "bad", **config)
    for name in without:
        (tmp_path / "bad" / name).unlink()
    return str(tmp_path / "bad")


def as_pickle(tmp_path: Path) -> str:
    folder = broken_folder(tmp_path)
    torch.save(load_file(Path(folder) / "model.safetensors"), Path(folder) / "pytorch_model.bin")
    (Path(folder) / "model.safetensors").unlink()
    return folder


def plain_encoder(tmp_path: Path) -> str:
    make_student().bert.save_pretrained(tmp_path / "bad")
    make_tokenizer().save_pretrained(tmp_path / "bad")
    return str(tmp_path / "bad")


def headless(tmp_path: Path) -> str:
    """It calls itself a classifier, and has no classifier's weights."""
    folder = Path(broken_folder(tmp_path))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    return str(folder)


def large_vocabulary(tmp_path: Path) -> str:
    folder = broken_folder(tmp_path)
    vocabulary = {**planted.VOCABULARY, **{f"x{i}": 45 + i for i in range(9)}}
    BertTokenizerFast(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    return folder


TEACHERS_REFUSED = {
    "other classes": (lambda p: broken_folder(p, names=["air", "sea", "mud"]), r"names? the classes.*'mud'.*'land'"),
    "another task": (
        lambda p: broken_folder(p, problem_type="multi_label_classification"),
        "data's task, single_label_classification, found that .* does multi_label_classification",
    ),
    "a plain encoder": (
        plain_encoder,
        r"expected a ForSequenceClassification model, found \['BertModel'\].*amal-hf train",
    ),
    "a head without weights": (headless, r"expected all weights of BertForSequenceClassification.*classifier.bias"),
    "no tokenizer": (lambda p: broken_folder(p, "tokenizer.json"), "expected a tokenizer's vocabulary"),
    "another vocabulary": (large_vocabulary, "expected a tokenizer of at most 45 tokens .* found 54"),
    "a pickle": (as_pickle, "expected model.safetensors .* A .bin file is a pickle"),
    "no configuration": (lambda p: broken_folder(p, "config.json"), "expected config.json"),
}


@pytest.mark.parametrize("wrong", list(TEACHERS_REFUSED))
def test_a_teacher_that_cannot_teach_is_refused(tmp_path, config, reads, wrong):
    make, message = TEACHERS_REFUSED[wrong]
    with pytest.raises(ValueError, match=rf"(?s)`teacher`: .*{message}"):
        teach(texts(), [make(tmp_path)], config())
    assert not reads


def test_no_such_teacher(tmp_path, config):
    with pytest.raises(FileNotFoundError, match="`teacher`: expected a folder or a name on the Hub, found"):
        teach(texts(), [str(tmp_path / "none")], config())
    with pytest.raises(FileNotFoundError, match=r"`teacher`: expected folders like .*checkpoint-"):
        teach(texts(), [str(tmp_path / "checkpoint-*")], config())
    with pytest.raises(ValueError, match="`teacher`: expected one or several different teachers"):
        teach(texts(), ["same", "same"], config())


def test_a_teacher_larger_than_memory_is_named_with_its_size(teacher, config, monkeypatch, reads):
    count = sum(p.numel() for p in teacher[1].parameters())
    monkeypatch.setattr(teachers.Teacher, "model", lambda *given: pytest.fail("the teacher was loaded"))
    monkeypatch.setattr(teachers, "free_memory", lambda device: 4 * count - 1)
    with pytest.raises(
        ValueError, match=rf"`teacher`: .*takes 0.00 GiB \({count / 1e6:.1f} million parameters in float32"
    ):
        teach(texts(), [teacher[0]], config())
    monkeypatch.undo()
    monkeypatch.setattr(teachers, "free_memory", lambda device: 4 * count - 1)
    assert "teacher_logits" in teach(texts(), [teacher[0]], config(bf16=True)).column_names  # half of it fits
    assert teachers.free_memory(torch.device("cpu")) == 4 * count - 1
    monkeypatch.undo()
    assert teachers.free_memory(torch.device("cpu")) > 2**20


def test_logits_that_are_no_numbers_name_their_row(tmp_path, config):
    """One word's embedding is broken: the first row that holds it is named, and nothing is kept."""
    folder = Path(broken_folder(tmp_path))
    rows = texts()
    (row,) = [next(i for i, text in enumerate(rows["text"]) if "w39" in text.split())]
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][planted.VOCABULARY["w39"]] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    only = rows.select([*range(row + 1)])
    with pytest.raises(ValueError, match=rf"`teacher`: expected finite logits, found NaN .* on row {row}: \[nan"):
        teach(only, [str(folder)], config(batch_size=4))


def test_rows_without_text_are_refused(teacher, config):
    said = [None if i in (3, 8) else text for i, text in enumerate(texts()["text"])]
    rows = texts().remove_columns("text").add_column("text", said)
    with pytest.raises(ValueError, match=r"`train`: expected text on every row, .* on 2 row\(s\), the first \[3, 8\]"):
        teach(rows, [teacher[0]], config())


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (lambda r: r.rename_column("text", "said"), {}, r"`text_columns`: expected column\(s\) \['text'\] in 'train'"),
        (lambda r: r, {"where": "mine"}, r"`where`: expected column\(s\) \['mine'\] in 'train'"),
        (lambda r: r, {"where": "text"}, r"`where`: column 'text' of 'train': expected true or false on every row"),
        (lambda r: r.add_column("n", [2] * len(r)), {"where": "n"}, r"`where`: column 'n' .* found '2' \(int64\)"),
        (lambda r: r.select([]), {}, "`train`: expected at least one row"),
        (lambda r: r.to_iterable_dataset(), {}, "`train`: expected a data set that can be indexed, found a stream"),
        (
            lambda r: r.add_column("teacher_logits", [0.0] * ROWS),
            {},
            r"`train`: expected no columns \['teacher_logits'\]",
        ),
        (lambda r: r, {"splits": ["dev"]}, "`splits`: expected one of"),
        (lambda r: r, {"names": ["a", "b"]}, "`names`: expected 1 different names"),
        (lambda r: r, {"features": ["hidden"], "layers": [3]}, r"`layers`: expected numbers from 0 .* to 2"),
    ],
)
def test_data_that_cannot_be_read_is_refused(teacher, config, change, given, message):
    with pytest.raises(ValueError, match=message):
        teach_splits({"train": change(texts())}, [teacher[0]], config(**given))


def test_settings_out_of_range_are_refused(config):
    for given in ({"features": ["attention"]}, {"max_length": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(given))}`: expected"):
            config(**given)


def test_the_command_says_how_it_is_used(tmp_path):
    for argv in ([], ["data"], ["teacher", "data"], ["teacher", "--output_dir", "out"]):
        with pytest.raises(ValueError, match="Usage: amal-hf teach TEACHER"):
            run(argv)
    texts().save_to_disk(tmp_path / "data")
    with pytest.raises(OSError, match="`output_dir`: expected a folder apart from `DATA`"):
        run(["teacher", str(tmp_path / "data"), "--output_dir", str(tmp_path / "data")])


# ---- a real encoder ----


@pytest.mark.skipif(not Path(default_model()).is_dir(), reason="the offline MiniLM is not installed")
def test_minilm_of_two_layers_teaches(tmp_path, config):
    name = default_model()
    student_from_teacher(name, [0, 3], classes=["HAM", "SPAM"]).save_pretrained(tmp_path / "t")
    AutoTokenizer.from_pretrained(name).save_pretrained(tmp_path / "t")
    said = ["Check out my channel!", "What a lovely song, played it all day long.", "free money, click here", "hm"]
    rows = Dataset.from_dict({"text": said, "label": [1, 0, 1, 0]}).cast_column(
        "label", ClassLabel(names=["SPAM", "HAM"])
    )
    found = teach(rows, [str(tmp_path / "t")], config(features=["pooled"]))
    pipe = pipeline("text-classification", model=str(tmp_path / "t"), top_k=None)
    scores = [{one["label"]: one["score"] for one in each} for each in pipe(said)]
    expected = torch.tensor([[each["SPAM"], each["HAM"]] for each in scores])
    torch.testing.assert_close(tensor(found, "teacher_logits").softmax(1), expected, rtol=0, atol=1e-5)
    assert tensor(found, "teacher_pooled").shape == (4, 384)


# ---- a cache that is damaged ----


def cut(file: Path, size: int) -> None:
    """Another file in its place: this one may be mapped into memory."""
    other = file.with_name("other.arrow")
    other.write_bytes(file.read_bytes()[:size])
    other.replace(file)


def rewritten(change: Any) -> Any:
    """A damage that writes other logits in place of those that were read."""

    def damage(folder: Path) -> None:
        held = Dataset.from_file(str(folder / "columns.arrow"))
        rows = change([*held["logits"]])
        made = Dataset.from_dict({"logits": rows}, features=held.features)
        made.map(cache_file_name=str(folder / "other.arrow"), load_from_cache_file=False)
        (folder / "other.arrow").replace(folder / "columns.arrow")

    return damage


DAMAGES = {
    "truncated": lambda folder: cut(folder / "columns.arrow", -400),
    "cut short": lambda folder: cut(folder / "columns.arrow", 300),
    "empty": lambda folder: cut(folder / "columns.arrow", 0),
    "fewer rows": rewritten(lambda rows: rows[:-3]),
    "another width": rewritten(lambda rows: [row[:2] for row in rows]),
    "one row of another width": rewritten(lambda rows: [row[:2] if i == 5 else row for i, row in enumerate(rows)]),
    "no numbers": rewritten(lambda rows: [[float("nan")] * 3 if i == 5 else row for i, row in enumerate(rows)]),
    "no manifest": lambda folder: (folder / "teacher.json").unlink(),
    "half a manifest": lambda folder: (folder / "teacher.json").write_text('{"teacher": '),
    "a manifest of a list": lambda folder: (folder / "teacher.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_read_anew_and_said(damage, teacher, config, reads, caplog):
    whole = teach(texts(), [teacher[0]], config())
    (folder,) = [path for path in config().root.iterdir() if path.is_dir()]
    damage(folder)
    reads.clear()
    with caplog.at_level(logging.WARNING):
        again = teach(texts(), [teacher[0]], config())
    assert len(every(reads)) == ROWS and "It is read anew." in caplog.text
    torch.testing.assert_close(tensor(again, "teacher_logits"), tensor(whole, "teacher_logits"), rtol=0, atol=1e-6)
    reads.clear()
    teach(texts(), [teacher[0]], config())
    assert not reads, "and is whole then"


def test_a_damaged_part_of_a_killed_run_is_read_again(teacher, config, reads, monkeypatch):
    whole = killed(teacher, config, reads, monkeypatch)
    part = next(config().root.glob("*/shards/read-1-of-*.arrow"))
    cut(part, 200)
    reads.clear()
    again = teach(texts(), [teacher[0]], config(batch_size=4))
    assert len(every(reads)) == ROWS - 2 * 8
    torch.testing.assert_close(tensor(again, "teacher_logits"), tensor(whole, "teacher_logits"), rtol=0, atol=1e-6)
