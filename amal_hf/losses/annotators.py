"""Columns of answers as sources: each annotator, person or model, is a voter."""

from __future__ import annotations

from collections.abc import Sequence


class Annotators:
    """Columns in which annotators name a class: one source each, made votes when a trainer is given it.

    Answers are read as labels are: by name (case and surrounding space forgiven), by index where no class is called by
    a number; blank, None and -1 abstain.

    Args:
        columns: names of the M columns.

    Raises:
        ValueError: no columns, or one of them twice.

    Example:
        >>> Annotators(["gpt", "rater"])
        Annotators(['gpt', 'rater'])
    """

    def __init__(self, columns: Sequence[str]) -> None:
        if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"`columns`: expected a list of different column names, found {columns!r}. Write ['gpt', 'rater']."
            )
        self.columns = tuple(columns)

    def __repr__(self) -> str:
        return f"Annotators({[*self.columns]})"
