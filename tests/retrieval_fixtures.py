"""An index of passages by its kind, made or brought up to date and opened."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from raggd.progress import Progress, silent
from raggd.records import Passage, content_id
from raggd.retrieval.base import Budget
from raggd.retrieval.bm25 import ROWS, BM25Kind, BM25Retriever
from raggd.retrieval.build import Index, Kind, look_at, open_index, update_index
from raggd.retrieval.dense import DenseKind, DenseRetriever
from raggd.retrieval.encoder import Encoder

Corpus = Path | Iterable[Passage]


_FILES = tempfile.TemporaryDirectory(prefix="raggd-tests-")


def as_file(corpus: Corpus, folder: Path) -> Path:
    """A corpus as a file or folder: passages are written to the one file of an index's folder."""
    if isinstance(corpus, Path):
        return corpus
    file = Path(_FILES.name, content_id(str(folder)), "corpus.jsonl")
    file.parent.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(asdict(passage)) for passage in corpus)
    if not file.is_file() or file.read_text() != text:
        file.write_text(text)
    return file


def updated(corpus: Corpus, folder: Path, kind: Kind, progress: Progress = silent) -> Index:
    return update_index(look_at(as_file(corpus, folder)), folder, kind, progress)


def build_bm25(
    corpus: Corpus,
    folder: Path,
    progress: Progress = silent,
    *,
    budget: Budget | None = None,
    rows: int = ROWS,
) -> BM25Retriever:
    updated(corpus, folder, BM25Kind(budget or Budget(3 * 10**9), rows), progress)
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
    updated(corpus, folder, DenseKind(encoder, factory, shard), progress)
    return open_dense(folder, encoder, factory)


def open_dense(folder: Path, encoder: Encoder, factory: str = "") -> DenseRetriever:
    found = open_index(folder, DenseKind(encoder, factory))
    assert isinstance(found, DenseRetriever)
    return found
