"""The floors of the house: a module imports only from lower floors, and rooms of the first do not know each other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import amal_hf

HOUSE = Path(amal_hf.__file__).parent
FLOORS = [
    {"_types", "_checks", "_files"},
    {"losses", "mixing", "metagrad", "history"},
    {"data", "loading", "metrics", "corpus", "weak", "evidence", "distill", "near"},
    {"config", "steering", "choices", "slow"},
    {"trainer", "callbacks", "card", "checkpoints", "report", "students", "beforehand"},
    {"runs", "teachers", "demo", "denoising", "cli", "__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# same-floor imports that are part of the plan: files hold tensors, the trainer adds its callback and writes its
# card and checkpoints, a steering is chosen and made from a configuration, the commands call one another
NEIGHBOURS = {
    ("_files", "_types"), ("trainer", "callbacks"), ("trainer", "card"), ("trainer", "checkpoints"),
    ("steering", "config"), ("choices", "config"), ("choices", "steering"), ("distill", "loading"),
    ("demo", "runs"), ("cli", "runs"), ("runs", "denoising"), ("runs", "teachers"), ("cli", "denoising"),
    ("cli", "demo"), ("__main__", "cli"),
}  # fmt: skip
FIRST_FLOOR_PACKAGES = {"torch", "amal_hf", "__future__", "safetensors"}
FILES = sorted(HOUSE.rglob("*.py"))
LONGEST = 350


def room_of(path: Path) -> str:
    """The module or package on the top level that a file belongs to; "" for the façade."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(path: Path, type_checking: bool = False) -> Iterator[str]:
    """Dotted names of the modules that a file imports, anywhere in it.

    Args:
        type_checking: also what only the type checker sees.
    """
    tree = ast.parse(path.read_text())
    hidden = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for each in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden and not type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "amal_hf" else [module]


def rooms_used(path: Path, type_checking: bool = False) -> set[str]:
    """Rooms of the house that a file imports."""
    named = (name.split(".") for name in imports(path, type_checking) if name.split(".")[0] == "amal_hf")
    return {parts[1] if len(parts) > 1 else "" for parts in named}


def outside(path: Path) -> set[str]:
    """Other packages that a file imports."""
    return {name.split(".")[0] for name in imports(path)} - {"amal_hf"}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_come_from_lower_floors(path):
    room = room_of(path)
    if room == "":
        return  # the façade shows what all floors offer
    for used in rooms_used(path) - {room}:
        assert used in FLOOR_OF, f"{path.name} imports {used or 'the façade'!r}, which is on no floor"
        lower = FLOOR_OF[used] < FLOOR_OF[room]
        assert lower or (room, used) in NEIGHBOURS, f"{room} (floor {FLOOR_OF[room]}) imports {used} ({FLOOR_OF[used]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_types_too_stay_in_the_neighbourhood(path):
    """For the type checker alone a callback may know its trainer: same floor, never a higher one."""
    room = room_of(path)
    for used in rooms_used(path, type_checking=True) - {room} if room else ():
        assert FLOOR_OF[used] <= FLOOR_OF[room]


def test_rooms_of_the_first_floor_do_not_know_each_other():
    for path in FILES:
        if room_of(path) in FLOORS[1]:
            strangers = rooms_used(path, type_checking=True) & FLOORS[1] - {room_of(path)}
            assert not strangers, f"{path.relative_to(HOUSE)} imports {strangers}"


def test_the_lower_floors_need_torch_alone():
    for path in FILES:
        if room_of(path) in FLOORS[0] | FLOORS[1]:
            strangers = outside(path) - FIRST_FLOOR_PACKAGES - sys.stdlib_module_names
            assert not strangers, f"{path.relative_to(HOUSE)} imports {strangers}"


def test_no_allowance_is_idle():
    used = {(room_of(path), other) for path in FILES for other in rooms_used(path)}
    assert used >= NEIGHBOURS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_constructor_of_the_trainer_stays_short():
    tree = ast.parse((HOUSE / "trainer.py").read_text())
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert functions["__init__"].end_lineno - functions["__init__"].lineno <= 80
    longest = max(functions.values(), key=lambda f: f.end_lineno - f.lineno)
    assert longest.end_lineno - longest.lineno <= 50, longest.name


# ---- the walk itself sees what it should ----


def test_the_walk_sees_imports_in_functions_and_not_those_of_the_type_checker(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "from amal_hf import _checks\n"
        "if TYPE_CHECKING:\n    from amal_hf.trainer import AMALTrainer\n"
        "def late():\n    from amal_hf.runs import divide\n    import amal_hf.losses.base\n"
    )
    assert rooms_used(module) == {"_checks", "runs", "losses"}
    assert rooms_used(module, type_checking=True) == {"_checks", "runs", "losses", "trainer"}
    assert outside(module) == {"typing"}
