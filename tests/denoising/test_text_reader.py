"""Which encoder reads the rows, how its files say it is read, and that what was read once is kept."""

from __future__ import annotations

import json

import datasets
import planted
import pytest
import torch
from datasets import Dataset, Value
from tokenizers import normalizers
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from amal_hf import AMALConfig
from amal_hf.commands.train import default_model, load_student
from amal_hf.denoising import text_reader
from amal_hf.denoising.reader import encode_rows
from amal_hf.denoising.text_reader import SentenceEncoder, TextReader, VectorColumn, open_reader, whole_checkpoint
from amal_hf.models.copy_layers import student_from_teacher

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "amal_hf"


@pytest.fixture
def checkpoint(tmp_path):
    """An encoder of five layers with a tokenizer of its own, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    BertModel(BertConfig(**SIZES, initializer_range=0.3)).save_pretrained(folder)
    planted.make_tokenizer().save_pretrained(folder)
    return folder


def settings(**given):
    return AMALConfig("out", use_cpu=True, report_to="none", **given).resolved()


def opened(rows, model=None, clean=None, **given):
    tokenizer = planted.make_tokenizer()
    return open_reader(
        settings(**given), model or planted.make_student(), tokenizer, rows, rows if clean is None else clean
    )


def sentence_encoder(folder, pooling, **prompts) -> None:
    kinds = ("Transformer", "Pooling")
    modules = [
        {"type": f"sentence_transformers.models.{k}", "path": p} for k, p in zip(kinds, ("", "1_Pooling"), strict=True)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def test_a_cut_student_is_read_by_its_whole_checkpoint():
    cut, whole = (load_student(default_model(), ["a", "b"], layers) for layers in (2, 0))
    assert whole_checkpoint(cut) == default_model() and whole_checkpoint(whole) == ""
    rows = Dataset.from_dict({"text": ["a fine film", "a dull one", "where is it?"]})
    reader = open_reader(settings(), cut, AutoTokenizer.from_pretrained(default_model()), rows, rows)
    expected = encode_rows(whole, reader.tokenizer, rows, layers=None)
    torch.testing.assert_close(reader(rows), expected, rtol=0, atol=1e-3)
    assert reader(rows).shape[1] == 2 * 384, "layers 4 and 6"
    student = open_reader(settings(reader="student"), cut, reader.tokenizer, rows, rows)
    torch.testing.assert_close(student(rows), encode_rows(cut, reader.tokenizer, rows), rtol=0, atol=1e-3)


def test_a_student_made_of_a_configuration_is_read_itself():
    rows = planted.make_rows(9)
    student = planted.make_student()
    expected = encode_rows(student, planted.make_tokenizer(), rows)
    torch.testing.assert_close(opened(rows, student)(rows), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("tokens", [True, False])
def test_a_named_encoder(checkpoint, tokens):
    rows = planted.make_rows(9, tokens=tokens)
    model = AutoModel.from_pretrained(checkpoint)
    for layers in ([2], [2, 5], []):
        expected = encode_rows(model, planted.make_tokenizer(), rows, layers=layers or None)
        found = opened(rows, reader=str(checkpoint), reader_layers=layers)(rows)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("said", "pooling"),
    [({"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode_lasttoken": True}, "last"),
     ({"pooling_mode_mean_tokens": True}, "mean"), ({"pooling_mode": "cls"}, "cls"), ({}, "mean")],
)  # fmt: skip
def test_a_sentence_encoder_is_pooled_as_it_was_trained(checkpoint, said, pooling):
    sentence_encoder(checkpoint, said)
    assert SentenceEncoder.of(str(checkpoint)).pooling == pooling
    rows, model = planted.make_rows(6), AutoModel.from_pretrained(checkpoint).eval()
    found = opened(rows, reader=str(checkpoint), reader_layers=[-1])(rows)
    for row, features in zip(rows, found, strict=True):
        states = model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0]
        own = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[pooling]
        torch.testing.assert_close(features, F.normalize(own, dim=0).detach(), rtol=0, atol=2e-3)


def test_its_prompt_stands_before_every_text(checkpoint):
    sentence_encoder(checkpoint, {}, prompts={"query": "w1 w2 "}, default_prompt_name="query")
    rows = planted.make_rows(6, tokens=False)
    longer = rows.map(lambda row: {"text": "w1 w2 " + row["text"]})
    plain = encode_rows(AutoModel.from_pretrained(checkpoint), planted.make_tokenizer(), longer)
    found = opened(rows, reader=str(checkpoint), reader_layers=[-1])(rows)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-3)
    other = opened(rows, reader=str(checkpoint), reader_layers=[-1], reader_prompt="w3 ")(rows)
    assert (other - found).abs().max() > 1e-2


def test_a_column_of_vectors():
    rows = planted.make_rows(4).add_column("vector", [[3.0, 4.0], None, [0.0, 2.0], [1.0, 0.0]])
    reader = opened(rows, reader="vector")
    assert isinstance(reader, VectorColumn)
    assert reader(rows).tolist() == [pytest.approx(v) for v in ([0.6, 0.8], [0, 0], [0, 1], [1, 0])]


@pytest.mark.parametrize(
    ("values", "found"),
    [([[1.0], [1.0, 2.0]], r"lengths \[1, 2\]"), ([1.0, 2.0], r"lengths \[-1\]"), ([[1.0], [float("nan")]], "row 1"),
     ([["a"], ["b"]], "")],
)  # fmt: skip
def test_what_is_no_vector_is_refused(values, found):
    rows = Dataset.from_dict({"text": ["w1", "w2"], "vector": values})
    with pytest.raises(ValueError, match=rf"`reader`: expected .*column 'vector'.*{found}"):
        opened(rows, reader="vector")(rows)


def test_a_column_that_the_clean_rows_have_not():
    rows = planted.make_rows(2).add_column("vector", [[1.0], [2.0]])
    with pytest.raises(ValueError, match="`reader`: expected the column 'vector' in training and clean rows"):
        opened(rows, clean=planted.make_rows(2), reader="vector")


def test_another_tokenizers_tokens_are_refused(checkpoint):
    tokenizer = planted.make_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(checkpoint)
    rows = planted.make_rows(4)
    with pytest.raises(ValueError, match=r"`reader`: expected the texts \['text'\].*found tokens alone"):
        opened(rows, reader=str(checkpoint))
    texts = planted.make_rows(4, tokens=False)
    both = rows.add_column("text", texts["text"])
    found = opened(both, reader=str(checkpoint))(both)
    expected = encode_rows(AutoModel.from_pretrained(checkpoint), tokenizer, texts, layers=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_prompt_needs_texts():
    rows = planted.make_rows(4)
    with pytest.raises(ValueError, match=r"`reader`: expected the texts \['text'\].*'the student' has a prompt"):
        opened(rows, reader_prompt="w1 ")


def test_a_checkpoint_that_is_gone_is_said_and_the_student_read(checkpoint, caplog):
    cut = BertModel.from_pretrained(checkpoint, num_hidden_layers=2)
    (checkpoint / "model.safetensors").unlink()
    rows = planted.make_rows(5)
    with caplog.at_level("WARNING"):
        features = opened(rows, cut)(rows)
    assert "reads the student, not the whole checkpoint" in caplog.text
    torch.testing.assert_close(features, encode_rows(cut, planted.make_tokenizer(), rows), rtol=0, atol=1e-3)


def test_a_copy_of_a_teachers_layers_is_read_itself(checkpoint):
    assert whole_checkpoint(student_from_teacher(str(checkpoint), [0, 2], ["a", "b"])) == ""


@pytest.mark.parametrize("name", ["nowhere/encoder", "./no-such-folder"])
def test_a_reader_that_is_not_there_is_refused_before_training(build, name):
    with pytest.raises(FileNotFoundError, match=rf"`reader`: expected .* found '{name}'"):
        build({"method": "denoise", "reader": name})


def test_settings_that_nothing_reads_are_refused(build):
    with pytest.raises(ValueError, match="`reader`: expected it with a method that reads it"):
        build({"method": "trust", "reader": "student"})
    rows = planted.make_rows(12).add_column("vector", [[1.0, float(i)] for i in range(12)])
    with pytest.raises(ValueError, match="`reader_layers`: expected an encoder that it is for"):
        build({"method": "denoise", "reader": "vector", "reader_layers": [1]}, train_dataset=rows, clean_dataset=rows)
    with pytest.raises(ValueError, match="`reader_pooling`: expected"):
        settings(reader_pooling="max")


def counted(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = text_reader.encode_rows
    monkeypatch.setattr(text_reader, "encode_rows", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


def test_rows_are_read_once(monkeypatch, cache):
    calls, rows, student = counted(monkeypatch), planted.make_rows(9), planted.make_student()
    first = opened(rows, student)(rows)
    again = opened(rows, planted.make_student())(rows)  # another process, the same weights
    assert len(calls) == 1 and torch.equal(first, again) and len([*cache.iterdir()]) == 1
    (file,) = cache.iterdir()
    assert file.stat().st_size < first.numel() * 4, "half precision"


@pytest.mark.parametrize("what", ["weights", "texts", "order", "layers", "length", "pooling", "mask"])
def test_whatever_decides_on_the_features_is_in_the_fingerprint(monkeypatch, what):
    calls, rows, given, seed = counted(monkeypatch), planted.make_rows(9), {}, 0
    opened(rows)(rows)
    if what == "texts":
        rows = planted.make_rows(9, seed=1)
    elif what == "order":
        rows = rows.select([*range(8, -1, -1)])
    elif what == "weights":
        seed = 1
    elif what == "mask":
        rows = rows.map(lambda row: {"attention_mask": [*row["attention_mask"][:-1], 0]})
    else:
        given = {"layers": {"reader_layers": [1]}, "length": {"max_length": 4}, "pooling": {"reader_pooling": "cls"}}[
            what
        ]
    opened(rows, planted.make_student(seed=seed), **given)(rows)
    assert len(calls) == 2


def test_another_tokenizer_reads_texts_anew(monkeypatch):
    calls, rows, student = counted(monkeypatch), planted.make_rows(9, tokens=False), planted.make_student()
    opened(rows, student)(rows)
    other = planted.make_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("w1", "w2")
    open_reader(settings(), student, other, rows, rows)(rows)
    opened(rows, student)(rows)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_file_is_read_again(monkeypatch, cache, damage):
    rows = planted.make_rows(9)
    first = opened(rows)(rows)
    (file,) = cache.iterdir()
    if damage is None:
        text_reader.write_tensors(file, {"features": first[:3]})
    else:
        file.write_bytes(damage)
    assert torch.equal(opened(rows)(rows), first)


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, caplog, cache):
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    rows = planted.make_rows(9)
    with caplog.at_level("WARNING"):
        features = opened(rows)(rows)
    assert features.shape == (9, 16) and "are not kept" in caplog.text and "HF_DATASETS_CACHE" in caplog.text


def test_rows_without_text_are_said_each_time(caplog):
    rows = Dataset.from_dict({"text": ["w1 w2", None, "", "w3"]}).cast_column("text", Value("string"))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("WARNING"):
            features = opened(rows)(rows)
        assert "2 of 4 rows have no text to read" in caplog.text and features.any(1).tolist() == [
            True,
            False,
            False,
            True,
        ]


def test_training_reads_vectors_of_the_rows(build):
    """Vectors that name the true class correct labels of which four of ten are wrong; the student's do not as well."""
    made = planted.make_rows(120, wrong=0.4)
    vectors = [[float(c == t) for c in range(3)] for t in made["truth"]]
    rows = made.add_column("vector", vectors)
    clean = planted.make_rows(30, seed=1)
    clean = clean.add_column("vector", [[float(c == t) for c in range(3)] for t in clean["truth"]])
    trainer = build({"method": "denoise", "reader": "vector", "max_steps": 1}, train_dataset=rows, clean_dataset=clean)
    trainer.train()
    posterior = torch.tensor(trainer.prepared.train["amal_log_posterior"][:120])
    assert posterior.argmax(1).tolist() == made["truth"]


def test_a_reader_is_a_text_reader_of_its_settings(checkpoint):
    rows = planted.make_rows(3)
    reader = opened(rows, reader=str(checkpoint), reader_pooling="last", max_length=7)
    assert isinstance(reader, TextReader)
    assert (reader.pooling, reader.max_length, reader.texts, reader.prompt) == ("last", 7, False, "")
