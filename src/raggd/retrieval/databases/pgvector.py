"""Dense retrieval in PostgreSQL with pgvector: a table per collection."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from raggd.records import Hit, Passage, RaggdError
from raggd.retrieval.databases.base import NO_CLIENT, Failures, Vector

GRAPH_FROM = 200_000
"""Passages from which an HNSW index finds the candidates; fewer are compared one by one."""
_SPARE = 32
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 100, 256

PGVECTOR_RULES = f"pgvector hnsw {_LINKS} {_BUILD_WIDTH} {_SEARCH_WIDTH}"
"""Everything that decides what is found, for names of collections."""


class PgvectorTable:
    """A collection as a table; ids are compared as bytes, so that ties go as everywhere."""

    def __init__(
        self, url: str, collection: str, width: int, count: int, graph_from: int = GRAPH_FROM
    ) -> None:
        """Connect on first use.

        Args:
            url: ``postgresql://user:password@host:port/database``.
            collection: name of the table.
            width: components of a vector.
            count: passages of the whole corpus.
            graph_from: passages from which there is an HNSW index.

        Raises:
            RaggdError: psycopg or pgvector is not installed.
        """
        try:
            import pgvector.psycopg as vectors
            import psycopg
        except ImportError as error:
            raise RaggdError(NO_CLIENT.format("pgvector")) from error
        self._psycopg: Any = psycopg
        self._vectors: Any = vectors
        self._url = url
        self.collection = collection
        parts = urlsplit(url)
        self.where = f"{parts.hostname or parts.query or 'localhost'}{parts.path}"
        self.lost: Failures = (psycopg.OperationalError, psycopg.InterfaceError)
        self.refused: Failures = (psycopg.Error, ValueError)
        self._width = width
        self._graph = count >= graph_from
        self._open: Any = None

    def reconnect(self) -> None:
        """Forget a broken connection."""
        if self._open is not None:
            with suppress(*self.refused):
                self._open.close()
        self._open = None

    def _connection(self) -> Any:
        if self._open is None:
            opened = self._psycopg.connect(self._url, autocommit=True, connect_timeout=10)
            opened.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._vectors.register_vector(opened)
            if self._graph:
                opened.execute(f"SET hnsw.ef_search = {_SEARCH_WIDTH}")
                opened.execute("SET hnsw.iterative_scan = strict_order")
            self._open = opened
        return self._open

    def create(self) -> None:
        """Make the table unless it is there."""
        self._connection().execute(
            f"CREATE TABLE IF NOT EXISTS {self.collection} (place bigint UNIQUE, "
            'id text COLLATE "C" PRIMARY KEY, '
            f"title text NOT NULL, passage text NOT NULL, embedding vector({self._width}) NOT NULL)"
        )

    def count(self) -> int:
        """Return the number of passages that it holds."""
        row = self._connection().execute(f"SELECT count(*) FROM {self.collection}").fetchone()
        return int(row[0])

    def add(self, first: int, passages: Sequence[Passage], vectors: Vector | None) -> None:
        """Add passages in one transaction.

        Args:
            first: row of the first.
            passages: the passages.
            vectors: their embeddings.
        """
        rows = [
            (first + at, p.id, p.title, p.text, vector)
            for at, (p, vector) in enumerate(
                zip(passages, [] if vectors is None else vectors, strict=True)
            )
        ]
        connection = self._connection()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {self.collection} VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                rows,
            )

    def finish(self) -> None:
        """Build the HNSW index of a large table, and let the planner know its size."""
        if self._graph:
            self._connection().execute(
                f"CREATE INDEX IF NOT EXISTS {self.collection}_hnsw ON {self.collection} USING "
                f"hnsw (embedding vector_ip_ops) WITH (m = {_LINKS}, ef_construction = "
                f"{_BUILD_WIDTH})"
            )
        self._connection().execute(f"ANALYZE {self.collection}")

    def nearest(
        self, query: str, vector: Vector | None, k: int, excluded: Collection[str]
    ) -> list[Hit]:
        """Find the passages with the highest dot product, ties by id.

        Args:
            query: not used.
            vector: the query's embedding.
            k: passages to find.
            excluded: ids never returned.

        Returns:
            The hits, best first.
        """
        # The inner query is of the form that an HNSW index serves; the outer one settles ties.
        inner = (
            f"SELECT id, title, passage, embedding <#> %s AS distance FROM {self.collection} "
            "WHERE id <> ALL(%s) ORDER BY embedding <#> %s"
        )
        limit = f" LIMIT {k + _SPARE}" if self._graph else ""
        rows = self._connection().execute(
            f"SELECT * FROM ({inner}{limit}) AS near ORDER BY distance, id LIMIT {k}",
            (vector, list(excluded), vector),
        )
        return [Hit(Passage(id, text, title), -distance) for id, title, text, distance in rows]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Look passages up by id; unknown ones are left out.

        Args:
            ids: the ids.

        Returns:
            The passages by id.
        """
        rows = self._connection().execute(
            f"SELECT id, title, passage FROM {self.collection} WHERE id = ANY(%s)", (list(ids),)
        )
        return {id: Passage(id, text, title) for id, title, text in rows}

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row."""
        found = self._connection().execute(
            f"SELECT id, passage, title FROM {self.collection} WHERE place = %s", (row,)
        )
        return Passage(*found.fetchone())
