"""Flags of commands: every field of a settings dataclass is one, never abbreviated; and the help that lists them."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

from transformers import HfArgumentParser

from amal_hf.commands._values import did_you_mean, from_flag, in_words
from amal_hf.commands._yaml import read_words

TAKES: dict[str, Any] = {
    "student": str | dict[str, Any],
    "temperature": float | str,
    "teachers": list[str] | str,
    "mixing_start": list[float] | float,
    "resume_from_checkpoint": bool | str | None,
}
"""Fields that take more than their annotation says."""


class _Parser(HfArgumentParser):
    """Words of flags, unconverted; what is wrong is raised."""

    def error(self, message: str) -> NoReturn:
        flag, _, text = message.removeprefix("argument ").partition(": ")
        name = flag.split("/")[0].strip("-").strip()
        raise ValueError(f"`{name}`: {text or message}, found none. Give it a value after the flag.")


def hints(kinds: Iterable[type]) -> dict[str, Any]:
    """The type of every field of some dataclasses that can be set."""
    found: dict[str, Any] = {}
    for kind in kinds:
        types = get_type_hints(kind)
        found |= {each.name: types[each.name] for each in dataclasses.fields(kind) if each.init}
    return {name: TAKES.get(name, hint) for name, hint in found.items()}


def read_flags(command: str, kinds: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """The values that flags give to fields of some dataclasses.

    Raises:
        ValueError: a flag that is none, or a value that its field does not take.
    """
    parser = _Parser(kinds, prog=f"amal-hf {command}", add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.required, action.default, action.type, action.choices = False, argparse.SUPPRESS, None, None
    space, unknown = parser.parse_known_args([*argv])
    if unknown:
        known = [
            flag for action in parser._actions for flag in action.option_strings if "_" in flag or "-" not in flag[2:]
        ]
        what = unknown[0].split("=")[0]
        text = did_you_mean(what, known) if what.startswith("-") else "Flags begin with --."
        raise ValueError(
            f"`{what}`: expected a flag of `amal-hf {command}`, found none of that name. "
            + text.replace("amal-hf train --help-all", f"amal-hf {command} --help")
        )
    types = hints(kinds)
    return {name: from_flag(name, value, types[name], read_words) for name, value in vars(space).items()}


def settings(command: str, kind: type, argv: Sequence[str]) -> Any:
    """A settings dataclass with the values of flags."""
    return kind(**read_flags(command, [kind], argv))


def describe(fields: Iterable[dataclasses.Field[Any]], types: Mapping[str, Any]) -> str:
    """Fields as lines of help: flag, type, what it is and its default."""
    lines = []
    for each in fields:
        text = " ".join(str(each.metadata.get("help", "")).split()).replace("%%", "%")
        default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        default = getattr(default, "value", default)
        if default not in (None, "", [], dataclasses.MISSING) and "default" not in text.lower():
            text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
        head = f"  --{each.name}  [{_kind(types[each.name])}]"
        if len(head) <= 38 and len(text) <= 78:
            lines.append(f"{head:40s}{text}")
        else:
            lines += [head, *textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)


def _kind(hint: Any) -> str:
    text = in_words(hint)
    return "one of a few words" if text.startswith("one of") and len(text) > 60 else text


def command_help(usage: str, about: str, kind: type) -> str:
    """The help of a command with one settings dataclass."""
    return f"usage: amal-hf {usage}\n\n{about}\n\n{describe(dataclasses.fields(kind), hints([kind]))}"
