"""The first pass of a BM25 build: the words of a range of passages, numbered and sorted.

A range is known by its first row, and nothing in it depends on other ranges. So ranges may be made
in any order and by several processes, and a build that was stopped makes those that are missing.
While a build runs, its folder holds per range, as ``.npy``:

    keys       sorted hashes of its terms
    lengths    words of each passage
    indptr     where the postings of each term begin
    rows       rows of passages, counted from the range's first, rising within a term
    counts     how often the passage of each posting holds its term

and, written last, a ``.json`` that says where it starts and ends and how many words it has.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.files import read_json, write_json
from raggd.records import Passage
from raggd.retrieval.base import Progress
from raggd.retrieval.memory import Budget
from raggd.retrieval.postings import key_order, make_postings, term_keys
from raggd.retrieval.store import read_passages_of
from raggd.retrieval.tokenizer import TermNumbers

ROWS = 1 << 18
"""Most passages of a segment: its scores fit a processor's cache, and a kill costs one segment."""

LEAST_MEMORY = 64_000_000
"""Memory that is needed beyond what the process holds anyway, bytes."""

WORD_BYTES = 33
"""Peak memory while a range is sorted, per word of its passages: measured, with a margin."""

# The same per distinct word: two dictionaries of Python strings.
_ENTRY_BYTES = 170
_CHECK_EVERY = 500

Span = tuple[int, int]
"""First row, and row after the last."""


@dataclass(frozen=True, slots=True)
class SortedRange:
    """What the first pass makes of a range of passages.

    Attributes:
        start: its first row.
        end: row after its last.
        words: of its passages.
        arrays: by name, as above.
    """

    start: int
    end: int
    words: int
    arrays: dict[str, NDArray[Any]]


def range_file(folder: Path, start: int, what: str) -> Path:
    """Name a file of a range.

    Args:
        folder: of the build.
        start: first row of the range.
        what: name of the array.

    Returns:
        The path.
    """
    return folder / f"range-{start:012d}.{what}.npy"


def range_state(folder: Path, start: int) -> Path:
    """Name the file that says that a range is whole.

    Args:
        folder: of the build.
        start: first row of the range.

    Returns:
        The path.
    """
    return folder / f"range-{start:012d}.json"


def finished_ranges(folder: Path) -> list[dict[str, int]]:
    """Read which ranges are whole.

    Args:
        folder: of the build.

    Returns:
        ``start``, ``end`` and ``words`` of each, by first row.
    """
    return [
        read_json(file, what="state of a range") for file in sorted(folder.glob("range-*.json"))
    ]


def finished_spans(folder: Path) -> list[Span]:
    """Read which rows are in ranges that are whole.

    Args:
        folder: of the build.

    Returns:
        First row and row after the last of each range, rising.
    """
    return [(state["start"], state["end"]) for state in finished_ranges(folder)]


def drop_ranges(folder: Path) -> None:
    """Delete all ranges, whole or not, of a partial folder."""
    for file in folder.glob("range-*"):
        file.unlink()


def missing_ranges(
    finished: Iterable[Span], passages: int, rows: int, offsets: NDArray[np.int64] | None = None,
    most: int = 0,
) -> list[Span]:  # fmt: skip
    """Cut what is not finished into ranges.

    Args:
        finished: ranges that are there, rising, none over another.
        passages: number of all passages.
        rows: most passages of a range.
        offsets: where each passage begins in its file, shape (passages + 1,); needed with `most`.
        most: most bytes of a range of several passages; 0: any.

    Returns:
        The ranges, rising.
    """
    found, at = [], 0
    for start, end in [*finished, (passages, passages)]:
        while at < start:
            stop = min(at + rows, start)
            if most and offsets is not None:
                fits = int(np.searchsorted(offsets, offsets[at] + most, side="right")) - 1
                stop = max(at + 1, min(stop, fits))
            found.append((at, stop))
            at = stop
        at = end
    return found


def sort_range(
    passages: Iterable[Passage], start: int, room: int, told: Callable[[int], None] | None = None
) -> SortedRange:
    """Number and sort the words of a range.

    Args:
        passages: the passages.
        start: row of the first.
        room: bytes of memory that it may take: it ends earlier where they would not do.
        told: called now and then with the number of passages that were read.

    Returns:
        The sorted range.
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
    postings = make_postings(place[np.frombuffer(numbers, dtype=np.int32)], sizes, len(place))
    arrays: dict[str, NDArray[Any]] = {
        "keys": keys[:, order],
        "lengths": sizes,
        "indptr": postings.indptr,
        "rows": postings.rows,
        "counts": postings.counts,
    }
    return SortedRange(start, start + len(lengths), len(numbers), arrays)


def save_range(folder: Path, made: SortedRange) -> None:
    """Write a range; it counts as finished when all of it is there.

    Args:
        folder: of the build.
        made: the range.
    """
    for name, value in made.arrays.items():
        np.save(range_file(folder, made.start, name), value, allow_pickle=False)
    state = {"start": made.start, "end": made.end, "words": made.words}
    write_json(range_state(folder, made.start), state)


def sort_ranges(
    folder: Path,
    passages: int,
    budget: Budget,
    progress: Progress | None = None,
    rows: int = ROWS,
) -> None:
    """Make all ranges of a store that are missing, one after the other.

    Args:
        folder: a folder with a store.
        passages: number of its passages.
        budget: decides, with `rows`, where a range ends.
        progress: called with the passages done and all of them.
        rows: most passages of a range.
    """
    while todo := missing_ranges(finished_spans(folder), passages, rows):
        budget.require(LEAST_MEMORY, f"an index of {passages} passages")
        done = passages - sum(end - start for start, end in todo)
        # In a function of its own: what it holds is gone before the next range.
        done += _make_range(folder, todo[0], budget, _after(progress, done, passages))
        if progress is not None:
            progress(done, passages)


def _make_range(
    folder: Path, rows: Span, budget: Budget, told: Callable[[int], None] | None
) -> int:
    room = budget.left() - LEAST_MEMORY // 2
    made = sort_range(read_passages_of(folder, *rows), rows[0], room, told)
    save_range(folder, made)
    return made.end - made.start


def _after(progress: Progress | None, done: int, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda more: progress(done + more, total)
