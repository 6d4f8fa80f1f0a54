"""`amal-hf demo | train | label | report`: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import HfArgumentParser

from amal_hf._files import check_output, could_not_write, run_folder
from amal_hf.config import AMALConfig

USAGE = """usage: amal-hf COMMAND ...

  demo [--output_dir DIR] [--model M]   learn whom to trust on the embedded corpus, in minutes
  train CONFIG.yaml [--field value ...] train on your own data; flags override the file
  teach TEACHER [TEACHER ...] DATA --output_dir DIR  logits of teachers as columns, computed once
  label LFS.py DATA --output_dir DIR    apply labeling functions and fit label models: votes and posteriors as columns
  report RUN_DIR                        write RUN_DIR/report.html anew
  denoise RUN_DIR [OUT]                 the training rows with corrected labels, confidence and trust

Every field of AMALConfig (and so of TrainingArguments) and of DataConfig is a flag: amal-hf train --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; user errors become one line on stderr and exit status 2."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {
        "demo": _demo, "train": _train, "label": _label, "teach": _teach, "report": _report, "denoise": _denoise,
    }  # fmt: skip
    if command not in commands:
        known = command in ("-h", "--help", "help")
        print(USAGE if known else f"amal-hf: no command {command!r}\n\n{USAGE}", file=None if known else sys.stderr)
        return 0 if known else 2
    try:
        return commands[command](rest)
    except (ValueError, OSError) as error:  # OSError: no such file, and no such model or data set on the Hub
        said = " ".join(str(error).split())
        if could_not_write(error) and not said.startswith("`"):  # a cache, or a file that a library keeps for itself
            said = f"`disk`: expected room to write, found: {said}. Make room where HF_HOME and TMPDIR lead."
        print(f"amal-hf {command}: {said}", file=sys.stderr)
        return 2


def read_config(argv: Sequence[str]) -> tuple[Any, AMALConfig, dict[str, Any]]:
    """CONFIG.yaml and flags -> `DataConfig`, `AMALConfig`, `sources`. Flags win; unknown keys raise.

    Raises:
        ValueError: the file is not a mapping, or holds a key that no field has.
    """
    from amal_hf.commands.train import DataConfig

    argv = list(argv)
    given: dict[str, Any] = {}
    if argv and not argv[0].startswith("-"):
        path = Path(argv.pop(0))
        if not path.is_file():
            raise FileNotFoundError(f"`CONFIG.yaml`: expected a file, found no {str(path)!r}.")
        try:
            given = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            told = " ".join(str(error).split())
            raise ValueError(f"`CONFIG.yaml`: expected YAML, found that {str(path)!r} is none: {told}") from error
        if not isinstance(given, dict):
            raise ValueError(f"`CONFIG.yaml`: expected `field: value` lines, found a {type(given).__name__}.")
    sources = given.pop("sources", None) or {}
    parser = HfArgumentParser([DataConfig, AMALConfig], prog="amal-hf train")
    fields = {action.dest for action in parser._actions}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise ValueError(f"`CONFIG.yaml`: no field is called {unknown}. See `amal-hf train --help`.")
    parser.set_defaults(**given)
    for action in parser._actions:
        action.required = action.required and action.dest not in given
    data, args = parser.parse_args_into_dataclasses(argv)
    return data, args, sources


def read_by_run(data: Any, argv: Sequence[str]) -> dict[str, Any]:
    """What a run reads from this disk, by argument."""
    models = {name: getattr(data, name) for name in ("model", "student", "teacher", "teachers")}
    config = argv[0] if argv and not argv[0].startswith("-") else ""
    return {"data": data.data, **{k: v for k, v in models.items() if isinstance(v, (str, list))}, "CONFIG.yaml": config}


def _train(argv: Sequence[str]) -> int:
    from amal_hf.commands.train import prepare, train_run
    from amal_hf.report import write_report

    data, args, sources = read_config(argv)
    if not data.data:
        raise ValueError("`data`: expected a value in CONFIG.yaml or as --data, found none.")
    with run_folder(
        args.output_dir, "train", read_by_run(data, argv), args.resume_from_checkpoint, args.process_index == 0
    ):
        data, parts, losses = prepare(data, args, sources)
        trainer, metrics = train_run(parts, data, args, losses)
        page = write_report(args.output_dir) if trainer.is_world_process_zero() else None
    if page:
        for split, numbers in metrics.items():
            print(f"{split:10s}", "  ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
        print(f"run folder {args.output_dir}   report {page}")
    return 0


def _label(argv: Sequence[str]) -> int:
    from amal_hf.data.classes import name_classes
    from amal_hf.data.load import load_splits
    from amal_hf.labeling import LabelConfig, label_splits, load_functions

    given = list(argv)
    sought = given[:2] if not any(each.startswith("-") for each in given[:2]) else []
    (config,) = HfArgumentParser(LabelConfig, prog="amal-hf label LFS.py DATA").parse_args_into_dataclasses(
        given[len(sought) :]
    )
    if len(sought) < 2:
        raise ValueError(f"`LFS.py DATA`: expected a Python file and a data set, found {given[:2]}.")
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
    from amal_hf.report import write_report

    if len(argv) != 1:
        raise ValueError(f"`RUN_DIR`: expected one folder, found {list(argv)}. Usage: amal-hf report RUN_DIR")
    print(write_report(argv[0]))
    return 0


def _denoise(argv: Sequence[str]) -> int:
    from amal_hf.run_folder.corrected import denoise

    if not 1 <= len(argv) <= 2:
        raise ValueError(f"`RUN_DIR`: expected a run folder and maybe an output folder, found {list(argv)}.")
    corpus = denoise(*argv)
    target = argv[1] if len(argv) == 2 else f"{argv[0]}/denoised"
    print(f"{len(corpus)} rows, mean confidence {np.mean(corpus['confidence'][:]):.3f}: {target}")
    return 0


def _demo(argv: Sequence[str]) -> int:
    from amal_hf.commands.demo import DemoConfig, run_demo

    (config,) = HfArgumentParser(DemoConfig, prog="amal-hf demo").parse_args_into_dataclasses(list(argv))
    run_demo(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
