"""An index of passages by its kind, made or brought up to date and opened."""

from __future__ import annotations

from pathlib import Path

from raggd.progress import Progress, silent
from raggd.retrieval.base import Budget
from raggd.retrieval.bm25 import ROWS, BM25Kind, BM25Retriever
from raggd.retrieval.build import open_index, update_index
from raggd.retrieval.corpus import Corpus
from raggd.retrieval.dense import DenseKind, DenseRetriever
from raggd.retrieval.encoder import Encoder


def build_bm25(
    corpus: Corpus,
    folder: Path,
    progress: Progress = silent,
    *,
    budget: Budget | None = None,
    rows: int = ROWS,
) -> BM25Retriever:
    update_index(corpus, folder, BM25Kind(budget or Budget(3 * 10**9), rows), progress)
    return open_bm25(folder)


def open_bm25(folder: Path) -> BM25Retriever:
    found = open_index(folder, BM25Kind())
    assert isinstance(found, BM25Retriever)
    return found


def build_dense(
    corpus: Corpus,
    folder: Path,
    encoder: Encoder,
    progress: Progress = silent,
    *,
    factory: str = "",
    shard: int = 2048,
) -> DenseRetriever:
    update_index(corpus, folder, DenseKind(encoder, factory, shard), progress)
    return open_dense(folder, encoder, factory)


def open_dense(folder: Path, encoder: Encoder, factory: str = "") -> DenseRetriever:
    found = open_index(folder, DenseKind(encoder, factory))
    assert isinstance(found, DenseRetriever)
    return found
