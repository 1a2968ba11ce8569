"""What is asked for: the entity itself, or something about it, its evidence or a claim.

Each target turns a situation into the question as asked and the values that are right, the one to
show first; None where it does not apply.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raggd.data.answers import contains_answer, normalise_answer
from raggd.data.contracts.trim import sentences
from raggd.data.questions import Prepared
from raggd.records import Passage

Posed = tuple[str, tuple[str, ...]]
"""The question as asked, and the values that are right."""

CLAIMS = (
    "{question}\nProposed answer: {candidate}",
    "Is this right? {question} {candidate}",
    "Question: {question} Claim: {candidate}",
)
OPTIONS = ("{marker}) {text}", "{marker}. {text}", "({marker}) {text}")
CLASSES: tuple[tuple[str, str], ...] = (
    (r"\bwho\b|\bwhose\b", r"\bwhen\b|\bwhat year\b|\bhow (?:many|much|old|long)\b"),
    (r"\bwho\b|\bwhose\b", r"\bwhere\b|\bwhat (?:country|city|state)\b"),
    (r"\bwhen\b|\bwhat year\b", r"\bwhere\b|\bwhat (?:country|city|state)\b"),
    (r"\bwho\b|\bwhose\b", r"\bwhat\b|\bwhich\b"),
)
"""Pairs of kinds of question that arbitrary labels tell apart."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a target is made from."""

    row: Prepared  # the answered question
    passages: Sequence[Passage]  # as shown
    holders: tuple[int, ...]  # numbers, from 1, of the passages that hold an answer
    pool: Sequence[Prepared]  # other questions of the source
    draw: random.Random  # decides candidates and options
    labels: tuple[str, ...]  # of the contract
    posing: int  # of the contract


def _entity(s: Situation) -> Posed | None:
    return s.row.question, tuple(dict.fromkeys((as_written(s), s.row.gold, *s.row.answers)))


def as_written(s: Situation) -> str:
    """Return the answer as the shown passages spell it, where they do.

    Gold answers in capitals, as some benchmarks have them, would look like a form of their own.
    """
    text = "\n".join(p.text for p in s.passages)
    for answer in (s.row.gold, *s.row.answers):
        match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
        if match and answer:
            return match[0]
    return s.row.gold


def _open(s: Situation) -> bool:
    # about the entity's own words: nothing to say of a yes
    return normalise_answer(s.row.gold) not in {"yes", "no", ""}


def _title(s: Situation) -> Posed | None:
    titles = tuple(s.passages[n - 1].title for n in s.holders)
    shown = {p.title for p in s.passages}
    return (s.row.question, titles) if len(shown) == len(s.passages) else None


def _number(s: Situation) -> Posed | None:
    return s.row.question, tuple(str(n) for n in s.holders)


def _sentence(s: Situation) -> Posed | None:
    held = [
        part
        for n in s.holders
        for part in sentences(s.passages[n - 1].text)
        if contains_answer(part, s.row.answers)
    ]
    return (s.row.question, tuple(held)) if held and len(held[0].split()) < 45 else None


def _about_words(
    choose: Callable[[list[str]], str], least: int
) -> Callable[[Situation], Posed | None]:
    def target(s: Situation) -> Posed | None:
        words = as_written(s).split()
        if not _open(s) or not least <= len(words) <= 6:
            return None
        return s.row.question, (choose(words),)

    return target


def _initials(words: list[str]) -> str:
    return "".join(word[0].upper() for word in words if word[0].isalnum())


def _candidates(s: Situation, count: int) -> list[str]:
    # answers of the same kind (with digits or without) to other questions
    digits = bool(re.search(r"\d", s.row.gold))
    taken = {normalise_answer(a) for a in s.row.answers}
    found: list[str] = []
    for row in s.draw.sample(list(s.pool), min(80, len(s.pool))):
        other = normalise_answer(row.gold)
        if other in taken or other in {"yes", "no", ""}:
            continue
        if bool(re.search(r"\d", row.gold)) == digits:
            found.append(row.gold)
            taken.add(other)
        if len(found) == count:
            break
    return found


def _claim(s: Situation) -> Posed | None:
    wrong = _candidates(s, 1)
    if not _open(s) or not wrong:
        return None
    right = s.draw.random() < 0.5
    candidate = s.row.gold if right else wrong[0]
    question = CLAIMS[s.posing % len(CLAIMS)].format(question=s.row.question, candidate=candidate)
    return question, (s.labels[0 if right else 1],)


def _choice(s: Situation) -> Posed | None:
    options = [s.row.gold, *_candidates(s, len(s.labels) - 1)]
    if not _open(s) or len(options) < len(s.labels):
        return None
    s.draw.shuffle(options)
    style = OPTIONS[s.posing % len(OPTIONS)]
    lines = [style.format(marker=m, text=t) for m, t in zip(s.labels, options, strict=True)]
    right = s.labels[options.index(s.row.gold)]
    return "\n".join([s.row.question, *lines]), (right,)


def _class(s: Situation) -> Posed | None:
    text = s.row.question.lower()
    kinds = [bool(re.search(pattern, text)) for pattern in CLASSES[s.posing % len(CLASSES)]]
    return (s.row.question, (s.labels[kinds.index(True)],)) if sum(kinds) == 1 else None


TARGETS: Mapping[str, Callable[[Situation], Posed | None]] = {
    "entity": _entity,
    "title": _title,
    "number": _number,
    "sentence": _sentence,
    "first-word": _about_words(lambda words: words[0], 2),
    "last-word": _about_words(lambda words: words[-1], 2),
    "initials": _about_words(_initials, 2),
    "claim": _claim,
    "choice": _choice,
    "class": _class,
}
"""By name."""
