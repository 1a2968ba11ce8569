"""BM25 in Elasticsearch, over the same words and with the same k1 and b as raggd's own.

Words are split and stemmed here, so the server only counts them. Its scores differ a little all
the same: Lucene rounds the length of a passage to one byte.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from raggd.records import Hit, Passage, RaggdError
from raggd.retrieval.bm25 import K1, B
from raggd.retrieval.databases.base import NO_CLIENT, Failures, Vector
from raggd.retrieval.tokenizer import tokenize, tokenizer_fingerprint

_MOST = 10_000
_LOOK_UP = 1_000


def elasticsearch_rules() -> str:
    """Return everything that decides what is found, for names of collections."""
    return f"elasticsearch bm25 {K1} {B} {tokenizer_fingerprint()}"


class ElasticIndex:
    """An index of Elasticsearch with one shard, so that frequencies are those of the corpus."""

    def __init__(self, url: str, collection: str) -> None:
        """Connect on first use.

        Args:
            url: ``http://user:password@host:9200``.
            collection: name of the index.

        Raises:
            RaggdError: the client is not installed.
        """
        try:
            import elasticsearch
        except ImportError as error:
            raise RaggdError(NO_CLIENT.format("elasticsearch")) from error
        self._module: Any = elasticsearch
        self._url = url
        self.collection = collection
        self.where = url.rsplit("@", maxsplit=1)[-1]
        self.lost: Failures = (elasticsearch.ConnectionError, elasticsearch.ConnectionTimeout)
        self.refused: Failures = (elasticsearch.ApiError, elasticsearch.TransportError, ValueError)
        self._open: Any = None

    def reconnect(self) -> None:
        """Forget a broken connection."""
        self._open = None

    def _client(self) -> Any:
        if self._open is None:
            self._open = self._module.Elasticsearch(self._url, request_timeout=30, max_retries=0)
        return self._open

    def create(self) -> None:
        """Make the index unless it is there."""
        if self._client().indices.exists(index=self.collection):
            return
        similarity = {"raggd": {"type": "BM25", "k1": K1, "b": B}}
        terms = {"type": "text", "analyzer": "whitespace", "similarity": "raggd"}
        stored = {"type": "keyword", "index": False, "doc_values": False}
        self._client().indices.create(
            index=self.collection,
            settings={"number_of_shards": 1, "index": {"similarity": similarity}},
            mappings={
                "properties": {
                    "row": {"type": "long"},
                    "id": {"type": "keyword"},
                    "terms": terms,
                    "title": stored,
                    "text": stored,
                }
            },
        )

    def count(self) -> int:
        """Return the number of passages that it holds."""
        self._client().indices.refresh(index=self.collection)
        return int(self._client().count(index=self.collection)["count"])

    def add(self, first: int, passages: Sequence[Passage], vectors: Vector | None) -> None:
        """Add passages.

        Args:
            first: row of the first.
            passages: the passages.
            vectors: not used.

        Raises:
            RaggdError: the server did not take one.
        """
        operations: list[dict[str, Any]] = []
        for row, p in enumerate(passages, start=first):
            terms = " ".join(tokenize(f"{p.title}\n{p.text}"))
            operations.append({"index": {"_id": p.id}})
            entry = {"row": row, "id": p.id, "title": p.title, "text": p.text, "terms": terms}
            operations.append(entry)
        answer = self._client().bulk(index=self.collection, operations=operations)
        if answer["errors"]:
            failed = [entry["index"] for entry in answer["items"] if "error" in entry["index"]]
            raise RaggdError(
                f"the database at {self.where} did not take passage '{failed[0]['_id']}' "
                f"({failed[0]['error']})."
            )

    def finish(self) -> None:
        """Make added passages visible to searches."""
        self._client().indices.refresh(index=self.collection)

    def nearest(
        self, query: str, vector: Vector | None, k: int, excluded: Collection[str]
    ) -> list[Hit]:
        """Find the passages with the highest BM25 score, ties by id.

        Args:
            query: the query.
            vector: not used.
            k: passages to find.
            excluded: ids never returned.

        Returns:
            The hits, best first; only passages that share a term with the query.

        Raises:
            RaggdError: `k` is more than Elasticsearch returns at once.
        """
        if k > _MOST:
            raise RaggdError(f"Elasticsearch returns at most {_MOST} passages, {k} were asked for.")
        terms = tokenize(query)
        if not terms:
            return []
        # One clause per word: a repeated word counts again, as in raggd's own BM25.
        clauses = [{"term": {"terms": {"value": term}}} for term in terms]
        asked: dict[str, Any] = {"should": clauses, "minimum_should_match": 1}
        if excluded:
            asked["must_not"] = [{"terms": {"id": sorted(excluded)}}]
        answer = self._client().search(
            index=self.collection,
            query={"bool": asked},
            size=k,
            sort=[{"_score": "desc"}, {"id": "asc"}],
            track_scores=True,
        )
        return [
            Hit(_passage(hit["_source"]), float(hit["_score"])) for hit in answer["hits"]["hits"]
        ]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Look passages up by id; unknown ones are left out.

        Args:
            ids: the ids.

        Returns:
            The passages by id.
        """
        found: dict[str, Passage] = {}
        for start in range(0, len(ids), _LOOK_UP):
            part = list(ids[start : start + _LOOK_UP])
            answer = self._client().mget(index=self.collection, ids=part)
            for entry in answer["docs"]:
                if entry.get("found"):
                    found[entry["_id"]] = _passage(entry["_source"])
        return found

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row."""
        asked = {"term": {"row": {"value": row}}}
        answer = self._client().search(index=self.collection, query=asked, size=1)
        return _passage(answer["hits"]["hits"][0]["_source"])


def _passage(source: Any) -> Passage:
    return Passage(source["id"], source["text"], source["title"])
