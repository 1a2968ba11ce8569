"""Questions written by the backbone for a given answer, from a few fixed examples."""

from __future__ import annotations

import re
from typing import Any

from raggd.data.answers import contains_answer
from raggd.data.prompts import Prompt
from raggd.data.rendering import turn_tokens
from raggd.making.clauses import subject_of
from raggd.making.spans import Kind, Span
from raggd.records import Passage

SYSTEM = (
    "Write one short question about the subject. The text must answer it with exactly the given "
    "answer. Do not write the answer."
)
_BRIDGE = ("Vik Bridge", "It was opened in 1934 by the mayor of Halden and is 212 metres long.")
_CHEMIST = (
    "Anna Lindqvist",
    "Anna Lindqvist (born 4 May 1901 in Malmö) was a chemist who taught Karl Berg.",
)
_NOVEL = ("The Grey Harbour", "The Grey Harbour is a novel by Tomas Reyes about a fisherman.")
_HERB = ("Sorrel", "Sorrel is a herb that is eaten by the larvae of the Small Copper.")
EXAMPLES: tuple[tuple[tuple[str, str], str, Kind, str], ...] = (
    (_BRIDGE, "1934", "year", "In what year was the Vik Bridge opened?"),
    (_CHEMIST, "4 May 1901", "date", "When was Anna Lindqvist born?"),
    (_BRIDGE, "212 metres", "number", "How long is the Vik Bridge?"),
    (_CHEMIST, "Malmö", "name", "Where was Anna Lindqvist born?"),
    (_NOVEL, "Tomas Reyes", "name", "Who wrote the novel The Grey Harbour?"),
    (_HERB, "Small Copper", "name", "The larvae of what eat sorrel?"),
)
"""Subject and text, answer, its kind, and the question for it. All made up."""
STARTS: dict[Kind, tuple[str, ...]] = {
    "date": ("When",),
    "year": ("In what year",),
    "number": ("How",),
    "name": ("Who", "What", "Where"),
}
"""Words put in the model's mouth: left alone, it begins nearly every question with "What is"."""
_SMALL_WORDS = """
who whom whose what when where which why how many much long was were is are did does do the a an of
in on at by for to from with and or that this these those has have had been be name named called
kind year date day born died place located city country people person first there their its his her
it he she they between during into about than most
"""
_ASKING = frozenset(_SMALL_WORDS.split())
_FEWEST, _MOST = 4, 25


def _turn(subject: str, text: str, answer: str) -> str:
    return f"Subject: {subject}\nText: {text}\nAnswer: {answer}"


def question_prompt(tokenizer: Any, passage: Passage, span: Span, start: str) -> Prompt:
    """Ask the backbone for a question.

    Args:
        tokenizer: with or without a chat template.
        passage: gives the subject.
        span: the answer, with its sentence.
        start: first words of the question.

    Returns:
        The prompt; what the model writes goes on after `start`.
    """
    messages = [{"role": "system", "content": SYSTEM}]
    for (subject, text), answer, kind, question in EXAMPLES:
        if kind == span.kind or span.kind != "name":
            messages.append({"role": "user", "content": _turn(subject, text, answer)})
            messages.append({"role": "assistant", "content": question})
    own = _turn(subject_of(passage.title), span.sentence, span.text)
    messages.append({"role": "user", "content": own})
    return Prompt(tuple(turn_tokens(tokenizer, messages, cue="Question:", start=start)), 0, 0)


def finished(start: str, written: str) -> str:
    """Put a question together, up to its first question mark.

    Args:
        start: its first words.
        written: what the model went on with.

    Returns:
        The question; without a question mark where the model wrote none.
    """
    text = f"{start} {written.strip()}".strip()
    head, mark, _ = text.partition("?")
    return head.strip() + mark


def _stem(word: str) -> str:
    return word[:5]


def is_grounded(question: str, passage: Passage, span: Span) -> bool:
    """Tell whether a question asks in the passage's own words, and does not give its answer away.

    A small model likes to ask for what the text does not say ("Who is the author of ..."): such a
    question may still be "answered" by the same model.

    Args:
        question: as written.
        passage: that it is about.
        span: the answer.

    Returns:
        Whether it is a question of 4 to 25 words whose telling words all stand in the passage, two
        at least, and none of them in the answer.

    >>> passage = Passage("1", "Vik Bridge was opened in 1934.", "Vik Bridge")
    >>> span = Span("1934", "year", passage.text)
    >>> is_grounded("When was the Vik Bridge opened?", passage, span)
    True
    >>> is_grounded("Who designed the Vik Bridge?", passage, span)
    False
    """
    if not question.endswith("?") or not _FEWEST <= len(question.split()) <= _MOST:
        return False
    if contains_answer(question, [span.text]):
        return False
    held = {_stem(w) for w in re.findall(r"\w+", f"{passage.title} {passage.text}".lower())}
    told = [w for w in re.findall(r"\w+", question.lower()) if w not in _ASKING]
    answer = {_stem(w) for w in re.findall(r"\w+", span.text.lower())} - _ASKING
    stems = {_stem(word) for word in told}
    return len(stems) > 1 and stems <= held and not stems & answer
