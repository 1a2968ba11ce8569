"""BM25 as bm25s computes it: method lucene, k1 = 0.9, b = 0.4, English stop words, Snowball stems.

The score of a passage sums over the query's terms t (a repeated term counts again)
``idf(t) * tf / (tf + k1 * (1 - b + b * length / mean_length))`` with
``idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))``, N passages of which df hold t. Passages without
any term of the query score 0 and are never returned.

The index is built in segments (`raggd.retrieval.segments`), which bm25s itself cannot do; it also
opens indexes that bm25s wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from raggd.files import read_json, write_json
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Progress, Rows, top_k
from raggd.retrieval.folders import building, read_manifest, write_manifest
from raggd.retrieval.memory import Budget, parse_size
from raggd.retrieval.postings import Keys, term_keys
from raggd.retrieval.ranges import LEAST_MEMORY, ROWS, drop_ranges, sort_ranges
from raggd.retrieval.segments import Segment, open_segments, score_segments
from raggd.retrieval.store import SORT_BYTES, STORED, PassageStore, prepare_store
from raggd.retrieval.stored import StoredRetriever
from raggd.retrieval.tokenizer import Tokenize, tokenize, tokenizer_fingerprint

K1 = 0.9
B = 0.4
MEMORY = "3GB"
"""Bound on the memory of a build unless another is given."""
_PARAMETERS: dict[str, Any] = {"method": "lucene", "k1": K1, "b": B}
_STATE = "state.json"

FindTerm = Callable[[str], int | None]
"""From a term to its number in the index; None where no passage holds it."""


class BM25Retriever(StoredRetriever):
    """An opened BM25 index.

    Only passages that share a term with the query are returned, so a list of hits may be shorter
    than asked for, or empty.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        find_term: FindTerm,
        store: PassageStore,
        fingerprint: str,
        tokenizer: Tokenize = tokenize,
    ) -> None:
        """Take the opened parts.

        Args:
            segments: the postings.
            find_term: numbers terms.
            store: the passages.
            fingerprint: hash of parameters, tokenizer and corpus.
            tokenizer: splits queries as the passages were split.
        """
        super().__init__(store, fingerprint)
        self._segments = segments
        self._find_term = lru_cache(maxsize=100_000)(find_term)
        self._tokenize = tokenizer

    def _search(
        self, queries: Sequence[str], k: int, excluded: Sequence[Collection[str]]
    ) -> list[list[Hit]]:
        return [self._one(q, k, ids) for q, ids in zip(queries, excluded, strict=True)]

    def _one(self, query: str, k: int, excluded: Collection[str]) -> list[Hit]:
        numbers = map(self._find_term, self._tokenize(query))
        terms = [number for number in numbers if number is not None]
        if not terms:
            return []
        without = np.array(self._store.rows(excluded), dtype=np.int64)
        found = [self._best_of(segment, terms, k, without) for segment in self._segments]
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        if len(found) > 1:
            best = top_k(scores, self._store.rank[rows], k)
            rows, scores = rows[best], scores[best]
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [Hit(self._store.passage(row), score) for row, score in pairs]

    def _best_of(
        self, segment: Segment, terms: Sequence[int], k: int, excluded: Rows
    ) -> tuple[Rows, Any]:
        scores = segment.score(terms)
        end = segment.start + segment.count
        inside = excluded[(excluded >= segment.start) & (excluded < end)] - segment.start
        rows = top_k(scores, self._store.rank[segment.start : end], k, inside, above=0.0)
        return rows + segment.start, scores[rows]


def build_bm25(
    passages: Iterable[Passage],
    folder: Path,
    progress: Progress | None = None,
    *,
    budget: Budget | None = None,
    known: tuple[int, str] | None = None,
    rows: int = ROWS,
) -> BM25Retriever:
    """Build an index folder; it appears whole, or not at all.

    Passages are streamed to disk, then sorted into segments as large as the memory bound allows.
    A build that was killed goes on with the segments that are missing.

    Args:
        passages: the corpus.
        folder: the index folder; an index that is there is replaced.
        progress: called with the number of passages done and all of them.
        budget: the memory bound; None: 3 GB.
        known: number of passages and hash of the corpus, if known; a resumed build then does not
            read the passages again.
        rows: most passages of a segment.

    Returns:
        The opened index.

    Raises:
        RaggdError: the corpus is empty or has no words, the memory bound is too small, or the
            folder cannot be written.
    """
    budget = budget or Budget(parse_size(MEMORY))
    count, corpus = known or (0, None)
    budget.require(LEAST_MEMORY + SORT_BYTES * count, f"an index of {count or 'any'} passages")
    with building(folder, _resumable) as work:
        info = prepare_store(passages, work, corpus)
        _keep_matching(work, info.corpus_hash)
        sort_ranges(work, info.count, budget, progress, rows)
        if not score_segments(work, info.count, K1, B):
            (work / STORED).unlink()  # nothing to go on from
            raise RaggdError(
                f"none of the {info.count} passages holds a word to index: BM25 needs text with "
                "words other than English stop words."
            )
        for leftover in (STORED, _STATE):
            (work / leftover).unlink()
        details = {**_rules(), "fingerprint": bm25_fingerprint(info.corpus_hash)}
        write_manifest(work, "bm25", info.count, info.corpus_hash, **details)
    return open_bm25(folder)


def _resumable(work: Path) -> bool:
    return (work / STORED).is_file()


def _keep_matching(work: Path, corpus_hash: str) -> None:
    # Segments of another corpus or tokenizer are of no use.
    state = {"corpus_hash": corpus_hash, **_rules()}
    file = work / _STATE
    if not file.is_file() or read_json(file, what="state of the build") != state:
        drop_ranges(work)
        write_json(file, state)


def _rules() -> dict[str, Any]:
    return {"parameters": _PARAMETERS, "tokenizer": tokenizer_fingerprint()}


def bm25_fingerprint(corpus_hash: str) -> str:
    """Return the fingerprint that a BM25 index of a corpus has."""
    parameters = [f"{name}={value}" for name, value in _PARAMETERS.items()]
    return content_id("bm25", *parameters, tokenizer_fingerprint(), corpus_hash)


def open_bm25(folder: Path) -> BM25Retriever:
    """Open an index folder, memory-mapped.

    Args:
        folder: what `build_bm25` wrote.

    Returns:
        The index.

    Raises:
        RaggdError: it is not a BM25 index, is damaged, or was made with another format version,
            other parameters or another tokenizer.
    """
    manifest = read_manifest(folder, "bm25")
    for thing, ours in _rules().items():
        if manifest.get(thing) != ours:
            raise RaggdError(
                f"the index at {folder} was made with {thing} {manifest.get(thing)}, this raggd "
                f"uses {ours}: build the index again with `raggd index PATH`."
            )
    try:
        return _opened(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RaggdError(
            f"the index at {folder} is damaged ({error}): delete the folder and build it again."
        ) from error


def _opened(folder: Path, manifest: dict[str, Any]) -> BM25Retriever:
    store = PassageStore(folder)
    if manifest["format"] == 1:  # as bm25s wrote it
        segment, find_term = open_bm25s(folder)
        segments = [segment]
    else:
        segments, keys = open_segments(folder)
        find_term = key_finder(keys)
    if sum(segment.count for segment in segments) != len(store):
        raise ValueError("its passages and its scores do not belong together")
    return BM25Retriever(segments, find_term, store, bm25_fingerprint(manifest["corpus_hash"]))


def key_finder(keys: Keys) -> FindTerm:
    """Make a search for terms among sorted keys.

    Args:
        keys: keys of all terms, shape (2, terms), sorted.

    Returns:
        The search.
    """

    def find(term: str) -> int | None:
        key = term_keys([term])[:, 0]
        place = int(np.searchsorted(keys[0], key[0]))
        while place < keys.shape[1] and keys[0, place] == key[0]:
            if keys[1, place] == key[1]:
                return place
            place += 1
        return None

    return find


def open_bm25s(folder: Path) -> tuple[Segment, FindTerm]:
    """Map an index that bm25s saved.

    Args:
        folder: the index of bm25s.

    Returns:
        Its postings as one segment, and its vocabulary.
    """
    import bm25s

    # It sets its own logger to DEBUG, which would fill any log that an application keeps.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25.load(folder, mmap=True, backend="numpy", show_progress=False)
    scores = index.scores
    arrays = [np.asarray(scores[name]) for name in ("indptr", "indices", "data")]
    vocabulary: dict[str, int] = index.vocab_dict
    return Segment(0, int(scores["num_docs"]), None, *arrays), vocabulary.get
