"""Numbers of the report: who was trusted, where, and whether that was right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from amal_hf.report.run import NONE, Run

SMALL = 6
"""Up to this many sources, each is its own group."""
MOST_GROUPS = 8
MOST_CLASSES = 12


@dataclass(frozen=True)
class Group:
    """Sources read together: a name, and their columns in `[N, K]`."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Trust:
    """How far a group was trusted. Shares and means are over the entries that it covers; NaN if none.

    Args:
        coverage: share of the entries `[N, len(members)]` that it covers.
        mean: mean λ there.
        with_student, with_majority: share of its assertions that agree.
        agreeing, disagreeing: mean λ where it agrees with the majority, and where it does not.
        accuracy: share of its assertions that equal the known true label.
        by_class: mean λ by class of the row, one per class shown.
    """

    group: Group
    coverage: float
    mean: float
    with_student: float
    with_majority: float
    agreeing: float
    disagreeing: float
    accuracy: float
    by_class: list[float]


@dataclass(frozen=True)
class Classes:
    """The class of a row: what the student predicts, or the label if there is no student."""

    of_row: np.ndarray
    basis: str
    shown: list[int]
    not_shown: int

    @classmethod
    def of(cls, run: Run) -> Classes:
        """The most frequent classes, in the order of `run.classes`."""
        student = run.columns["student"]
        of_row, basis = (
            (student, "the student's prediction") if (student >= 0).any() else (run.columns["label"], "the label")
        )
        counts = np.bincount(of_row[of_row >= 0], minlength=len(run.classes))[: len(run.classes)]
        shown = sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist())
        return cls(of_row, basis, shown, len(run.classes) - len(shown))


def groups_of(sources: list[str], primary: int = 0) -> list[Group]:
    """Few sources: each alone. Many: by the prefix before "/"; more than eight groups: the rest together.

    Example:
        >>> [g.name for g in groups_of(["label", "teacher"] + [f"rules/{j}" for j in range(9)])]
        ['label', 'teacher', 'rules']
    """
    by_name: dict[str, list[int]] = {}
    for k, name in enumerate(sources):
        by_name.setdefault(name if len(sources) <= SMALL else name.split("/")[0], []).append(k)
    groups = [Group(name, tuple(members)) for name, members in by_name.items()]
    if len(groups) <= MOST_GROUPS:
        return groups
    groups.sort(key=lambda group: primary not in group.members)
    kept, rest = groups[: MOST_GROUPS - 1], groups[MOST_GROUPS - 1 :]
    return [*kept, Group(f"{len(rest)} others", tuple(k for group in rest for k in group.members))]


def trust(run: Run, group: Group, classes: Classes) -> Trust:
    """Pool the entries `[N, len(members)]` of a group."""
    columns = list(group.members)
    weights, mask, asserted = run.weights[:, columns], run.mask[:, columns], run.asserted[:, columns]
    same, both = agreement(run, group, "majority")
    return Trust(
        group=group,
        coverage=float(mask.mean()),
        mean=mean(weights[mask]),
        with_student=_share(asserted, run.columns["student"]),
        with_majority=_share(asserted, run.columns["majority"]),
        agreeing=mean(weights[both & same]),
        disagreeing=mean(weights[both & ~same]),
        accuracy=_share(asserted, run.columns["true_label"]),
        by_class=[
            mean(w[m]) for c in classes.shown for w, m in [(weights[classes.of_row == c], mask[classes.of_row == c])]
        ],
    )


def agreement(run: Run, group: Group, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the group asserts what `column` holds, and where both name a class: two bools `[N, len(members)]`."""
    asserted, other = run.asserted[:, list(group.members)], run.columns[column][:, None]
    return asserted == other, (asserted != NONE) & (other != NONE)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN if one side is empty.

    Example:
        >>> auroc(np.array([0.9, 0.4, 0.4]), np.array([True, True, False]))
        0.75
    """
    above, below = score[positive], np.sort(score[~positive])
    if not len(above) or not len(below):
        return float("nan")
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.mean() / 2 / len(below))


def limits(weights: np.ndarray) -> tuple[float, float]:
    """Ends of the λ axis: from 0, to 1 where λ comes near it and stays below."""
    low, high = float(np.nanmin(weights, initial=0.0)), float(np.nanmax(weights, initial=0.0))
    return low, 1.0 if high == 0 or 0.6 <= high <= 1 else high


def least_trusted(run: Run, count: int = 50) -> np.ndarray:
    """Positions of the rows that the primary source covers, least λ first."""
    weight = run.weights[:, run.primary]
    covered = np.flatnonzero(run.mask[:, run.primary])
    return covered[np.argsort(weight[covered], kind="stable")][:count]


def findings(run: Run, trusts: list[Trust], classes: Classes) -> list[tuple[str, str]]:
    """The page in four lines: a number, and what it is. `trusts`: one per source, `[K]`."""
    covered = [each for each in trusts if np.isfinite(each.mean)]
    if not covered:
        return []
    best, worst = max(covered, key=lambda t: t.mean), min(covered, key=lambda t: t.mean)
    found = [(f"{best.mean:.2f}", f"mean λ of “{best.group.name}”, the most trusted source")]
    if worst is not best:
        where = "every row" if worst.coverage == 1 else f"{100 * worst.coverage:.0f} % of rows"
        found.append((f"{worst.mean:.2f}", f"mean λ of “{worst.group.name}”, the least trusted; it covers {where}"))
    primary = trusts[run.primary]
    name = primary.group.name
    if np.isfinite([primary.agreeing, primary.disagreeing]).all():
        text = f"mean λ of “{name}” where it agrees with the majority, and where it does not"
        found.append((f"{primary.agreeing:.2f} | {primary.disagreeing:.2f}", text))
    same, both = agreement(run, primary.group, "true_label")
    area = auroc(run.weights[:, [run.primary]][both], same[both])
    if np.isfinite(area):
        found.append((f"{area:.3f}", f"AUROC of λ of “{name}” for “{name} is right” (0.5 is chance)"))
    elif np.isfinite(primary.by_class).any():
        low = int(np.nanargmin(primary.by_class))
        text = f"mean λ of “{name}” on rows of class “{run.classes[classes.shown[low]]}”, its least trusted"
        found.append((f"{primary.by_class[low]:.2f}", text))
    return found


def mean(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if values.size else float("nan")


def _share(asserted: np.ndarray, other: np.ndarray) -> float:
    both = (asserted != NONE) & (other[:, None] != NONE)
    return mean((asserted == other[:, None])[both])


def disagreeing(classes_named: Iterable[int]) -> bool:
    """Whether the classes named (-1 is none) are more than one."""
    return len({c for c in classes_named if c != NONE}) > 1
