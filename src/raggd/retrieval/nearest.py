"""Nearest-neighbour search by dot product: NumPy compares all, or faiss proposes candidates.

A first pass finds every row that could be among the best: NumPy compares all in 32 bits, up to
`FAISS_FROM` passages faster than faiss's flat index does, and without a miss; beyond, an index of
faiss proposes candidates and may miss some. Those are scored again in 64 bits, one by one: hits
and scores do not depend on how queries are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import replacing
from raggd.records import RaggdError
from raggd.retrieval.base import Rows, top_k

Vectors = NDArray[np.float32]
"""Vectors of length 1, shape (n, width)."""

FAISS_FROM, IVF_FROM = 200_000, 1_000_000
"""Passages from which faiss proposes candidates by a graph (HNSW), and by cells (IVF)."""

_EFFORT = {"IVF": "nprobe=256", "HNSW": "efSearch=256"}
_SAMPLE_BYTES = 500_000_000
_CANDIDATES, _CANDIDATES_PER_HIT = 200, 20
_ADDED_AT_ONCE = 16_384
# Bound of the rounding error of a 32-bit dot product of two vectors of length 1 and width 1,024.
_TOLERANCE = 1e-4
_ROWS_AT_ONCE, _QUERIES_AT_ONCE = 16_384, 32

FirstPass = Callable[[NDArray[np.float32], int, Sequence[Sequence[int]]], "list[Rows | None]"]
"""Queries, k, excluded rows -> candidate rows per query; None where it found too few."""


def nearest(
    embeddings: Vectors,
    queries: Vectors,
    k: int,
    ties: NDArray[np.integer[Any]],
    excluded: Sequence[Sequence[int]],
    *,
    first_pass: FirstPass | None = None,
) -> list[tuple[Rows, NDArray[np.float64]]]:
    """Find the rows with the highest dot product for each query.

    Args:
        embeddings: vectors of length 1, shape (n, width); may be memory-mapped.
        queries: vectors of length 1, shape (queries, width).
        k: rows per query; clamped to those that remain.
        ties: rank of each row among equal scores, shape (n,).
        excluded: for each query, rows never returned.
        first_pass: proposes candidates; None compares every row, which is exact.

    Returns:
        Rows, best first, and their scores, for each query.
    """
    found = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        candidates = _candidates(embeddings, queries[part], k, excluded[part], first_pass)
        for query, rows in zip(queries[part], candidates, strict=True):
            picked = np.asarray(embeddings[rows], dtype=np.float64)
            scores = (picked * query.astype(np.float64)).sum(axis=1)
            best = top_k(scores, np.asarray(ties[rows]), k)
            found.append((rows[best], scores[best]))
    return found


def _candidates(
    embeddings: Vectors, queries: Vectors, k: int, excluded: Sequence[Sequence[int]],
    first_pass: FirstPass | None,
) -> list[Rows]:  # fmt: skip
    if first_pass is None:
        return _by_comparing(embeddings, queries, k, excluded)
    proposed = first_pass(queries, k, excluded)
    left = [at for at, rows in enumerate(proposed) if rows is None]
    compared = iter(_by_comparing(embeddings, queries[left], k, [excluded[at] for at in left]))
    return [next(compared) if rows is None else rows for rows in proposed]


def _by_comparing(
    embeddings: Vectors, queries: Vectors, k: int, excluded: Sequence[Sequence[int]]
) -> list[Rows]:
    scores = np.empty((len(queries), len(embeddings)), dtype=np.float32)
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scores[:, part] = queries @ embeddings[part].T
    for row, without in zip(scores, excluded, strict=True):
        row[list(without)] = -np.inf
    return [_within_reach(row, k) for row in scores]


def _within_reach(scores: NDArray[np.float32], k: int) -> Rows:
    # Rows that may be among the k best once rounding errors are removed; excluded ones are -inf.
    k = min(k, int(np.count_nonzero(scores > -np.inf)))
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    worst = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= worst - 2 * _TOLERANCE)


def import_faiss() -> Any:
    """Return the module faiss.

    Raises:
        RaggdError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise RaggdError(
            "dense search in a corpus of this size needs faiss, which the extra `dense` installs: "
            "pip install 'raggd[dense]'. Or use retrieval.retriever=bm25."
        ) from error
    return faiss


def factory_for(count: int, width: int, wanted: str = "") -> str:
    """Name the index of faiss for a corpus, as `faiss.index_factory` takes it; empty: none.

    Args:
        count: passages.
        width: components of their vectors.
        wanted: what the settings ask for; empty: a choice by size.

    Returns:
        The name. IVF has about four times as many cells as the square root of the passages, and a
        byte for every eight components.

    >>> factory_for(100_000, 384), factory_for(500_000, 384), factory_for(1_000_000, 384)
    ('', 'HNSW32', 'IVF4096,PQ48')
    """
    if wanted or count < FAISS_FROM:
        return wanted
    if count < IVF_FROM:
        return "HNSW32"
    size = next(size for size in range(max(1, width // 8), 0, -1) if width % size == 0)
    return f"IVF{2 ** round(np.log2(4 * count**0.5))},PQ{size}"


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    # Threads would link passages in another order at each build, and find other candidates.
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_faiss(embeddings: Vectors, factory: str, file: Path) -> None:
    """Train on a sample, add every vector, and write the index atomically; the same each time.

    Args:
        embeddings: vectors of length 1, shape (n, width); may be mapped.
        factory: the kind of index.
        file: the file to write.

    Raises:
        RaggdError: faiss is not installed, or knows no such kind or cannot train it.
    """
    faiss = import_faiss()
    count, width = embeddings.shape
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        with _one_thread(faiss):
            if not index.is_trained:
                most = min(count, max(256, _SAMPLE_BYTES // (4 * width)))
                rows = np.sort(np.random.default_rng(0).choice(count, most, replace=False))
                index.train(np.ascontiguousarray(embeddings[rows]))
            for start in range(0, count, _ADDED_AT_ONCE):
                index.add(np.ascontiguousarray(embeddings[start : start + _ADDED_AT_ONCE]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RaggdError(
            f"faiss cannot make retrieval.index_factory={factory} of {count} passages: {reason}."
        ) from error
    with replacing(file) as temporary:
        faiss.write_index(index, str(temporary))


def open_faiss(file: Path, factory: str, count: int) -> FirstPass:
    """Open an index for searching; its vectors or lists stay on disk where faiss can map them.

    Args:
        file: what `build_faiss` wrote.
        factory: its kind.
        count: passages of the corpus, to check against.

    Returns:
        A function that proposes candidates, one query at a time: what is found for one never
        depends on the others of its batch.

    Raises:
        RaggdError: faiss is not installed, or the file is missing, damaged or of another index.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RaggdError(
            f"the faiss file {file} is damaged ({reason}): delete the index and build it again."
        ) from error
    if index.ntotal != count:
        raise RaggdError(
            f"the faiss file {file} is of {index.ntotal} passages, its index of {count}: delete "
            "the index and build it again."
        )
    for kind, effort in _EFFORT.items():
        if kind in factory:
            faiss.ParameterSpace().set_index_parameters(index, effort)
            break

    def proposed(query: Vectors, k: int, excluded: Sequence[int]) -> Rows | None:
        wanted = max(_CANDIDATES, _CANDIDATES_PER_HIT * k) + len(excluded)
        if wanted > count // 2:
            return None  # comparing every row is no dearer then
        _, found = index.search(np.ascontiguousarray(query), wanted)
        rows: Rows = np.setdiff1d(found[found >= 0], np.asarray(excluded, dtype=np.int64))
        return rows if len(rows) >= k else None

    return lambda queries, k, excluded: [
        proposed(queries[at : at + 1], k, without) for at, without in enumerate(excluded)
    ]


def rules_of(factory: str) -> str:
    """Return what decides which candidates are found, for fingerprints; ``exact`` without faiss."""
    return f"{factory} {_EFFORT} {_CANDIDATES} {_CANDIDATES_PER_HIT}" if factory else "exact"
