"""Columns of answers as sources: each annotator, person or model, is a voter."""

from __future__ import annotations

from collections.abc import Sequence


class Annotators:
    """Columns in which annotators name a class: one source each, made votes when a trainer is given it.

    Answers are read as labels are: by name (case and surrounding space forgiven), by index where no class is called by
    a number; blank, None and -1 abstain.

    Args:
        columns: names of the M columns.
        confidence: columns of how sure each says it is, from 0 to 1 or in percent; "" for one that does not say. Each
            annotator is a distribution then, the rest of 1 shared among the other classes; an answer without a
            confidence is sure.

    Raises:
        ValueError: no columns, or one of them twice; or not as many columns of confidence.

    Example:
        >>> Annotators(["gpt", "rater"])
        Annotators(['gpt', 'rater'])
        >>> Annotators(["gpt"], confidence=["gpt_sure"])
        Annotators(['gpt'], confidence=['gpt_sure'])
    """

    def __init__(self, columns: Sequence[str], confidence: Sequence[str] = ()) -> None:
        if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"`columns`: expected a list of different column names, found {columns!r}. Write ['gpt', 'rater']."
            )
        if isinstance(confidence, str) or len(confidence) not in (0, len(columns)):
            raise ValueError(
                f"`confidence`: expected a column for each of {list(columns)}, found {confidence!r}. Write '' for one "
                "that does not say how sure it is."
            )
        self.columns, self.confidence = tuple(columns), tuple(confidence)

    @property
    def reads(self) -> set[str]:
        """Names of all its columns."""
        return {*self.columns, *filter(None, self.confidence)}

    def __repr__(self) -> str:
        return f"Annotators({[*self.columns]}{f', confidence={[*self.confidence]}' if self.confidence else ''})"
