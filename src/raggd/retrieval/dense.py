"""Dense retrieval: a vector per passage, made once and kept as long as title and text stay.

A first pass finds every row that could be among the nearest: NumPy compares all in 32 bits, up to
`FAISS_FROM` passages faster than faiss's flat index does, and without a miss; beyond, an index of
faiss proposes candidates and may miss some. Those are scored again in 64 bits, one by one: hits and
scores do not depend on how queries are batched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, replacing
from raggd.records import Hit, RaggdError, content_id
from raggd.retrieval.base import Count, Rows, top_k
from raggd.retrieval.encoder import Encoder, Vectors
from raggd.retrieval.folders import MANIFEST
from raggd.retrieval.store import PassageStore, StoredRetriever, mapped, read_rows

EMBEDDINGS = "embeddings.npy"  # the vectors of an index: 32-bit floats, shape (passages, width)
_FAISS = "index.faiss"

SHARD = 2048
"""Passages encoded before they are written: so many at most are encoded again after a kill."""

FAISS_FROM, IVF_FROM = 200_000, 1_000_000
"""Passages from which faiss proposes candidates by a graph (HNSW), and by cells (IVF)."""

_EFFORT = {"IVF": "nprobe=256", "HNSW": "efSearch=256"}
_SAMPLE_BYTES = 500_000_000
_CANDIDATES, _CANDIDATES_PER_HIT = 200, 20
_ADDED_AT_ONCE = 16_384
# Bound of the rounding error of a 32-bit dot product of two vectors of length 1 and width 1,024.
_TOLERANCE = 1e-4
_ROWS_AT_ONCE, _QUERIES_AT_ONCE = 16_384, 32

FirstPass = Callable[[Vectors, int], Rows | None]
"""The vector of a query, k -> candidate rows; None where it found too few."""


class DenseRetriever(StoredRetriever):
    """An opened dense index with the encoder that made it; scores are cosines."""

    def __init__(
        self, embeddings: Vectors, store: PassageStore, encoder: Encoder, fingerprint: str,
        first_pass: FirstPass | None = None,
    ) -> None:  # fmt: skip
        super().__init__(store, fingerprint)
        self._embeddings, self._encoder, self._first_pass = embeddings, encoder, first_pass

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        vectors = self._encoder.encode_queries(queries)
        best = nearest(self._embeddings, vectors, k, self.store.rank, first_pass=self._first_pass)
        return [self._hits(rows, scores) for rows, scores in best]


@dataclass(frozen=True)
class DenseKind:
    """Dense retrieval as a kind of index; an empty `factory` lets the size choose faiss's index."""

    encoder: Encoder
    factory: str = ""
    shard: int = SHARD
    name: str = "dense"

    def rules(self) -> dict[str, Any]:
        """Return encoder, precision and index of faiss."""
        return {
            "encoder": self.encoder.name,
            "encoder_fingerprint": self.encoder.fingerprint,
            "query_prefix": self.encoder.rules.query_prefix,
            "passage_prefix": self.encoder.rules.passage_prefix,
            "precision": self.encoder.precision,
            "faiss": self.factory,
        }

    def carry(self, old: Path, kept: NDArray[np.bool_], work: Path, fresh: int) -> None:
        """Do nothing: vectors are found by what was encoded, wherever it stands now."""

    def make(self, work: Path, passages: int, old: Path | None, count: Count) -> None:
        """Encode what is missing, shard by shard, and let faiss index everything."""
        factory = factory_for(passages, self.encoder.width, self.factory)
        if factory:
            import_faiss()  # missing, it is told before the work, not after it
        known, vectors = self._known_vectors(work, passages, old)
        shape = (passages, self.encoder.width)
        with _appended(work / EMBEDDINGS, shape, self.shard) as (stream, done):
            for start in range(done, passages, self.shard):
                count(start, passages)

                def encoded(more: int, start: int = start) -> None:
                    count(start + more, passages)

                rows = known[start : start + self.shard]
                made = np.empty((len(rows), self.encoder.width), dtype="<f4")
                made[rows >= 0] = vectors[rows[rows >= 0]]
                if (rows < 0).any():
                    read = zip(read_rows(work, start, start + len(rows)), rows, strict=True)
                    fresh = [passage for passage, row in read if row < 0]
                    made[rows < 0] = self.encoder.encode_passages(fresh, encoded)
                stream.write(made.tobytes())
                stream.flush()
            count(passages, passages)
        if factory:
            build_faiss(mapped(work / EMBEDDINGS), factory, work / _FAISS)

    def _known_vectors(self, work: Path, passages: int, old: Path | None) -> tuple[Rows, Vectors]:
        # For each row, one of the old index with the same title and text, or -1; and its vectors.
        manifest = read_json(old.parent / MANIFEST, what="index description") if old else {}
        encoded = {name: value for name, value in self.rules().items() if name != "faiss"}
        if old is None or not encoded.items() <= manifest.items():
            return np.full(passages, -1), np.empty((0, self.encoder.width), dtype=np.float32)
        content, before = PassageStore(work).content(), PassageStore(old).content()
        order = np.argsort(before, kind="stable")
        places = np.minimum(np.searchsorted(before, content, sorter=order), len(before) - 1)
        rows = order[places]
        return np.where(before[rows] == content, rows, -1), mapped(old / EMBEDDINGS)

    def fingerprint(self, corpus: str, passages: int) -> str:
        """Return the fingerprint of the dense index of a corpus, given its hash and size."""
        factory = factory_for(passages, self.encoder.width, self.factory)
        search = f"{factory} {_EFFORT} {_CANDIDATES} {_CANDIDATES_PER_HIT}" if factory else "exact"
        return content_id("dense", self.encoder.fingerprint, corpus, search, self.encoder.precision)

    def open(self, data: Path, manifest: Mapping[str, Any]) -> DenseRetriever:
        """Return the index in a folder, memory-mapped; a `ValueError` says what does not fit."""
        encoder, store, embeddings = self.encoder, PassageStore(data), mapped(data / EMBEDDINGS)
        if embeddings.shape != (len(store), encoder.width):
            raise ValueError(f"{len(store)} passages, embeddings of shape {embeddings.shape}")
        factory = factory_for(len(store), encoder.width, self.factory)
        first_pass = open_faiss(data / _FAISS, factory, len(store)) if factory else None
        fingerprint = str(manifest["fingerprint"])
        return DenseRetriever(embeddings, store, encoder, fingerprint, first_pass)


@contextmanager
def _appended(
    path: Path, shape: tuple[int, int], shard: int
) -> Iterator[tuple[io.BufferedWriter, int]]:
    # The file of vectors, opened to go on after the last whole shard, and the rows that it holds.
    header, size_of_shard = io.BytesIO(), 4 * shape[1] * shard
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    size = len(header.getvalue())
    with path.open("ab") as stream:
        done = max(0, stream.tell() - size) // size_of_shard
        stream.truncate(size + done * size_of_shard if done else 0)
        if not done:
            stream.write(header.getvalue())
        yield stream, done * shard


def nearest(
    embeddings: Vectors,
    queries: Vectors,
    k: int,
    ties: NDArray[np.integer[Any]],
    *,
    first_pass: FirstPass | None = None,
) -> list[tuple[Rows, NDArray[np.float64]]]:
    """Return the `k` rows with the highest dot product and their scores, for each query.

    `embeddings`, (n, width), and `queries`, (queries, width), are of length 1; `ties`, (n,), ranks
    rows among equal scores. Without a `first_pass`, every row is compared, which is exact.
    """
    found = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        batch = queries[start : start + _QUERIES_AT_ONCE]
        proposed = [first_pass(query, k) if first_pass else None for query in batch]
        left = [at for at, rows in enumerate(proposed) if rows is None]
        compared = iter(_by_comparing(embeddings, batch[left], k))
        for query, known in zip(batch, proposed, strict=True):
            rows = next(compared) if known is None else known
            picked = np.asarray(embeddings[rows], dtype=np.float64)
            scores = (picked * query.astype(np.float64)).sum(axis=1)
            best = top_k(scores, np.asarray(ties[rows]), k)
            found.append((rows[best], scores[best]))
    return found


def _by_comparing(embeddings: Vectors, queries: Vectors, k: int) -> list[Rows]:
    # rows that may be among the k best once rounding errors are removed
    scores = np.empty((len(queries), len(embeddings)), dtype=np.float32)
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scores[:, part] = queries @ embeddings[part].T
    place = max(0, len(embeddings) - max(k, 1))
    return [
        np.flatnonzero(row >= np.partition(row, place)[place] - 2 * _TOLERANCE) for row in scores
    ]


def import_faiss() -> Any:
    """Return the module faiss; without it, name the extra."""
    try:
        import faiss
    except ImportError as error:
        raise RaggdError(
            "dense search in a corpus of this size needs faiss, which the extra `dense` installs: "
            "pip install 'raggd[dense]'. Or use retrieval.retriever=bm25."
        ) from error
    return faiss


def factory_for(count: int, width: int, wanted: str = "") -> str:
    """Name the index of faiss as `faiss.index_factory` takes it: `wanted`, or by size; empty: none.

    IVF has about four times as many cells as the square root of the passages, and a byte for every
    eight components of the vectors.

    >>> factory_for(100_000, 384), factory_for(500_000, 384), factory_for(1_000_000, 384)
    ('', 'HNSW32', 'IVF4096,PQ48')
    """
    if wanted or count < FAISS_FROM:
        return wanted
    if count < IVF_FROM:
        return "HNSW32"
    size = next(size for size in range(max(1, width // 8), 0, -1) if width % size == 0)
    return f"IVF{2 ** round(np.log2(4 * count**0.5))},PQ{size}"


def build_faiss(embeddings: Vectors, factory: str, file: Path) -> None:
    """Train on a sample, add every vector, write the index atomically; or tell what faiss lacks."""
    faiss = import_faiss()
    count, width = embeddings.shape
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several would link passages in another order at each build
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
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
    finally:
        faiss.omp_set_num_threads(threads)
    with replacing(file) as temporary:
        faiss.write_index(index, str(temporary))


def open_faiss(file: Path, factory: str, count: int) -> FirstPass:
    """Return what proposes candidates by a file of `build_faiss`; refuse what does not fit it."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)  # on disk, where it can map
        if index.ntotal != count:
            raise RuntimeError(f"it is of {index.ntotal} passages, its index of {count}")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RaggdError(
            f"the faiss file {file} is damaged ({reason}): delete the index and build it again."
        ) from error
    for kind, effort in _EFFORT.items():
        if kind in factory:
            faiss.ParameterSpace().set_index_parameters(index, effort)
            break

    def proposed(query: Vectors, k: int) -> Rows | None:
        wanted = max(_CANDIDATES, _CANDIDATES_PER_HIT * k)
        if wanted > count // 2:
            return None  # comparing every row is no dearer then
        _, found = index.search(np.ascontiguousarray(query[np.newaxis]), wanted)
        rows: Rows = np.unique(found[found >= 0])
        return rows if len(rows) >= k else None

    return proposed
