"""Dense retrieval: a vector per passage, made once and kept as long as title and text stay."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Progress, Rows, StoredRetriever
from raggd.retrieval.corpus import Corpus
from raggd.retrieval.encoder import Encoder, Vectors
from raggd.retrieval.folders import MANIFEST, open_folder
from raggd.retrieval.memory import held_memory
from raggd.retrieval.nearest import (
    FirstPass,
    build_faiss,
    factory_for,
    import_faiss,
    nearest,
    open_faiss,
    rules_of,
)
from raggd.retrieval.segments import LEAST_MEMORY
from raggd.retrieval.store import SORT_BYTES, PassageStore, mapped, read_rows
from raggd.retrieval.update import Estimate, update_index

EMBEDDINGS = "embeddings.npy"
"""The vectors of an index: 32-bit floats, shape (passages, width)."""

SHARD = 2048
"""Passages encoded before they are written: at most these are encoded again after a kill."""

_FAISS = "index.faiss"
_SAMPLED = 64


class DenseRetriever(StoredRetriever):
    """An opened dense index with the encoder that made it; scores are cosines."""

    def __init__(
        self,
        embeddings: Vectors,
        store: PassageStore,
        encoder: Encoder,
        fingerprint: str,
        first_pass: FirstPass | None = None,
    ) -> None:
        super().__init__(store, fingerprint)
        self._embeddings = embeddings
        self._encoder = encoder
        self._first_pass = first_pass

    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        without = [self._store.rows(ids) for ids in excluded]
        vectors = self._encoder.encode_queries(queries)
        best = nearest(
            self._embeddings, vectors, k, self._store.rank, without, first_pass=self._first_pass
        )
        return [
            [Hit(self._store.passage(row), score) for row, score in zip(*pair, strict=True)]
            for pair in ((rows.tolist(), scores.tolist()) for rows, scores in best)
        ]


@dataclass(frozen=True)
class DenseKind:
    """Dense retrieval as a kind of index.

    Attributes:
        encoder: makes the vectors.
        factory: index of faiss; empty: chosen by size.
        shard: passages encoded before they are written.
    """

    encoder: Encoder
    factory: str = ""
    shard: int = SHARD
    name: str = "dense"

    def rules(self) -> dict[str, Any]:
        """Return encoder, precision and index of faiss."""
        return {
            **_entries(self.encoder),
            "precision": self.encoder.precision,
            "faiss": self.factory,
        }

    def carry(self, old: Path, kept: NDArray[np.bool_], work: Path, fresh: int) -> None:
        """Do nothing: vectors are found by what was encoded, wherever it stands now."""

    def missing(self, work: Path, count: int, old: Path | None) -> int:
        """Return the number of rows whose title and text have no vector in the old index."""
        return int((_known_rows(mapped(work / "content.npy"), old, self.encoder) < 0).sum())

    def make(self, work: Path, count: int, old: Path | None, progress: Progress | None) -> None:
        """Encode what is missing, shard by shard, and let faiss index everything."""
        factory = factory_for(count, self.encoder.width, self.factory)
        if factory:
            import_faiss()  # missing, it is told before the work, not after it
        known = _known_rows(mapped(work / "content.npy"), old, self.encoder)
        vectors = mapped(old / EMBEDDINGS) if old and (known >= 0).any() else None
        with _appended(work / EMBEDDINGS, count, self.encoder.width, self.shard) as (stream, done):
            for start in range(done, count, self.shard):
                if progress is not None and start:
                    progress(start, count)
                rows = known[start : start + self.shard]
                told = None
                if progress is not None:
                    told = lambda more, at=start: progress(at + more, count)  # noqa: E731
                stream.write(self._shard(work, start, rows, vectors, told).astype("<f4").tobytes())
                stream.flush()
        if progress is not None:
            progress(count, count)
        if factory:
            build_faiss(mapped(work / EMBEDDINGS), factory, work / _FAISS)

    def _shard(
        self, work: Path, start: int, known: Rows, vectors: Vectors | None,
        told: Callable[[int], None] | None,
    ) -> Vectors:  # fmt: skip
        made = np.empty((len(known), self.encoder.width), dtype=np.float32)
        if vectors is not None:
            made[known >= 0] = vectors[known[known >= 0]]
        fresh = np.flatnonzero(known < 0)
        if len(fresh):
            passages = list(read_rows(work, start, start + len(known)))
            made[fresh] = self.encoder.encode_passages([passages[at] for at in fresh], told)
        return made

    def estimate(self, sample: Sequence[Passage], count: int) -> Estimate:
        """Return an estimate: the encoder takes nearly all of the time."""
        part = sample[:_SAMPLED]
        self.encoder.encode_passages(part[:8])  # the first batch of a process is slow
        start = time.perf_counter()
        self.encoder.encode_passages(part)
        seconds = (time.perf_counter() - start) / len(part) * count
        size = sum(len(f"{p.id}{p.title}{p.text}".encode()) + 70 for p in sample) / len(sample)
        disk = int(count * (size + 4 * self.encoder.width))
        return Estimate(count, seconds, disk, held_memory() + LEAST_MEMORY + SORT_BYTES * count)

    def fingerprint(self, corpus: str, count: int) -> str:
        """Return the fingerprint of the dense index of a corpus, given its hash and size."""
        factory = factory_for(count, self.encoder.width, self.factory)
        made = (self.encoder.fingerprint, corpus, rules_of(factory), self.encoder.precision)
        return content_id("dense", *made)

    def open(self, folder: Path) -> DenseRetriever:
        """Return the opened index."""
        return open_dense(folder, self.encoder)


def _entries(encoder: Encoder) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "query_prefix": encoder.rules.query_prefix,
        "passage_prefix": encoder.rules.passage_prefix,
    }


def _known_rows(content: NDArray[np.uint64], old: Path | None, encoder: Encoder) -> Rows:
    # For each row, one of the old index with the same title and text, or -1.
    missing = np.full(len(content), -1, dtype=np.int64)
    manifest = read_json(old.parent / MANIFEST, what="index description") if old else {}
    same = {**_entries(encoder), "precision": encoder.precision}
    if old is None or any(manifest.get(name) != value for name, value in same.items()):
        return missing
    before = mapped(old / "content.npy")
    order = np.argsort(before, kind="stable")
    places = np.minimum(np.searchsorted(before, content, sorter=order), len(before) - 1)
    rows = order[places]
    return np.where(before[rows] == content, rows, missing)


@contextmanager
def _appended(
    path: Path, count: int, width: int, shard: int
) -> Iterator[tuple[io.BufferedWriter, int]]:
    # The file of vectors, opened to go on after the last whole shard, and the rows that it holds.
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(header, shape)
    size = len(header.getvalue())
    with path.open("ab") as stream:
        done = max(0, stream.tell() - size) // (4 * width * shard)
        stream.truncate(size + done * 4 * width * shard if done else 0)
        if not done:
            stream.write(header.getvalue())
        yield stream, done * shard


def build_dense(
    corpus: Corpus,
    folder: Path,
    encoder: Encoder,
    progress: Progress | None = None,
    *,
    factory: str = "",
    shard: int = SHARD,
) -> DenseRetriever:
    """Return the index of a corpus in a folder, made or brought up to date (see `DenseKind`)."""
    update_index(corpus, folder, DenseKind(encoder, factory, shard), progress)
    return open_dense(folder, encoder)


def open_dense(folder: Path, encoder: Encoder) -> DenseRetriever:
    """Return the index in a folder, memory-mapped.

    Raises:
        RaggdError: it is not a dense index, is damaged, was made by another encoder or with
            other prefixes, or needs faiss, which is not installed.
    """
    return open_folder(folder, "dense", lambda data, manifest: _opened(data, manifest, encoder))


def _opened(data: Path, manifest: dict[str, Any], encoder: Encoder) -> DenseRetriever:
    ours = _entries(encoder)
    for thing in ("query_prefix", "passage_prefix", "encoder_fingerprint"):
        if manifest.get(thing) != ours[thing]:
            raise RaggdError(
                f"the index at {data.parent} was made by the encoder '{manifest.get('encoder')}' "
                f"with {thing} '{manifest.get(thing)}', but '{encoder.name}' has '{ours[thing]}': "
                "name the encoder that made the index, or build it again with `raggd index PATH`."
            )
    store, embeddings = PassageStore(data), mapped(data / EMBEDDINGS)
    if embeddings.shape != (len(store), encoder.width):
        raise ValueError(f"{len(store)} passages, embeddings of shape {embeddings.shape}")
    factory = factory_for(len(store), encoder.width, str(manifest["faiss"]))
    first_pass = open_faiss(data / _FAISS, factory, len(store)) if factory else None
    return DenseRetriever(embeddings, store, encoder, manifest["fingerprint"], first_pass)
