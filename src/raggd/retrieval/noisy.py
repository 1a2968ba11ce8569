"""Noisy retrieval: a share of each query's passages replaced by random ones, to test robustness."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import floor

from raggd.records import Hit, Passage, content_id
from raggd.retrieval.base import Retriever


def _number(*parts: str) -> int:
    return int(content_id(*parts, length=12), 16)


@dataclass(frozen=True, slots=True)
class NoisyRetriever:
    """A retriever some of whose hits are random passages; the same ones for every method.

    Which places and which passages is a hash of the query, so equal queries get equal noise. A
    share that does not divide k is met on average: half of three passages is one or two.

    Attributes:
        retriever: what is disturbed.
        share: of the hits that are replaced, 0 to 1.
        at: gives the passage of a row number.
        size: number of passages.
    """

    retriever: Retriever
    share: float
    at: Callable[[int], Passage]
    size: int

    @property
    def fingerprint(self) -> str:
        """Hash of the retriever and the share."""
        return content_id(self.retriever.fingerprint, "noise", repr(self.share))

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order."""
        return self.retriever.passages(ids)

    def search(
        self, queries: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Hit]]:
        """Return hits, the share of them replaced; scores stay with their places.

        A corpus without enough other passages keeps its hits.
        """
        found = self.retriever.search(queries, k, exclude)
        excluded = exclude or [()] * len(queries)
        return [
            self._disturbed(query, hits, set(ids))
            for query, hits, ids in zip(queries, found, excluded, strict=True)
        ]

    def _disturbed(self, query: str, hits: list[Hit], excluded: set[str]) -> list[Hit]:
        chance = _number("rounding", query) / 16**12
        count = floor(self.share * len(hits) + chance)
        places = sorted(range(len(hits)), key=lambda i: _number("place", str(i), query))[:count]
        taken = excluded | {hit.passage.id for hit in hits}
        result = list(hits)
        for place in places:
            stranger = self._stranger(f"{query}\n{place}", taken)
            if stranger is not None:
                taken.add(stranger.id)
                result[place] = Hit(stranger, hits[place].score)
        return result

    def _stranger(self, seed: str, taken: Collection[str]) -> Passage | None:
        tries = (self.at(_number("row", str(i), seed) % self.size) for i in range(8 * self.size))
        return next((passage for passage in tries if passage.id not in taken), None)
