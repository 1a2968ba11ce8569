"""What retrievers over an index folder share: passages by id, checked searches, a watch on hits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from raggd.records import Hit, Passage
from raggd.retrieval.base import TopHitWatch, checked_exclusions
from raggd.retrieval.store import PassageStore


class StoredRetriever(ABC):
    """An opened index whose passages are memory-mapped; a `Retriever` but for `_search`."""

    def __init__(self, store: PassageStore, fingerprint: str) -> None:
        """Take the opened passages.

        Args:
            store: the passages of the index.
            fingerprint: hash of kind, parameters and corpus.
        """
        self._store = store
        self._fingerprint = fingerprint
        self._watch = TopHitWatch()

    @property
    def fingerprint(self) -> str:
        """Hash of kind, parameters, tokenizer or encoder, and corpus."""
        return self._fingerprint

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._store)

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Look passages up by id.

        Args:
            ids: ids of passages in the corpus.

        Returns:
            The passages, in the order of `ids`.
        """
        return self._store.passages(ids)

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row, 0 to ``len(self) - 1``."""
        return self._store.passage(row)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """Find the best passages for each query.

        Args:
            queries: the queries; none may be blank.
            k: passages per query; clamped to the corpus.
            exclude: for each query, ids of passages that must not be returned.

        Returns:
            One list per query, best first, ties by passage id.
        """
        found = self._search(queries, k, checked_exclusions(queries, k, exclude))
        if len(self) > 1:
            self._watch.see(queries, found)
        return found

    @abstractmethod
    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        """Search; the arguments are checked."""
