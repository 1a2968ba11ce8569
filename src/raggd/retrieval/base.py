"""What every retriever is: the protocol, exact top-k selection, and the checks they share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from raggd.records import Hit, Passage, RaggdError

if TYPE_CHECKING:
    from raggd.retrieval.store import PassageStore

Rows = NDArray[np.int64]
"""Row numbers of passages in an index, shape (n,)."""

_GROUP = 128

Progress = Callable[[int, int | None], None]
"""Called with the number of passages done and, where it is known, of all passages."""


class RetrievalWarning(UserWarning):
    """Retrieval works but its results look wrong."""


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for queries; BM25, dense, hybrid and cached ones are interchangeable."""

    @property
    def fingerprint(self) -> str:
        """Hash of kind, parameters, tokenizer or encoder, and corpus: equal means equal hits."""
        ...

    def search(
        self, queries: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Hit]]:
        """Find the best passages for each query.

        Args:
            queries: the queries; none may be blank.
            k: passages per query; more than the corpus holds returns the whole corpus.
            exclude: for each query, ids of passages that must not be returned. They do not
                shorten the result while other passages remain; unknown ids are ignored.

        Returns:
            One list per query, best first; equal scores are ordered by passage id. BM25 returns
            only passages that share a term with the query, so a list may be shorter than `k`.
        """
        ...

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order."""
        ...


class SizedRetriever(Retriever, Protocol):
    """A retriever that knows how many passages it searches."""

    def __len__(self) -> int:
        """Return the number of passages."""
        ...

    def passage_at(self, position: int) -> Passage:
        """Return the passage at a position in the corpus, 0 to ``len(self) - 1``."""
        ...


class StoredRetriever(ABC):
    """An opened index whose passages are memory-mapped; a `SizedRetriever` but for `_search`."""

    def __init__(self, store: PassageStore, fingerprint: str) -> None:
        self._store = store
        self._watch = TopHitWatch()
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._store)

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order."""
        return self._store.passages(ids)

    def passage_at(self, position: int) -> Passage:
        """Return the passage at a position in the corpus, 0 to ``len(self) - 1``."""
        return self._store.passage_at(position)

    def search(
        self, queries: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None
    ) -> list[list[Hit]]:
        """Return hits as `Retriever.search` describes them."""
        found = self._search(queries, k, checked_exclusions(queries, k, exclude))
        if len(self) > 1:
            self._watch.see(queries, found)
        return found

    @abstractmethod
    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        """Search; the arguments are checked."""


def top_k(
    scores: NDArray[np.floating[Any]],
    ties: NDArray[np.integer[Any]],
    k: int,
    excluded: Sequence[int] | Rows = (),
    above: float = -np.inf,
) -> Rows:
    """Select the rows with the highest scores; pure, and exact on ties.

    Args:
        scores: score of each row, shape (n,); not changed.
        ties: rank of each row among equal scores (lower first), shape (n,), all different.
        k: rows to select; clamped to those that remain.
        excluded: rows never selected.
        above: only rows with a higher score are selected.

    Returns:
        Row numbers, best first, shape (at most k,).

    >>> top_k(np.array([1.0, 3.0, 3.0, 2.0]), np.array([0, 2, 1, 3]), 3, excluded=[3]).tolist()
    [2, 1, 0]
    """
    bound = _least_of_best(scores, k + len(excluded))
    if bound > above:
        allowed = scores >= bound
    else:
        allowed = scores > above if above > -np.inf else np.ones(len(scores), dtype=bool)
    if len(excluded):
        allowed[np.asarray(excluded, dtype=np.int64)] = False
    rows = np.flatnonzero(allowed)
    k = min(k, len(rows))
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    kept = scores[rows]
    if k < len(rows):
        # Everything at least as good as the k-th best stays, so that the order of ties decides.
        worst = np.partition(kept, len(kept) - k)[len(kept) - k]
        rows = rows[kept >= worst]
        kept = scores[rows]
    return rows[np.lexsort((ties[rows], -kept))[:k]]


def _least_of_best(scores: NDArray[np.floating[Any]], k: int) -> float:
    # A score that at least k rows reach, found in one fast pass: rows are dealt to groups, and the
    # best of k groups are k rows. Most rows need not be looked at again.
    groups = len(scores) // _GROUP
    if not 0 < k <= groups // 2:
        return -np.inf
    best = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    return float(np.partition(best, groups - k)[groups - k])


def checked_exclusions(
    queries: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None
) -> Sequence[Collection[str]]:
    """Check the arguments of a search.

    Returns:
        The exclusions, one collection per query.

    Raises:
        RaggdError: a query is blank or `k` is negative.
        ValueError: `exclude` is not as long as `queries`.
    """
    if k < 0:
        raise RaggdError(f"cannot retrieve {k} passages: k must be 0 or more.")
    for position, query in enumerate(queries):
        if not query.strip():
            where = f" (number {position + 1} of {len(queries)})" if len(queries) > 1 else ""
            raise RaggdError(f"the query{where} is empty: give a question with at least one word.")
    if exclude is None:
        return [()] * len(queries)
    if len(exclude) != len(queries):
        raise ValueError(f"{len(exclude)} exclusions for {len(queries)} queries")
    return exclude


class TopHitWatch:
    """Warns once when many different queries all get the same best passage.

    That is what a tokenizer which does not fit the corpus, or an encoder without its prefix,
    looks like from outside.
    """

    def __init__(self, distinct: int = 20) -> None:
        self._distinct = distinct
        self._queries: set[str] = set()
        self._top: str | None = None
        self._done = False

    def see(self, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> None:
        """Take note of queries and their hits, best first."""
        for query, hits in zip(queries, found, strict=True):
            if self._done or not hits:
                continue
            self._done = self._top not in {None, hits[0].passage.id}
            self._top = hits[0].passage.id
            self._queries.add(query)
        if not self._done and len(self._queries) >= self._distinct:
            self._done = True
            warnings.warn(
                f"the best passage was '{self._top}' for all of {len(self._queries)} different "
                "queries: check that the corpus is in the language of the queries and holds more "
                "than one distinct text.",
                RetrievalWarning,
                stacklevel=3,
            )
