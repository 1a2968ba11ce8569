"""A change of letters that all examples share: taken out before they are read, made again after.

Three answers in capitals, as slugs or in lower case say one thing about letters. A small model
spells badly in capitals, so the examples are shown to it as their passages spell them, and what it
answers in its own spelling is changed at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from raggd.data.contracts.letters import LETTERS
from raggd.data.shown import refusals_of, shared_ends
from raggd.records import Demonstration

_MARKS = {"slug": "-", "snake": "_", "upper": "", "lower": ""}


class Spelling(NamedTuple):
    """What is done to an answer's letters, between a beginning and an end that all answers have.

    >>> Spelling("upper", "It is ", ".").apply("It is Rome.")
    'It is ROME.'
    """

    letters: str
    start: str
    end: str

    def apply(self, answer: str) -> str:
        """Return the answer with its letters changed; as it is where it has another form."""
        framed = answer.startswith(self.start) and answer.endswith(self.end)
        if not framed or len(answer) < len(self.start) + len(self.end):
            return answer
        inner = answer[len(self.start) : len(answer) - len(self.end)]
        return f"{self.start}{LETTERS[self.letters](inner)}{self.end}"


def letters_of(values: Sequence[str], shown: Sequence[Demonstration]) -> tuple[str, list[str]]:
    """Find the change of letters that values show, each against its own demonstration's passages.

    Returns its name and the values before it; an empty name where passages spell most values as
    they are, or hold none of them.
    """
    for name, mark in _MARKS.items():
        change = LETTERS[name]
        lettered = [value for value in values if re.search(r"[^\W\d_]", value)]
        if not lettered or any(change(value) != value for value in values):
            continue
        if mark and not any(mark in value for value in values):
            continue
        found = [_as_written(value, d) for value, d in zip(values, shown, strict=True)]
        changed = sum(old not in {None, new} for old, new in zip(found, values, strict=True))
        if 2 * changed >= len(lettered):
            return name, [old or _guess(new) for old, new in zip(found, values, strict=True)]
    return "", []


def _as_written(value: str, shown: Demonstration) -> str | None:
    text = "\n".join(f"{p.title}\n{p.text}" for p in shown.passages)
    if value in text:
        return value
    words = r"\W+".join(re.escape(word) for word in re.split(r"[-_\s]+", value) if word)
    match = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) if words else None
    return match[0] if match else None


def _guess(value: str) -> str:
    plain = re.sub(r"[-_]+", " ", value)
    return plain.title() if plain.isupper() else plain


def spelling_of(
    demonstrations: Sequence[Demonstration],
) -> tuple[Spelling | None, tuple[Demonstration, ...]]:
    """Return the change of letters that answers share, and the demonstrations before it.

    Refusals are left out of it. Where none is shared, the demonstrations come back as they are.
    """
    refusals, shown = refusals_of(demonstrations), tuple(demonstrations)
    answered = [d for d in shown if d.answer.strip() not in refusals]
    answers = [d.answer.strip() for d in answered]
    start, end = shared_ends(answers) if len(answers) > 1 else ("", "")
    if not answers or any(len(answer) <= len(start) + len(end) for answer in answers):
        return None, shown
    values = [answer[len(start) : len(answer) - len(end)] for answer in answers]
    name, before = letters_of(values, answered)
    if not name:
        return None, shown
    plain = iter(before)
    return Spelling(name, start, end), tuple(
        d if d.answer.strip() in refusals else replace(d, answer=f"{start}{next(plain)}{end}")
        for d in shown
    )
