"""LaTeX in pages becomes MathML when the site is built: browsers draw it without a script and without a network."""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
UNKNOWN = {r"\arg\b": r"\\operatorname{arg}", r"\\[Bb]ig(?=\\?[a-zA-Z|])": "", "'": "\N{PRIME}"}  # to the converter
log = logging.getLogger("mkdocs.hooks.mathml")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The page with every formula in MathML; a formula that cannot be read is a warning, and ends a strict build."""

    def formula(found: re.Match[str]) -> str:
        latex = html.unescape(found[3])
        try:
            return convert(_plain(latex), display="block" if found[2] == "[" else "inline")
        except Exception as error:
            log.warning("%s: no MathML for %r: %s", page.file.src_uri, latex, error)
            return found[0]

    return FORMULA.sub(formula, content)


def _plain(latex: str) -> str:
    """The formula without what the converter does not know."""
    for pattern, instead in UNKNOWN.items():
        latex = re.sub(pattern, instead, latex)
    return latex
