"""BM25 postings in segments: built one at a time in bounded memory, searched together.

A segment holds the postings of a range of passages. While it is built, its words are numbered,
sorted and written (first pass); when all are there, the terms of all segments are joined, and
document frequencies and the mean length of the whole corpus give each posting its score (second
pass). So scores are those of one index of everything. Per segment N the folder holds, as ``.npy``:

    N.terms    numbers of its terms among those of the corpus, rising
    N.indptr   where the postings of each term begin
    N.rows     rows of passages, counted from the segment's first, rising within a term
    N.scores   what each posting adds to the score of its passage

and for all of them ``term_keys`` (sorted hashes of the terms) and ``segments`` (first rows).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, write_json
from raggd.retrieval.base import Progress
from raggd.retrieval.memory import Budget
from raggd.retrieval.postings import (
    Keys,
    bm25_scores,
    inverse_frequencies,
    key_order,
    make_postings,
    places_of,
    term_keys,
    union_of,
)
from raggd.retrieval.store import read_passages_of
from raggd.retrieval.tokenizer import TermNumbers

ROWS = 1 << 18
"""Most passages of a segment: its scores fit a processor's cache, and a kill costs one segment."""

LEAST_MEMORY = 64_000_000
"""Memory that is needed beyond what the process holds anyway, bytes."""

WORD_BYTES = 33
"""Peak memory while a segment is sorted, per word of its passages: measured, with a margin."""

# The same per distinct word: two dictionaries of Python strings.
_ENTRY_BYTES = 170
_CHECK_EVERY = 500
_POSTINGS_AT_ONCE = 1_000_000
_SMALL = ("terms", "indptr", "lengths")


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


def _done(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:06d}.json"


def finished_segments(folder: Path) -> list[tuple[int, int]]:
    """Return the (first row, row after the last) of the segments whose first pass is done."""
    found: list[tuple[int, int]] = []
    while _done(folder, len(found)).is_file():
        state = read_json(_done(folder, len(found)), what="state of a segment")
        found.append((state["start"], state["end"]))
    return found


def drop_segments(folder: Path) -> None:
    """Delete all segments, whole or not, of a partial folder."""
    for file in folder.glob("segment-*"):
        file.unlink()


def write_segments(
    folder: Path,
    passages: int,
    budget: Budget,
    progress: Progress | None = None,
    rows: int = ROWS,
) -> int:
    """Sort the passages of a store into segments (the first pass), going on from finished ones.

    Args:
        folder: a folder with a store.
        passages: number of its passages.
        budget: decides, with `rows`, where a segment ends.
        progress: called with the passages done and all of them.
        rows: most passages of a segment.

    Returns:
        The number of segments.
    """
    done = finished_segments(folder)
    start, number = (done[-1][1] if done else 0), len(done)
    while start < passages:
        budget.require(LEAST_MEMORY, f"an index of {passages} passages")
        end = min(start + rows, passages)
        end = _write_segment(folder, number, start, end, budget, progress, passages)
        start, number = end, number + 1
    return number


def _write_segment(
    folder: Path, number: int, start: int, end: int, budget: Budget,
    progress: Progress | None, total: int,
) -> int:  # fmt: skip
    vocabulary, numbers, lengths = TermNumbers(), array("i"), array("i")
    room = budget.left() - LEAST_MEMORY // 2
    for passage in read_passages_of(folder, start, end):
        lengths.append(vocabulary.add(f"{passage.title}\n{passage.text}", numbers))
        if len(lengths) % _CHECK_EVERY == 0:
            if progress is not None:
                progress(start + len(lengths), total)
            if WORD_BYTES * len(numbers) + _ENTRY_BYTES * len(vocabulary) > room:
                break
    end = start + len(lengths)
    terms = list(vocabulary.terms)
    del vocabulary
    keys = term_keys(terms)
    order = key_order(keys)
    place = np.empty(len(terms), dtype=np.int32)
    place[order] = np.arange(len(terms), dtype=np.int32)
    del terms
    sizes = np.frombuffer(lengths, dtype=np.int32)
    postings = make_postings(place[np.frombuffer(numbers, dtype=np.int32)], sizes, len(place))
    values: dict[str, NDArray[Any]] = {
        "keys": keys[:, order],
        "lengths": sizes,
        "indptr": postings.indptr,
        "rows": postings.rows,
        "counts": postings.counts,
    }
    for name, value in values.items():
        np.save(_file(folder, number, name), value, allow_pickle=False)
    write_json(_done(folder, number), {"start": start, "end": end, "words": len(numbers)})
    if progress is not None:
        progress(end, total)
    return end


def score_segments(folder: Path, segments: int, passages: int, k1: float, b: float) -> int:
    """Join the terms of all segments and score their postings (the second pass).

    Args:
        folder: where the first pass is done.
        segments: number of segments.
        passages: number of all passages.
        k1: of BM25.
        b: of BM25.

    Returns:
        The number of different terms; 0 leaves the folder as it is.
    """
    states = [read_json(_done(folder, n), what="state of a segment") for n in range(segments)]
    mean = np.float64(sum(state["words"] for state in states)) / passages
    found = _joined_terms(folder, segments)
    if not len(found):
        return 0
    weights = inverse_frequencies(found, passages)
    for number in range(segments):
        _score_segment(folder, number, weights, float(mean), k1, b)
    starts = [state["start"] for state in states]
    np.save(folder / "segments.npy", np.array([*starts, passages]), allow_pickle=False)
    for number in range(segments):
        for name in ("keys", "lengths", "counts"):
            _file(folder, number, name).unlink()
        _done(folder, number).unlink()
    return len(found)


def _joined_terms(folder: Path, segments: int) -> NDArray[np.int64]:
    # Number the terms of all segments in the order of their keys; count the passages of each.
    joined = union_of(_loaded(_file(folder, number, "keys")) for number in range(segments))
    found = np.zeros(joined.shape[1], dtype=np.int64)
    for number in range(segments):
        own = places_of(_loaded(_file(folder, number, "keys")), joined)
        found[own] += np.diff(_loaded(_file(folder, number, "indptr")))
        np.save(_file(folder, number, "terms"), own, allow_pickle=False)
    np.save(folder / "term_keys.npy", joined, allow_pickle=False)
    return found


def _score_segment(
    folder: Path, number: int, weights: NDArray[np.float32], mean: float, k1: float, b: float
) -> None:
    terms, indptr, lengths = (_loaded(_file(folder, number, a)) for a in _SMALL)
    with _file(folder, number, "scores").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (int(indptr[-1]),)}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in _term_ranges(indptr):
            postings = slice(indptr[part.start], indptr[part.stop])
            # Mapped anew each time: pages of a map that stays would count as memory held.
            rows, counts = (
                np.array(_loaded(_file(folder, number, name))[postings])
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
        terms, indptr, rows, scores = (
            _loaded(_file(folder, number, name)) for name in ("terms", "indptr", "rows", "scores")
        )
        if len(indptr) != len(terms) + 1 or not len(rows) == len(scores) == indptr[-1]:
            raise ValueError(f"the files of segment {number} do not belong together")
        all_terms = len(terms) == keys.shape[1]
        found.append(
            Segment(start, end - start, None if all_terms else terms, indptr, rows, scores)
        )
    return found, keys
