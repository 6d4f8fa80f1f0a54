"""Writes messages: a core sentence, and around it what people put around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from amal_hf.corpus import around, phrases
from amal_hf.corpus.lark import LARK

T = TypeVar("T")

LARK_SHARE = 0.18  # of all messages
CONTRAST_SHARE, BETWEEN_SHARE, SARCASM_SHARE = 0.15, 0.045, 0.07  # of the other messages


@dataclass(frozen=True)
class Message:
    """One message to the support desk.

    Args:
        text: mostly 10 to 30 words, at most about 50.
        label: index into `CLASSES`.
        blind_region: it is about the Lark, which the teacher never saw.
    """

    text: str
    label: int
    blind_region: bool


class Writer:
    """An endless supply of distinct messages, determined by its generator.

    Args:
        rng: source of every choice.

    Example:
        >>> writer = Writer(np.random.default_rng(0))
        >>> [message.blind_region for message in writer.write(3, lark=False)]
        [False, False, False]
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.seen: set[str] = set()

    def write(self, count: int, lark: bool = True) -> list[Message]:
        """`count` messages, none of which this writer wrote before.

        Args:
            count: how many.
            lark: whether some (`LARK_SHARE`) may be about the Lark.
        """
        messages: list[Message] = []
        while len(messages) < count:
            message = self._message(lark)
            key = message.text.casefold()
            if key not in self.seen:
                self.seen.add(key)
                messages.append(message)
        return messages

    def _message(self, lark: bool) -> Message:
        label = int(self.rng.choice(len(phrases.CLASSES), p=phrases.CLASS_SHARES))
        if lark and self._chance(LARK_SHARE):
            core = self._around(self.fill(self._one(LARK[phrases.CLASSES[label]])), label)
            return Message(self._typed(self._framed(core)), label, True)
        draw = self.rng.random()
        if draw < CONTRAST_SHARE:
            core = self._contrast(label)
        elif draw < CONTRAST_SHARE + BETWEEN_SHARE:
            template, readings = self._one(phrases.BETWEEN)
            core, label = self.fill(template), phrases.CLASSES.index(self._one(readings))
        elif draw < CONTRAST_SHARE + BETWEEN_SHARE + SARCASM_SHARE and phrases.CLASSES[label] in phrases.SARCASM:
            core = self.fill(self._one(phrases.SARCASM[phrases.CLASSES[label]]))
        else:
            core = self._around(self.fill(self._one(phrases.SHARED[phrases.CLASSES[label]])), label)
        return Message(self._typed(self._framed(core)), label, False)

    def _contrast(self, label: int) -> str:
        matter, other = (self._one(around.TOPICS[phrases.CLASSES[c]]) for c in (label, self._other(label)))
        return _upper(self.fill(self._one(around.CONTRASTS).replace("{A}", matter).replace("{B}", other)))

    def _around(self, core: str, label: int) -> str:
        """The core with, at times, a remark in another class's words before or after it."""
        remark = self.fill(self._one(around.REMARKS[phrases.CLASSES[self._other(label)]]))
        draw = self.rng.random()
        if draw < 0.20:
            # praise does not contradict what stands before it
            kind = phrases.CLASSES[label] == "feedback"
            link = self._one((". Anyway, ", "; besides, ") if kind else (", but ", "; however, ", ", yet "))
            return f"{_upper(remark)}{link}{_lower(core)}"
        if draw < 0.34:
            aside = self._one(("By the way", "Just so you know", "For the record", "And yes"))
            return f"{core} {aside}, {remark}."
        return core

    def _framed(self, text: str) -> str:
        """The text between a greeting, a filler and a closing, each optional."""
        parts = [
            self.fill(self._one(block)) if self._chance(share) else ""
            for block, share in ((around.GREETINGS, 0.35), (around.OPENERS, 0.12))
        ]
        after = self.fill(self._one(around.FILLERS)) if self._chance(0.15) else ""
        closing = self.fill(self._one(around.CLOSINGS)) if self._chance(0.30) else ""
        return " ".join(part for part in (*parts, text, after, closing) if part)

    def _typed(self, text: str) -> str:
        """The text as typed in a hurry: at times a slip, no capitals, no final stop."""
        if self._chance(0.15):
            words = text.split(" ")
            long = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 4]
            if long:
                i = self._one(long)
                words[i] = self._slip(words[i])
                text = " ".join(words)
        if self._chance(0.08):
            text = text.lower()
        if self._chance(0.10):
            text = text.rstrip(".!")
        return text.replace("'", "") if self._chance(0.05) else text

    def _slip(self, word: str) -> str:
        at = int(self.rng.integers(1, len(word) - 2))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return self._one((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))

    def fill(self, template: str) -> str:
        chosen = re.sub(r"\[([^\]]*)\]", lambda match: self._one(match[1].split("|")), template)
        return re.sub(r"\{(\w+)\}", lambda match: self._slot(match[1]), chosen)

    def _slot(self, name: str) -> str:
        if name == "amount":
            euros, style = self.rng.integers(1, 60) + self._one((0.0, 0.5, 0.9)), self.rng.random()
            return f"€{euros:.2f}" if style < 0.6 else f"{euros:.2f} euros"
        if name == "number":
            return str(self.rng.integers(1000, 9999))
        if name == "member":
            return f"P-{self.rng.integers(10000, 99999)}"
        return self._one(phrases.SLOTS[name])

    def _other(self, label: int) -> int:
        return int((label + self.rng.integers(1, len(phrases.CLASSES))) % len(phrases.CLASSES))

    def _one(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """The text as it stands after "but": names and "I" keep their capital."""
    first = re.split(r"\W", text, maxsplit=1)[0]
    return text if first in ("I", "Google", "Apple") else text[:1].lower() + text[1:]
