"""Which rows are whose: pairs of texts, rows that come twice, another order when a run goes on, heads of other classes.

What else the kind lists stands elsewhere:

    nobody called a row clean: tests/data/test_split.py::test_nobody_called_a_row_clean
    a split called clean is said: tests/data/test_split.py::test_a_split_that_is_called_clean_is_taken_with_a_message
    every row stays in train: tests/data/test_split.py::test_every_row_stays_in_train_unless_it_is_held_out
    hold-out is so many of every class: tests/data/test_split.py::test_a_rare_class_gets_its_rows_and_keeps_half
    spellings do not make classes: tests/data/test_classes.py::test_spellings_of_one_class_are_merged_with_a_message
    the corpus has the user's rows and ids: tests/end_to_end/test_denoise.py::test_row_ids_are_the_users
    other rows when a run goes on: tests/end_to_end/test_trainer.py::test_a_checkpoint_of_other_rows_is_refused
    copies of a function: tests/denoising/test_assertions.py::test_copies_of_a_function_count_once
    several files of a split: tests/data/test_read_files.py::test_all_files_of_a_split_are_read
    a dictionary without train: tests/data/test_read_files.py::test_a_dictionary_without_train
"""

from __future__ import annotations

import logging

import planted
import pytest
import torch
from datasets import Dataset, Value
from torch.nn.functional import normalize

from amal_hf.data.overlap import overlap
from amal_hf.denoising.assertions import Assertions
from amal_hf.denoising.prepare import LOG_POSTERIOR, add_posterior
from amal_hf.models.student import load_student
from amal_hf.run_folder.corrected import corpus_of

# ---- pairs ----


def test_a_pair_is_not_its_texts_joined():
    pair = lambda a, b: Dataset.from_dict({"premise": [a], "hypothesis": [b]})  # noqa: E731
    both = ["premise", "hypothesis"]
    assert overlap({"train": pair("a b", "c"), "clean": pair("a", "b c")}, both) == {}
    assert overlap({"train": pair("a b", "c"), "clean": pair("A  b", "c ")}, both) == {("train", "clean"): (1, 0)}
    assert overlap({"train": pair("a b", "c"), "clean": pair("a b", "c")}, both) == {("train", "clean"): (1, 1)}


def test_the_corpus_keeps_both_texts(build):
    rows = planted.make_rows(12, tokens=False)
    halves = [(" ".join(text.split()[:3]), " ".join(text.split()[3:])) for text in rows["text"]]
    pairs = rows.add_column("first", [a for a, _ in halves]).add_column("second", [b for _, b in halves])
    clean = planted.make_rows(9, 1, tokens=False).rename_column("text", "first")
    clean = clean.add_column("second", ["w1"] * 9)
    trainer = build({"method": "trust", "num_train_epochs": 1, "text_columns": ["first", "second"]},
                    train_dataset=pairs.remove_columns("text"), clean_dataset=clean)  # fmt: skip
    trainer.train()
    corpus = trainer.corrected_dataset()
    assert list(zip(corpus["first"], corpus["second"], strict=True)) == halves
    assert corpus["text"][:] == [f"{a} {b}" for a, b in halves]


def test_a_text_of_a_pair_called_label_stays_joined():
    rows = {"row_id": [0], "text": ["a b"], "text/label": ["a"], "text/other": ["b"], "label": [0], "votes": [[]],
            "weights": [[1.0]], "mask": [[True]], "corrected": [[0.9, 0.1]], "teacher": [-1]}  # fmt: skip
    corpus = corpus_of(Dataset.from_dict(rows), ["label"], ["x", "y"])
    assert corpus["text"][:] == ["a b"] and corpus["label_before"][:] == [0]


# ---- rows that come twice ----


def test_clean_rows_twice_know_no_more_than_once():
    """Features of pure noise: left out and answered by their copies, they would seem to tell everything."""
    draw = torch.Generator().manual_seed(0)
    noise = {f"t{i}": normalize(torch.randn(1, 8, generator=draw), dim=1) for i in range(140)}
    train = Dataset.from_dict({"text": [f"t{i}" for i in range(100)]})
    texts = [f"t{i}" for i in range(100, 140)]
    labels = [i % 2 for i in range(40)]
    encode = lambda rows: torch.cat([noise[text.lower().strip()] for text in rows["text"]])  # noqa: E731

    def judged(texts, labels):
        clean = Dataset.from_dict({"text": texts})
        made, back = add_posterior(train, clean, torch.tensor(labels), 2, Assertions(), encode)
        return torch.tensor(made[LOG_POSTERIOR][:]), torch.tensor(back[LOG_POSTERIOR][:])

    once, clean = judged(texts, labels)
    twice, both = judged(texts + [f" {text.upper()}" for text in texts], labels * 2)
    torch.testing.assert_close(once, twice)
    torch.testing.assert_close(both, torch.cat([clean, clean]))
    assert (both.argmax(1) == torch.tensor(labels * 2)).float().mean() < 0.7, "noise tells nothing"


@pytest.mark.parametrize("given", [["f", "g", "f2"], ["f", "g", "h"]])
def test_copies_are_named(given, build, caplog):
    rows = planted.make_rows(18, tokens=False)
    clean = planted.make_rows(12, 1, tokens=False)
    parts = []
    for split in (rows, clean):
        votes = [[v[0], v[1], v[0] if "f2" in given else v[2]] for v in split["weak_labels"]]
        parts.append(split.remove_columns("weak_labels").add_column("weak_labels", votes))
    losses = {"rules": planted.LabelingFunctions("weak_labels", tuple(given))}
    trainer = build({"method": "denoise", "num_train_epochs": 1}, train_dataset=parts[0], clean_dataset=parts[1],
                    losses=losses)  # fmt: skip
    with caplog.at_level(logging.WARNING):
        trainer.train()
    told = "say the same on every row count as one: ['rules/f2 as rules/f']" in caplog.text
    assert told == ("f2" in given)


# ---- a run that goes on ----


def test_each_row_keeps_its_weights_in_another_order(build):
    """What was learned is found by `row_id`: the rows are turned round, and trained no further."""
    rows = planted.make_rows(16, wrong=0.4).add_column("row_id", [10 + 3 * i for i in range(16)])
    settings = {"method": "amal-step", "save_strategy": "epoch", "num_train_epochs": 1}
    first = build(settings, train_dataset=rows)
    first.train()
    turned = build(settings, train_dataset=rows.select(range(15, -1, -1)))
    turned.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    by_id = lambda trainer: {row["row_id"]: row for row in trainer.weights}  # noqa: E731
    assert by_id(turned) == by_id(first) and turned.weights["row_id"][0] == 55
    assert len({row["label"] for row in first.weights}) > 1, "nothing was learned"


def changed(rows: Dataset, column: str, change) -> Dataset:
    """The rows with other values in a column, of the same type."""
    feature = rows.features[column]
    return rows.remove_columns(column).add_column(column, [change(each) for each in rows[column]], feature=feature)


OTHERS = {
    "clean rows in another order": ({"clean": lambda rows: rows.select(range(11, -1, -1))}, "clean rows"),
    "fewer clean rows": ({"clean": lambda rows: rows.select(range(9))}, "clean rows .*, 12, found 9"),
    "other clean labels": ({"clean": lambda rows: changed(rows, "label", lambda y: 2 - y)}, "clean rows .* 8 of 12"),
    "no row ids, and another order": ({"train": lambda rows: rows.select(range(15, -1, -1))}, "rows .* with another"),
    "a row more": ({"train": lambda rows: rows.select([*range(16), 0])}, "rows"),
    "a row less": ({"train": lambda rows: rows.select(range(15))}, "rows"),
    "other texts": ({"train": lambda rows: changed(rows, "text", lambda text: text + " w1")}, "rows .* found 16 of 16"),
    "other labels": ({"train": lambda rows: changed(rows, "label", lambda y: min(y + 1, 2))}, "rows .* with another"),
    "another teacher": (
        {"train": lambda rows: changed(rows, "teacher_logits", lambda z: z[::-1])}, "rows .* found 16 of 16"
    ),
    "other functions": ({"train": lambda rows: changed(rows, "weak_labels", lambda v: v[::-1])}, "rows .* with"),
    "classes in another order": ({"names": planted.NAMES[::-1]}, "classes"),
    "another method": ({"method": "l2r"}, "method"),
    "fewer sources": ({"losses": ("label", "rules")}, "sources"),
    "sources in another order": ({"losses": ("teacher", "label", "rules")}, "sources"),
}  # fmt: skip


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("amal-step", "trust")]


@pytest.mark.parametrize("method", ["denoise", *SLOW])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_run_goes_on_with_what_it_had_or_not_at_all(other, method, build):
    """What was learned belongs to rows, sources and classes; beside others it would mean something else."""
    made, message = other
    train, clean = planted.make_rows(16, wrong=0.4, tokens=False), planted.make_rows(12, 1, tokens=False)

    def trainer(train, clean, names=planted.NAMES, method=method, losses=("label", "teacher", "rules")):
        model = planted.make_student()
        model.config.id2label = dict(enumerate(names))
        plain = [
            rows.cast_column("label", Value("int64")) if names == planted.NAMES else named(rows)
            for rows in (train, clean)
        ]
        settings = {"method": method, "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "warmup_steps": 0}
        return build(settings, model=model, train_dataset=plain[0], clean_dataset=plain[1],
                     losses=planted.make_losses(*losses))  # fmt: skip

    def named(rows):
        names = [planted.NAMES[y] for y in rows["label"]]
        return rows.remove_columns("label").add_column("label", names)

    first = trainer(train, clean)
    first.train()
    given = {k: v for k, v in made.items() if k not in ("train", "clean")}
    second = trainer(made.get("train", lambda rows: rows)(train), made.get("clean", lambda rows: rows)(clean), **given)
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint`: expected the {message}"):
        second.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")


def test_other_columns_are_no_other_run(build):
    """A note beside the text, and a column in another place, change nothing that was learned."""
    rows = planted.make_rows(16, wrong=0.4, tokens=False)
    settings = {"method": "amal-step", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    clean = planted.make_rows(12, 1, tokens=False)
    first = build(settings, train_dataset=rows, clean_dataset=clean)
    first.train()
    noted = rows.select_columns(rows.column_names[::-1]).add_column("note", [*range(16)])
    second = build(settings, train_dataset=noted, clean_dataset=clean)
    second.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")
    assert planted.identical(planted.parameters(first), planted.parameters(second)) == []


# ---- a model with a head of its own ----


@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        (["air", "sea", "land"], [0, 1, 2]),
        (["Land", "air", "sea"], [2, 0, 1]),  # the same classes: each row of the head goes with its name
        (["good", "bad", "ugly"], None),
        (["air", "sea"], None),
    ],
)
def test_a_checkpoint_s_head_serves_its_own_classes_only(classes, kept, tmp_path):
    model = planted.make_student()
    model.config.id2label = dict(enumerate(planted.NAMES))
    model.save_pretrained(tmp_path)
    found = load_student(str(tmp_path), classes)
    assert [found.config.id2label[i] for i in range(len(classes))] == classes
    head, theirs = found.classifier, model.classifier
    if kept is None:
        assert not set(head.weight.flatten().tolist()) & set(theirs.weight.flatten().tolist())
        assert head.weight.std() > 0
    else:
        assert torch.equal(head.weight, theirs.weight[kept]) and torch.equal(head.bias, theirs.bias[kept])


def test_a_head_without_names_is_taken_as_it_stands(tmp_path):
    model = planted.make_student()
    model.save_pretrained(tmp_path)
    assert torch.equal(load_student(str(tmp_path), planted.NAMES).classifier.weight, model.classifier.weight)
