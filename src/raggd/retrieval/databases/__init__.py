"""Retrieval in a database that somebody runs: PostgreSQL with pgvector, Qdrant, Elasticsearch."""
