"""Questions in the words of the passage: the clause around an answer, with a question word for it.

"It was opened in 1934 by the mayor of Halden" in a passage titled "Vik Bridge" becomes "Vik Bridge
was opened in what year?". Nothing is made up, so the answer is right by construction.
"""

from __future__ import annotations

import re

from raggd.making.spans import Span
from raggd.records import Passage

_BRACKETS = re.compile(r"\s*\([^()]*\)|\s*\[[^\][]*\]")
_END = re.compile(r"[,;:()–—]|\.$|\b(?:and|but|which|who|where|while|although|because|so that)\b")
_PRONOUN = re.compile(r"^(?:It|He|She|They|This|These)\b")
_POSSESSIVE = re.compile(r"^(?:Its|His|Her|Their)\b")
_LIFE = re.compile(r"\(([^()]*)\)")
_NO_SUBJECT = re.compile(
    r"^(?:\w+ly|\w+ed|\w+ing|[Aa]|[Aa]n|In|On|At|From|With|As|By|For|To|After|Before|During|Since|Until|Of|"
    r"Although|While|When|Where|If|Because|Also|Both|Other|There|And|But|Or|Known|Born|Built|Written)\b"
)
_ASIDE = re.compile(r"(?:,|–|—)\s*(?:the|a|an)?$|['’]s?$")
_WORDS = (3, 22)
"""Fewest and most words of a clause: shorter ones ask nothing, longer ones are not questions."""

_BEFORE_TIMES = frozenset({"on", "in", "until", "from", "since"})
_BEFORE_PLACES = frozenset(
    {"the", "a", "an", "in", "at", "on", "from", "to", "near", "of", "across"}
)


def subject_of(title: str) -> str:
    """Return the title as one would say it: no brackets, only the last part of a path."""
    return _BRACKETS.sub("", title).rsplit(": ", 1)[-1].strip()


def _question_words(span: Span, before: str) -> list[str]:
    last = before.split()[-1].lower() if before.split() else ""
    if span.kind == "date":
        day = any(part.isdigit() and len(part) < 3 for part in re.split(r"[ ,]", span.text))
        return ["what date" if day else "what month"] if last in _BEFORE_TIMES else ["when"]
    if span.kind == "year":
        return ["what year"]
    if span.kind == "number":
        unit = re.sub(r"^[\d,.]+ (?:(?:million|billion|thousand) )?", "", span.text)
        return [f"how many {unit}"]
    words = span.text.split()
    person = 2 <= len(words) <= 3 and not {"of", "the"} & set(words)
    if last == "by":
        return ["whom"] if person else ["what"]
    return ["what", "who"] if person and last not in _BEFORE_PLACES else ["what"]


def _life_dates(subject: str, span: Span) -> list[str]:
    # "X (born 4 May 1901)", "X (4 May 1901 – 3 June 1950) was a chemist"
    for found in _LIFE.finditer(span.sentence):
        inside = found[1]
        if span.kind != "date" or span.text not in inside:
            continue
        before = inside[: inside.index(span.text)]
        if re.search(r"\bborn\b", before) or (not before.strip() and re.search("[-–]", inside)):
            return [f"When was {subject} born?"]
        if re.search(r"\bdied\b|[-–]\s*$", before):
            return [f"When did {subject} die?"]
    return []


def _left(text: str, subject: str) -> str:
    kept = re.split(r"[;:]", _BRACKETS.sub("", text))[-1].strip()
    if _POSSESSIVE.match(kept):
        return _POSSESSIVE.sub(lambda _: f"{subject}'s", kept, count=1)
    return _PRONOUN.sub(lambda _: subject, kept, count=1)


def _right(text: str) -> str:
    cleaned = _BRACKETS.sub("", text)
    end = _END.search(cleaned)
    return (cleaned[: end.start()] if end else cleaned).strip()


def clause_questions(passage: Passage, span: Span) -> list[str]:
    """Ask for a span in the words of its sentence.

    Args:
        passage: gives the subject that a pronoun stands for.
        span: the answer.

    Returns:
        Wordings of one question; none where the sentence does not lend itself to it.

    >>> passage = Passage("1", "It was opened in 1934 by the mayor.", "Vik Bridge")
    >>> clause_questions(passage, Span("1934", "year", passage.text))
    ['Vik Bridge was opened in what year by the mayor?']
    """
    subject = subject_of(passage.title)
    life = _life_dates(subject, span) if subject else []
    at = span.sentence.find(span.text)
    if life or at < 0:
        return life
    opened = span.sentence[:at].count("(") - span.sentence[:at].count(")")
    left = _left(span.sentence[:at], subject)
    right = _right(span.sentence[at + len(span.text) :])
    if right[:1] in {"'", "’", "-"}:  # half of a range, or of a possessive
        return []
    if opened or left.count(",") > 1 or _NO_SUBJECT.match(left) or _ASIDE.search(left):
        return []
    found = []
    for asked in _question_words(span, left):
        text = " ".join(f"{left} {asked} {right}".split())
        text = text[0].upper() + text[1:]
        if _WORDS[0] <= len(text.split()) - len(asked.split()) <= _WORDS[1]:
            found.append(f"{text}?")
    return found
