"""BM25 as bm25s computes it: method lucene, k1 = 0.9, b = 0.4, English stop words, Snowball stems.

The score of a passage sums over the query's terms t (a repeated term counts again)
``idf(t) * tf / (tf + k1 * (1 - b + b * length / mean_length))`` with
``idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))``, N passages of which df hold t. Passages without
any term of the query score 0 and are never returned.

The index is built in segments (`raggd.retrieval.segments`), which bm25s itself cannot do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import (
    Budget,
    Estimate,
    Progress,
    Rows,
    StoredRetriever,
    held_memory,
    parse_size,
    text_bytes,
    top_k,
)
from raggd.retrieval.folders import STATE, open_folder
from raggd.retrieval.segments import (
    LEAST_MEMORY,
    ROWS,
    WORD_BYTES,
    Segment,
    missing_rows,
    open_segments,
    score_segments,
    sort_range,
    sort_ranges,
    splice_segments,
)
from raggd.retrieval.store import SORT_BYTES, PassageStore
from raggd.retrieval.terms import Keys, Tokenize, term_keys, tokenize, tokenizer_fingerprint

K1 = 0.9
B = 0.4
MEMORY = "3GB"
"""Bound on the memory of a build unless another is given."""
_PARAMETERS: dict[str, Any] = {"method": "lucene", "k1": K1, "b": B}

# Exponents of cost against the number of passages, and the share of a build that sorts words.
_TIME_GROWTH, _DISK_GROWTH, _SORTING = 1.08, 0.99, 0.75

FindTerm = Callable[[str], int | None]
"""From a term to its number in the index; None where no passage holds it."""


class BM25Retriever(StoredRetriever):
    """An opened BM25 index.

    Only passages that share a term with the query are returned, so a list of hits may be shorter
    than asked for, or empty.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        find_term: FindTerm,
        store: PassageStore,
        fingerprint: str,
        tokenizer: Tokenize = tokenize,
    ) -> None:
        super().__init__(store, fingerprint)
        self._segments = segments
        self._find_term = lru_cache(maxsize=100_000)(find_term)
        self._tokenize = tokenizer

    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        return [self._one(q, k, ids) for q, ids in zip(queries, excluded, strict=True)]

    def _one(self, query: str, k: int, excluded: Collection[str]) -> list[Hit]:
        numbers = map(self._find_term, self._tokenize(query))
        terms = [number for number in numbers if number is not None]
        if not terms:
            return []
        without = np.array(self._store.rows(excluded), dtype=np.int64)
        found = [self._best_of(segment, terms, k, without) for segment in self._segments]
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        if len(found) > 1:
            best = top_k(scores, self._store.rank[rows], k)
            rows, scores = rows[best], scores[best]
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [Hit(self._store.passage(row), score) for row, score in pairs]

    def _best_of(
        self, segment: Segment, terms: Sequence[int], k: int, excluded: Rows
    ) -> tuple[Rows, Any]:
        scores = segment.score(terms)
        end = segment.start + segment.count
        inside = excluded[(excluded >= segment.start) & (excluded < end)] - segment.start
        rows = top_k(scores, self._store.rank[segment.start : end], k, inside, above=0.0)
        return rows + segment.start, scores[rows]


@dataclass(frozen=True)
class BM25Kind:
    """BM25 as a kind of index, built within a bound of memory in segments of at most `rows`."""

    budget: Budget = field(default_factory=lambda: Budget(parse_size(MEMORY)))
    rows: int = ROWS
    name: str = "bm25"

    def rules(self) -> dict[str, Any]:
        """Return all but the corpus that decides what is found: parameters and tokenizer."""
        return {"parameters": _PARAMETERS, "tokenizer": tokenizer_fingerprint()}

    def carry(self, old: Path, kept: NDArray[np.bool_], work: Path, fresh: int) -> None:
        """Take over the postings of the rows that an index of the same rules keeps."""
        splice_segments(old, kept, work, fresh)

    def missing(self, work: Path, count: int, old: Path | None) -> int:
        """Return the number of rows without postings."""
        del old
        return missing_rows(work, count)

    def make(self, work: Path, count: int, old: Path | None, progress: Progress | None) -> None:
        """Sort the words of what is missing, and score the postings of everything.

        It may be stopped, and goes on where it was.

        Raises:
            RaggdError: no passage has words, or the memory bound is too small.
        """
        del old
        self.budget.require(LEAST_MEMORY, f"an index of {count} passages")
        sort_ranges(work, count, self.budget, progress, self.rows)
        if not score_segments(work, count, K1, B):
            (work / STATE).unlink()  # nothing to go on from
            raise RaggdError(
                f"none of the {count} passages holds a word to index: BM25 needs text with "
                "words other than English stop words."
            )

    def estimate(self, sample: Sequence[Passage], count: int) -> Estimate:
        """Return an estimate, from a trial with the sample and the growth measured to a million."""
        start = time.perf_counter()
        arrays = sort_range(sample, self.budget.bound)
        seconds = (time.perf_counter() - start) / _SORTING
        disk = text_bytes(sample) + sum(array.nbytes for array in arrays.values())
        disk += 4 * len(arrays["rows"])
        words = WORD_BYTES * float(arrays["lengths"].mean()) * min(count, self.rows)
        memory = held_memory() + LEAST_MEMORY + max(words, SORT_BYTES * count)
        more = count / len(sample)
        return Estimate(
            count,
            seconds * more**_TIME_GROWTH,
            int(disk * more**_DISK_GROWTH),
            int(min(self.budget.bound, memory)),
        )

    def fingerprint(self, corpus: str, count: int = 0) -> str:
        """Return the fingerprint of the BM25 index of a corpus, given its hash."""
        parameters = [f"{name}={value}" for name, value in _PARAMETERS.items()]
        return content_id("bm25", *parameters, tokenizer_fingerprint(), corpus)

    def open(self, folder: Path) -> BM25Retriever:
        """Return the opened index."""
        return open_bm25(folder)


def open_bm25(folder: Path) -> BM25Retriever:
    """Return the index in a folder, memory-mapped; one of another tokenizer is refused."""
    return open_folder(folder, "bm25", _opened)


def _opened(data: Path, manifest: dict[str, Any]) -> BM25Retriever:
    for thing, ours in BM25Kind().rules().items():
        if manifest.get(thing) != ours:
            raise RaggdError(
                f"the index at {data.parent} was made with {thing} {manifest.get(thing)}, this "
                f"raggd uses {ours}: build the index again with `raggd index PATH`."
            )
    store = PassageStore(data)
    segments, keys = open_segments(data)
    if sum(segment.count for segment in segments) != len(store):
        raise ValueError("its passages and its scores do not belong together")
    return BM25Retriever(segments, key_finder(keys), store, manifest["fingerprint"])


def key_finder(keys: Keys) -> FindTerm:
    """Return a search for terms among sorted keys, shape (2, terms)."""

    def find(term: str) -> int | None:
        key = term_keys([term])[:, 0]
        place = int(np.searchsorted(keys[0], key[0]))
        while place < keys.shape[1] and keys[0, place] == key[0]:
            if keys[1, place] == key[1]:
                return place
            place += 1
        return None

    return find
