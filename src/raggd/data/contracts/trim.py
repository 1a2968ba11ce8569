"""The passages of a lesson: few, short, in any order, with the answer or without it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from raggd.data.answers import contains_answer
from raggd.data.questions import Prepared
from raggd.records import Passage

WORDS = 55
"""Words that a shortened passage has at most; sentences are kept whole where they fit."""
MOST = 3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[0-9])")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, split after a mark where a new one seems to begin."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def shorten(passage: Passage, answers: tuple[str, ...], draw: random.Random) -> Passage:
    """Cut a passage down to whole sentences around one of the answers, where it holds one."""
    parts = sentences(passage.text) or [passage.text]
    held = [i for i, part in enumerate(parts) if contains_answer(part, answers)]
    first = last = draw.choice(held) if held else draw.randrange(len(parts))
    size = len(parts[first].split())
    while True:
        more = [i for i in (first - 1, last + 1) if 0 <= i < len(parts)]
        more = [i for i in more if size + len(parts[i].split()) <= WORDS]
        if not more:
            break
        chosen = draw.choice(more)
        size += len(parts[chosen].split())
        first, last = min(first, chosen), max(last, chosen)
    text = " ".join(parts[first : last + 1])
    words = text.split()
    if len(words) > 2 * WORDS:  # a list without full stops
        cut = " ".join(words[: 2 * WORDS])
        text = cut if not held or contains_answer(cut, answers) else text
    return Passage(passage.id, text, passage.title)


def shown_passages(
    row: Prepared,
    draw: random.Random,  # decides number, order and cuts
    *,
    refuse: bool,  # show passages without the answer only
    whole: bool,  # full passages in the retriever's order
    # of other questions; one of them takes the last place, as in a small corpus, where neighbours
    # are found again and again
    extra: Sequence[Passage] = (),
    # of another question, where some questions are to be refused: then those and the others are
    # shown as many, and as many of another question
    filler: Passage | None = None,
) -> tuple[Passage, ...]:
    """Choose the one to three passages that a lesson shows; none where there are none to show."""
    if filler is not None:
        return _as_many(row, draw, filler, refuse, whole)
    source = row.near if refuse else row.passages
    beside = [p for p in extra if not contains_answer(f"{p.title} {p.text}", row.answers)]
    if source and beside:
        held = [p for p in source if contains_answer(p.text, row.answers)]
        kept = [*held[:1], *(p for p in source if p not in held[:1])][: len(source) - 1]
        source = (*(kept or source), draw.choice(beside))
    if whole or not source:
        return source
    size = draw.choice((2, 2, 3, 3, 1))
    if refuse:
        chosen = list(source[:size])
    else:
        held = [p for p in source if contains_answer(p.text, row.answers)]
        if not held:
            return ()
        first = held[0]
        others = [p for p in (*source, *row.near) if p is not first]
        chosen = [first, *draw.sample(others, min(size - 1, len(others)))]
    draw.shuffle(chosen)
    return tuple(shorten(p, row.answers, draw) for p in chosen)


def _as_many(
    row: Prepared, draw: random.Random, filler: Passage, refuse: bool, whole: bool
) -> tuple[Passage, ...]:
    # a count would tell what is to be refused, and nothing would be learned of the passages
    size = draw.choice((2, 2, 3, 3, 1))
    held = [p for p in row.passages if contains_answer(p.text, row.answers)]
    first, near = (row.near[:1], row.near[1:]) if refuse else (held[:1], row.near)
    chosen = [*first, *near[:1], filler]
    if len(chosen) < MOST or contains_answer(f"{filler.title} {filler.text}", row.answers):
        return ()
    chosen = chosen[:size]
    draw.shuffle(chosen)
    return tuple(chosen if whole else [shorten(p, row.answers, draw) for p in chosen])
