"""How much of a question its passages speak of."""

from __future__ import annotations

from collections.abc import Sequence

from raggd.records import Passage
from raggd.retrieval.terms import tokenize

WINDOW = 25
"""Words of a passage that stand close together."""
STEP = 8
"""Words between the beginnings of two windows."""


def coverage(question: str, passages: Sequence[Passage]) -> float:
    """Return the largest share of a question's terms that stand close together in a passage.

    >>> coverage("the repair of pumps", [Passage("a", "Ann repairs the pump.", "Guide")])
    1.0
    """
    asked = set(tokenize(question))
    held = [0]
    for passage in passages:
        words = [set(tokenize(word)) for word in f"{passage.title} {passage.text}".split()]
        for start in range(0, max(1, len(words) - WINDOW + STEP), STEP):
            near = set[str]().union(*words[start : start + WINDOW])
            held.append(len(asked & near))
    return max(held) / max(1, len(asked))
