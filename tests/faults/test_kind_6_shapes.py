"""Rows, models and collators of other shapes than the usual: served as what they are, or refused in a line.

What else the kind lists stands elsewhere:

    LoRA: tests/denoising/test_reader.py::test_adapters_are_read
    prompt tuning: tests/denoising/test_reader.py::test_a_learned_prompt_is_left_out
    pooled lengths (Funnel): tests/denoising/test_reader.py::test_states_for_other_positions_than_the_tokens
    any module: tests/denoising/test_reader.py::test_a_module_of_the_users
    a module without hidden states: tests/denoising/test_reader.py::test_a_module_without_hidden_states_is_refused
    a teacher that cannot teach: tests/models/test_teach.py::test_a_teacher_that_cannot_teach_is_refused
    a loss and logits: tests/metagrad/test_model_outputs.py::test_a_module_that_returns_its_loss_is_differentiated
    operations without forward mode: tests/lookahead/test_probe.py::test_what_has_no_rule_is_differenced
    a collator that drops rows: tests/end_to_end/test_faults.py::test_a_collator_that_drops_rows
"""

from __future__ import annotations

import random

import planted
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset
from transformers import GPT2Config, GPT2ForSequenceClassification

from amal_hf.models import TeachConfig, teach

SHORT = {"num_train_epochs": 1, "logging_steps": 1}


class Listed(TorchDataset):
    """Rows with a length, as people write them: tensors among lists."""

    def __init__(self, rows, change=lambda row: row):
        self.rows, self.change = [*rows], change

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = {**self.rows[i], "input_ids": torch.tensor(self.rows[i]["input_ids"])}
        return self.change(row)


@pytest.mark.parametrize("method", ["amal-step", "trust", "denoise"])
def test_a_dataset_of_torch_s_is_no_stream(method, build):
    rows = planted.make_rows(16, wrong=0.4)
    usual = build({"method": method, **SHORT}, train_dataset=rows)
    usual.train()
    for lazy in (Listed(rows), Subset(rows, range(16))):
        trainer = build({"method": method, **SHORT}, train_dataset=lazy)
        trainer.train()
        assert planted.identical(planted.parameters(trainer), planted.parameters(usual)) == []
        assert len(trainer.weights) == 16


def test_a_transform_that_tokenizes(build, tokenizer):
    rows = planted.make_rows(16, wrong=0.4, tokens=False)
    usual = build({"method": "trust", **SHORT}, train_dataset=rows)
    usual.train()
    read = rows.with_transform(lambda batch: {**tokenizer(batch["text"]), "label": batch["label"],
                                              "teacher_logits": batch["teacher_logits"]})  # fmt: skip
    trainer = build({"method": "trust", **SHORT}, train_dataset=read)
    trainer.train()
    assert planted.identical(planted.parameters(trainer), planted.parameters(usual)) == []
    assert trainer.train_dataset.features["label"].names == planted.NAMES


def test_a_random_augmentation_is_not_frozen(build):
    def shuffled(row):
        ids = row["input_ids"].tolist()
        random.shuffle(ids)
        return {**row, "input_ids": ids}

    with pytest.raises(ValueError, match="`train_dataset`: expected rows that are the same at every reading"):
        build(train_dataset=Listed(planted.make_rows(16), shuffled))


def test_rows_that_are_no_mappings(build):
    class Pairs(Listed):
        def __getitem__(self, i):
            return self.rows[i]["input_ids"], self.rows[i]["label"]

    with pytest.raises(ValueError, match="`train_dataset`: expected rows that are mappings from columns, found tuple"):
        build(train_dataset=Pairs(planted.make_rows(8)))


@pytest.mark.parametrize("padding", ["left", "right", None])
def test_a_decoder_teaches_the_same_in_any_batch(padding, tmp_path):
    """Against each text alone, unpadded; where there is no padding token, too."""
    planted.set_seed(0)
    config = GPT2Config(
        vocab_size=len(planted.VOCABULARY), n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=3,
        pad_token_id=0 if padding else None, initializer_range=0.5,
    )  # fmt: skip
    model, tokenizer = GPT2ForSequenceClassification(config).eval(), planted.make_tokenizer()
    model.save_pretrained(tmp_path / "t")
    rows = planted.make_rows(12, tokens=False).select_columns(["text"])
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in rows["text"]])
    if padding:
        tokenizer.padding_side = padding
    else:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    for size in (1, 5):
        asked = TeachConfig(cache_dir=str(tmp_path / f"c{size}"), use_cpu=True, label_column="", batch_size=size)
        found = torch.tensor(teach(rows, [str(tmp_path / "t")], asked)["teacher_logits"][:])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


class LossFirst(nn.Module):
    """`(loss, logits)`, whether labels are given or not."""

    def __init__(self):
        super().__init__()
        self.inner = planted.make_student()
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        known = labels if labels is not None else torch.zeros(len(logits), dtype=torch.long)
        return nn.functional.cross_entropy(logits, known), logits


@pytest.mark.parametrize("method", ["fixed", "trust"])
def test_a_module_that_returns_loss_and_logits(method, build):
    usual, pair = build({"method": method, **SHORT}), build({"method": method, **SHORT}, model=LossFirst())
    for trainer in (usual, pair):
        trainer.train()
    theirs = {name.removeprefix("inner."): p for name, p in planted.parameters(pair).items()}
    assert planted.furthest(theirs, planted.parameters(usual)) < 1e-6
    rows = planted.make_rows(9, 2)
    assert pair.evaluate(rows)["eval_loss"] == pytest.approx(usual.evaluate(rows)["eval_loss"], abs=1e-5)


def test_a_collator_of_ones_own_finds_label_and_columns_by_name(build, tokenizer):
    """They are not listed: what pads and stacks all that is there does not meet lists and None."""
    found = []

    def collate(features):
        assert all({*row} == {"input_ids", "attention_mask"} for row in features)
        found.extend(
            (row["label"], tuple(row["teacher_logits"]), row.get("row_id"), row.get("nothing")) for row in features
        )
        with pytest.raises(KeyError):
            features[0]["nothing"]
        return tokenizer.pad(features, return_tensors="pt")

    rows = planted.make_rows(8)
    trainer = build({"method": "fixed", **SHORT}, train_dataset=rows, data_collator=collate)
    trainer.train()
    given = {(row["label"], tuple(row["teacher_logits"]), i, None) for i, row in enumerate(rows)}
    assert {*found} == given


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "w1 w2", "label": 0}, r"expected tokens \(`input_ids`\) in a stream, found texts"),
        ({"input_ids": [2, 5, 3], "label": "sea"}, "expected the index of a class in a stream, found 'sea'"),
    ],
)
def test_a_stream_that_is_not_ready_is_refused_before_training(row, told, build):
    stream = Dataset.from_list([row] * 8).to_iterable_dataset()
    with pytest.raises(ValueError, match=f"`train_dataset`: {told}"):
        build({"method": "trust", "max_steps": 1}, train_dataset=stream, losses=planted.make_losses("label"))
