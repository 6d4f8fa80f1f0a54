"""Votes of labeling functions on some rows: the loop that every process and cluster worker runs."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from snorkel.labeling import LabelingFunction

from amal_hf import _checks
from amal_hf.losses import ABSTAIN

WHOLE = (numbers.Integral, np.bool_)
LARGEST = np.iinfo(np.int32).max - 1
"""The highest class where their number is not known; one more marks a failure."""


def rows_of(dataset: Dataset, span: Sequence[int]) -> list[Row]:
    """Rows of a span, as labeling functions see them."""
    columns = dataset[span.start : span.stop] if isinstance(span, range) else dataset[span]
    return [Row(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


class Row(SimpleNamespace):
    """A row as a labeling function sees it: `x.text` and `x["text"]`."""

    def __getitem__(self, column: str) -> Any:
        return self.__dict__[column]


@dataclass(frozen=True)
class Voter:
    """What every process needs to vote on some rows.

    Args:
        functions: M labeling functions.
        dataset: N rows.
        num_classes: C; None: any class.
        on_error: "raise", or "abstain" where a function raises.
        name: what messages call the data set.
    """

    functions: Sequence[LabelingFunction]
    dataset: Dataset
    num_classes: int | None
    on_error: str
    name: str

    @property
    def highest(self) -> int:
        """The highest class a function may name."""
        return LARGEST if self.num_classes is None else self.num_classes - 1

    def __call__(
        self, span: Sequence[int], note: Callable[[int, Sequence[int]], object] = lambda function, span: None
    ) -> tuple[np.ndarray, Counter[str]]:
        """Votes on the rows of a span, `[rows, M]`, and how often which function raised.

        Args:
            note: called with each function before it votes.

        Raises:
            ValueError: a function raised, or returned anything but -1..C-1; names the function and the row.
        """
        rows = rows_of(self.dataset, span)
        votes, faults = np.empty((len(rows), len(self.functions)), np.int32), Counter[str]()
        for j, function in enumerate(self.functions):
            note(j, span)
            answers: list[Any] = []
            for row in rows:
                try:
                    answers.append(function(row))
                except (Exception, SystemExit, GeneratorExit) as error:
                    if self.on_error == "raise":
                        raise ValueError(
                            f"`functions`: expected a vote, found that labeling function {function.name!r} raised "
                            f"{_checks.raised(error)}; on {self._place(span, rows, len(answers))}. Mend it, or let it "
                            "abstain where it raises with on_error='abstain'."
                        ) from error
                    faults[function.name] += 1
                    answers.append(ABSTAIN)
            votes[:, j] = self._checked(answers, function.name, span, rows)
        for function in self.functions:
            forget(function._pre)
        return votes, faults

    def _checked(self, answers: list[Any], name: str, span: Sequence[int], rows: Sequence[Row]) -> np.ndarray:
        if all(issubclass(kind, WHOLE) for kind in {*map(type, answers)}):
            votes = np.asarray(answers)
            if votes.min(initial=0) >= ABSTAIN and votes.max(initial=0) <= self.highest:
                return votes
        i = next(i for i, vote in enumerate(answers) if not is_vote(vote, self.highest))
        raise ValueError(
            f"`functions`: expected votes from -1 (abstain) to {self.highest}, found that labeling function {name!r} "
            f"returned {answers[i]!r} on {self._place(span, rows, i)}. Return a class's number, or -1 to abstain; see "
            "whether every class is listed."
        )

    def _place(self, span: Sequence[int], rows: Sequence[Row], i: int) -> str:
        text = next((value for value in vars(rows[i]).values() if isinstance(value, str) and " " in value.strip()), "")
        text = text or " ".join(f"{column}={value}" for column, value in vars(rows[i]).items())
        return f"row {span[i]} of {self.name} ({text if len(text) <= 60 else text[:57] + '...'!r})"


def is_vote(vote: Any, highest: int) -> bool:
    """Whether a labeling function may return this."""
    return isinstance(vote, WHOLE) and ABSTAIN <= int(vote) <= highest


def forget(preprocessors: Iterable[Any]) -> None:
    """Drop what memoizing preprocessors keep of rows that are done: it grows with the corpus."""
    for each in preprocessors:
        each.reset_cache()
        forget(each._pre)
