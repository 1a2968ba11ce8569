"""What retrievers share: the protocol, exact top-k selection, checks, a bound on memory; fusion."""

from __future__ import annotations

import re
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter, ValidationError

from raggd.records import Hit, Passage, RaggdError

Rows = NDArray[np.int64]  # row numbers of passages in an index, shape (n,)

_GROUP = 128

Count = Callable[[int, int | None], None]
"""Called with the number of passages done and, where it is known, of all passages."""
_TOLD_EVERY = 1_000


def counted(
    passages: Iterable[Passage], done: int, total: int | None, count: Count
) -> Iterator[Passage]:
    """Pass passages on, and tell now and then how many are done."""
    for number, passage in enumerate(passages, start=done + 1):
        if number % _TOLD_EVERY == 0:
            count(number, total)
        yield passage


class RetrievalWarning(UserWarning):
    """Retrieval works but its results look wrong."""


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for queries; BM25, dense, hybrid and cached ones are interchangeable."""

    @property
    def fingerprint(self) -> str:
        """Hash of kind, parameters, tokenizer or encoder, and corpus: equal means equal hits."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return at most `k` hits for each query, none of them blank, best first.

        Equal scores are ordered by passage id. What BM25 finds shares a term with the query.
        """
        ...


def top_k(
    scores: NDArray[np.floating[Any]],
    ties: NDArray[np.integer[Any]],
    k: int,
    above: float = -np.inf,
) -> Rows:
    """Return the rows with the highest of `scores`, (n,), best first; pure, and exact on ties.

    `ties`, (n,), ranks rows among equal scores, lower first; a score not `above` is never selected.

    >>> top_k(np.array([1.0, 3.0, 3.0, 2.0]), np.array([0, 2, 1, 3]), 3).tolist()
    [2, 1, 3]
    """
    bound = _least_of_best(scores, k)
    rows = np.flatnonzero(scores >= bound if bound > above else scores > above)
    if 0 < k < len(rows):
        # Everything at least as good as the k-th best stays, so that the order of ties decides.
        kept, place = scores[rows], len(rows) - k
        rows = rows[kept >= np.partition(kept, place)[place]]
    return rows[np.lexsort((ties[rows], -scores[rows]))[:k]]


def _least_of_best(scores: NDArray[np.floating[Any]], k: int) -> float:
    # A score that at least k rows reach, found in one fast pass: rows are dealt to groups, and the
    # best of k groups are k rows. Most rows need not be looked at again.
    groups = len(scores) // _GROUP
    if not 0 < k <= groups // 2:
        return -np.inf
    best = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    return float(np.partition(best, groups - k)[groups - k])


def check_search(queries: Sequence[str], k: int) -> None:
    """Refuse a search for a blank query, for one text, or for fewer than no passages."""
    if isinstance(queries, str):  # of which each character would be searched for
        raise RaggdError("the queries are one text: give a list of them.")
    if k < 0:
        raise RaggdError(f"cannot retrieve {k} passages: k must be 0 or more.")
    for position, query in enumerate(queries):
        if not query.strip():
            where = f" (number {position + 1} of {len(queries)})" if len(queries) > 1 else ""
            raise RaggdError(f"the query{where} is empty: give a question with at least one word.")


FUSION = 60
"""Holds back the first ranks: the constant of Cormack, Clarke and Buettcher (SIGIR 2009)."""


def fused(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Fuse lists of hits, best first, into one: a passage scores the sum of 1 / (60 + rank)."""
    scores: defaultdict[str, float] = defaultdict(float)
    passages = {}
    for hits in lists:
        for rank, hit in enumerate(hits, start=1):
            scores[hit.passage.id] += 1 / (FUSION + rank)
            passages[hit.passage.id] = hit.passage
    order = sorted(scores, key=lambda name: (-scores[name], name))
    return [Hit(passages[name], scores[name]) for name in order]


_STATE, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def parse_size(text: str) -> int:
    """Return the bytes, above 0, of a size such as ``3GB`` or ``500 MiB``; refuse what is none."""
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if not size:
        raise RaggdError(f"'{text}' is not a size: expected a number with MB or GB, such as 3GB.")
    return size


def show_size(size: float) -> str:
    """Return a number of bytes for people.

    >>> show_size(2_340_000_000)
    '2.3 GB'
    """
    return ByteSize(size).human_readable(decimal=True, separator=" ")


def held_memory() -> int:
    """Return what this process holds now (its resident set), in bytes."""
    if _STATE.is_file():
        return int(_STATE.read_text().split()[1]) * resource.getpagesize()
    return peak_memory()  # the most it ever held: an upper bound


def peak_memory() -> int:
    """Return the most that this process ever held (its peak resident set), in bytes."""
    if _STATUS.is_file():  # the other figure would count the parent at the time of the fork
        match = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        if match:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Budget:
    """The most memory, in bytes, that this process may hold while it builds an index."""

    bound: int

    @classmethod
    def of(cls, bound: int) -> Budget:
        """Return a bound; it comes on top where more is held already, by a backbone, say."""
        held = held_memory()
        return cls(bound + held if held > bound else bound)

    def left(self) -> int:
        """Return how much more may be taken now, in bytes; below 0 if the bound is passed."""
        return self.bound - held_memory()

    def require(self, size: int, what: str) -> None:
        """Refuse work that takes `size` bytes where less is left, before it starts."""
        if self.left() < size:
            raise RaggdError(
                f"a memory bound of {show_size(self.bound)} is too small for {what}: it takes "
                f"{show_size(held_memory() + size)}. Give at least that by retrieval.memory or "
                "`raggd index --memory`."
            )
