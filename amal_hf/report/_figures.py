"""The four figures of the report: `[N, K]` arrays in, `<svg>` out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LinearLocator, MaxNLocator, PercentFormatter

from amal_hf.report._svg import GRID, INK, MUTED, SERIES, render, short
from amal_hf.report.run import Run
from amal_hf.report.summary import Classes, Group, Trust, agreement, limits

YES, NO = SERIES[0], SERIES[1]


def over_time(run: Run, groups: Sequence[Group]) -> Markup | None:
    """λ by training step: mean line and 10-90 % band per group. None without history.

    One panel up to four groups, else one panel a group with the others in grey. A group's line is
    the mean over its entries: members weigh by their coverage.
    """
    lines = {g.name: line for g in groups if (line := _series(run, g, "mean")) is not None}
    if not lines:
        return None
    groups = [each for each in groups if each.name in lines]
    steps = np.asarray(run.history["step"], dtype=float)
    bands = {g.name: (_series(run, g, "q10"), _series(run, g, "q90")) for g in groups}
    panels = [list(groups)] if len(groups) <= 4 else [[each] for each in groups]
    colour = {each.name: SERIES[i % len(SERIES)] for i, each in enumerate(groups)}
    drawn = [y for y in (*lines.values(), *(b for pair in bands.values() for b in pair)) if y is not None]
    low, high = limits(np.concatenate(drawn))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(*_grid(len(panels)), sharex=True, sharey=True, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            for other in groups if len(panels) > 1 else ():
                ax.plot(steps, lines[other.name], color=GRID, linewidth=1)
            for each in panel:
                bottom, top = bands[each.name]
                if bottom is not None and top is not None:
                    ax.fill_between(steps, bottom, top, color=colour[each.name], alpha=0.11, linewidth=0)
                    for edge in (bottom, top):
                        ax.plot(steps, edge, color=colour[each.name], linewidth=0.8, linestyle=(0, (3, 2)), alpha=0.6)
                marker = "o" if len(steps) == 1 else None
                ax.plot(steps, lines[each.name], color=colour[each.name], linewidth=2, marker=marker, markersize=5)
            ax.set_ylim(low, high + 0.02 * (high - low))
            ax.margins(x=0)
            ax.xaxis.set_major_locator(MaxNLocator(6 if len(panels) == 1 else 3, integer=True))
            if len(panels) > 1:
                ax.set_title(short(panel[0].name))
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        if len(panels) == 1:
            _end_labels(axes[0], [(short(n), float(y[-1]), colour[n]) for n, y in lines.items()], (low, high))
        figure.supxlabel("training step", fontsize=8.5, color=MUTED)
        figure.supylabel("λ", fontsize=9, color=MUTED)

    return render("time", 2.9 if len(panels) == 1 else 0.7 + 1.6 * _grid(len(panels))[0], draw)


def by_class(run: Run, groups: Sequence[Group], classes: Classes) -> Markup:
    """Distribution of λ: a panel per group, a histogram per class, a tick at the median."""
    low, high = limits(run.weights)
    edges = np.linspace(low, high, 41)
    counts = np.bincount(classes.of_row[classes.of_row >= 0], minlength=len(run.classes))
    names = [f"{short(run.classes[c], 18)} ({counts[c]:,})" for c in classes.shown]
    down, across = _grid(len(groups))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for i, (ax, group) in enumerate(zip(axes, groups, strict=False)):
            weights = run.weights[:, list(group.members)]
            for row, c in enumerate(classes.shown):
                values = weights[classes.of_row == c]
                values = values[np.isfinite(values)]
                if not len(values):
                    continue
                bars = np.histogram(values, edges)[0]
                bars, base = -0.82 * bars / bars.max() + row + 0.4, row + 0.4
                ax.stairs(bars, edges, baseline=base, fill=True, color=SERIES[i], alpha=0.45, linewidth=0)
                ax.plot([np.median(values)] * 2, [base, base - 0.82], color=INK, linewidth=1.6, solid_capstyle="butt")
            ax.set_title(short(group.name))
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.45, -0.55)
            ax.set_xlim(low, high)
            ax.xaxis.set_major_locator(LinearLocator(3))
            ax.xaxis.set_major_formatter("{x:.2g}")
            ax.grid(axis="y", visible=False)
        for ax in axes[len(groups) :]:
            ax.set_visible(False)
        figure.supxlabel("λ", fontsize=9, color=MUTED)

    return render("classes", 0.6 + down * (0.35 + 0.42 * len(names)), draw)


def with_majority(run: Run, trusts: Sequence[Trust]) -> Markup | None:
    """Mean λ where each source agrees and disagrees with the majority, and the primary's histograms, if any."""
    beside = agreement(run, _primary(run), "majority")[1].any()
    trusts = [t for t in trusts if np.isfinite(t.agreeing) or np.isfinite(t.disagreeing)]
    if not trusts:
        return None

    def draw(figure: Figure) -> None:
        left, *right = figure.subplots(1, 2, width_ratios=[1.25, 1]) if beside else [figure.subplots()]
        for row, each in enumerate(trusts):
            left.plot([each.disagreeing, each.agreeing], [row, row], color=MUTED, linewidth=1.4, zorder=2)
        for marker, colour, name, values in (
            ("o", YES, "agrees", [t.agreeing for t in trusts]),
            ("D", NO, "disagrees", [t.disagreeing for t in trusts]),
        ):
            left.plot(values, range(len(trusts)), marker, color=colour, markersize=6, zorder=3, label=name)
        left.set_yticks(range(len(trusts)), [short(t.group.name) for t in trusts])
        left.set_ylim(len(trusts) - 0.4, -0.6)
        left.set_xlim(*_padded(limits(run.weights)))
        left.set_xlabel("mean λ")
        _legend(left)
        for ax in right:
            _two_histograms(ax, run, "majority", ("agrees", "disagrees"))

    return render("majority", max(2.6, 1.0 + 0.24 * len(trusts)), draw)


def right_and_wrong(run: Run) -> Markup | None:
    """Histograms of the primary's λ where it is right and where it is wrong. None without `true_label`."""
    if not agreement(run, _primary(run), "true_label")[1].any():
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        _two_histograms(ax, run, "true_label", ("right", "wrong"))

    return render("truth", 2.2, draw)


def _two_histograms(ax: Axes, run: Run, column: str, names: tuple[str, str]) -> None:
    """The primary's λ where it asserts what `column` holds, and where it does not: shares of rows per bin."""
    primary = _primary(run)
    low, high = limits(run.weights)
    edges = np.linspace(low, high, 31)
    same, both = agreement(run, primary, column)
    weights = run.weights[:, list(primary.members)]
    for values, colour, name in ((weights[both & same], YES, names[0]), (weights[both & ~same], NO, names[1])):
        share = np.histogram(values, edges)[0] / max(1, len(values))
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
        ax.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name} ({len(values):,} rows)")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"λ of {short(primary.name)}")
    ax.set_ylabel("share of rows")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _legend(ax)


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns: at most four across, as even as can be."""
    down = -(-panels // 4)
    return down, -(-panels // down)


def _primary(run: Run) -> Group:
    return Group(run.sources[run.primary], (run.primary,))


def _legend(ax: Axes) -> None:
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2, handlelength=1.2)


def _padded(ends: tuple[float, float]) -> tuple[float, float]:
    room = 0.03 * (ends[1] - ends[0])
    return ends[0] - room, ends[1] + room


def _series(run: Run, group: Group, kind: str) -> np.ndarray | None:
    """One line `[S]` for a group: its members' lines, weighed by how many rows they cover."""
    whole = run.history.get(kind, {}).get(group.name)
    if whole is not None and run.history.get("step"):
        return np.array(whole, dtype=float)  # the run logged the group as one
    known = [k for k in group.members if run.sources[k] in run.history.get(kind, {})]
    if not known or not run.history.get("step"):
        return None
    lines = np.array([run.history[kind][run.sources[k]] for k in known], dtype=float)
    return np.average(lines, axis=0, weights=run.mask[:, known].sum(axis=0) + 1e-9)


def _end_labels(ax: Axes, ends: list[tuple[str, float, str]], span: tuple[float, float]) -> None:
    """Names at the right ends of the lines, pushed apart so that they can be read."""
    gap, below = 0.085 * (span[1] - span[0]), -np.inf
    for name, y, colour in sorted(ends, key=lambda each: each[1]):
        below = max(y, below + gap)
        ax.annotate(name, (1.0, below), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                    va="center", color=colour, fontsize=9, fontweight="bold", annotation_clip=False)  # fmt: skip
