"""BM25 as bm25s computes it: method lucene, k1 = 0.9, b = 0.4, English stop words, Snowball stems.

The score of a passage sums over the query's terms t (a repeated term counts again)
``idf(t) * tf / (tf + k1 * (1 - b + b * length / mean_length))`` with
``idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))``, N passages of which df hold t. Passages without
any term of the query score 0 and are never returned.

The index is built in segments, which bm25s itself cannot do: sorted one at a time in bounded
memory, scored and searched together. First the words of a range of rows are numbered and sorted;
nothing in that depends on other ranges, so a build that was stopped goes on after its last segment,
and a corpus that changed keeps those that it had, less the rows that went. When all are there, the
terms of all are joined, and document frequencies and the mean length of the whole corpus give each
posting its score: to the bit that of bm25s's index of everything. A segment is a folder, whole or
absent, named by its first row, with arrays as ``.npy``:

    keys      sorted hashes of its terms
    lengths   words of each passage
    indptr    where the postings of each term begin
    rows      rows of passages, counted from the segment's first, rising within a term
    counts    how often the passage of each posting holds its term
    bare      table of other spellings: its terms without accents
    apart     table of other spellings: what is written apart; the third column is a passage's row
    terms     numbers of its terms among those of the corpus, rising
    scores    what each posting adds to the score of its passage
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import Budget, Count, Rows, counted, top_k
from raggd.retrieval.folders import STATE
from raggd.retrieval.store import PassageStore, StoredRetriever, mapped, read_rows
from raggd.retrieval.terms import (
    Keys,
    TermNumbers,
    bare_spellings,
    bare_terms,
    inverse_frequencies,
    keys_apart,
    make_postings,
    merged,
    term_keys,
    terms_fingerprint,
    tokenize,
)

K1 = 0.9
B = 0.4
BUDGET = Budget(3_000_000_000)  # of a build, unless another is given
_PARAMETERS: dict[str, Any] = {"method": "lucene", "k1": K1, "b": B}

ROWS = 1 << 18
"""Most passages of a segment: its scores fit a processor's cache, and a kill costs one segment."""

LEAST_MEMORY = 64_000_000  # memory that is needed beyond what the process holds anyway, bytes

# Peak memory while a range is sorted or scored, per word of its passages: measured, with a margin;
# and per distinct word: two dictionaries of Python strings; per number of the table `apart`.
_WORD_BYTES, _ENTRY_BYTES, _APART_BYTES = 33, 170, 10
_CHECK_EVERY = 500
_SMALL = 1_000
_SORTED = ("keys", "lengths", "indptr", "rows", "counts", "bare", "apart")
_TERM_KEYS, _SPELLINGS = "term_keys.npy", "spellings.npy"


@dataclass(frozen=True, slots=True)
class Segment:
    """The postings of a range of passages, `count` from row `start`, mapped; arrays as above."""

    start: int
    count: int
    terms: NDArray[np.int32] | None  # None: all terms of the corpus
    indptr: NDArray[np.integer[Any]]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    def best(self, terms: Sequence[int], k: int, rank: Rows) -> tuple[Rows, NDArray[np.float32]]:
        """Return the `k` best rows of the corpus, and their scores; `rank` orders equal ones."""
        total = np.zeros(self.count, dtype=np.float32)
        for at in terms if self.terms is None else _places(self.terms, terms):
            part = slice(self.indptr[at], self.indptr[at + 1])
            np.add.at(total, self.rows[part], self.scores[part])
        rows = top_k(total, rank[self.start : self.start + self.count], k, above=0.0)
        return rows + self.start, total[rows]


def _places(values: NDArray[Any], wanted: Sequence[int] | NDArray[Any]) -> list[int]:
    # Where wanted ones stand among sorted values, all different, without those that do not. They
    # are made of the same type: otherwise NumPy would convert all values at each search.
    wanted = np.asarray(wanted, dtype=values.dtype)
    first, end = (np.searchsorted(values, wanted, side) for side in ("left", "right"))
    places: list[int] = first[first < end].tolist()
    return places


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*"))


def _array(part: Path, name: str) -> NDArray[Any]:
    return mapped(part / f"{name}.npy")


def _spans(folder: Path) -> list[tuple[int, int]]:
    # First row, and row after the last, of each segment; together they are the first rows.
    starts = [int(part.name.partition("-")[2]) for part in _parts(folder)]
    sizes = [len(_array(part, "lengths")) for part in _parts(folder)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _save(folder: Path, start: int, arrays: Mapping[str, NDArray[Any] | Path]) -> None:
    # A file of an earlier index is linked: it never changes.
    making = folder / "making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    for name, value in arrays.items():
        target = making / f"{name}.npy"
        if not isinstance(value, Path):
            np.save(target, value, allow_pickle=False)
            continue
        try:
            os.link(value, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(value, target)
    making.rename(folder / f"segment-{start:012d}")


def sort_range(passages: Iterable[Passage], room: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a range by name, as above; it ends where `room` bytes would not do."""
    vocabulary, numbers, lengths, apart = TermNumbers(), array("i"), array("i"), array("Q")
    for row, passage in enumerate(passages):
        text = f"{passage.title}\n{passage.text}"
        for joined, *parts in keys_apart(text):
            for part in parts:
                apart.extend((joined, part, row))
        found = vocabulary.of(text)
        numbers.fromlist(found)
        lengths.append(len(found))
        if len(lengths) % _CHECK_EVERY == 0:
            entries = _ENTRY_BYTES * (len(vocabulary) + len(vocabulary.terms))
            if _WORD_BYTES * len(numbers) + entries + _APART_BYTES * len(apart) > room:
                break
    terms = list(vocabulary.terms)
    del vocabulary
    keys, bare = term_keys(terms), bare_spellings(terms)
    order = np.argsort(keys)
    place = np.empty(len(terms), dtype=np.int32)
    place[order] = np.arange(len(terms), dtype=np.int32)
    del terms
    sizes = np.frombuffer(lengths, dtype=np.int32)
    words = place[np.frombuffer(numbers, dtype=np.int32)]
    indptr, rows, counts = make_postings(words, sizes, len(place))
    counts = counts.astype(np.min_scalar_type(counts.max(initial=0)))
    table = np.frombuffer(apart, dtype=np.uint64).reshape(-1, 3)
    arrays = (keys[order], sizes, indptr, rows, counts, bare, table)
    return dict(zip(_SORTED, arrays, strict=True))


def _thinned(part: Path, stay: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    keys, lengths, indptr, rows, counts, bare, apart = (_array(part, name) for name in _SORTED)
    held = stay[rows]
    place = np.cumsum(stay, dtype=np.int32) - 1
    left = np.concatenate([[0], np.cumsum(held)])[indptr]
    used = np.diff(left) > 0  # a term of no other passage goes too
    keys, left = keys[used], np.append(0, left[1:][used])
    apart = apart[stay[apart[:, 2].astype(np.int64)]]
    apart[:, 2] = place[apart[:, 2].astype(np.int64)]
    bare = bare[np.isin(bare[:, 1], keys)]
    arrays = (keys, lengths[stay], left, place[rows[held]], counts[held], bare, apart)
    return dict(zip(_SORTED, arrays, strict=True))


def score_segments(folder: Path, passages: int) -> int:
    """Return the number of postings, once the terms of all segments are joined and these scored."""
    parts = _parts(folder)
    keys: Keys = reduce(np.union1d, (_array(part, "keys") for part in parts))
    np.save(folder / _TERM_KEYS, keys, allow_pickle=False)
    tables = (_array(part, name) for part in parts for name in ("bare", "apart"))
    np.save(folder / _SPELLINGS, reduce(merged, tables).T.copy(), allow_pickle=False)
    found = np.zeros(len(keys), dtype=np.int64)  # passages of each term
    words = 0
    for part in parts:
        own = np.searchsorted(keys, _array(part, "keys")).astype(np.int32)
        found[own] += np.diff(_array(part, "indptr"))
        np.save(part / "terms.npy", own, allow_pickle=False)
        words += int(_array(part, "lengths").sum(dtype=np.int64))
    if found.any():
        weights, mean = inverse_frequencies(found, passages), words / passages
        for part in parts:
            np.save(part / "scores.npy", _scores(part, weights, mean), allow_pickle=False)
    return int(found.sum())


def _scores(part: Path, weights: NDArray[np.float32], mean: float) -> NDArray[np.float32]:
    # Step by step in the types of bm25s, so that the bits are the same.
    lengths, often = _array(part, "lengths"), _array(part, "counts").astype(np.float32)
    norm = K1 * ((1 - B) + B * lengths.astype(np.int64) / mean)
    each = np.repeat(weights[_array(part, "terms")], np.diff(_array(part, "indptr")))
    return np.asarray(each * (often / (norm[_array(part, "rows")] + often)), dtype=np.float32)


class BM25Retriever(StoredRetriever):
    """An opened BM25 index; passages that share no term with the query are never returned."""

    def __init__(
        self, segments: Sequence[Segment], keys: Keys, store: PassageStore, fingerprint: str
    ) -> None:
        super().__init__(store, fingerprint)
        self._segments, self._keys = segments, keys
        self._spellings = mapped(store.folder / _SPELLINGS)
        self._find_terms = lru_cache(maxsize=100_000)(self._numbers)

    def _numbers(self, term: str) -> list[int]:
        # Of a term among all sorted ones; where no passage holds it, of those it may stand for.
        return self._meant(term) or [n for bare in bare_terms(term) for n in self._meant(bare)]

    def _meant(self, term: str) -> list[int]:
        key, (others, terms) = term_keys([term]), self._spellings
        if there := _places(self._keys, key):
            return there
        start, end = (int(np.searchsorted(others, key[0], side)) for side in ("left", "right"))
        return _places(self._keys, terms[start:end])

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._one(query, k) for query in queries]

    def _one(self, query: str, k: int) -> list[Hit]:
        terms = [number for term in tokenize(query) for number in self._find_terms(term)]
        for joined, *parts in keys_apart(query):
            if len(_places(self._keys, parts)) < len(parts):
                terms += _places(self._keys, [joined])
        if not terms:
            return []
        found = [segment.best(terms, k, self.store.rank) for segment in self._segments]
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        if len(found) > 1:
            best = top_k(scores, self.store.rank[rows], k)
            rows, scores = rows[best], scores[best]
        return self._hits(rows, scores)


@dataclass(frozen=True)
class BM25Kind:
    """BM25 as a kind of index, built within a bound of memory in segments of at most `rows`."""

    budget: Budget = BUDGET
    rows: int = ROWS
    name: str = "bm25"

    def rules(self) -> dict[str, Any]:
        """Return all but the corpus that decides what is found: parameters and tokenizer."""
        return {"parameters": _PARAMETERS, "tokenizer": terms_fingerprint()}

    def carry(self, old: Path, kept: NDArray[np.bool_], work: Path, fresh: int) -> None:
        """Carry the segments of an earlier index over, without the rows that are gone.

        `kept`, (rows,), says which stay: in `work` they are the first, and `fresh` ones follow.
        Small segments at the end are left out, to be sorted anew with the fresh rows: sizes then
        fall geometrically, and however often a corpus changes, its segments stay few.
        """
        stays = [kept[start:end] for start, end in _spans(old)]
        sizes = [int(stay.sum()) for stay in stays]
        starts = np.cumsum([0, *sizes]).tolist()
        while sizes and sizes[-1] <= max(2 * fresh, _SMALL) and sizes[-1] + fresh <= ROWS:
            fresh += sizes.pop()
        for part, stay, size, start in zip(_parts(old), stays, sizes, starts, strict=False):
            if size == len(stay):
                _save(work, start, {name: part / f"{name}.npy" for name in _SORTED})
            elif size:
                _save(work, start, _thinned(part, stay))

    def make(self, work: Path, passages: int, old: Path | None, count: Count) -> None:
        """Sort the words of what is in no segment yet, then score all; without words, refuse."""
        while (done := max((end for _, end in _spans(work)), default=0)) < passages:
            count(done, passages)
            self.budget.require(LEAST_MEMORY, f"an index of {passages} passages")
            rows = read_rows(work, done, min(done + self.rows, passages))
            part = counted(rows, done, passages, count)
            _save(work, done, sort_range(part, self.budget.left() - LEAST_MEMORY // 2))
        count(passages, passages)
        if not score_segments(work, passages):
            (work / STATE).unlink()  # nothing to go on from
            raise RaggdError(
                f"none of the {passages} passages holds a word to index: BM25 needs text with "
                "words other than English stop words."
            )

    def fingerprint(self, corpus: str, count: int = 0) -> str:
        """Return the fingerprint of the BM25 index of a corpus, given its hash."""
        parameters = [f"{name}={value}" for name, value in _PARAMETERS.items()]
        return content_id("bm25", *parameters, terms_fingerprint(), corpus)

    def open(self, data: Path, manifest: Mapping[str, Any]) -> BM25Retriever:
        """Return the index in a folder, memory-mapped; a `ValueError` says what does not fit."""
        store, keys = PassageStore(data), mapped(data / _TERM_KEYS)
        found = []
        for part, (start, end) in zip(_parts(data), _spans(data), strict=True):
            names = ("terms", "indptr", "rows", "scores")
            terms, indptr, rows, scores = (_array(part, name) for name in names)
            if len(indptr) != len(terms) + 1 or not len(rows) == len(scores) == indptr[-1]:
                raise ValueError(f"the files of the segment of row {start} do not belong together")
            own = None if len(terms) == len(keys) else terms
            found.append(Segment(start, end - start, own, indptr, rows, scores))
        if sum(segment.count for segment in found) != len(store):
            raise ValueError("its passages and its scores do not belong together")
        return BM25Retriever(found, keys, store, str(manifest["fingerprint"]))
