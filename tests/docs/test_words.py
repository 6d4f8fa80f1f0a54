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
    "said": "what is in it: labels, votes, entries, asserted",
    "says": "asserts",
    "told": "what is in it: message, reason, text",
    "heard": "used, named_by_teachers",
    "hear": "update, accumulate",
    "silent": "abstains",
    "speaks": "covers",
    "spoken": "covered",
    "opinion": "expert, prediction",
    "opinions": "experts, predictions",
    "doubt": "teacher_reliability_expert",
    "doubted": "teacher_reliability_expert",
    "belief": "posterior_expert",
    "left_out": "oof_log_odds, not_shown",
    "sharpness": "inverse_temperature",
    "anywhere": "gone: one soft target needs no such choice",
    "light": "gone: one soft target needs no such choice",
    "mine": "own",
    "look_over": "validate_inputs",
    "beforehand": "prepare",
    "floor": "modules import what they need, and no circle",
}
"""Parts of identifiers, as snake_case and CamelCase divide them, and whole ones."""

GOLD = ("labeling/", "losses/spear.py")
"""Where "gold" may stand: labels that label models are evaluated with, and SPEAR's own word for a labelled row."""

CLASSES_GONE = {
    **dict.fromkeys(["Lookahead", "Still", "SGD", "Adam", "Noise"], "metagrad"),
    **dict.fromkeys(["Precision", "Pool", "Known"], "denoising"),
    "SlowCopy": "losses",
}
"""Classes with an old name, and the package that each stood in; elsewhere the word may mean something else."""

PROSE = {
    "recipe": "method",
    "silent(ly)?": "abstains",
    "heard": "used",
    "hears?": "reads",
    "said": "asserted, or the object itself",
    "told": "the object itself",
    "speaks?": "covers",
    "spoken": "covered",
    "evidence": "log_posterior, experts",
    "advice": "class gradient",
    "sharpness": "inverse temperature",
    "slow copy": "a mean teacher is no source here",
    "steering": "lookahead",
    "meta rows": "clean rows",
    "opinions?": "experts, predictions",
    "doubt(s|ed)?": "teacher reliability",
    "with_evidence": "the trainer prepares its rows itself",
    "beforehand": "before training",
    "denoised corpus": "corrected corpus",
    "house": "package",
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
    found = [
        f"{path}:{line}"
        for path, tree in sources().items()
        for line, text in docstrings(tree)
        if re.search(rf"\b{word}\b", text, re.IGNORECASE)
    ]
    assert not found, f"say {PROSE[word]!r}"


def test_clean_rows_are_not_gold():
    """ "gold" is for evaluation labels."""
    named = [where for where in found_names().get("gold", []) if not where.startswith(GOLD)]
    written = [path for path, tree in sources().items() for _, text in docstrings(tree)
               if re.search(r"\bgold\b", text) and not path.startswith((*GOLD, "losses/__init__"))]  # fmt: skip
    assert not named + written, "say 'clean'"


@pytest.mark.parametrize("name", CLASSES_GONE)
def test_no_class_has_the_old_name(name):
    found = [
        path for path, tree in sources().items() for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == name and path.startswith(CLASSES_GONE[name])
    ]  # fmt: skip
    assert not found


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
