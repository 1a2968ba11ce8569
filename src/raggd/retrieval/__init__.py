"""Finding evidence: BM25, dense and hybrid retrieval, one cache for all methods."""
