"""Retrievers of other libraries behind raggd's protocol; `langchain` and `llamaindex` use it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import checked_exclusions

Search = Callable[[str, int], list[Hit]]
"""Finds the best passages for a query, best first; the number asked for is only a wish."""

_TITLES = ("title", "file_name", "source")


def foreign_passage(text: str, metadata: Mapping[str, Any], name: str | None) -> Passage:
    """Turn another library's document into a passage.

    Args:
        text: its text.
        metadata: whose ``title``, ``file_name`` or ``source`` becomes the title.
        name: its id; None or empty: a hash of the content.

    Returns:
        The passage.
    """
    title = next((str(metadata[key]) for key in _TITLES if metadata.get(key)), "")
    return Passage(name or content_id(title, text), text, title)


class ForeignRetriever:
    """A search function of another library as a `Retriever`.

    The order of the hits is the other library's. What it searches may change unseen, so nothing is
    remembered and no two retrievers have one fingerprint, unless an id vouches for the content.
    """

    def __init__(self, kind: str, search: Search, name: str | None = None) -> None:
        """Wrap a search function.

        Args:
            kind: the library, for the fingerprint.
            search: finds passages for one query.
            name: stands for retriever and content: change it when either changes. With it, equal
                searches of this process are made once, and run records can be compared.
        """
        self._search = search
        self._fingerprint = content_id(kind, name or f"unnamed {uuid.uuid4()}")
        self._remembers = name is not None
        self._known: dict[tuple[str, int], list[Hit]] = {}
        self._passages: dict[str, Passage] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of library and id; without an id, of this object alone."""
        return self._fingerprint

    def search(
        self,
        queries: Sequence[str],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """Find the best passages for each query.

        Args:
            queries: the queries; none may be blank.
            k: most passages per query; the other library may find fewer.
            exclude: for each query, ids of passages that must not be returned.

        Returns:
            One list per query, in the order of the other library.
        """
        excluded = checked_exclusions(queries, k, exclude)
        return [self._one(q, k, ids) for q, ids in zip(queries, excluded, strict=True)]

    def _one(self, query: str, k: int, excluded: Collection[str]) -> list[Hit]:
        if k == 0:
            return []
        wanted = k + len(excluded)
        hits = self._known.get((query, wanted)) if self._remembers else None
        if hits is None:
            hits = self._search(query, wanted)
            self._passages.update((hit.passage.id, hit.passage) for hit in hits)
            if self._remembers:
                self._known[query, wanted] = hits
        return [hit for hit in hits if hit.passage.id not in excluded][:k]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Look up passages that a search has found before.

        Args:
            ids: their ids.

        Returns:
            The passages, in the order of `ids`.

        Raises:
            RaggdError: no search has found one of them yet.
        """
        for name in ids:
            if name not in self._passages:
                raise RaggdError(
                    f"passage '{name}' was not found by a search yet: a retriever of another "
                    "library has no passages by id. Search first."
                )
        return [self._passages[name] for name in ids]


def ranked(passages: Sequence[Passage], scores: Sequence[float | None]) -> list[Hit]:
    """Pair passages with scores, without changing their order.

    Args:
        passages: best first.
        scores: of each, where there is one.

    Returns:
        Hits; where a score is missing or out of order, all have their negative rank instead.
    """
    known = [score for score in scores if score is not None]
    falling = all(a >= b for a, b in pairwise(known))
    if len(known) < len(passages) or not falling:
        known = [-float(rank) for rank in range(1, len(passages) + 1)]
    return [Hit(passage, score) for passage, score in zip(passages, known, strict=True)]
