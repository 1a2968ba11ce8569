"""Noise replaces its share of the hits, the same way every time, and leaves the rest alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raggd.records import Hit, Passage
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import NoisyRetriever

CORPUS = [Passage(str(i), f"text {i}") for i in range(500)]
QUERIES = [f"query {i}" for i in range(200)]


class First:
    """Finds the first passages of the corpus, whatever is asked."""

    fingerprint = "first"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(p, 10.0 - i) for i, p in enumerate(CORPUS[:k])] for _ in queries]


def noisy(share: float, size: int = len(CORPUS)) -> NoisyRetriever:
    return NoisyRetriever(First(), share, CORPUS.__getitem__, size)


def replaced(share: float) -> list[int]:
    found = noisy(share).search(QUERIES, 3)
    clean = First().search(QUERIES, 3)
    return [
        sum(a != b for a, b in zip(one, other, strict=True))
        for one, other in zip(found, clean, strict=True)
    ]


def test_none_half_and_all_are_replaced() -> None:
    assert isinstance(noisy(0.5), Retriever)
    assert set(replaced(0.0)) == {0}
    half = replaced(0.5)
    assert set(half) == {1, 2}
    assert sum(half) / len(half) == pytest.approx(1.5, abs=0.15)
    assert set(replaced(1.0)) == {3}


def test_noise_is_of_the_query_and_keeps_scores_and_distinct_passages() -> None:
    first, second = noisy(1.0), noisy(1.0)
    one, other = first.search(QUERIES[:2], 3)
    assert one != other
    assert second.search(QUERIES[1:2], 3) == [other]
    assert [hit.score for hit in one] == [10.0, 9.0, 8.0]
    for hits in first.search(QUERIES, 3):
        ids = [hit.passage.id for hit in hits]
        assert len(set(ids)) == 3
        assert not {"0", "1", "2"} & set(ids)


def test_a_small_corpus_keeps_its_hits() -> None:
    assert noisy(1.0, size=3).search(["q"], 3) == First().search(["q"], 3)


def test_the_share_is_in_the_fingerprint() -> None:
    prints = {noisy(share).fingerprint for share in (0.25, 0.5, 1.0)}
    assert len(prints | {"first"}) == 4
