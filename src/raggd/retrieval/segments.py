"""BM25 postings in segments: sorted one at a time in bounded memory, scored and searched together.

A segment holds the postings of a range of rows. First the words of each range are numbered and
sorted; nothing in that depends on other ranges, so a build that was stopped makes those that are
missing, and a corpus that changed keeps those that it had, less the rows that went. When all are
there, the terms of all are joined, and document frequencies and the mean length of the whole
corpus give each posting its score. So scores are those of one index of everything. Per segment,
named by its first row, the folder holds as ``.npy``:

    keys      sorted hashes of its terms
    lengths   words of each passage
    indptr    where the postings of each term begin
    rows      rows of passages, counted from the segment's first, rising within a term
    counts    how often the passage of each posting holds its term
    terms     numbers of its terms among those of the corpus, rising
    scores    what each posting adds to the score of its passage

and a ``.json``, written last, that says where it starts and ends and how many words it has.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, write_json
from raggd.records import Passage
from raggd.retrieval.base import Budget, Progress, progress_after
from raggd.retrieval.store import mapped, read_rows
from raggd.retrieval.terms import (
    Keys,
    TermNumbers,
    bm25_scores,
    inverse_frequencies,
    key_order,
    make_postings,
    places_of,
    term_keys,
    union_of,
)

ROWS = 1 << 18
"""Most passages of a segment: its scores fit a processor's cache, and a kill costs one segment."""

LEAST_MEMORY = 64_000_000
"""Memory that is needed beyond what the process holds anyway, bytes."""

WORD_BYTES = 33
"""Peak memory while a range is sorted, per word of its passages: measured, with a margin."""

# The same per distinct word: two dictionaries of Python strings.
_ENTRY_BYTES = 170
_CHECK_EVERY = 500
_POSTINGS_AT_ONCE = 1_000_000
_SMALL = 1_000
_SORTED = ("keys", "lengths", "indptr", "rows", "counts")

Span = tuple[int, int]
"""First row, and row after the last."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The postings of a range of passages, `count` from row `start`, mapped; arrays as above.

    Without `terms` they are all terms of the corpus.
    """

    start: int
    count: int
    terms: NDArray[np.int32] | None
    indptr: NDArray[np.integer[Any]]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]

    def score(self, terms: Sequence[int]) -> NDArray[np.float32]:
        """Return the score of each passage, shape (count,), for the term numbers of a query.

        A repeated term counts again.
        """
        total = np.zeros(self.count, dtype=np.float32)
        for at in self._places(terms):
            part = slice(self.indptr[at], self.indptr[at + 1])
            np.add.at(total, self.rows[part], self.scores[part])
        return total

    def _places(self, terms: Sequence[int]) -> Sequence[int]:
        if self.terms is None:
            return terms
        if not len(self.terms):  # its passages hold only stop words
            return []
        # Of the same type: otherwise NumPy would convert all terms of the segment at each search.
        asked = np.array(terms, dtype=self.terms.dtype)
        places = np.searchsorted(self.terms, asked)
        known = self.terms[np.minimum(places, len(self.terms) - 1)] == asked
        return [int(place) for place, held in zip(places, known, strict=True) if held]


def _file(folder: Path, start: int, what: str) -> Path:
    return folder / f"segment-{start:012d}.{what}.npy"


def _array(folder: Path, start: int, what: str) -> NDArray[Any]:
    return mapped(_file(folder, start, what))


def segment_states(folder: Path) -> list[dict[str, int]]:
    """Return ``start``, ``end`` and ``words`` of the segments that are whole, by first row."""
    files = sorted(folder.glob("segment-*.json"))
    return [read_json(file, what="state of a segment") for file in files]


def _finish(folder: Path, start: int, end: int, words: int) -> None:
    state = {"start": start, "end": end, "words": words}
    write_json(folder / f"segment-{start:012d}.json", state)


def missing_ranges(finished: Iterable[Span], passages: int, rows: int) -> list[Span]:
    """Return what is not finished, cut into ranges of at most `rows` rows.

    >>> missing_ranges([(2, 4)], 9, 4)
    [(0, 2), (4, 8), (8, 9)]
    """
    found, at = [], 0
    for start, end in [*finished, (passages, passages)]:
        found += [(cut, min(cut + rows, start)) for cut in range(at, start, rows)]
        at = end
    return found


def sort_ranges(
    folder: Path, passages: int, budget: Budget, progress: Progress | None = None, rows: int = ROWS
) -> None:
    """Number and sort the words of all ranges of a store that are missing, one after the other.

    The budget decides, with `rows`, where a range ends.
    """
    while todo := missing_ranges(_spans(folder), passages, rows):
        budget.require(LEAST_MEMORY, f"an index of {passages} passages")
        done = passages - missing_rows(folder, passages)
        # In a function of its own: what it holds is gone before the next range.
        done += _make_range(folder, todo[0], budget, progress_after(progress, done, passages))
        if progress is not None:
            progress(done, passages)


def missing_rows(folder: Path, passages: int) -> int:
    """Return how many rows of a store are in no segment yet."""
    return passages - sum(end - start for start, end in _spans(folder))


def _spans(folder: Path) -> list[Span]:
    return [(state["start"], state["end"]) for state in segment_states(folder)]


def _make_range(
    folder: Path, rows: Span, budget: Budget, told: Callable[[int], None] | None
) -> int:
    room = budget.left() - LEAST_MEMORY // 2
    arrays = sort_range(read_rows(folder, *rows), room, told)
    for name, value in arrays.items():
        np.save(_file(folder, rows[0], name), value, allow_pickle=False)
    count, words = len(arrays["lengths"]), int(arrays["lengths"].sum(dtype=np.int64))
    _finish(folder, rows[0], rows[0] + count, words)
    return count


def sort_range(
    passages: Iterable[Passage], room: int, told: Callable[[int], None] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a range by name, as above, from its passages.

    It ends earlier where `room` bytes of memory would not do; `told` is called now and then with
    the number of passages that were read.
    """
    vocabulary, numbers, lengths = TermNumbers(), array("i"), array("i")
    for passage in passages:
        lengths.append(vocabulary.add(f"{passage.title}\n{passage.text}", numbers))
        if len(lengths) % _CHECK_EVERY == 0:
            if told is not None:
                told(len(lengths))
            if WORD_BYTES * len(numbers) + _ENTRY_BYTES * len(vocabulary) > room:
                break
    terms = list(vocabulary.terms)
    del vocabulary
    keys = term_keys(terms)
    order = key_order(keys)
    place = np.empty(len(terms), dtype=np.int32)
    place[order] = np.arange(len(terms), dtype=np.int32)
    del terms
    sizes = np.frombuffer(lengths, dtype=np.int32)
    words = place[np.frombuffer(numbers, dtype=np.int32)]
    indptr, rows, counts = make_postings(words, sizes, len(place))
    counts = counts.astype(np.min_scalar_type(counts.max(initial=0)))
    parts = (keys[:, order], sizes, indptr, rows, counts)
    return dict(zip(_SORTED, parts, strict=True))


def splice_segments(old: Path, kept: NDArray[np.bool_], work: Path, fresh: int) -> None:
    """Carry the segments of an earlier index over, without the rows that are gone.

    Small ones at the end are left out, so that they are sorted anew with the fresh rows: sizes
    then fall geometrically, and however often a corpus changes, its segments stay few. `kept`,
    (rows,), says which rows stay: in `work` they are the first, in order, and `fresh` ones follow.
    """
    sizes = [int(kept[s["start"] : s["end"]].sum()) for s in segment_states(old)]
    starts = np.cumsum([0, *sizes]).tolist()
    while sizes and sizes[-1] <= max(2 * fresh, _SMALL) and sizes[-1] + fresh <= ROWS:
        fresh += sizes.pop()
    for state, size, start in zip(segment_states(old), sizes, starts, strict=False):
        if size:
            stay = kept[state["start"] : state["end"]]
            _splice(old, state["start"], stay, work, start)
            words = int(_array(work, start, "lengths").sum(dtype=np.int64))
            _finish(work, start, start + size, words)


def _splice(old: Path, at: int, stay: NDArray[np.bool_], work: Path, start: int) -> None:
    if stay.all():
        for name in _SORTED:
            _link(_file(old, at, name), _file(work, start, name))
        return
    place = np.cumsum(stay, dtype=np.int32) - 1
    indptr = _array(old, at, "indptr")
    found = np.zeros(len(indptr), dtype=np.int64)
    for part in _term_ranges(indptr):
        held = stay[_postings(old, at, "rows", indptr, part)]
        ends = np.concatenate([[0], np.cumsum(held)])
        found[part.start + 1 : part.stop + 1] = np.diff(
            ends[indptr[part.start : part.stop + 1] - indptr[part.start]]
        )
    left = np.cumsum(found)

    def parts(name: str) -> Iterator[NDArray[Any]]:
        for part in _term_ranges(indptr):
            rows = _postings(old, at, "rows", indptr, part)
            held = stay[rows]
            values = rows if name == "rows" else _postings(old, at, name, indptr, part)
            yield place[values[held]] if name == "rows" else values[held]

    _link(_file(old, at, "keys"), _file(work, start, "keys"))
    np.save(_file(work, start, "lengths"), _array(old, at, "lengths")[stay], allow_pickle=False)
    np.save(_file(work, start, "indptr"), left, allow_pickle=False)
    for name in ("rows", "counts"):
        kind = _array(old, at, name).dtype
        _write_array(_file(work, start, name), kind, int(left[-1]), parts(name))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_array(path: Path, kind: np.dtype[Any], size: int, parts: Iterable[NDArray[Any]]) -> None:
    with path.open("wb") as stream:
        header = {"descr": kind.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(part.astype(kind).tobytes())


def _postings(
    folder: Path, start: int, what: str, indptr: NDArray[np.int64], part: slice
) -> NDArray[Any]:
    # Mapped anew each time: pages of a map that stays would count as memory held.
    return np.array(_array(folder, start, what)[indptr[part.start] : indptr[part.stop]])


def _term_ranges(indptr: NDArray[np.int64]) -> Iterator[slice]:
    # Ranges of terms with about a million postings together (or one term with more).
    start, terms = 0, len(indptr) - 1
    while start < terms:
        limit = indptr[start] + _POSTINGS_AT_ONCE
        end = max(start + 1, int(np.searchsorted(indptr, limit, side="right")) - 1)
        yield slice(start, min(end, terms))
        start = end


def score_segments(folder: Path, passages: int, k1: float, b: float) -> int:
    """Return the number of postings, once the terms of all ranges are joined and these scored.

    This is the second pass; without a word in any passage there is none.
    """
    states = segment_states(folder)
    starts = [state["start"] for state in states]
    mean = np.float64(sum(state["words"] for state in states)) / passages
    found = _joined_terms(folder, starts)
    if found.any():
        weights = inverse_frequencies(found, passages)
        for start in starts:
            lengths = _array(folder, start, "lengths").astype(np.int64)
            _score(folder, start, weights, k1 * ((1 - b) + b * lengths / float(mean)))
    return int(found.sum())


def _score(folder: Path, start: int, weights: NDArray[np.float32], norm: NDArray[Any]) -> None:
    terms, indptr = _array(folder, start, "terms"), _array(folder, start, "indptr")

    def scores() -> Iterator[NDArray[np.float32]]:
        for part in _term_ranges(indptr):
            rows = _postings(folder, start, "rows", indptr, part)
            counts = _postings(folder, start, "counts", indptr, part)
            own = np.repeat(weights[terms[part]], np.diff(indptr[part.start : part.stop + 1]))
            yield bm25_scores(counts, norm[rows], own)

    _write_array(_file(folder, start, "scores"), np.dtype("<f4"), int(indptr[-1]), scores())


def _joined_terms(folder: Path, starts: Sequence[int]) -> NDArray[np.int64]:
    # Number the terms of all ranges in the order of their keys; count the passages of each.
    joined = union_of(_array(folder, start, "keys") for start in starts)
    found = np.zeros(joined.shape[1], dtype=np.int64)
    for start in starts:
        own = places_of(_array(folder, start, "keys"), joined)
        found[own] += np.diff(_array(folder, start, "indptr"))
        np.save(_file(folder, start, "terms"), own, allow_pickle=False)
    np.save(folder / "term_keys.npy", joined, allow_pickle=False)
    return found


def open_segments(folder: Path) -> tuple[list[Segment], Keys]:
    """Return the segments of a finished folder, and the sorted keys of all terms, (2, terms).

    Raises:
        ValueError: files do not belong together.
    """
    keys: Keys = mapped(folder / "term_keys.npy")
    found = []
    for start, end in _spans(folder):
        terms, indptr, rows, scores = (
            _array(folder, start, name) for name in ("terms", "indptr", "rows", "scores")
        )
        if len(indptr) != len(terms) + 1 or not len(rows) == len(scores) == indptr[-1]:
            raise ValueError(f"the files of the segment of row {start} do not belong together")
        own = None if len(terms) == keys.shape[1] else terms
        found.append(Segment(start, end - start, own, indptr, rows, scores))
    return found, keys
