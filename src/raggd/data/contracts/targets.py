"""What is shown, and what is asked for: an entity, something about it, its evidence, a claim.

The passages of a lesson are few, short, in any order, with the answer or without it. Each target
turns a situation into the question as asked and the values that are right, the one to show first;
None where it does not apply.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from raggd.data.answers import contains_answer, normalise_answer
from raggd.data.contracts.letters import SHORTENED, initials
from raggd.data.questions import Prepared
from raggd.records import Passage

WORDS = 55  # that a shortened passage has at most; sentences are kept whole where they fit
NUMBERS = (2, 2, 3, 3, 1)  # of passages that are shown, each as likely
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[0-9])")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, split after a mark where a new one seems to begin."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def shorten(passage: Passage, answers: tuple[str, ...], draw: random.Random) -> Passage:
    """Cut a passage down to whole sentences around one of the answers, where it holds one."""
    parts = sentences(passage.text) or [passage.text]
    sizes = [len(part.split()) for part in parts]
    held = [i for i, part in enumerate(parts) if contains_answer(part, answers)]
    first = last = draw.choice(held) if held else draw.randrange(len(parts))
    while True:
        room = WORDS - sum(sizes[first : last + 1])
        more = [i for i in (first - 1, last + 1) if 0 <= i < len(parts) and sizes[i] <= room]
        if not more:
            break
        chosen = draw.choice(more)
        first, last = min(first, chosen), max(last, chosen)
    text = " ".join(parts[first : last + 1])
    words = text.split()
    if len(words) > 2 * WORDS:  # a list without full stops
        cut = " ".join(words[: 2 * WORDS])
        text = cut if not held or contains_answer(cut, answers) else text
    return Passage(passage.id, text, passage.title)


def shown_passages(
    row: Prepared, draw: random.Random, extra: Sequence[Passage], whole: bool
) -> tuple[Passage, ...]:
    """Choose up to three passages that a lesson shows, one with the answer; none if none has it.

    One of the `extra` takes the last place, as in a small corpus, where neighbours are found again
    and again. Full passages (`whole`) stay in the retriever's order, whatever they hold.
    """
    source = row.passages
    beside = [p for p in extra if not contains_answer(f"{p.title} {p.text}", row.answers)]
    if whole and not beside:
        return source
    held = [p for p in source if contains_answer(p.text, row.answers)][:1]
    if source and beside:
        kept = [*held, *(p for p in source if p not in held)][: len(source) - 1]
        source = (*(kept or source), draw.choice(beside))
    if whole or not source:
        return source
    size = draw.choice(NUMBERS)
    if not held:
        return ()
    others = [p for p in (*source, *row.near) if p is not held[0]]
    chosen = [*held, *draw.sample(others, min(size - 1, len(others)))]
    draw.shuffle(chosen)
    return tuple(shorten(p, row.answers, draw) for p in chosen)


def refusable_passages(
    row: Prepared,
    pool: Sequence[Prepared],
    draw: random.Random,
    extra: Sequence[Passage],
    whole: bool,
    refuse: bool,  # without the answer
) -> tuple[Passage, ...]:
    """Choose passages for a question that may be one to refuse, as many for those and the others.

    A count would tell what is to be refused, and nothing would be learned of the passages. One may
    be of another question (`extra`, or of the `pool`). None where there are too few.
    """
    other = pool[draw.randrange(len(pool))]
    filler = draw.choice([*extra] or [*other.passages, *other.near])
    size = draw.choice(NUMBERS)
    held = [p for p in row.passages if contains_answer(p.text, row.answers)][:1]
    own = row.near[:2] if refuse else (*held, *row.near[:1])
    if len(own) < 2 or contains_answer(f"{filler.title} {filler.text}", row.answers):
        return ()
    chosen = [*own, filler][:size]
    draw.shuffle(chosen)
    return tuple(chosen if whole else [shorten(p, row.answers, draw) for p in chosen])


Posed = tuple[str, tuple[str, ...]]
"""The question as asked, and the values that are right."""

CLAIMS = (
    "{question}\nProposed answer: {candidate}",
    "Is this right? {question} {candidate}",
    "Question: {question} Claim: {candidate}",
)
OPTIONS = ("{marker}) {text}", "{marker}. {text}", "({marker}) {text}")
CLASSES = (
    (r"\bwho\b|\bwhose\b", r"\bwhen\b|\bwhat year\b|\bhow (?:many|much|old|long)\b"),
    (r"\bwho\b|\bwhose\b", r"\bwhere\b|\bwhat (?:country|city|state)\b"),
    (r"\bwhen\b|\bwhat year\b", r"\bwhere\b|\bwhat (?:country|city|state)\b"),
    (r"\bwho\b|\bwhose\b", r"\bwhat\b|\bwhich\b"),
)
"""Pairs of kinds of question that arbitrary labels tell apart."""
_NO_NAME = {"yes", "no", ""}


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
    return s.row.question, tuple(dict.fromkeys((_as_written(s), s.row.gold, *s.row.answers)))


def _as_written(s: Situation) -> str:
    # The answer as the shown passages spell it, where they do: gold answers in capitals, as some
    # benchmarks have them, would look like a form of their own.
    text = "\n".join(p.text for p in s.passages)
    for answer in filter(None, (s.row.gold, *s.row.answers)):
        if match := re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE):
            return match[0]
    return s.row.gold


def _title(s: Situation) -> Posed | None:
    titles = tuple(s.passages[n - 1].title for n in s.holders)
    shown = {p.title for p in s.passages}
    return (s.row.question, titles) if len(shown) == len(s.passages) else None


def _number(s: Situation) -> Posed | None:
    return s.row.question, tuple(map(str, s.holders))


def _sentence(s: Situation) -> Posed | None:
    parts = [part for n in s.holders for part in sentences(s.passages[n - 1].text)]
    held = tuple(part for part in parts if contains_answer(part, s.row.answers))
    return (s.row.question, held) if held and len(held[0].split()) < 45 else None


def _is_name(s: Situation) -> bool:
    # there is nothing to say of a yes
    return normalise_answer(s.row.gold) not in _NO_NAME


def _about_words(left: Callable[[str], str], s: Situation) -> Posed | None:
    name = _as_written(s)
    applies = _is_name(s) and 2 <= len(name.split()) <= 6
    return (s.row.question, (left(name),)) if applies else None


def _candidates(s: Situation, count: int) -> list[str]:
    # answers of the same kind (with digits or without) to other questions
    digits = bool(re.search(r"\d", s.row.gold))
    taken = _NO_NAME | {normalise_answer(a) for a in s.row.answers}
    found: list[str] = []
    for row in s.draw.sample(list(s.pool), min(80, len(s.pool))):
        other = normalise_answer(row.gold)
        if other not in taken and bool(re.search(r"\d", row.gold)) == digits:
            found.append(row.gold)
            taken.add(other)
        if len(found) == count:
            break
    return found


def _claim(s: Situation) -> Posed | None:
    wrong = _candidates(s, 1)
    if not _is_name(s) or not wrong:
        return None
    right = s.draw.random() < 0.5
    candidate = s.row.gold if right else wrong[0]
    question = CLAIMS[s.posing % len(CLAIMS)].format(question=s.row.question, candidate=candidate)
    return question, (s.labels[0 if right else 1],)


def _choice(s: Situation) -> Posed | None:
    options = [s.row.gold, *_candidates(s, len(s.labels) - 1)]
    if not _is_name(s) or len(options) < len(s.labels):
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
    "first-word": partial(_about_words, SHORTENED["first-word"]),
    "last-word": partial(_about_words, SHORTENED["last-word"]),
    "initials": partial(_about_words, initials),
    "claim": _claim,
    "choice": _choice,
    "class": _class,
}
"""By name."""
