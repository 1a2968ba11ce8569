"""BM25 postings in segments: built one at a time in bounded memory, searched together.

A segment holds the postings of a range of passages. First the words of each range are numbered,
sorted and written (`raggd.retrieval.ranges`); when all are there, the terms of all are joined, and
document frequencies and the mean length of the whole corpus give each posting its score (second
pass). So scores are those of one index of everything. Per segment N the folder holds, as ``.npy``:

    N.terms    numbers of its terms among those of the corpus, rising
    N.indptr   where the postings of each term begin
    N.rows     rows of passages, counted from the segment's first, rising within a term
    N.scores   what each posting adds to the score of its passage

and for all of them ``term_keys`` (sorted hashes of the terms) and ``segments`` (first rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.retrieval.postings import Keys, bm25_scores, inverse_frequencies, places_of, union_of
from raggd.retrieval.ranges import finished_ranges, range_file, range_state

_POSTINGS_AT_ONCE = 1_000_000
_SMALL = ("terms", "indptr", "lengths")
_KEPT = ("terms", "indptr", "rows", "scores")
_DROPPED = ("keys", "lengths", "counts")


@dataclass(frozen=True, slots=True)
class Segment:
    """The postings of a range of passages, mapped.

    Attributes:
        start: its first row.
        count: its passages.
        terms: numbers of its terms, rising, shape (terms,); None: all terms of the corpus.
        indptr: where each term's postings begin, shape (terms + 1,).
        rows: rows from `start`, shape (postings,).
        scores: shape (postings,).
    """

    start: int
    count: int
    terms: NDArray[np.int32] | None
    indptr: NDArray[np.integer[Any]]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    def score(self, terms: Sequence[int]) -> NDArray[np.float32]:
        """Add up the scores of a query.

        Args:
            terms: its term numbers; a repeated one counts again.

        Returns:
            Score of each passage, shape (count,).
        """
        total = np.zeros(self.count, dtype=np.float32)
        for at in self._places(terms):
            part = slice(self.indptr[at], self.indptr[at + 1])
            np.add.at(total, self.rows[part], self.scores[part])
        return total

    def _places(self, terms: Sequence[int]) -> Sequence[int]:
        if self.terms is None:
            return terms
        # Of the same type: otherwise NumPy would convert all terms of the segment at each search.
        asked = np.array(terms, dtype=self.terms.dtype)
        places = np.searchsorted(self.terms, asked)
        known = self.terms[np.minimum(places, len(self.terms) - 1)] == asked
        return [int(place) for place, held in zip(places, known, strict=True) if held]


def _file(folder: Path, number: int, what: str) -> Path:
    return folder / f"segment-{number:06d}.{what}.npy"


def score_segments(folder: Path, passages: int, k1: float, b: float) -> int:
    """Join the terms of all ranges and score their postings (the second pass).

    Args:
        folder: where the first pass is done.
        passages: number of all passages.
        k1: of BM25.
        b: of BM25.

    Returns:
        The number of different terms; 0 leaves the folder as it is.
    """
    states = finished_ranges(folder)
    starts = [state["start"] for state in states]
    mean = np.float64(sum(state["words"] for state in states)) / passages
    found = _joined_terms(folder, starts)
    if not len(found):
        return 0
    weights = inverse_frequencies(found, passages)
    for start in starts:
        _score_range(folder, start, weights, float(mean), k1, b)
    np.save(folder / "segments.npy", np.array([*starts, passages]), allow_pickle=False)
    for stale in folder.glob("segment-*"):
        stale.unlink()
    for number, start in enumerate(starts):
        range_state(folder, start).unlink()  # first: from here on it must be made anew
        for name in _KEPT:
            range_file(folder, start, name).rename(_file(folder, number, name))
        for name in _DROPPED:
            range_file(folder, start, name).unlink()
    return len(found)


def _joined_terms(folder: Path, starts: Sequence[int]) -> NDArray[np.int64]:
    # Number the terms of all ranges in the order of their keys; count the passages of each.
    joined = union_of(_loaded(range_file(folder, start, "keys")) for start in starts)
    found = np.zeros(joined.shape[1], dtype=np.int64)
    for start in starts:
        own = places_of(_loaded(range_file(folder, start, "keys")), joined)
        found[own] += np.diff(_loaded(range_file(folder, start, "indptr")))
        np.save(range_file(folder, start, "terms"), own, allow_pickle=False)
    np.save(folder / "term_keys.npy", joined, allow_pickle=False)
    return found


def _score_range(
    folder: Path, start: int, weights: NDArray[np.float32], mean: float, k1: float, b: float
) -> None:
    terms, indptr, lengths = (_loaded(range_file(folder, start, name)) for name in _SMALL)
    with range_file(folder, start, "scores").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (int(indptr[-1]),)}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in _term_ranges(indptr):
            postings = slice(indptr[part.start], indptr[part.stop])
            # Mapped anew each time: pages of a map that stays would count as memory held.
            rows, counts = (
                np.array(_loaded(range_file(folder, start, name))[postings])
                for name in ("rows", "counts")
            )
            own = np.repeat(weights[terms[part]], np.diff(indptr[part.start : part.stop + 1]))
            scores = bm25_scores(counts, lengths[rows], own, mean, k1, b)
            stream.write(scores.astype("<f4").tobytes())


def _term_ranges(indptr: NDArray[np.int64]) -> Iterator[slice]:
    # Ranges of terms with about a million postings together (or one term with more).
    start, terms = 0, len(indptr) - 1
    while start < terms:
        limit = indptr[start] + _POSTINGS_AT_ONCE
        end = max(start + 1, int(np.searchsorted(indptr, limit, side="right")) - 1)
        yield slice(start, min(end, terms))
        start = end


def _loaded(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_segments(folder: Path) -> tuple[list[Segment], Keys]:
    """Map the segments of a finished folder.

    Args:
        folder: what `score_segments` finished.

    Returns:
        The segments, and the keys of all terms, shape (2, terms), sorted.

    Raises:
        ValueError: files do not belong together.
    """
    keys: Keys = _loaded(folder / "term_keys.npy")
    starts = _loaded(folder / "segments.npy").tolist()
    found = []
    for number, (start, end) in enumerate(pairwise(starts)):
        terms, indptr, rows, scores = (_loaded(_file(folder, number, name)) for name in _KEPT)
        if len(indptr) != len(terms) + 1 or not len(rows) == len(scores) == indptr[-1]:
            raise ValueError(f"the files of segment {number} do not belong together")
        all_terms = len(terms) == keys.shape[1]
        found.append(
            Segment(start, end - start, None if all_terms else terms, indptr, rows, scores)
        )
    return found, keys
