"""Docstrings as the site reads them: RST tables in Markdown, doctests as code, a line for each argument."""

from __future__ import annotations

import re
from typing import Any

import griffe

RULE = re.compile(r"=+( +=+)+")
SEVERAL = re.compile(r"^( {4,8})(\*{0,2}\w+(?:, \*{0,2}\w+)+): ", re.MULTILINE)


def as_markdown(text: str) -> str:
    r"""A docstring without the three things that Markdown, or its reader, would misread.

    Example:
        >>> print(as_markdown("====  ====\n`a`   one\n      more\n====  ===="))
        |  |  |
        |---|---|
        | `a` | one more |
        >>> print(as_markdown("Args:\n    n, k: numbers."))
        Args:
            n: as `k`.
            k: numbers.
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return _tables(SEVERAL.sub(lambda found: _arguments(found[1], found[2].split(", ")), text))


def _arguments(indent: str, names: list[str]) -> str:
    """`a, b: ...` as a line each; the text stands with the last."""
    return "".join(f"{indent}{name}: as `{names[-1]}`.\n" for name in names[:-1]) + f"{indent}{names[-1]}: "


def _tables(text: str) -> str:
    """RST's simple tables, with a head or without, in Markdown."""
    lines, made = text.splitlines(), []
    while lines:
        line = lines.pop(0)
        if not RULE.fullmatch(line.strip()):
            made.append(line)
            continue
        starts = [found.start() for found in re.finditer("=+", line)]
        columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
        head, rows = [""] * len(columns), []
        while lines and (line := lines.pop(0)).strip():
            cells = [line[column].strip().replace("|", "\\|") for column in columns]
            if RULE.fullmatch(line.strip()):
                if lines and lines[0].strip():
                    head, rows = rows[0], []
            elif cells[0] or not rows:
                rows.append(cells)
            else:  # the row before goes on
                rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
        made += [""] if made and made[-1] else []
        made += [_row(head), "|---" * len(columns) + "|", *map(_row, rows), ""]
    return "\n".join(made).rstrip()


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package once, when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
