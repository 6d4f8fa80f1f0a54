"""A labeling function that does not answer is named, and the command ends when it is told to."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time

import pytest
from datasets import Dataset
from snorkel.labeling import labeling_function

from amal_hf.labeling import apply_functions, watch

ROWS = Dataset.from_dict({"text": [f"row {i}" for i in range(8)]})


@labeling_function()
def quick(x):
    return 1


@labeling_function()
def slow(x):
    time.sleep(1.5 if x.text == "row 3" else 0)
    return 0


@labeling_function()
def endless(x):
    while x.text == "row 3":
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            continue
    return 0


def test_a_slow_function_is_named_once_and_heard(monkeypatch, caplog):
    """Eight chunks of a row each: the fourth waits, the others do not."""
    monkeypatch.setattr(watch, "PATIENCE", 0.2)
    with caplog.at_level(logging.WARNING):
        made = apply_functions([quick, slow], ROWS, num_proc=2, name="train")
    assert made["weak_labels"][:] == [[1, 0]] * 8
    told = [record.getMessage() for record in caplog.records if "has been at" in record.getMessage()]
    assert len(told) == 1
    assert "`functions`: labeling function 'slow' has been at rows 3 to 3 of train" in told[0]


def test_nothing_is_said_of_quick_ones(caplog):
    with caplog.at_level(logging.WARNING):
        apply_functions([quick], ROWS, num_proc=2)
    assert "has been at" not in caplog.text


def test_an_endless_function_ends_with_the_command():
    """Also where it answers no Ctrl-C itself, and the signal reaches the command alone."""

    def stop(*_):
        raise KeyboardInterrupt

    running, before = {*multiprocessing.active_children()}, signal.signal(signal.SIGALRM, stop)
    signal.alarm(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            apply_functions([quick, endless], ROWS, num_proc=2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 5
    while (left := {*multiprocessing.active_children()} - running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
