"""Labeling functions from a Python file that the user names: its code is run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snorkel.labeling import LabelingFunction

from amal_hf import _checks


class FunctionFile(tuple[LabelingFunction, ...]):
    """The labeling functions of a file; another process receives its path and runs it anew."""

    path: str
    module: str

    def __reduce__(self) -> tuple[Any, ...]:
        return load_functions, (self.path,)


def load_functions(path: str | Path) -> FunctionFile:
    """Run a Python file and take its Snorkel labeling functions, in order of definition.

    Taken is every `LabelingFunction` that a name of the file stands for, alone or in a list or tuple, once.

    Args:
        path: a file whose code is trusted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be run, defines no labeling function, or two of one name.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"`LFS.py`: expected a Python file of labeling functions, found no {str(path)!r}. Check the path."
        )
    if path.suffix != ".py":
        raise ValueError(
            f"`LFS.py`: expected a Python file of labeling functions, found {path.name!r}. Name it first, then data."
        )
    module = _run(path)
    functions = FunctionFile({id(each): each for each in _defined(vars(module).values())}.values())
    functions.path, functions.module = str(path), module.__name__
    if not functions:
        raise ValueError(
            f"`LFS.py`: expected functions decorated with snorkel's @labeling_function() in {path.name!r}, found none. "
            "Write `from snorkel.labeling import labeling_function` and @labeling_function() above each."
        )
    check_names(functions)
    return functions


def check_names(functions: Sequence[LabelingFunction]) -> tuple[str, ...]:
    """Names of the functions, each once.

    Raises:
        ValueError: two functions of one name.
    """
    names = tuple(function.name for function in functions)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"`functions`: expected a name of its own for every labeling function, found {twice} twice. Rename one."
        )
    return names


def _run(path: Path) -> Any:
    """The file as a module; its neighbours can be imported, as when Python runs it."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit, GeneratorExit) as error:
        del sys.modules[name]
        raise ValueError(
            f"`LFS.py`: expected a file that Python can run, found that {path.name!r} raises "
            f"{_checks.raised(error)}. Mend it: python {path.name} shows where."
        ) from error
    return module


def _defined(values: Any) -> Iterator[LabelingFunction]:
    for value in values:
        if isinstance(value, LabelingFunction):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (each for each in value if isinstance(each, LabelingFunction))
