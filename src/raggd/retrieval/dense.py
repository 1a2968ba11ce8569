"""Dense retrieval: stored embeddings, searched exactly up to 200,000 passages, then by a graph."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, replacing, write_json
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Progress
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.graph import GRAPH_RULES, build_graph, import_faiss, open_graph
from raggd.retrieval.store import (
    PassageStore,
    StoreInfo,
    check_replaceable,
    put_in_place,
    read_manifest,
    write_errors,
    write_manifest,
    write_store,
)
from raggd.retrieval.stored import StoredRetriever
from raggd.retrieval.vectors import FirstPass, nearest

SHARD = 2048
"""Passages per shard while an index is made: at most these are encoded again after a kill."""

_GRAPH = "graph.faiss"

FAISS_FROM = 200_000
"""Passages from which a faiss graph finds the candidates."""


class DenseRetriever(StoredRetriever):
    """An opened dense index with the encoder that made it; scores are cosines."""

    def __init__(
        self,
        embeddings: NDArray[np.float32],
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


def build_dense(
    passages: Iterable[Passage],
    folder: Path,
    encoder: Encoder,
    progress: Progress | None = None,
    *,
    shard: int = SHARD,
    faiss_from: int = FAISS_FROM,
) -> DenseRetriever:
    """Build an index folder; a build that was stopped goes on where it was, to the same bytes.

    While it runs, everything lies in the folder ``.NAME.partial`` beside `folder`, embeddings in
    shards. The passages are read anew each time; shards of another corpus or encoder are dropped.

    Args:
        passages: the corpus.
        folder: the index folder; an index that is there is replaced at the end.
        encoder: makes the embeddings.
        progress: called with passages encoded and all passages, after each batch.
        shard: passages per shard.
        faiss_from: passages from which a graph is built (once the embeddings are done).

    Returns:
        The opened index.
    """
    check_replaceable(folder)
    work = folder.with_name(f".{folder.name}.partial")
    with write_errors(folder):
        work.mkdir(parents=True, exist_ok=True)
        info = _prepare(passages, work, encoder, shard)
        if info.count >= faiss_from:
            import_faiss()  # missing, it is told before the work, not after it
        _encode_shards(PassageStore(work), work, encoder, progress, shard)
        _merge_shards(work, info.count, encoder.width)
        graph = info.count >= faiss_from
        if graph:
            build_graph(np.load(work / "embeddings.npy", mmap_mode="r"), work / _GRAPH)
        fingerprint = dense_fingerprint(encoder, info.corpus_hash, faiss_from=faiss_from)
        entries = {"fingerprint": fingerprint, "graph": graph, **_encoder_entries(encoder)}
        write_manifest(work, "dense", info, **entries)
        put_in_place(work, folder)
        for leftover in (*_shards(folder), folder / "state.json"):
            leftover.unlink(missing_ok=True)
    return open_dense(folder, encoder)


def _prepare(passages: Iterable[Passage], work: Path, encoder: Encoder, shard: int) -> StoreInfo:
    # The store goes in file by file by rename, so that another build's open maps stay valid.
    fresh = Path(tempfile.mkdtemp(prefix="store.", dir=work))
    try:
        info = write_store(passages, fresh)
        for file in fresh.iterdir():
            file.replace(work / file.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    state = {"corpus_hash": info.corpus_hash, "shard": shard, **_encoder_entries(encoder)}
    state["precision"] = encoder.precision
    state_file = work / "state.json"
    if not state_file.is_file() or read_json(state_file, what="build state") != state:
        for stale in _shards(work):
            stale.unlink(missing_ok=True)
        write_json(state_file, state)
    return info


def _encoder_entries(encoder: Encoder) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "query_prefix": encoder.rules.query_prefix,
        "passage_prefix": encoder.rules.passage_prefix,
    }


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.npy"))


def _encode_shards(
    store: PassageStore, work: Path, encoder: Encoder, progress: Progress | None, shard: int
) -> None:
    for start in range(0, len(store), shard):
        file = work / f"shard-{start // shard:06d}.npy"
        end = min(start + shard, len(store))

        def done(count: int, start: int = start) -> None:
            if progress is not None:
                progress(start + count, len(store))

        if not file.is_file():
            batch = [store.passage(row) for row in range(start, end)]
            vectors = encoder.encode_passages(batch, done)
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)
        done(end - start)


def _merge_shards(work: Path, count: int, width: int) -> None:
    with replacing(work / "embeddings.npy") as temporary:
        merged = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float32, shape=(count, width)
        )
        start = 0
        for file in _shards(work):
            vectors = np.load(file, allow_pickle=False)
            merged[start : start + len(vectors)] = vectors
            start += len(vectors)
        merged.flush()
        temporary.chmod(0o644)


def dense_fingerprint(encoder: Encoder, corpus_hash: str, *, faiss_from: int = FAISS_FROM) -> str:
    """Return the fingerprint that a dense index of a corpus has."""
    rules = [GRAPH_RULES, str(faiss_from), encoder.precision]
    return content_id("dense", encoder.fingerprint, corpus_hash, *rules)


def open_dense(folder: Path, encoder: Encoder) -> DenseRetriever:
    """Open an index folder; embeddings and passages are memory-mapped, a graph is loaded.

    Args:
        folder: what `build_dense` wrote.
        encoder: the encoder that it was built with.

    Returns:
        The index.

    Raises:
        RaggdError: it is not a dense index, is damaged, was made by another encoder or with
            other prefixes, or needs faiss, which is not installed.
    """
    manifest = read_manifest(folder, "dense")
    ours = _encoder_entries(encoder)
    for thing in ("query_prefix", "passage_prefix", "encoder_fingerprint"):
        if manifest.get(thing) != ours[thing]:
            raise RaggdError(
                f"the index at {folder} was made by the encoder '{manifest.get('encoder')}' with "
                f"{thing} '{manifest.get(thing)}', but '{encoder.name}' has '{ours[thing]}': name "
                "the encoder that made the index, or build it again with `raggd index PATH`."
            )
    try:
        embeddings = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        store = PassageStore(folder)
    except (OSError, ValueError) as error:
        raise RaggdError(
            f"the index at {folder} is damaged ({error}): delete the folder and build it again."
        ) from error
    if embeddings.shape != (len(store), encoder.width):
        raise RaggdError(
            f"the index at {folder} is damaged: {len(store)} passages, embeddings of shape "
            f"{embeddings.shape}. Delete the folder and build it again."
        )
    first_pass = open_graph(folder / _GRAPH, len(store)) if manifest.get("graph") else None
    return DenseRetriever(embeddings, store, encoder, manifest["fingerprint"], first_pass)
