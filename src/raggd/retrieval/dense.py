"""Dense retrieval: stored embeddings, compared one by one or through faiss in large corpora."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, write_json
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Progress
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.folders import building, read_manifest, write_manifest
from raggd.retrieval.graph import GRAPH_RULES, build_graph, import_faiss, open_graph
from raggd.retrieval.inverted import IVF_RULES, build_ivf, open_ivf
from raggd.retrieval.shards import EMBEDDINGS, drop_shards, encode_shards, open_shards
from raggd.retrieval.store import STORED, PassageStore, prepare_store
from raggd.retrieval.stored import StoredRetriever
from raggd.retrieval.vectors import FirstPass, nearest

SHARD = 2048
"""Passages per shard while an index is made: at most these are encoded again after a kill."""

_STATE = "state.json"

FAISS_FROM = 200_000
"""Passages from which a faiss graph finds the candidates."""

IVF_FROM = 1_000_000
"""Passages from which an IVF index does, unless the settings say otherwise."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """From which size of the corpus candidates are found in which way.

    Attributes:
        graph: passages from which there is a graph; fewer are compared one by one.
        ivf: passages from which there is an IVF index instead.
    """

    graph: int = FAISS_FROM
    ivf: int = IVF_FROM

    def way(self, count: int) -> str:
        """Name the way for a corpus.

        Args:
            count: its passages.

        Returns:
            ``exact``, ``graph`` or ``ivf``.
        """
        return "ivf" if count >= self.ivf else "graph" if count >= self.graph else "exact"


_RULES = {"exact": "exact", "graph": GRAPH_RULES, "ivf": IVF_RULES}
_BUILD = {"graph": build_graph, "ivf": build_ivf}
_OPEN = {"graph": open_graph, "ivf": open_ivf}


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
    known: str | None = None,
    shard: int = SHARD,
    sizes: Sizes | None = None,
) -> DenseRetriever:
    """Build an index folder; a build that was stopped goes on where it was, to the same bytes.

    While it runs, everything lies in the folder ``.NAME.partial`` beside `folder`. Vectors of
    another corpus or encoder that lie there are dropped.

    Args:
        passages: the corpus.
        folder: the index folder; an index that is there is replaced at the end.
        encoder: makes the embeddings.
        progress: called with passages encoded and all passages, after each batch.
        known: hash of the corpus, if known; a resumed build then does not read it again.
        shard: passages per shard.
        sizes: from which size candidates are found by faiss; None: the defaults.

    Returns:
        The opened index.
    """
    with building(folder, _resumable) as work:
        info = prepare_store(passages, work, known)
        way = (sizes or Sizes()).way(info.count)
        if way != "exact":
            import_faiss()  # missing, it is told before the work, not after it
        state = {"corpus_hash": info.corpus_hash, "precision": encoder.precision}
        _keep_matching(work, {**state, "shard": shard, **_encoder_entries(encoder)})
        with open_shards(work, info.count, encoder.width, shard) as shards:
            encode_shards(shards, encoder, progress)
        if way != "exact":
            _BUILD[way](np.load(work / EMBEDDINGS, mmap_mode="r"), work / f"{way}.faiss")
        for leftover in (STORED, _STATE):
            (work / leftover).unlink()
        fingerprint = dense_fingerprint(encoder, info.corpus_hash, way)
        entries = {"fingerprint": fingerprint, "first_pass": way, **_encoder_entries(encoder)}
        write_manifest(work, "dense", info.count, info.corpus_hash, **entries)
    return open_dense(folder, encoder)


def _resumable(work: Path) -> bool:
    return (work / EMBEDDINGS).is_file()


def _keep_matching(work: Path, state: dict[str, Any]) -> None:
    # Vectors of another corpus or encoder are of no use.
    file = work / _STATE
    if not file.is_file() or read_json(file, what="build state") != state:
        drop_shards(work)
        write_json(file, state)


def _encoder_entries(encoder: Encoder) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "query_prefix": encoder.rules.query_prefix,
        "passage_prefix": encoder.rules.passage_prefix,
    }


def dense_fingerprint(encoder: Encoder, corpus_hash: str, way: str) -> str:
    """Compute the fingerprint of a dense index.

    Args:
        encoder: makes its embeddings.
        corpus_hash: hash of the corpus.
        way: how candidates are found.

    Returns:
        The fingerprint.
    """
    return content_id("dense", encoder.fingerprint, corpus_hash, _RULES[way], encoder.precision)


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
        embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
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
    # Before there was another way, the entry was called `graph`.
    way = manifest.get("first_pass", "graph" if manifest.get("graph") else "exact")
    first_pass = None if way == "exact" else _OPEN[way](folder / f"{way}.faiss", len(store))
    return DenseRetriever(embeddings, store, encoder, manifest["fingerprint"], first_pass)
