"""The tests that these modules name in place of their own are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = sorted(HERE.glob("test_kind_*.py"))


def test_every_kind_has_a_module():
    assert [int(re.findall(r"kind_(\d)", path.name)[0]) for path in MODULES] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_the_tests_it_names_are_there(module):
    told = ast.get_docstring(ast.parse(module.read_text()))
    named = re.findall(r"(tests/\S+\.py)::(\w+)", told)
    assert named
    for path, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"
