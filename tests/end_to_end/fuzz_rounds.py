"""What every fuzzer asks of a command: an end in time, one line where it refuses, and nothing written then."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amal_hf.cli import main

SECONDS = 20
GOOD_FORM = re.compile(r"`[^`]+`:? .*(expected|reads|works).*found.*[.?:)'\"\]] ['A-Z][^.?]*[^ ]")
"""Argument or file, what was expected, what was found, and a sentence on what to do."""

ANYTHING = "expected what this machine and its libraries can run"
"""The message where nobody thought of what is wrong."""


class Reached(BaseException):
    """Every check before training was passed."""


class Hangs(BaseException):
    """A command took longer than any should."""


@dataclass
class Case:
    """A command line, and whether it is to be refused.

    Args:
        name: what is odd about it.
        argv: the command line.
        wrong: True: to be refused; False: to be run; None: either, where what is run is right.
        right: what an independent reading has against what was accepted; "" where it is right.
        folder: nothing in it may change where the command line is refused.
    """

    name: str
    argv: list[str]
    wrong: bool | None
    right: Callable[[], str]
    folder: Path


@dataclass
class Tally:
    """How the cases of a fuzzer ended."""

    count: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    poor: list[str] = field(default_factory=list)

    def add(self, case: Case, outcome: str, told: str = "") -> None:
        """Note an end: "refused", "run", or what it should not be."""
        if os.environ.get("FUZZ_LOG"):
            with open(os.environ["FUZZ_LOG"], "a") as log:
                print(f"{outcome}: {case.name} -> {told}", file=log)
        self.count[outcome] += 1
        if outcome == "poor message":
            self.poor.append(f"{case.name} -> {told:.400}")
        elif outcome not in ("refused", "run"):
            self.wrong.append(f"{case.name} -> {outcome}: {told:.400}")

    def __str__(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in self.count.most_common())

    def check(self, cases: int) -> None:
        """All that a fuzzer demands."""
        told = "\n".join([*self.wrong, *self.poor])
        assert not self.wrong, f"{len(self.wrong)} and {len(self.poor)} poor messages of {cases}:\n{told}"
        refusals = self.count["refused"] + self.count["poor message"]
        assert len(self.poor) <= refusals / 20, f"{len(self.poor)} of {refusals} messages:\n" + "\n".join(self.poor)
        assert refusals > cases / 4 and self.count["run"] > cases / 20


@contextmanager
def clocked() -> Iterator[None]:
    """`Hangs` is raised where a command takes too long."""

    def late(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, tally: Tally, capsys: Any) -> None:
    """Run a case and note how it ended."""
    before, environment, path, modules = seen(case.folder), dict(os.environ), [*sys.path], {*sys.modules}
    capsys.readouterr()
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status: int | str = main(case.argv)
        problem = ""
    except Reached:
        status, problem = 0, ""
    except Hangs:
        status, problem = "hung", f"more than {SECONDS} s"
    except BaseException as error:
        status, problem = "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        for name in {*sys.modules} - modules:
            if name.startswith("lfs_"):
                del sys.modules[name]
    told = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    last = told[-1] if told else ""
    if isinstance(status, str):
        tally.add(case, status, problem)
    elif any("Traceback" in line for line in told):
        tally.add(case, "traceback", last)
    elif status == 2:
        if case.wrong is False:
            tally.add(case, "refused though right", last)
        elif seen(case.folder) != before:
            tally.add(case, "written though refused", str(sorted({*seen(case.folder).items()} ^ {*before.items()})[:4]))
        else:
            good = last.startswith(f"amal-hf {case.argv[0]}: ") and GOOD_FORM.search(last) and ANYTHING not in last
            tally.add(case, "refused" if good else "poor message", last)
    elif status != 0:
        tally.add(case, f"exit {status}", last)
    elif case.wrong:
        tally.add(case, "accepted though wrong", last)
    elif fault := case.right():
        tally.add(case, "run wrongly", fault)
    else:
        tally.add(case, "run", "")


def seen(folder: Path) -> dict[str, str]:
    """Everything below a folder, with hashes of what files hold."""
    return {
        str(place.relative_to(folder)): hashlib.md5(place.read_bytes()).hexdigest() if place.is_file() else ""
        for place in folder.rglob("*")
        if "__pycache__" not in place.parts
    }
