"""A faiss HNSW graph over stored embeddings: candidates for dense search in large corpora.

Why a graph and not faiss's flat index: both NumPy and flat faiss compare a query with every
passage, and NumPy did so four to six times faster (at 100,000 x 384 on one core). What faiss
adds is the graph, which visits a few thousand passages per query. It may miss a passage; what it
finds is scored exactly.
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
from raggd.retrieval.base import Rows
from raggd.retrieval.vectors import FirstPass

NEIGHBOURS = 32
"""Links per passage in the graph."""

_BUILD_WIDTH = 100
_SEARCH_WIDTH = 256
_SPARE = 32
_ADDED_AT_ONCE = 4096

GRAPH_RULES = f"hnsw {NEIGHBOURS} {_BUILD_WIDTH} {_SEARCH_WIDTH}"
"""Everything that decides which candidates a graph finds, for fingerprints."""


def import_faiss() -> Any:
    """Import faiss, or explain how to get it.

    Returns:
        The module.

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


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    # Threads would link passages in another order at each build, and find other candidates.
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_graph(embeddings: NDArray[np.float32], file: Path) -> None:
    """Build the graph of a corpus, the same one each time, and write it atomically.

    It holds a copy of the embeddings and about 300 bytes more per passage, in memory while it is
    built.

    Args:
        embeddings: vectors of length 1, shape (n, width).
        file: the file to write.
    """
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(embeddings.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_WIDTH
    with _one_thread(faiss):
        for start in range(0, len(embeddings), _ADDED_AT_ONCE):
            graph.add(np.ascontiguousarray(embeddings[start : start + _ADDED_AT_ONCE]))
    with replacing(file) as temporary:
        faiss.write_index(graph, str(temporary))


def read_faiss(file: Path, count: int | None, *, mapped: bool = False) -> Any:
    """Read a faiss index and check it.

    Args:
        file: the file.
        count: vectors that it must hold; None: any number.
        mapped: leave its vectors or lists on disk until they are read, where faiss can.

    Returns:
        The index of faiss.

    Raises:
        RaggdError: faiss is not installed, or the file is missing, damaged or of another index.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        size = int(index.ntotal)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RaggdError(
            f"the faiss file {file} is damaged ({reason}): delete the index and build it again."
        ) from error
    if count is not None and size != count:
        raise RaggdError(
            f"the faiss file {file} is of {size} passages, its index of {count}: delete the index "
            "and build it again."
        )
    return index


def open_graph(file: Path, count: int) -> FirstPass:
    """Open a graph for searching.

    Args:
        file: what `build_graph` wrote.
        count: passages of the index, to check against.

    Returns:
        A function that proposes candidates.
    """
    faiss = import_faiss()
    return first_pass(
        read_faiss(file, count),
        lambda k, excluded: 2 * k + excluded + _SPARE,
        lambda wanted: faiss.SearchParametersHNSW(efSearch=max(_SEARCH_WIDTH, 2 * wanted)),
    )


def first_pass(
    index: Any, wanted: Callable[[int, int], int], width: Callable[[int], Any]
) -> FirstPass:
    """Let an index of faiss propose candidates.

    Args:
        index: opened.
        wanted: how many to ask for, given k and the number of excluded passages.
        width: faiss's search parameters for that many.

    Returns:
        A function that proposes candidates.
    """

    def proposed(query: NDArray[np.float32], k: int, excluded: Sequence[int]) -> Rows | None:
        count = wanted(k, len(excluded))
        if count > index.ntotal // 2:
            return None  # comparing every row is no dearer then
        _, found = index.search(np.ascontiguousarray(query), count, params=width(count))
        rows: Rows = np.setdiff1d(found[found >= 0], np.asarray(excluded, dtype=np.int64))
        return rows if len(rows) >= k else None

    def candidates(
        queries: NDArray[np.float32], k: int, excluded: Sequence[Sequence[int]]
    ) -> list[Rows | None]:
        # One query at a time: what is found for it never depends on the others of its batch.
        return [proposed(queries[at : at + 1], k, without) for at, without in enumerate(excluded)]

    return candidates
