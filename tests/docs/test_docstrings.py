"""What is public explains itself, in shapes, and every `>>>` in the package is run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

import amal_hf
from amal_hf import losses, metagrad, mixing

FACADES = ["amal_hf", "amal_hf.losses", "amal_hf.mixing", "amal_hf.metagrad", "amal_hf.corpus", "amal_hf.report"]
FACADES += ["amal_hf.denoising", "amal_hf.labeling", "amal_hf.models"]
MODULES = sorted(m.name for m in pkgutil.walk_packages(amal_hf.__path__, "amal_hf.") if not m.name.endswith("__main__"))
SHAPE = re.compile(r"`?\[[A-Z0-9][^\]]*\]")
# what carries other things about, and is told in words
NO_SHAPE = {"AdamStep", "LazyStep", "VirtualStep", "RNGState", "PureModel", "SGDStep", "NoStep"}
NO_SHAPE |= {"find_head", "in_float32", "in_mode", "model_outputs", "trainable"}
SHOWN = ["CrossEntropy", "Distillation", "LabelingFunctions", "MajorityVote", "Entropy", "Agreement", "LossStack"]
SHOWN += ["Table", "Trust", "box", "simplex", "centred", "AMALConfig"]


def public(facade: str) -> list[tuple[str, Any]]:
    module = importlib.import_module(facade)
    return [(name, getattr(module, name)) for name in module.__all__]


def own_docstring(thing: Any) -> str:
    """Its own, not its parent's and not the signature that `dataclass` writes."""
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    return "" if doc is None or doc.startswith(f"{getattr(thing, '__name__', '?')}(") else inspect.cleandoc(doc)


@pytest.mark.parametrize("module", ["amal_hf", *MODULES])
def test_module_says_what_it_is(module):
    doc = importlib.import_module(module).__doc__
    assert doc and doc.strip().splitlines()[0].rstrip().endswith((".", ")", ":")), f"{module}: {doc!r}"


@pytest.mark.parametrize("facade", [f for f in FACADES if f != "amal_hf.corpus"])  # its façade also makes things
def test_facade_is_complete(facade):
    names = [name for name, _ in public(facade)]
    assert len(set(names)) == len(names)
    loose = {
        name
        for name, thing in vars(importlib.import_module(facade)).items()
        if not name.startswith("_") and name not in names and getattr(thing, "__module__", "").startswith("amal_hf")
    }
    assert not loose, f"public in {facade} and not in its __all__"


@pytest.mark.parametrize(("facade", "name"), [(f, n) for f in FACADES for n, _ in public(f)])
def test_public_names_have_docstrings(facade, name):
    thing = getattr(importlib.import_module(facade), name)
    if not callable(thing):
        pytest.skip("a constant")
    doc = own_docstring(thing)
    assert doc, f"{facade}.{name} has no docstring of its own"
    assert len(doc.splitlines()[0]) <= 120
    for member, method in vars(thing).items() if inspect.isclass(thing) else ():
        plain = inspect.isfunction(method) and not member.startswith("_")
        inherited = any(hasattr(parent, member) for parent in thing.__mro__[1:]) if plain else True
        assert inherited or method.__doc__ or member == "names", f"{facade}.{name}.{member} has no docstring"


@pytest.mark.parametrize("room", [losses, mixing, metagrad], ids=lambda room: room.__name__)
def test_docstrings_speak_in_shapes(room):
    silent = []
    for name in room.__all__:
        thing = getattr(room, name)
        members = [vars(thing).get(m) for m in vars(thing)] if inspect.isclass(thing) else []
        told = own_docstring(thing) + "".join(inspect.getdoc(m) or "" for m in members if callable(m))
        if callable(thing) and name not in NO_SHAPE and not SHAPE.search(told):
            silent.append(name)
    assert not silent


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", [m for m in ["amal_hf", *MODULES] if examples(importlib.import_module(m))])
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told: list[str] = []
    for test in examples(module):
        runner.run(test, out=told.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)


def test_examples_are_there():
    """Every loss, projection and problem shows itself at work."""
    shown = {test.name for m in MODULES for test in examples(importlib.import_module(m))}
    for name in SHOWN:
        assert any(each.endswith(f".{name}") for each in shown), name
