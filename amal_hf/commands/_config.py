"""CONFIG.yaml and flags of `amal-hf train`: one set of settings, checked before any work."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import log_levels

from amal_hf.checkpoints import check_checkpoint
from amal_hf.commands._flags import describe, hints, read_flags
from amal_hf.commands._values import checked, did_you_mean, no_such
from amal_hf.commands._yaml import read_yaml
from amal_hf.commands.settings import LOSSES, DataConfig
from amal_hf.config import AMALConfig
from amal_hf.models.student import ModelConfig

MEASURED = ("loss", "accuracy", "macro_f1", "ece")
SOURCES = ("train_on_labels", "votes_column", "teacher_columns", "temperature")
CHOICES = {
    "log_level": (*log_levels, "passive"),
    "log_level_replica": (*log_levels, "passive"),
    "report_to": ("all", "none", *INTEGRATION_TO_CALLBACK),
}
"""Words that `TrainingArguments` asks for in fields that take any."""
USUAL = (
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "learning_rate", "warmup_steps", "weight_decay", "eval_strategy", "save_strategy",
    "save_steps", "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "resume_from_checkpoint",
    "logging_steps", "seed", "bf16", "use_cpu", "report_to",
)  # fmt: skip


def read_config(argv: Sequence[str]) -> tuple[DataConfig, AMALConfig, dict[str, dict[str, Any]]]:
    """CONFIG.yaml and flags -> `DataConfig`, `AMALConfig`, `sources`. Flags win.

    Raises:
        ValueError: a field that is none, a value that its field does not take, or settings that do not go together.
        FileNotFoundError: no such file, or no checkpoint to go on from.
    """
    path, flags = _file(argv)
    given, lines = read_yaml(Path(path)) if path else ({}, {})
    sources = given.pop("sources", None)
    types = hints([DataConfig, AMALConfig])
    for name in given:
        if name not in types:
            raise no_such(name, [*types, "sources"], _where(path, lines, name))
    values = {name: checked(name, value, types[name], _where(path, lines, name)) for name, value in given.items()}
    values |= read_flags("train", [DataConfig, AMALConfig], flags)
    values = _fitting(values)
    ours = {each.name for each in dataclasses.fields(DataConfig)}
    data = DataConfig(**{name: value for name, value in values.items() if name in ours})
    try:
        args = AMALConfig(**{name: value for name, value in values.items() if name not in ours})
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
        if re.match(r"`\w+`: ", str(error)):
            raise
        raise ValueError(
            f"`CONFIG.yaml`: expected settings that go together, found: {str(error).strip(' .')}. Change one of them."
        ) from error
    if data.label_column in args.text_columns:
        raise ValueError(
            f"`text_columns`: expected columns to read, found the label's, {data.label_column!r}. Name the text's."
        )
    args.resume_from_checkpoint = _checkpoint(args)
    return data, args, _sources(sources, data, _where(path, lines, "sources"))


def train_help(everything: bool = False) -> str:
    """The help of `amal-hf train` in groups; the fields of `TrainingArguments` all, or the usual ones."""
    types, plain = hints([DataConfig, AMALConfig]), {each.name for each in dataclasses.fields(TrainingArguments)}
    data = {each.name: each for each in dataclasses.fields(DataConfig)}
    models = [each for name, each in data.items() if name in hints([ModelConfig]) and name not in SOURCES]
    method = {each.name: each for each in dataclasses.fields(AMALConfig) if each.init}
    rows = [each for name, each in data.items() if name not in SOURCES and each not in models]
    rows += [method.pop(name) for name in ("text_columns", "max_length", "strict") if name in method]
    training = {name: method.pop(name) for name in [*method] if name in plain}
    shown = list(training) if everything else [name for name in USUAL if name in training]
    groups = {
        "Data": rows,
        "Sources (and, in the file, `sources: {NAME: {loss: KIND, ...}}` with KIND of " + ", ".join(LOSSES) + ")": [
            data[name] for name in SOURCES if name in data
        ],
        "Models": models,
        "Method": list(method.values()),
        "Training (TrainingArguments" + ("" if everything else "; all of them: --help-all") + ")": [
            training[name] for name in shown
        ],
    }
    sections = "\n\n".join(f"{title}\n{describe(fields, types)}" for title, fields in groups.items())
    return (
        "usage: amal-hf train [CONFIG.yaml | --config CONFIG.yaml] [--field value ...]\n\n"
        "Train on your own rows. Every field is a line of CONFIG.yaml and a flag; flags win.\n\n" + sections
    )


def config_file(argv: Sequence[str]) -> str:
    """The path of CONFIG.yaml that a command line names; "": none."""
    return _file(argv)[0]


def _file(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The path of CONFIG.yaml ("": none was named), and the other words."""
    named, rest = [], [*argv]
    if rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    while (at := next((i for i, each in enumerate(rest) if each.split("=")[0] == "--config"), None)) is not None:
        _, _, value = rest.pop(at).partition("=")
        if not value and (at >= len(rest) or rest[at].startswith("-")):
            raise ValueError("`config`: expected a file after the flag, found none. Name CONFIG.yaml.")
        named.append(value or rest.pop(at))
    if len(named) > 1:
        raise ValueError(f"`CONFIG.yaml`: expected one file, found {len(named)}: {', '.join(named)}. Name one.")
    return (named[0] if named else ""), rest


def _where(path: str, lines: Mapping[str, int], name: str) -> str:
    return f"{path}, line {lines[name]}" if name in lines else path


def _fitting(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with what the command line settles by itself, where they go together."""
    for name in ("dataloader_drop_last", "prediction_loss_only"):
        if values.get(name):
            raise ValueError(f"`{name}`: expected false, for every row is measured, found true. Leave it out.")
    metric = values.get("metric_for_best_model")
    if metric is not None and metric.removeprefix("eval_") not in MEASURED:
        raise ValueError(
            f"`metric_for_best_model`: expected one of {', '.join(MEASURED)}, found {metric!r}. "
            + did_you_mean(metric.removeprefix("eval_"), MEASURED)
        )
    for name, known in CHOICES.items():
        setting = values.get(name) or []
        for each in setting if isinstance(setting, list) else [setting]:
            if each not in known:
                raise ValueError(
                    f"`{name}`: expected one of {', '.join(known)}, found {each!r}. " + did_you_mean(str(each), known)
                )
    if values.get("save_strategy") == "best" and metric is None:
        raise ValueError(
            f"`metric_for_best_model`: expected one of {', '.join(MEASURED)} with save_strategy: best, found none. "
            "Name the metric that says which checkpoint is best."
        )
    if "temperature" in values:
        values["temperature"] = str(values["temperature"])
    if isinstance(values.get("teachers"), str):
        values["teachers"] = [values["teachers"]]
    if not torch.cuda.is_available():
        values.setdefault("dataloader_pin_memory", False)  # it pins for a GPU, and warns where there is none
    setting = values.get("resume_from_checkpoint")
    if isinstance(setting, str) and setting.lower() in ("true", "false"):
        setting = setting.lower() == "true"
    values["resume_from_checkpoint"] = "true" if setting is True else setting or None
    return values


def _checkpoint(args: AMALConfig) -> str | None:
    """The folder to go on from; None: begin anew."""
    setting = args.resume_from_checkpoint
    if not setting:
        return None
    if setting == "true":
        found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if found is None:
            raise FileNotFoundError(
                f"`resume_from_checkpoint`: expected a checkpoint in {args.output_dir!r}, found none. Leave it out to "
                "begin anew, or name the checkpoint's folder."
            )
        setting = found
    check_checkpoint(setting)
    return setting


def _sources(given: Any, data: DataConfig, where: str) -> dict[str, dict[str, Any]]:
    """The mapping `sources`, every argument checked against its loss."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(
            f"`sources`: expected `name: {{loss: kind}}` lines, found {str(given)[:60]!r} in {where}. Write it so."
        )
    taken = {"label": data.train_on_labels, "rules": data.votes_column, "teacher": data.teacher or data.teacher_columns}
    for name, options in given.items():
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"`sources`: expected a name for every source, found {name!r} in {where}. Write it in quotes, or give "
                "it a name."
            )
        if taken.get(name):
            raise ValueError(
                f"`sources.{name}`: expected another name, found that of a source that is there already, in {where}. "
                "Give it another name" + (", or set train_on_labels: false." if name == "label" else ".")
            )
        _check_source(f"sources.{name}", options, where)
    return {name: dict(options) for name, options in given.items()}


def _check_source(name: str, options: Any, where: str) -> None:
    if not isinstance(options, dict):
        raise ValueError(
            f"`{name}`: expected `loss: kind` and its arguments, found {options!r} in {where}. Write {{loss: "
            "cross_entropy, column: NAME}."
        )
    kind = options.get("loss")
    if not isinstance(kind, str) or kind not in LOSSES:
        raise ValueError(
            f"`{name}.loss`: expected one of {', '.join(LOSSES)}, found {kind!r} in {where}. "
            + did_you_mean(str(kind), LOSSES)
        )
    taken = inspect.signature(LOSSES[kind]).parameters
    types = typing.get_type_hints(LOSSES[kind].__init__)
    for key, value in options.items():
        if key == "loss":
            continue
        if not isinstance(key, str) or key not in taken:
            raise no_such(
                f"{name}.{key}", [f"{name}.{each}" for each in (*taken, "loss")], where, "the name of an argument"
            )
        hint = types.get(key, Any)
        if isinstance(value, list) and "tuple" in str(hint):
            value = tuple(value)
        checked(f"{name}.{key}", value, hint, where)
