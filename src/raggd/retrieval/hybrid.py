"""Hybrid retrieval: reciprocal rank fusion of what several retrievers find.

A passage scores the sum of ``1 / (60 + rank)`` over the retrievers that found it among their first
`DEPTH` (Cormack, Clarke and Buettcher, SIGIR 2009), whatever their own scores are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from raggd.records import Hit, Passage, content_id
from raggd.retrieval.base import SizedRetriever, checked_exclusions

CONSTANT = 60
"""Holds back the first ranks: the constant of the paper."""

DEPTH = 100
"""Passages that each retriever is asked for, at least."""


class HybridRetriever:
    """Several retrievers of one corpus, fused; equal scores are ordered by passage id."""

    def __init__(self, parts: Sequence[SizedRetriever]) -> None:
        """Take the retrievers, which must be of the same passages."""
        self._parts = parts
        rules = f"{CONSTANT} {DEPTH}"
        self.fingerprint = content_id("hybrid", rules, *(part.fingerprint for part in parts))

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._parts[0])

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order."""
        return self._parts[0].passages(ids)

    def passage_at(self, position: int) -> Passage:
        """Return the passage at a position in the corpus."""
        return self._parts[0].passage_at(position)

    def search(
        self, queries: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Hit]]:
        """Return hits as `Retriever.search` describes them."""
        excluded = checked_exclusions(queries, k, exclude)
        depth = max(k, DEPTH)
        lists = [part.search(queries, depth, excluded) for part in self._parts]
        return [fused(each)[:k] for each in zip(*lists, strict=True)] if queries else []


def fused(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Fuse lists of hits, each best first, into one.

    Returns:
        Every passage once, best first.
    """
    scores: defaultdict[str, float] = defaultdict(float)
    passages = {}
    for hits in lists:
        for rank, hit in enumerate(hits, start=1):
            scores[hit.passage.id] += 1 / (CONSTANT + rank)
            passages[hit.passage.id] = hit.passage
    order = sorted(scores, key=lambda name: (-scores[name], name))
    return [Hit(passages[name], scores[name]) for name in order]
