"""From settings to a collection in a database."""

from __future__ import annotations

from raggd.records import RaggdError
from raggd.retrieval.databases.base import Database, collection_name
from raggd.retrieval.databases.elastic import ElasticIndex, elasticsearch_rules
from raggd.retrieval.databases.pgvector import PGVECTOR_RULES, PgvectorTable
from raggd.retrieval.databases.qdrant import QDRANT_RULES, QdrantCollection
from raggd.retrieval.encoder import Encoder
from raggd.settings import RetrievalSettings

DATABASES = {
    "pgvector": "postgresql://user:password@localhost:5432/raggd",
    "qdrant": "http://localhost:6333",
    "elasticsearch": "http://localhost:9200",
}
"""The kinds of database, each with an example of its URL."""


def require_url(settings: RetrievalSettings) -> None:
    """Refuse a kind of database without its address, before an encoder is loaded for it.

    Args:
        settings: kind and URL of the database.

    Raises:
        RaggdError: there is no URL.
    """
    kind = settings.retriever
    if kind in DATABASES and not settings.url:
        raise RaggdError(
            f"retrieval.retriever={kind} needs the address of the database: set retrieval.url, "
            f"such as {DATABASES[kind]}."
        )


def open_database(
    settings: RetrievalSettings, known: tuple[int, str], encoder: Encoder | None
) -> Database:
    """Name the collection of a corpus in the database of the settings.

    Args:
        settings: kind and URL of the database.
        known: number of passages and hash of the corpus.
        encoder: of the vectors; None for Elasticsearch.

    Returns:
        The collection, not yet connected.
    """
    kind, url = settings.retriever, settings.url
    count, corpus = known
    if encoder is None:
        return ElasticIndex(url, collection_name(corpus, None, elasticsearch_rules()))
    if kind == "qdrant":
        return QdrantCollection(url, collection_name(corpus, encoder, QDRANT_RULES), encoder.width)
    name = collection_name(corpus, encoder, PGVECTOR_RULES)
    return PgvectorTable(url, name, encoder.width, count)
