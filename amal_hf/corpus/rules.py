"""Labeling functions: rules of thumb a support desk would write, with the faults such rules have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from snorkel.labeling import LabelingFunction, PandasLFApplier, labeling_function

ABSTAIN = -1
BILLING, FAULT, ACCOUNT, CANCELLATION, FEEDBACK = range(5)


def _matches(row: Any, pattern: str, label: int) -> int:
    return label if re.search(pattern, row.text, re.IGNORECASE) else ABSTAIN


@labeling_function()
def euro_sign(row: Any) -> int:
    """An amount such as €4.50. Rare and precise."""
    return _matches(row, r"€\d", BILLING)


@labeling_function()
def bike_number(row: Any) -> int:
    """The number painted on a bike: people give it when the bike is broken. Rare and precise."""
    return _matches(row, r"\bbike \d{4}\b", FAULT)


@labeling_function()
def shut_out(row: Any) -> int:
    """Cannot get in, and says so outright. Rare and precise."""
    return _matches(row, r"(can ?not|can'?t|unable to) (log|sign) in|user name|unknown user|verif", ACCOUNT)


@labeling_function()
def reason_to_go(row: Any) -> int:
    """Life happened: a move, a baby, a death. Rare and precise."""
    return _matches(
        row, r"moving (away|abroad|to)|relocat|new job|no longer need|baby|died|changed my mind", CANCELLATION
    )


@labeling_function()
def instalment(row: Any) -> int:
    """The Lark is the one thing paid for in instalments and with a deposit. Rare and precise."""
    return _matches(row, r"instalment|deposit|\bowe\b", BILLING)


@labeling_function()
def battery(row: Any) -> int:
    """Charge, in a sentence on the Lark. Rare and precise."""
    return _matches(row, r"\bLark\b.*\bcharge|\bcharge.*\bLark\b", FAULT)


@labeling_function()
def asks_to_end(row: Any) -> int:
    """Verbs of leaving. Deaf to "not", and on the Lark the instalments are what should stop."""
    pattern = r"(cancel|end|pause) my|want to end|end it|\bstop\b|renewing|membership|leaving (you|the)|freeze"
    return _matches(row, pattern, CANCELLATION)


@labeling_function()
def money_words(row: Any) -> int:
    """Words of money, which people who write about something else mention in passing."""
    return _matches(row, r"\b(bill(ed)?|invoice|fee|pay|price|debited|statement|discount|receipt|voucher)\b", BILLING)


@labeling_function()
def bike_parts(row: Any) -> int:
    """Parts of a bike. Broad and bad: people praise them, or mention that they work again."""
    return _matches(row, r"\b(brakes?|tyres?|chain|saddle|pedal|lock|gears)\b", FAULT)


@labeling_function()
def broken_words(row: Any) -> int:
    """Words for what is wrong with a thing."""
    return _matches(row, r"\b(jammed|loose|dead|broken|frozen|skip|sinks|(came|fell) off|snapped|grinds)\b", FAULT)


@labeling_function()
def login_words(row: Any) -> int:
    """Words of logging in. Broad and bad: any message may mention the app or a mail."""
    return _matches(row, r"\b(password|e?mail|phone|code|account|profile|app)\b", ACCOUNT)


@labeling_function()
def enthusiasm(row: Any) -> int:
    """Glowing words. Wrong on every sarcastic complaint: "Great, the third flat tyre this week."."""
    return _matches(row, r"\b(great|brilliant|wonderful|fantastic|lovely|loved?|joy|beautiful|glad)\b", FEEDBACK)


@labeling_function()
def suggests(row: Any) -> int:
    """Turns of phrase in which ideas are put."""
    return _matches(
        row, r"it would (be|help)|\bcould the|why not|thought about|would (make|suit|spare)|\bput a", FEEDBACK
    )


LABELING_FUNCTIONS: list[LabelingFunction] = [
    euro_sign, bike_number, shut_out, reason_to_go, instalment, battery, asks_to_end,
    money_words, bike_parts, broken_words, login_words, enthusiasm, suggests,
]  # fmt: skip
"""Snorkel labeling functions; column `m` of `weak_labels` is what the `m`-th says."""


def votes(texts: Sequence[str]) -> np.ndarray:
    """Votes of each labeling function on each text, int64 `[N, M]`; -1 where it abstains.

    Example:
        >>> found = votes(["A late fee of €3.00, and I was in time.", "No idea."])  # shape: [2, 13]
        >>> [rule.name for rule, vote in zip(LABELING_FUNCTIONS, found[0], strict=True) if vote == BILLING]
        ['euro_sign', 'money_words']
        >>> bool((found[1] == ABSTAIN).all())
        True
    """
    frame = Dataset.from_dict({"text": list(texts)}).to_pandas()
    return PandasLFApplier(LABELING_FUNCTIONS).apply(frame, progress_bar=False)
