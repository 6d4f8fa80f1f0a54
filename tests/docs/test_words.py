"""The words of the field: those on the left of the table are neither names nor in docstrings of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "amal_hf"

# a word, and what is said instead (docs/glossary.md)
NAMES = {
    "recipe": "method",
    "recipes": "methods",
    "evidence": "log_posterior, denoising",
    "with_evidence": "the trainer prepares its rows itself",
    "denoised": "corrected_dataset",
    "slow": "a mean teacher is no source here",
    "meta_dataset": "clean_dataset",
    "meta_rows": "clean_rows",
    "meta_split": "clean_split",
    "gold_rows": "clean_rows",
    "beliefs": "posterior_expert",
    "doubts": "teacher_reliability_expert",
    "weighed": "fit_stacking_weights",
    "together": "log_linear_pool",
    "skill": "adjusted balanced accuracy",
    "steering": "lookahead",
    "still": "NoStep",
    "cleanmemory": "CleanFeatureBank",
    "near": "one soft target needs no such choice",
    "settle": "resolve_task",
    "makers": "build",
    "slow_copy": "a mean teacher is no source here",
    "explained_rows": "annotate_rows",
    "clean_opinions": "clean_predictions",
    "students": "models",
    "distill": "models",
    "weak": "labeling",
}
"""Parts of identifiers, as snake_case and CamelCase divide them, and whole ones."""

PROSE = {
    "recipe": "method",
    "silent": "abstains",
    "heard": "used",
    "skill": "adjusted balanced accuracy",
    r"floor \d": "modules import what they need, and no circle",
    r"METHODS,? E\d": "docs/method.md (E1)",
}
"""Words of docstrings."""


def parts_of(name: str) -> set[str]:
    """The words in an identifier, in lower case.

    Example:
        >>> sorted(parts_of("CleanMemory")), sorted(parts_of("left_out"))
        (['clean', 'cleanmemory', 'memory'], ['left', 'left_out', 'out'])
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return {name.lower(), *(word.lower() for word in words)}


@cache
def sources() -> dict[str, ast.Module]:
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names of classes, functions and arguments, and what is assigned to, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


@cache
def found_names() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, tree in sources().items():
        for line, name in names(tree):
            for part in parts_of(name):
                found.setdefault(part, []).append(f"{path}:{line} {name}")
    return found


@pytest.mark.parametrize("word", NAMES)
def test_no_name_holds_it(word):
    assert not found_names().get(word), f"say {NAMES[word]!r}"


@pytest.mark.parametrize("word", PROSE)
def test_no_docstring_says_it(word):
    told = [
        f"{path}:{line}"
        for path, tree in sources().items()
        for line, text in docstrings(tree)
        if re.search(rf"\b{word}\b", text, re.IGNORECASE)
    ]
    assert not told, f"say {PROSE[word]!r}"


def test_packages_have_the_new_names():
    gone = {"choices", "distill", "evidence", "steering", "weak", "students.py", "teachers.py"}
    assert not gone & {
        path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }


def test_the_words_are_looked_for():
    """The test would see them."""
    tree = ast.parse('def follow_recipe(meta_rows):\n    """The recipe."""\n    told = meta_rows\n')
    assert {part for _, name in names(tree) for part in parts_of(name)} >= {"recipe", "meta", "told", "meta_rows"}
    assert [text for _, text in docstrings(tree)] == ["The recipe."]
