"""The site builds with every warning an error."""

from __future__ import annotations

import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "mkdocstrings", "latex2mathml")),
    reason="the extra `docs` is not installed",
)


@needs_mkdocs
@pytest.mark.slow
def test_strict_build(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    line = (tmp_path / "cli.html").read_text()
    for command in ("train", "label", "teach", "denoise", "report", "demo"):
        assert f'id="{command}"' in line
    for anchor in ("e1", "e2", "e3", "e4", "e5"):
        assert f'id="{anchor}"' in (tmp_path / "method.html").read_text()
    assert "arithmatex" not in (tmp_path / "method.html").read_text()


@pytest.mark.skipif(importlib.util.find_spec("griffe") is None, reason="the extra `docs` is not installed")
def test_docstrings_are_rewritten_as_shown():
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "_hooks" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert doctest.testmod(module).failed == 0
