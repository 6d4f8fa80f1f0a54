"""Nobody reads what a class or a module keeps to itself: no other module, no test, no benchmark."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from transformers import Trainer

ROOT = Path(__file__).parents[2]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def made_in(tree: ast.AST) -> set[str]:
    """Private names that a file defines or assigns."""
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    found |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {name for name in found if private(name)}


def read_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of the private attributes of others that a file reads, and of the private names it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            parent = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            if not own and not parent:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("amal_hf"):
            folder = ROOT / str(node.module).replace(".", "/")
            modules = {path.stem for path in folder.glob("_*")} if folder.is_dir() else set()
            yield from (
                (node.lineno, each.name) for each in node.names if private(each.name) and each.name not in modules
            )


def test_no_private_is_read_by_another_module():
    files = [*(path for folder in ("amal_hf", "tests", "examples") for path in (ROOT / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text()) for path in files}
    made = {path: made_in(tree) for path, tree in trees.items()}
    ours = set().union(*(names for path, names in made.items() if path.is_relative_to(ROOT / "amal_hf")))
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in read_in(tree)
        if name in ours - made[path] and not hasattr(Trainer, name)
    ]
    assert not found, "\n".join(found)


def test_one_would_be_seen():
    tree = ast.parse("from amal_hf.trainer import _x\ntrainer._y\nself._z\nsuper()._w")
    assert [*read_in(tree)] == [(1, "_x"), (2, "_y")]
