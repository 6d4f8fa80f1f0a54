"""YAML as configurations need it: nothing is given twice, numbers are numbers, and words stay words."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

_RESOLVED = {
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:int": r"[-+]?(?:0|[1-9][0-9_]*)",
    "tag:yaml.org,2002:float": r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "tag:yaml.org,2002:merge": r"<<",
}


class Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (`5e-4` is a number; `no`, `010` and `2020-01-01` are words); a key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = key.value if isinstance(key, yaml.ScalarNode) else str(key), key.start_mark.line + 1
            if name in lines:
                raise ValueError(
                    f"`{name}`: expected one value, found two, on lines {lines[name]} and {line}. Leave one out."
                )
            lines[name] = line
        return super().construct_mapping(node, deep=deep)


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _RESOLVED.items():
    Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), None)


def read_words(text: str) -> Any:
    """A flag's word as a file would have it; itself, where it is no YAML."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError):
        return text


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A file of `field: value` lines.

    Returns:
        the values by field, and the line of each.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML, no mapping, or has a field twice or one whose name is no word.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`CONFIG.yaml`: expected a file, found no {str(path)!r}. Name one, or give everything by flags."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader)
        given = yaml.load(text, Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`CONFIG.yaml`: expected YAML, found that {str(path)!r} is none: {reason}. Mend that line."
        ) from error
    if given is None:
        return {}, {}
    if not isinstance(given, dict):
        raise ValueError(
            f"`CONFIG.yaml`: expected `field: value` lines, found a {type(given).__name__} in {str(path)!r}. Write one "
            "field a line."
        )
    for key in given:
        if not isinstance(key, str):
            raise ValueError(
                f"`{key}`: expected the name of a field, found {key!r} in {str(path)!r}. Write `field: value`."
            )
    lines = node.value if isinstance(node, yaml.MappingNode) else []
    return given, {key.value: key.start_mark.line + 1 for key, _ in lines}
