"""Short spans of a passage that could be the answer to a question: dates, numbers, names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raggd.records import Passage

Kind = Literal["date", "year", "number", "name"]

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}}|{_MONTH} \d{{4}})\b"
)
_YEAR = re.compile(r"\b(?:1[0-9]|20)\d{2}\b(?![-–]\d)")
_FUNCTION = (
    r"(?:and|or|of|in|on|as|to|at|by|was|is|are|were|the|a|an|for|when|from|with|within|than|that|who"
    r"|which|until|before|after|during|since|between|under|over|into|per|bc|ad|it|he|she|they|km|mi)"
)
_NUMBER = re.compile(
    r"(?<![\w.,$€£-])\d(?:[\d,]*\d)?(?:\.\d+)?(?: (?:million|billion|thousand))?"
    rf" (?:(?:per|square|cubic) )?(?!{_FUNCTION}\b)[a-z]{{2,}}\b"
    rf"(?= (?:{_FUNCTION}|long|wide|high|tall|deep|old)\b| ?[.,;:()]|$)"
)
_WORD = r"[A-Z](?:[\w.-]|['’](?!s\b))*\w"
_NAME = re.compile(
    rf"\b{_WORD}(?:(?: (?:of|the|de|von|van|du|la|da|del|upon))* {_WORD})*"
    rf"(?= {_FUNCTION}\b| ?[.,;:()]|$)"
)
_SENTENCE = re.compile(r"(?<=[.!?])[\"”’)]* +(?=[\"“‘(]?[A-Z0-9])")
_STARTERS = """
the a an in on at it he she they this that these those his her its their there after before during
while when where although however as by for from with since until if but and or one two three some
many most both each all other such no not
"""
_COMMON = frozenset(_STARTERS.split())
_LONGEST_NAME = 5


@dataclass(frozen=True, slots=True)
class Span:
    """A possible answer.

    Attributes:
        text: as it stands in the passage.
        kind: what it is.
        sentence: the sentence that holds it.
    """

    text: str
    kind: Kind
    sentence: str


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, cut after a mark that a capital letter follows."""
    return [part.strip() for part in _SENTENCE.split(" ".join(text.split())) if part.strip()]


def _names(sentence: str) -> Iterator[str]:
    for found in _NAME.finditer(sentence):
        name = found[0].rstrip(".,")
        words = name.split()
        # one capital at the start of a sentence says nothing
        starts = found.start() == 0
        if starts and (len(words) == 1 or words[0].lower() in _COMMON):
            continue
        if words[0].lower() in _COMMON or len(words) > _LONGEST_NAME or len(name) < 4:
            continue
        if not re.fullmatch(_MONTH, words[0]):
            yield name


def _spans(sentence: str) -> Iterator[tuple[str, Kind]]:
    dates = [found[0] for found in _DATE.finditer(sentence)]
    yield from ((date, "date") for date in dates)
    for found in _YEAR.finditer(sentence):
        if not any(found[0] in date for date in dates):
            yield found[0], "year"
    yield from ((found[0], "number") for found in _NUMBER.finditer(sentence))
    yield from ((name, "name") for name in _names(sentence))


def answer_spans(passage: Passage) -> list[Span]:
    """Find short spans that could be answers.

    Args:
        passage: of which the title is the subject and thus no answer.

    Returns:
        Spans in the order of the text, each text once; none with a word of the title, none in a
        sentence of fewer than six or more than sixty words.

    >>> passage = Passage("1", "Lima was founded by Francisco Pizarro on 18 January 1535.", "Lima")
    >>> [(span.text, span.kind) for span in answer_spans(passage)]
    [('18 January 1535', 'date'), ('Francisco Pizarro', 'name')]
    """
    found: dict[str, Span] = {}
    subject = set(re.findall(r"\w{3,}", passage.title.lower())) - _COMMON
    for sentence in sentences(passage.text):
        if not 6 <= len(sentence.split()) <= 60:
            continue
        for text, kind in _spans(sentence):
            if not subject & set(re.findall(r"\w{3,}", text.lower())):
                found.setdefault(text.lower(), Span(text, kind, sentence))
    return list(found.values())
