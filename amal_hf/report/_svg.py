"""matplotlib to inline SVG whose colours are the page's CSS variables; no pyplot, no global state kept."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-in colours: `render` writes the CSS variable in their place, so light, dark and print each have their own.
INK, MUTED, GRID = "#0000a0", "#0000a1", "#0000a2"
SERIES = tuple(f"#0000b{i}" for i in range(8))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {c: f"--s{i}" for i, c in enumerate(SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # the browser's fonts: any script, selectable, small
    "text.usetex": False,
    "text.parse_math": False,  # a `$` in a name is a dollar
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_WIDTH = 10.4  # inches: 749 units wide, shown at about 1000 px


def render(name: str, height: float, draw: Callable[[Figure], None]) -> Markup:
    """An `<svg>` element for the inside of a page.

    Args:
        name: unique on the page; ids inside the SVG derive from it.
        height: inches; the width is fixed, about 1000 px on the page.
        draw: draws on the figure, in the colours of this module.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # matplotlib only measures; the browser has the glyph
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids are unique per figure, not per page
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head)
    rest = re.sub(r"((?:fill|stroke): )(#0000[ab]\d)", lambda m: f"{m[1]}var({_VARIABLES[m[2]]})", rest)
    return Markup(f'{head} aria-hidden="true">{rest}')


def short(name: str, length: int = 24) -> str:
    """One line of at most `length` characters."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"
