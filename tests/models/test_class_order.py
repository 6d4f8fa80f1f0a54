"""Whose class is whose: permuted where names agree, refused where they do not, and only then generic."""

from __future__ import annotations

import warnings
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, List, Value

from amal_hf.models import class_order, output_order

DATA = ["air", "sea", "land"]


@pytest.mark.parametrize("theirs", list(permutations(DATA)), ids=" ".join)
def test_logits_are_brought_into_the_data_s_order(theirs):
    """A logit that says which class it is of, taken in the found order, names the data's classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        order = class_order("t", dict(enumerate(theirs)), DATA)
    logits = torch.tensor([[float(DATA.index(name)) for name in theirs]])
    assert logits[:, order].tolist() == [[0.0, 1.0, 2.0]]


def test_case_and_space_do_not_matter_unless_they_must():
    assert class_order("t", {0: "SEA", 1: " Land", 2: "Air"}, DATA) == [2, 0, 1]
    assert class_order("t", {0: "B", 1: "b"}, ["b", "B"]) == [1, 0]  # exact names come first


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(["LABEL_0", "LABEL_1", "LABEL_2"], DATA), (["0", "1", "2"], DATA), (DATA, ["0", "1", "2"])],
)
def test_names_that_say_nothing_are_taken_in_order_with_a_warning(theirs, ours):
    with pytest.warns(UserWarning, match=r"`teacher`: 'runs/t' and the data name their classes differently.*'air'"):
        assert class_order("runs/t", dict(enumerate(theirs)), ours) == [0, 1, 2]


@pytest.mark.parametrize(
    "theirs",
    [["air", "sea"], ["air", "sea", "mud"], ["LABEL_0", "LABEL_1"], ["air", "sea", "sea"], [*DATA, "mud"]],
)
def test_other_classes_are_refused_with_both_maps(theirs):
    with pytest.raises(ValueError) as caught:
        class_order("runs/t", dict(enumerate(theirs)), DATA)
    said = str(caught.value)
    assert said.startswith("`teacher`: expected 'runs/t' to name the classes of the data")
    assert str(dict(enumerate(theirs))) in said and str(dict(enumerate(DATA))) in said and "id2label" in said


def teacher(count: int, problem: str | None = None) -> Any:
    names = DATA[:count] if count > 1 else ["LABEL_0"]
    return SimpleNamespace(problem_type=problem, num_labels=count, id2label=dict(enumerate(names)))


ONE_OF, SEVERAL, FLAGS, NUMBER = (
    ClassLabel(names=DATA),
    List(ClassLabel(names=DATA)),
    List(Value("int64")),
    Value("float64"),
)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (teacher(3), ONE_OF),
        (teacher(3, "single_label_classification"), ONE_OF),
        (teacher(3), SEVERAL),
        (teacher(3, "multi_label_classification"), SEVERAL),
        (teacher(3, "multi_label_classification"), FLAGS),
        (teacher(1), NUMBER),
        (teacher(1, "regression"), NUMBER),
        (teacher(3), None),
        (teacher(1), None),
        (teacher(3), Value("int64")),
    ],
)
def test_a_teacher_of_the_data_s_task_is_taken(config, label):
    assert output_order("t", config, label) == list(range(config.num_labels))


@pytest.mark.parametrize(
    ("config", "label", "task"),
    [
        (teacher(1), ONE_OF, "single_label_classification"),
        (teacher(3, "multi_label_classification"), ONE_OF, "single_label_classification"),
        (teacher(3, "regression"), ONE_OF, "single_label_classification"),
        (teacher(3, "single_label_classification"), SEVERAL, "multi_label_classification"),
        (teacher(1), FLAGS, "multi_label_classification"),
        (teacher(3), NUMBER, "regression"),
        (teacher(3, "single_label_classification"), NUMBER, "regression"),
        (teacher(3, "regression"), NUMBER, "regression"),
    ],
)
def test_a_teacher_of_another_task_is_refused(config, label, task):
    with pytest.raises(ValueError, match=f"`teacher`: expected a teacher for the data's task, {task}, found that 't'"):
        output_order("t", config, label)


def test_without_names_in_the_data_the_given_ones_count():
    assert output_order("t", teacher(3), None, DATA[::-1]) == [2, 1, 0]
    assert output_order("t", teacher(3), Value("int64"), DATA[::-1]) == [2, 1, 0]
    assert output_order("t", teacher(3), ONE_OF, DATA[::-1]) == [0, 1, 2]  # the label's own names come first
