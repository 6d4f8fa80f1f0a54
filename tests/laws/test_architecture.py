"""The shape of the package: no module imports itself by way of others; files stay short; the face is small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import amal_hf

HOUSE = Path(amal_hf.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
LONGEST = 350


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of what is imported while a module is loaded, or by the type checker; not in functions."""
    found, stack = set(), [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        stack.extend(ast.iter_child_nodes(node))
    return found


def graph() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports; a package's façade is not a module that does anything."""
    read = {name: imports(ast.parse(path.read_text())) for name, path in MODULES.items()}
    facades = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    return {name: {m for m in used if m in MODULES and m not in facades} - {name} for name, used in read.items()
            if name not in facades}  # fmt: skip


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A path that ends where it begins; none: []."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((c for other in sorted(edges.get(name, ())) if (c := walk(other, [*path, name]))), [])
        done.add(name)
        return found

    return next((c for name in sorted(edges) if (c := walk(name, []))), [])


def test_no_module_imports_itself_by_way_of_others():
    assert not (found := circle(graph())), " -> ".join(found)


def test_a_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    hidden = "if TYPE_CHECKING:\n    from amal_hf.trainer import AMALTrainer\ndef late():\n    import amal_hf.cli\n"
    assert imports(ast.parse(hidden)) == {"amal_hf.trainer", "amal_hf.trainer.AMALTrainer"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_face_is_what_most_programs_need():
    """At most 24 names; all others are imported from their packages, and every one is there."""
    assert len(amal_hf.__all__) <= 24
    assert sorted(amal_hf.__all__) == sorted({*amal_hf.__all__})
    assert not [name for name in amal_hf.__all__ if not hasattr(amal_hf, name)]
