"""What retrieval in a database shares: a collection is filled, searched, and may go away.

A collection is named after the corpus, the encoder and the rules of the search. So a corpus that
changed gets a collection of its own, and one is whole when it holds as many passages as the corpus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Progress, TopHitWatch, checked_exclusions
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.store import storable

BATCH = 256
"""Passages that are sent at once; a fill that was stopped goes on after the last whole batch."""

_WAITS = (0.2, 1.0)

Vector = NDArray[np.float32]
"""An embedding of length 1, shape (width,)."""

Failures = tuple[type[Exception], ...]
"""Exceptions of a client."""

T = TypeVar("T")


NO_CLIENT = "retrieval.retriever={} needs the extra `stores`: pip install 'raggd[stores]'."
"""Said of a kind of database whose client is not installed."""


class Database(Protocol):
    """One collection of passages in a database. Methods raise `lost` when it cannot be reached."""

    collection: str
    """Name of the collection."""
    where: str
    """Name of the database for messages, without a password."""
    lost: Failures
    """What its client raises when the connection fails; tried again."""
    refused: Failures
    """What its client raises otherwise; told at once."""

    def reconnect(self) -> None:
        """Forget a broken connection."""
        ...

    def create(self) -> None:
        """Make the collection unless it is there."""
        ...

    def count(self) -> int:
        """Return the number of passages that it holds."""
        ...

    def add(self, first: int, passages: Sequence[Passage], vectors: Vector | None) -> None:
        """Add the passages from a row on, with vectors of shape (passages, width) if any."""
        ...

    def finish(self) -> None:
        """Make added passages fit to be searched."""
        ...

    def nearest(
        self, query: str, vector: Vector | None, k: int, excluded: Collection[str]
    ) -> list[Hit]:
        """Find the best passages, ties by id."""
        ...

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Look passages up by id; unknown ones are left out."""
        ...

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row."""
        ...


def collection_name(corpus_hash: str, encoder: Encoder | None, *rules: str) -> str:
    """Name the collection of a corpus.

    Args:
        corpus_hash: hash of the corpus.
        encoder: of its vectors, if any.
        *rules: everything else that decides what is found.

    Returns:
        A name that every database takes.
    """
    made_by = [encoder.fingerprint, encoder.precision] if encoder else []
    return f"raggd_{content_id(corpus_hash, *made_by, *rules)}"


def persistently(database: Database, work: Callable[[], T]) -> T:
    """Do something with a database, again when the connection fails, a few times.

    Args:
        database: reconnects between the trials.
        work: what to do.

    Returns:
        Its result.

    Raises:
        RaggdError: the database cannot be reached, or refuses.
    """
    waits = iter(_WAITS)
    while True:
        try:
            return work()
        except database.lost as error:
            wait = next(waits, None)
            if wait is None:
                raise RaggdError(
                    f"the database at {database.where} does not answer after {len(_WAITS) + 1} "
                    f"trials ({_reason(error)}): check that it runs and that retrieval.url is "
                    "right."
                ) from error
            time.sleep(wait)
            database.reconnect()
        except database.refused as error:
            raise RaggdError(
                f"the database at {database.where} refused ({_reason(error)}). If the collection "
                f"{database.collection} was deleted or changed, run `raggd index PATH` again."
            ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def fill(
    database: Database,
    passages: Iterable[Passage],
    count: int,
    encoder: Encoder | None,
    progress: Progress | None = None,
) -> bool:
    """Put a corpus into its collection, going on where a fill was stopped.

    Args:
        database: the collection.
        passages: the corpus.
        count: their number.
        encoder: makes vectors; None where the database searches words.
        progress: called with passages done and all of them.

    Returns:
        Whether anything was missing.
    """
    persistently(database, database.create)
    done = persistently(database, database.count)
    if done == count:
        return False
    done -= done % BATCH
    rest = islice(map(storable, passages), done, None)
    while batch := list(islice(rest, BATCH)):
        vectors = encoder.encode_passages(batch) if encoder else None

        def send(
            first: int = done, batch: list[Passage] = batch, vectors: Vector | None = vectors
        ) -> None:
            database.add(first, batch, vectors)

        persistently(database, send)
        done += len(batch)
        if progress is not None:
            progress(done, count)
    persistently(database, database.finish)
    return True


class DatabaseRetriever:
    """A `Retriever` over a collection in a database."""

    def __init__(self, database: Database, encoder: Encoder | None, count: int) -> None:
        """Take a filled collection.

        Args:
            database: the collection.
            encoder: encodes queries; None where the database searches words.
            count: passages that it holds.
        """
        self._database = database
        self._encoder = encoder
        self._count = count
        self._watch = TopHitWatch()

    @property
    def fingerprint(self) -> str:
        """Hash of kind, rules, encoder and corpus."""
        return content_id(type(self._database).__name__, self._database.collection)

    def __len__(self) -> int:
        """Return the number of passages."""
        return self._count

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row, 0 to ``len(self) - 1``."""
        return persistently(self._database, lambda: self._database.passage_at(row))

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Look passages up by id.

        Args:
            ids: ids of passages in the corpus.

        Returns:
            The passages, in the order of `ids`.

        Raises:
            RaggdError: an id is not in the corpus, or the database cannot be reached.
        """
        found = persistently(self._database, lambda: self._database.passages(ids)) if ids else {}
        missing = next((name for name in ids if name not in found), None)
        if missing is not None:
            raise RaggdError(
                f"no passage '{missing}' in the collection {self._database.collection}: the ids "
                "belong to another corpus."
            )
        return [found[name] for name in ids]

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
        excluded = checked_exclusions(queries, k, exclude)
        if k == 0:
            return [[] for _ in queries]
        k = min(k, self._count)
        vectors = self._encoder.encode_queries(queries) if self._encoder else [None] * len(queries)
        found = []
        for query, vector, without in zip(queries, vectors, excluded, strict=True):

            def ask(
                query: str = query,
                vector: Vector | None = vector,
                without: Collection[str] = without,
            ) -> list[Hit]:
                return self._database.nearest(query, vector, k, without)

            found.append(persistently(self._database, ask))
        if self._count > 1:
            self._watch.see(queries, found)
        return found
