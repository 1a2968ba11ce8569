"""An index of passages by its kind, made or brought up to date and opened."""

from __future__ import annotations

from pathlib import Path

from raggd.retrieval.base import Budget, Progress
from raggd.retrieval.bm25 import ROWS, BM25Kind, BM25Retriever, open_bm25
from raggd.retrieval.build import update_index
from raggd.retrieval.corpus import Corpus
from raggd.retrieval.dense import DenseKind, DenseRetriever, open_dense
from raggd.retrieval.encoder import Encoder


def build_bm25(
    corpus: Corpus,
    folder: Path,
    progress: Progress | None = None,
    *,
    budget: Budget | None = None,
    rows: int = ROWS,
) -> BM25Retriever:
    update_index(corpus, folder, BM25Kind(budget or Budget(3 * 10**9), rows), progress)
    return open_bm25(folder)


def build_dense(
    corpus: Corpus,
    folder: Path,
    encoder: Encoder,
    progress: Progress | None = None,
    *,
    factory: str = "",
    shard: int = 2048,
) -> DenseRetriever:
    update_index(corpus, folder, DenseKind(encoder, factory, shard), progress)
    return open_dense(folder, encoder)
