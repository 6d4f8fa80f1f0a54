"""Files as people have them: texts that are cut, many functions for many classes, one cache for two runs.

What else the kind lists stands elsewhere:

    words that look like nothing: tests/data/test_read_files.py::test_words_stay_words
    an empty cell is missing: tests/data/test_read_files.py::test_only_an_empty_cell_is_missing
    quotes, commas and lines: tests/data/test_read_files.py::test_quotes_commas_lines_and_marks
    ragged, latin-1, `;`: tests/data/test_read_files.py::test_what_cannot_be_read_is_one_line
    missing texts, the row named, in every split: tests/data/test_split.py::test_rows_without_a_text
    a text without tokens among others: tests/denoising/test_reader.py::test_rows_without_text_are_zero_and_told
    doccano, Label Studio: tests/data/test_read_files.py::test_answers_of_annotation_tools
    a leftover column of labels: tests/data/test_split.py::test_two_columns_of_labels
    errors of `datasets` are one line: tests/commands/test_streams.py::test_errors_of_libraries_are_one_line
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time

import planted
import pytest
import torch
from datasets import Dataset, DatasetDict
from snorkel.labeling import labeling_function

from amal_hf.data.tokens import tokenized
from amal_hf.denoising.assertions import read_assertions
from amal_hf.denoising.experts import NaiveBayesVotes
from amal_hf.labeling import label_models
from amal_hf.labeling.label_splits import LabelConfig, label_splits
from amal_hf.losses import LabelingFunctions
from amal_hf.models import TeachConfig, teach

# ---- texts ----


@pytest.mark.parametrize("which", ["train_dataset", "clean_dataset", "eval_dataset"])
def test_a_missing_text_is_refused_in_python_too(which, build):
    """A file's texts are looked at by the command line; a data set of the user's by the trainer."""
    given = {name: planted.make_rows(9, i, tokens=False) for i, name in
             enumerate(["train_dataset", "clean_dataset", "eval_dataset"])}  # fmt: skip
    texts = [None if i in (3, 5) else text for i, text in enumerate(given[which]["text"])]
    given[which] = given[which].remove_columns("text").add_column("text", texts)
    with pytest.raises(ValueError, match=r"`text`: expected a text on every row .*found 2 without, .*\[3, 5\]"):
        build({"method": "fixed"}, **given)


def test_texts_that_are_numbers_are_texts_in_python_too(build):
    parts = [planted.make_rows(9, i, tokens=False).remove_columns("text") for i in range(2)]
    train, clean = (part.add_column("text", [*range(10 * i, 10 * i + 9)]) for i, part in enumerate(parts))
    trainer = build({"method": "fixed", "num_train_epochs": 1}, train_dataset=train, clean_dataset=clean)
    trainer.train()
    assert trainer.corrected_dataset()["text"][:] == [str(i) for i in range(9)]


# ---- max_length ----


def test_rows_that_are_cut_are_counted(tokenizer, caplog):
    """[CLS] and [SEP] count: of 4 tokens 2 words are read; a text of just 2 is whole."""
    rows = Dataset.from_dict({"text": ["w1 w2", "w1", "w1 w2 w3", "w1 w2 w3 w4 w5 w6"]})
    with caplog.at_level(logging.WARNING):
        made = tokenized(rows, tokenizer, ["text"], 4, "train_dataset")
    assert [len(ids) for ids in made["input_ids"]] == [4, 3, 4, 4]
    assert "`max_length`: 2 of 4 rows of train_dataset (50%) are longer than 4 tokens" in caplog.text
    assert {*made.column_names} - {"token_type_ids"} == {"text", "input_ids", "attention_mask"}


def test_it_is_warned_of_once_and_of_training_rows(build, caplog):
    rows = planted.make_rows(8, tokens=False)
    long = [i for i, text in enumerate(rows["text"]) if len(text.split()) + 2 > 8]
    assert 0 < len(long) < 8
    with caplog.at_level(logging.WARNING):
        trainer = build({"method": "fixed", "max_length": 8}, train_dataset=rows, losses=planted.make_losses("label"),
                        clean_dataset=planted.make_rows(9, 1, tokens=False))  # fmt: skip
        trainer.evaluate(planted.make_rows(9, 2, tokens=False))
    told = [record.getMessage() for record in caplog.records if "max_length" in record.getMessage()]
    assert len(told) == 1 and f"{len(long)} of 8 rows of train_dataset" in told[0]


def test_nothing_is_cut_and_nothing_is_warned_of(build, caplog):
    with caplog.at_level(logging.WARNING):
        build({"method": "fixed"}, train_dataset=planted.make_rows(8, tokens=False))
    assert "max_length" not in caplog.text


# ---- many functions, many classes ----


def functions(count):
    def made(j):
        @labeling_function(name=f"f{j}")
        def votes(row):
            raise AssertionError("it was asked")

        return votes

    return [made(j) for j in range(count)]


def test_memory_that_is_not_there_is_refused_before_voting(monkeypatch, tmp_path):
    """200 functions of 300 classes: Snorkel's moments are those of 60,000 indicators, 8 bytes a pair and 4 more."""
    monkeypatch.setattr(label_models.psutil, "virtual_memory", lambda: type("Free", (), {"available": 8 * 2**30}))
    names = [f"c{i}" for i in range(300)]
    rows = DatasetDict(train=Dataset.from_dict({"text": ["a", "b"]}))
    config = LabelConfig(output_dir=str(tmp_path / "out"), classes=names, num_proc=1)
    gib = 12 * 60_000**2 / 2**30
    with pytest.raises(ValueError, match=rf"`label_models`: expected at most the 8.0 GiB .*'snorkel' takes {gib:.1f}"):
        label_splits(functions(200), rows, config)
    assert not (tmp_path / "out").exists()
    label_models.check_models(["majority", "cage"], 200, 300)
    label_models.check_models(["snorkel"], 20, 10)


def test_votes_are_read_without_a_number_for_every_class():
    """2,000 rows x 200 functions x 300 classes are 480 MB of one-hot; what is kept are the 400,000 votes."""
    draw = torch.Generator().manual_seed(0)
    votes = torch.randint(-1, 300, (2000, 200), generator=draw)
    rows = Dataset.from_dict({"weak_labels": votes.tolist()})
    seen = []

    class Watched(LabelingFunctions):
        def target(self, batch, num_classes):
            seen.append(len(batch["weak_labels"]))
            return super().target(batch, num_classes)

    collate = lambda rows: {"weak_labels": torch.tensor([row["weak_labels"] for row in rows])}  # noqa: E731
    found = read_assertions({"rules": Watched()}, rows, rows.select(range(50)), 300, collate)
    assert max(seen) * 200 * 300 * 4 <= 2**28, "so much is held at a time"
    train, clean = found.votes["rules"]
    assert torch.equal(train, votes) and torch.equal(clean, votes[:50])


def test_counting_without_a_row_is_counting_the_others():
    """The leave-one-out votes, each from a count without the row, weights of rows kept."""
    draw = torch.Generator().manual_seed(1)
    labels, votes = torch.arange(30) % 3, torch.randint(-1, 3, (30, 4), generator=draw)
    weight = torch.tensor([1.0, 0.5, 1.0, 0.25], dtype=torch.double)
    found = NaiveBayesVotes.count(votes, labels, 3, weight)
    for i in range(30):
        there = torch.arange(30) != i
        counts = torch.zeros(4, 3, 3, dtype=torch.double)  # classes are balanced: every row weighs 1
        for y, row in zip(labels[there], votes[there], strict=True):
            for k, s in enumerate(row.tolist()):
                counts[k, y, s] += s >= 0
        said = torch.zeros(3, dtype=torch.double)
        for k, s in enumerate(votes[i].tolist()):
            if s < 0:
                continue
            right = (counts[k].diagonal().sum() + 0.8 * 20) / (counts[k].sum() + 20)
            prior = torch.full((3,), 0, dtype=torch.double) + (1 - right) / 2
            prior[s] = right
            precision = (counts[k, :, s] + 20 * prior) / (counts[k, :, s].sum() + 20)
            said += weight[k] * (3 * precision).clamp_min(1e-3).log()
        spoke = ((votes[i] >= 0) * weight).sum().clamp_min(1)
        torch.testing.assert_close(found.oof_log_odds[i], said / spoke**0.5)


def test_hundreds_of_classes_and_clean_rows_take_seconds():
    draw = torch.Generator().manual_seed(2)
    labels, votes = torch.arange(900) % 300, torch.randint(-1, 300, (900, 100), generator=draw)
    started = time.process_time()
    NaiveBayesVotes.count(votes, labels, 300)
    assert time.process_time() - started < 20


# ---- two runs, one cache ----

HOLDER = """
import shutil, sys
from pathlib import Path
from amal_hf._files.lock import scratch_folder
place, done, folder = map(Path, sys.argv[1:])
with scratch_folder(place, "cache_dir", "teach"):
    print("held", flush=True)
    sys.stdin.readline()
    shutil.move(done, folder)
"""


def test_a_second_run_waits_for_the_first_and_reads_what_it_read(tmp_path, monkeypatch, caplog):
    teacher = tmp_path / "t"
    for part in (planted.make_student(), planted.make_tokenizer()):
        part.save_pretrained(teacher)
    rows = planted.make_rows(20, tokens=False).select_columns(["text"])
    config = TeachConfig(cache_dir=str(tmp_path / "cache"), use_cpu=True, label_column="")
    alone = teach(rows, [str(teacher)], config)["teacher_logits"][:]
    (folder,) = (each.parent for each in config.root.glob("*/teacher.json"))
    shutil.move(folder, tmp_path / "done")

    def never(*args):
        raise AssertionError("it was read again")

    monkeypatch.setattr("amal_hf.models.teacher_cache.Reader.outputs", never)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.with_name(f".{folder.name}"), tmp_path / "done", folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout.readline() == "held\n"
    found = []
    with caplog.at_level(logging.WARNING):
        second = threading.Thread(target=lambda: found.extend(teach(rows, [str(teacher)], config)["teacher_logits"][:]))
        second.start()
        while "another run reads the same teacher" not in caplog.text and second.is_alive():
            time.sleep(0.05)
        assert second.is_alive() and not found
        first.communicate("go\n", timeout=60)
        second.join(timeout=60)
    assert found == alone
    assert [path.name for path in config.root.iterdir()] == [folder.name], "no lock is left"
