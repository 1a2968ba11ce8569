"""Indexes that FlashRAG built, opened as they are: a faiss file, or a folder of bm25s.

Both know passages only by their line in the corpus file, so they are opened together with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raggd.files import read_json
from raggd.records import Hit, RaggdError, content_id
from raggd.retrieval.base import top_k
from raggd.retrieval.bm25 import BM25Retriever, open_bm25s
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.graph import import_faiss, read_faiss
from raggd.retrieval.store import PassageStore
from raggd.retrieval.stored import StoredRetriever

_PARAMETERS = "params.index.json"
_SPARE = 32
_END = 1 << 20


def bm25s_folder(path: Path) -> Path | None:
    """Find the files of bm25s: in the folder, or below it in ``bm25``, where FlashRAG puts them.

    Args:
        path: what the user named.

    Returns:
        The folder; None if there are none.
    """
    return next((f for f in (path, path / "bm25") if (f / _PARAMETERS).is_file()), None)


def check_kind(path: Path, retriever: str) -> None:
    """Refuse a path that holds no index, or one of the other kind.

    Args:
        path: what the user named by `retrieval.index_path`.
        retriever: the kind that the settings name.

    Raises:
        RaggdError: nothing is there, or it does not fit.
    """
    if path.is_file():
        found = "dense"
    elif bm25s_folder(path) is not None:
        found = "bm25"
    else:
        raise RaggdError(
            f"no index of FlashRAG at {path}: expected a faiss file such as e5_Flat.index, or a "
            f"folder with {_PARAMETERS} in it or in its subfolder bm25."
        )
    if found != retriever:
        raise RaggdError(
            f"{path} is a {found} index, but retrieval.retriever is {retriever}: set "
            f"retrieval.retriever={found}."
        )


def open_flashrag_bm25(path: Path, store: PassageStore, corpus_hash: str) -> BM25Retriever:
    """Open an index that FlashRAG made with bm25s; queries are split by bm25s as FlashRAG does.

    Args:
        path: the folder.
        store: the passages of its corpus file, in order.
        corpus_hash: hash of the corpus.

    Returns:
        The retriever. Passages without a word of the query are not returned.

    Raises:
        RaggdError: it is damaged, of another corpus, or uses a formula that scores passages
            without any word of the query.
    """
    folder = bm25s_folder(path) or path
    parameters = read_json(folder / _PARAMETERS, what="parameters of bm25s")
    if parameters.get("method") in {"bm25l", "bm25+"}:
        raise RaggdError(
            f"the index at {folder} uses {parameters['method']}, which also scores passages "
            "without a word of the query: build it with method lucene, FlashRAG's default."
        )
    try:
        segment, find_term = open_bm25s(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RaggdError(f"the index at {folder} is damaged ({error}): build it again.") from error
    _check_size(folder, segment.count, len(store))
    files = sorted(folder.glob("*.index.*"))
    fingerprint = content_id("flashrag bm25s", *map(_ends, files), corpus_hash)
    return BM25Retriever([segment], find_term, store, fingerprint, _tokenize)


def _tokenize(text: str) -> list[str]:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    split = bm25s.tokenize([text], stemmer=stemmer, return_ids=False, show_progress=False)
    terms: list[str] = split[0]
    return terms


def _ends(file: Path) -> str:
    # Files of tens of gigabytes are known by their name, size, beginning and end.
    size = file.stat().st_size
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_END))
        stream.seek(max(0, size - _END))
        digest.update(stream.read(_END))
    return f"{file.name} {size} {digest.hexdigest()}"


def _check_size(path: Path, indexed: int, passages: int) -> None:
    if indexed != passages:
        raise RaggdError(
            f"the index at {path} is of {indexed} passages, its corpus holds {passages}: name the "
            "corpus file that it was built from by data.corpus."
        )


class FaissRetriever(StoredRetriever):
    """A faiss index of any type over the passages of a corpus file; scores are faiss's own."""

    def __init__(self, index: Any, store: PassageStore, encoder: Encoder, fingerprint: str) -> None:
        """Take the opened parts.

        Args:
            index: of faiss, by inner product.
            store: the passages, in the order of the index.
            encoder: encodes queries.
            fingerprint: hash of index, encoder and corpus.
        """
        super().__init__(store, fingerprint)
        self._index = index
        self._encoder = encoder

    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        vectors = self._encoder.encode_queries(queries)
        return [
            self._one(vectors[at : at + 1], k, self._store.rows(ids))
            for at, ids in enumerate(excluded)
        ]

    def _one(self, query: Any, k: int, excluded: Sequence[int]) -> list[Hit]:
        # More than k, so that the order of ids decides among equal scores at the end.
        wanted = min(k + len(excluded) + _SPARE, int(self._index.ntotal))
        scores, rows = self._index.search(np.ascontiguousarray(query), wanted)
        kept = (rows[0] >= 0) & ~np.isin(rows[0], excluded)
        found, values = rows[0][kept], scores[0][kept]
        best = top_k(values, np.asarray(self._store.rank[found]), k)
        pairs = zip(found[best].tolist(), values[best].tolist(), strict=True)
        return [Hit(self._store.passage(row), score) for row, score in pairs]


def open_flashrag_faiss(
    path: Path, store: PassageStore, corpus_hash: str, encoder: Encoder
) -> FaissRetriever:
    """Open a faiss index that FlashRAG made; its vectors stay on disk where faiss can map them.

    Args:
        path: the file.
        store: the passages of its corpus file, in order.
        corpus_hash: hash of the corpus.
        encoder: the encoder that it was built with.

    Returns:
        The retriever.

    Raises:
        RaggdError: it is damaged, of another corpus or of another encoder.
    """
    index = read_faiss(path, None, mapped=True)
    _check_size(path, int(index.ntotal), len(store))
    if index.d != encoder.width:
        raise RaggdError(
            f"the index at {path} holds vectors of width {index.d}, the encoder '{encoder.name}' "
            f"gives {encoder.width}: name the encoder that made it by retrieval.encoder."
        )
    if index.metric_type != import_faiss().METRIC_INNER_PRODUCT:
        raise RaggdError(f"the index at {path} is not by inner product, as FlashRAG's are.")
    fingerprint = content_id("flashrag faiss", _ends(path), encoder.fingerprint, corpus_hash)
    return FaissRetriever(index, store, encoder, fingerprint)
