"""`amal-hf demo | train | teach | label | report | denoise`: the command line."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# nothing here imports a model library: help comes at once

ABOUT = {
    "demo": ("demo [--output_dir DIR] [--model M]", "learn whom to trust on the embedded corpus, in minutes"),
    "train": ("train CONFIG.yaml [--field value ...]", "train on your own data; flags override the file"),
    "teach": ("teach TEACHER [TEACHER ...] DATA --output_dir DIR", "logits of teachers as columns, computed once"),
    "label": ("label LFS.py DATA --output_dir DIR", "apply labeling functions and fit label models: votes as columns"),
    "report": ("report RUN_DIR", "write RUN_DIR/report.html anew"),
    "denoise": ("denoise RUN_DIR [OUT]", "the training rows with corrected labels, confidence and trust"),
}
USAGE = (
    "usage: amal-hf COMMAND ...\n\n"
    + "\n".join(f"  {form:50s}{what}" for form, what in ABOUT.values())
    + "\n\n  amal-hf COMMAND --help    every flag of a command    amal-hf --version\n"
)
TRACEBACK = "AMAL_HF_TRACEBACK"
"""An environment variable that, where it is set, lets errors through with their traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; user errors become one line on stderr and exit status 2."""
    from amal_hf.commands._streams import calm_streams, warn_once

    if argv is None:  # a process of our own
        calm_streams()
        warn_once()
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command == "--version":
        from amal_hf import __version__

        print(f"amal-hf {__version__}")
        return 0
    if command not in ABOUT:
        close = difflib.get_close_matches(command, ABOUT, n=1)
        message = f"Did you mean `amal-hf {ABOUT[close[0]][0]}`?" if close else f"There are {', '.join(ABOUT)}."
        print(f"amal-hf: no command {command!r}. {message}", file=sys.stderr)
        return 2
    if {"-h", "--help", "--help-all"} & {*rest}:
        print(_help(command, "--help-all" in rest))
        return 0
    return _answered(command, rest)


def _answered(command: str, argv: Sequence[str]) -> int:
    """The exit status of a command, whose errors are one line each."""
    from amal_hf.commands._streams import INTERRUPTED, TERMINATED, Terminated, answered_signals, cause

    try:
        with answered_signals():
            return COMMANDS[command](argv)
    except (KeyboardInterrupt, Terminated) as stop:
        message = " ".join(["stopped.", *getattr(stop, "__notes__", [])])
        status = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except SystemExit as stop:
        message = f"expected to go on, found that code it ran called sys.exit({stop.code!r}). Mend that code."
        status = 2
    except Exception as error:
        if os.environ.get(TRACEBACK) or not _of_the_user(error):
            raise
        from amal_hf._files import could_not_write

        message, status = cause(error), 2
        if type(error).__module__.startswith("datasets"):
            message = f"`data`: expected rows that can be read, found: {message}. Mend the file, or save it as UTF-8."
        elif message.startswith("`"):
            pass
        elif could_not_write(error):  # a cache, or a file that a library keeps for itself
            message = f"`disk`: expected room to write, found: {message}. Make room where HF_HOME and TMPDIR lead."
        else:
            what = argv[0] if argv else command
            found = message.rstrip(".")
            message = f"`{what}`: expected what this machine and its libraries can run, found: {found}. Change it"
            message += f", or see where by {TRACEBACK}=1 amal-hf {command} ..."
    print(f"amal-hf {command}: {message}", file=sys.stderr)
    return status


def _of_the_user(error: Exception) -> bool:
    """Whether it is about what was given rather than about this program."""
    if str(error).startswith("`") or isinstance(error, (ValueError, OSError, ImportError, RuntimeError, MemoryError)):
        return True  # OSError: no such file, and no such model or data set on the Hub
    return type(error).__module__.split(".")[0] in ("datasets", "huggingface_hub", "safetensors", "pyarrow")


def _help(command: str, everything: bool) -> str:
    form, what = ABOUT[command]
    if command in ("report", "denoise"):
        return f"usage: amal-hf {form}\n\n{what[0].upper()}{what[1:]}.\n\n  RUN_DIR   what `amal-hf train` wrote" + (
            "\n  OUT       a new or empty folder (default: RUN_DIR/denoised)" if command == "denoise" else ""
        )
    if command == "train":
        from amal_hf.commands._config import train_help

        return train_help(everything)
    from amal_hf.commands._flags import command_help

    return command_help(form, f"{what[0].upper()}{what[1:]}.", _settings_of(command))


def _settings_of(command: str) -> type:
    if command == "demo":
        from amal_hf.commands.demo import DemoConfig

        return DemoConfig
    if command == "teach":
        from amal_hf.models.read_teachers import TeachConfig

        return TeachConfig
    from amal_hf.labeling import LabelConfig

    return LabelConfig


def read_by_run(data: Any, config: str) -> dict[str, Any]:
    """What a run reads from this disk, by argument."""
    models = {name: getattr(data, name) for name in ("model", "student", "teacher", "teachers")}
    return {"data": data.data, **{k: v for k, v in models.items() if isinstance(v, (str, list))}, "CONFIG.yaml": config}


def _train(argv: Sequence[str]) -> int:
    from amal_hf._files import run_folder
    from amal_hf.commands._config import config_file, read_config
    from amal_hf.commands._streams import Terminated
    from amal_hf.commands._summary import summary
    from amal_hf.commands.train import prepare, train_run
    from amal_hf.report import write_report

    data, args, sources = read_config(argv)
    if not data.data:
        raise ValueError("`data`: expected a value in CONFIG.yaml or as --data, found none. Name your rows.")
    read, resumes = read_by_run(data, config_file(argv)), args.resume_from_checkpoint
    try:
        with run_folder(args.output_dir, "train", read, resumes, args.process_index == 0):
            data, parts, losses = prepare(data, args, sources)
            trainer, metrics = train_run(parts, data, args, losses)
            page = write_report(args.output_dir) if trainer.is_world_process_zero() else None
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note(_whole(args.output_dir))
        raise
    if page:
        print(summary(args.output_dir, metrics, parts, page))
    return 0


def _whole(output_dir: str | None) -> str:
    """Which checkpoint of a run folder one can go on from."""
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(output_dir) if output_dir and Path(output_dir).is_dir() else None
    if last is None:
        return f"There is no checkpoint in {output_dir!r} (save_strategy, save_steps): the next run begins anew."
    return (
        f"The last whole checkpoint is {last!r}: the same command with --resume_from_checkpoint true goes on from it."
    )


def _label(argv: Sequence[str]) -> int:
    from amal_hf._files import check_output
    from amal_hf.commands._flags import settings
    from amal_hf.data.classes import name_classes
    from amal_hf.data.load import load_splits
    from amal_hf.labeling import LabelConfig, label_splits, load_functions

    given = list(argv)
    sought = given[:2] if not any(each.startswith("-") for each in given[:2]) else []
    config = settings("label", LabelConfig, given[len(sought) :])
    if len(sought) < 2:
        raise ValueError(f"`LFS.py DATA`: expected a Python file and a data set, found {given[:2]}. Name both first.")
    if config.output_dir:
        check_output(config.output_dir, "label", {"LFS.py": sought[0], "DATA": sought[1]})
    functions = load_functions(sought[0])
    splits = name_classes(load_splits(sought[1]), config.label_column, config.classes or None)
    tables, judged = label_splits(functions, splits, config)
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(3).to_string()}")
    print(f"\nhow often right, on covered rows with a label\n{judged.round(3).to_string()}")
    print(f"\nvotes and posteriors {config.output_dir}")
    return 0


def _teach(argv: Sequence[str]) -> int:
    from amal_hf.commands.teach import run

    return run(argv)


def _report(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ValueError(f"`RUN_DIR`: expected one folder, found {list(argv)}. Usage: amal-hf report RUN_DIR")
    from amal_hf.report import write_report

    print(write_report(argv[0]))
    return 0


def _denoise(argv: Sequence[str]) -> int:
    if not 1 <= len(argv) <= 2 or any(each.startswith("-") for each in argv):
        raise ValueError(
            f"`RUN_DIR`: expected a run folder and maybe an output folder, found {list(argv)}. Usage: amal-hf denoise "
            "RUN_DIR [OUT]"
        )
    import numpy as np

    from amal_hf.run_folder.corrected import denoise

    corpus = denoise(*argv)
    target = argv[1] if len(argv) == 2 else f"{argv[0]}/denoised"
    print(f"{len(corpus)} rows, mean confidence {np.mean(corpus['confidence'][:]):.3f}: {target}")
    return 0


def _demo(argv: Sequence[str]) -> int:
    from amal_hf.commands._flags import settings
    from amal_hf.commands.demo import DemoConfig, run_demo

    run_demo(settings("demo", DemoConfig, argv))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "demo": _demo, "train": _train, "label": _label, "teach": _teach, "report": _report, "denoise": _denoise,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
