"""Odd functions and rows given to `amal-hf label`: refused in one line, or voted on as they should be."""

from __future__ import annotations

import random

import pytest
from fuzz_labels import cases
from fuzz_rounds import Tally, clocked, judge

CASES, SEED = 150, 0


@pytest.mark.slow
def test_odd_inputs_of_label(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tally = Tally()
    with clocked():
        for case in cases(CASES, random.Random(SEED), tmp_path):
            judge(case, tally, capsys)
    with capsys.disabled():
        print(f"\n{CASES} odd inputs of amal-hf label: {tally}")
    tally.check(CASES)
