"""Values of settings, checked against the types of their fields: from a file or a flag, before any work."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from enum import Enum
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

MOST = 2**31 - 1
"""The largest whole number of any field: a count of a run, never more."""

COUNT, AMOUNT, SHARE = (1, MOST), (0.0, math.inf), (0.0, 1.0)
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), COUNT
    ),
    **dict.fromkeys(("max_length", "save_total_limit", "eval_accumulation_steps", "batch_size"), COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "torch_empty_cache_steps", "num_workers"), COUNT),
    **dict.fromkeys(("num_hidden_layers", "dataloader_num_workers", "num_proc"), (0, 1024)),
    **dict.fromkeys(("clean_rows", "selection_rows"), (0, MOST)),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "eval_delay"), AMOUNT),
    **dict.fromkeys(("teacher_learning_rate", "adam_epsilon", "neftune_noise_alpha", "final_epochs"), AMOUNT),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), SHARE),
    "max_steps": (-1, MOST),
}
ABOVE_ZERO = ("num_train_epochs", "epochs", "teacher_epochs", "logging_steps", "eval_steps", "save_steps")
"""Fields of numbers above zero, whole or not."""

WORDS_OF_TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def checked(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """The value of a field, as its type has it.

    Args:
        name: the field.
        value: the one given, as YAML reads it.
        hint: its type.
        where: the place it was given at, for the message.

    Raises:
        ValueError: a value of another type, a number that is none, or one out of bounds.
    """
    kinds = _members(hint)
    if bool in kinds and isinstance(value, str) and value.lower() in WORDS_OF_TRUTH:
        return WORDS_OF_TRUTH[value.lower()]
    _check_choice(name, value, kinds, where)
    try:
        found = _adapter(hint).validate_python(value)
    except ValidationError:
        raise _unfit(name, value, hint, where) from None
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) > 2**32:
        raise _out_of_bounds(name, value, hint, (-MOST, MOST), where)
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        _check_bounds(name, found, hint, where)
    return found


def from_flag(name: str, words: Any, hint: Any, read: Any) -> Any:
    """The value of a flag: its words as they are where the field takes words, else as YAML reads them.

    Args:
        name: the field.
        words: a word, a list of words, or True of a flag without one.
        hint: its type.
        read: words -> value, as in a file.
    """
    if isinstance(words, list):
        inner = next((typing.get_args(k)[0] for k in _members(hint) if typing.get_origin(k) is list), str)
        return checked(name, [from_flag(name, each, inner, read) for each in words], hint, "the command line")
    if not isinstance(words, str) or str in _members(hint):
        return checked(name, words, hint, "the command line")
    value = read(words)
    return checked(name, words if isinstance(value, (dict, list)) else value, hint, "the command line")


def no_such(name: str, known: Collection[str], where: str, kind: str = "the name of a field") -> ValueError:
    """The error of a name that is not known, with the nearest that is."""
    name = name if name.strip() else repr(name)
    return ValueError(f"`{name}`: expected {kind}, found none of that name{_at(where)}. " + did_you_mean(name, known))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What was perhaps meant; else, what there is."""
    begun = [each for each in known if len(name) > 2 and each.startswith(name)]
    close = begun[:1] or difflib.get_close_matches(name, [*known], n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"There are {', '.join(sorted(known))}." if len(known) <= 20 else "See `amal-hf train --help-all`."


def in_words(hint: Any) -> str:
    """A type in words."""
    if hint is Any:
        return "anything"
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "nothing"}
    words: list[str] = []
    for kind in _members(hint):
        origin = typing.get_origin(kind) or kind
        inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
        if isinstance(origin, type) and issubclass(origin, Enum):
            word = "one of " + ", ".join(str(each.value) for each in origin)
        elif origin in (list, tuple):
            many = {str: "words", int: "whole numbers", float: "numbers"}
            word = f"a list of {many.get(inner[0] if inner else str, 'words')}"
        elif origin in (dict, Mapping):
            word = "a mapping"
        else:
            word = expected.get(origin, getattr(origin, "__name__", str(origin)))
        words.append(word)
    if any(word.startswith("one of") for word in words):
        words.remove("text") if "text" in words else None
    words = [*dict.fromkeys(w for w in words if w != "nothing")]
    return " or ".join(words)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def _members(hint: Any) -> list[Any]:
    """The types of a union; of another type, itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [*typing.get_args(hint)]
    return [hint]


def _check_choice(name: str, value: Any, kinds: list[Any], where: str) -> None:
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
            known = [str(each.value) for each in kind]
            if value not in known:
                raise ValueError(
                    f"`{name}`: expected one of {', '.join(known)}, found {value!r}{_at(where)}. "
                    + did_you_mean(value, known)
                )


def _check_bounds(name: str, found: float, hint: Any, where: str) -> None:
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    if not low <= found <= high or (name == "max_steps" and found == 0):
        raise _out_of_bounds(name, found, hint, (low, high), where)
    if name in ABOVE_ZERO and not 0 < found <= 1e12:
        raise ValueError(
            f"`{name}`: expected a number above 0, found {found!r}{_at(where)}. Set it to one, or leave it out."
        )


def _out_of_bounds(name: str, found: Any, hint: Any, bounds: tuple[float, float], where: str) -> ValueError:
    low, high = bounds
    expected = f"at least {low:g}" if high in (math.inf, MOST) else f"from {low:g} to {high:g}"
    expected = "above 0, or -1 (as many as the epochs have)" if name == "max_steps" else expected
    expected = f"from {-MOST} to {MOST}" if abs(found) > MOST and low <= found else expected
    kind = "a whole number" if int in _members(hint) else "a number"
    return ValueError(
        f"`{name}`: expected {kind} {expected}, found {_short(found)}{_at(where)}. Set it to one, or leave it out."
    )


def _unfit(name: str, value: Any, hint: Any, where: str) -> ValueError:
    return ValueError(f"`{name}`: expected {in_words(hint)}, found {_short(value)}{_at(where)}. {_advice(value, hint)}")


def _advice(value: Any, hint: Any) -> str:
    """What to write instead, where that can be guessed from the value."""
    kinds = _members(hint)
    lists = [k for k in kinds if typing.get_origin(k) in (list, tuple)]
    if value is None:
        return "Give it a value, or leave the line out."
    if lists and isinstance(value, str):
        return f"Did you mean [{value}]?"
    if lists and isinstance(value, list) and str in typing.get_args(lists[0]):
        return "Write every word in quotes."
    if isinstance(value, str) and {int, float} & {*kinds}:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        whole = number.is_integer() or float in kinds
        return f"Did you mean {value}, without quotes?" if math.isfinite(number) and whole else "Write it in digits."
    if isinstance(value, float) and math.isfinite(value) and int in kinds:
        close = value.is_integer() and abs(value) <= MOST
        return f"Did you mean {int(value)}?" if close else "Set it to one, or leave it out."
    if str in kinds and isinstance(value, (bool, int, float)) and math.isfinite(value):
        return f"Write it in quotes: '{value}'."
    return "Set it to one, or leave it out."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _at(where: str) -> str:
    return f" in {where}" if where else ""
