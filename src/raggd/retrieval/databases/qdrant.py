"""Dense retrieval in Qdrant: a collection whose points carry their passages."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from raggd.records import Hit, Passage, RaggdError
from raggd.retrieval.databases.base import NO_CLIENT, Failures, Vector

_SPARE = 32
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 100, 256
_NAMES = uuid.UUID("6f1c8c1e-5d0b-4f6e-9a39-0d1d8a3b7c21")

QDRANT_RULES = f"qdrant hnsw {_LINKS} {_BUILD_WIDTH} {_SEARCH_WIDTH}"
"""Everything that decides what is found, for names of collections."""


def point_id(name: str) -> str:
    """Return the id of the point that holds a passage: Qdrant takes UUIDs only."""
    return str(uuid.uuid5(_NAMES, name))


class QdrantCollection:
    """A collection of points; their vectors are searched by Qdrant's own index."""

    def __init__(self, url: str, collection: str, width: int) -> None:
        """Connect on first use.

        Args:
            url: ``http://host:6333``, or ``:memory:`` or a folder for Qdrant's local mode.
            collection: its name.
            width: components of a vector.

        Raises:
            RaggdError: the client is not installed.
        """
        try:
            import qdrant_client
            from qdrant_client.http.exceptions import ApiException, ResponseHandlingException
        except ImportError as error:
            raise RaggdError(NO_CLIENT.format("qdrant")) from error
        self._module: Any = qdrant_client
        self._models: Any = qdrant_client.models
        self._url = url
        self.collection = collection
        self.where = url.rsplit("@", maxsplit=1)[-1]
        self.lost: Failures = (ResponseHandlingException, ConnectionError, TimeoutError)
        self.refused: Failures = (ApiException, ValueError)
        self._width = width
        # The local mode compares every point and warns when it is told how to search.
        remote = url.startswith("http")
        self._params = self._models.SearchParams(hnsw_ef=_SEARCH_WIDTH) if remote else None
        self._open: Any = None

    def reconnect(self) -> None:
        """Forget a broken connection."""
        if self._url.startswith("http"):
            self._open = None

    def _client(self) -> Any:
        if self._open is None:
            remote = self._url.startswith("http")
            place = {"url" if remote else "path": self._url}
            if self._url == ":memory:":
                place = {"location": self._url}
            self._open = self._module.QdrantClient(**place, timeout=30, check_compatibility=False)
        return self._open

    def create(self) -> None:
        """Make the collection unless it is there."""
        if self._client().collection_exists(self.collection):
            return
        models = self._models
        self._client().create_collection(
            self.collection,
            vectors_config=models.VectorParams(size=self._width, distance=models.Distance.DOT),
            hnsw_config=models.HnswConfigDiff(m=_LINKS, ef_construct=_BUILD_WIDTH),
        )
        if self._url.startswith("http"):  # the local mode has no such indexes
            self._client().create_payload_index(
                self.collection, "row", field_schema=models.PayloadSchemaType.INTEGER
            )

    def count(self) -> int:
        """Return the number of passages that it holds."""
        return int(self._client().count(self.collection, exact=True).count)

    def add(self, first: int, passages: Sequence[Passage], vectors: Vector | None) -> None:
        """Add passages.

        Args:
            first: row of the first.
            passages: the passages.
            vectors: their embeddings.
        """
        points = [
            self._models.PointStruct(
                id=point_id(p.id),
                vector=vector.tolist(),
                payload={"row": first + at, "id": p.id, "title": p.title, "text": p.text},
            )
            for at, (p, vector) in enumerate(
                zip(passages, [] if vectors is None else vectors, strict=True)
            )
        ]
        self._client().upsert(self.collection, points, wait=True)

    def finish(self) -> None:
        """Nothing: Qdrant indexes as it goes."""

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
        models = self._models
        without = models.HasIdCondition(has_id=[point_id(name) for name in excluded])
        found = self._client().query_points(
            self.collection,
            query=[] if vector is None else vector.tolist(),
            query_filter=models.Filter(must_not=[without]) if excluded else None,
            search_params=self._params,
            limit=k + _SPARE,
            with_payload=True,
        )
        hits = [Hit(_passage(point.payload), float(point.score)) for point in found.points]
        return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))[:k]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Look passages up by id; unknown ones are left out.

        Args:
            ids: the ids.

        Returns:
            The passages by id.
        """
        points = self._client().retrieve(self.collection, [point_id(n) for n in ids])
        return {point.payload["id"]: _passage(point.payload) for point in points}

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row."""
        models = self._models
        here = models.FieldCondition(key="row", match=models.MatchValue(value=row))
        points, _ = self._client().scroll(
            self.collection, scroll_filter=models.Filter(must=[here]), limit=1
        )
        return _passage(points[0].payload)


def _passage(payload: Any) -> Passage:
    return Passage(payload["id"], payload["text"], payload["title"])
