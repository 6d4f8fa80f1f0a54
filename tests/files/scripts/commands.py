"""Commands that are killed, or find no room: `python commands.py JSON` prints what was lost, changed and left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killed_swap import kill_at
from test_swap import content

import amal_hf
import amal_hf.cli
from amal_hf.cli import main

assert amal_hf.AMALTrainer  # what is slow to import, before the forks


def child(work: Callable[[], int], errors: Path) -> int:
    """The exit status of some work in a process of its own; its words go to a file."""
    number = os.fork()
    if number == 0:
        file = os.open(errors, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def limited(size: int, argv: list[str], home: Path) -> int:
    """A command while files end at `size` bytes, but for what it says."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    read, write = os.pipe()
    os.dup2(write, 1), os.dup2(write, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    code = main(argv)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    os.set_blocking(read, False)
    (home.parent / f"{home.name}.said").write_bytes(os.read(read, 1 << 16))
    return code


def one(given: dict[str, Any], n: int) -> dict[str, Any]:
    home, errors = Path(given["place"]) / str(n), Path(given["place"]) / f"{n}.errors"
    shutil.copytree(given["world"], home, symlinks=True)
    os.chdir(home)
    argv = [*given["argv"], "new"]

    def killed() -> int:
        kill_at(n, "exchange")
        return main(argv)

    if given["what"] == "kill":
        assert child(lambda: main(argv), errors) == 0, errors.read_text()[-2000:]
    else:  # what is read is in the cache then
        assert child(lambda: main([*given["argv"], "warm"]), errors) == 0, errors.read_text()[-2000:]
        shutil.rmtree(home / "warm")
    before = content(home)
    code = child(killed if given["what"] == "kill" else lambda: limited(n, argv, home), errors)
    after = content(home)
    told = {"at": n, "code": code, "lost": [name for name in before if name not in after]}
    others = [name for name in before if name in after and not name.startswith("new/")]
    told["changed"] = [name for name in others if before[name] != after[name]]
    told["there"] = sorted({Path(name).parts[1] for name in after if name.startswith("new/")})
    said = home.parent / f"{home.name}.said"
    lines = said.read_text().splitlines() if said.exists() else []
    told["said"] = next((line[line.index("amal-hf train:") :] for line in lines[::-1] if "amal-hf train:" in line), "")
    if given["what"] == "kill":
        told["again"] = child(lambda: main(argv), errors)
        told["left over"] = sorted({*os.listdir(home)} - {*os.listdir(given["world"]), "new"})
    return told


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps([one(given, n) for n in given["at"]]))
