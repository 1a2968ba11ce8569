"""From the words of passages to postings and BM25 scores; pure functions on arrays.

The arithmetic is that of bm25s (method lucene), step by step in the same types, so that scores are
the same bits as those of its own index of the whole corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
"""Term numbers, passage rows or counts."""

Keys = NDArray[np.uint64]
"""128-bit hashes of terms as two rows, shape (2, n)."""


@dataclass(frozen=True, slots=True)
class Postings:
    """Which passages hold which terms; terms are in the order of their keys.

    Attributes:
        indptr: where each term's postings begin, shape (terms + 1,).
        rows: rows of the passages, rising within a term, shape (postings,).
        counts: how often each passage holds the term, shape (postings,).
    """

    indptr: NDArray[np.int64]
    rows: Numbers
    counts: Numbers


def term_keys(terms: Sequence[str]) -> Keys:
    """Return the keys of terms; different ones share a key with a probability of 2 to the -128."""
    digests = b"".join(blake2b(term.encode(), digest_size=16).digest() for term in terms)
    return np.ascontiguousarray(np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T)


def key_order(keys: Keys) -> NDArray[np.int64]:
    """Return the positions that sort keys, shape (n,)."""
    return np.lexsort((keys[1], keys[0]))


def union_of(parts: Iterable[Keys]) -> Keys:
    """Return all different keys of many segments, sorted, holding little more than the result."""
    joined = np.empty((2, 0), dtype=np.uint64)
    waiting: list[Keys] = []
    for part in parts:
        waiting.append(part)
        # Joined when as many wait as are there: so each key is sorted a few times, not each time.
        if sum(keys.shape[1] for keys in waiting) > joined.shape[1]:
            joined = _different([joined, *waiting])
            waiting = []
    return _different([joined, *waiting])


def _different(parts: Sequence[Keys]) -> Keys:
    keys = np.concatenate(parts, axis=1)
    keys = keys[:, key_order(keys)]
    first = np.ones(keys.shape[1], dtype=bool)
    first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    return np.ascontiguousarray(keys[:, first])


def places_of(keys: Keys, joined: Keys) -> Numbers:
    """Return where keys, shape (2, n), stand among sorted ones that hold them all, shape (n,)."""
    places = np.searchsorted(joined[0], keys[0])
    while (others := joined[1][places] != keys[1]).any():  # the same first half, another second
        places[others] += 1
    found: Numbers = places.astype(np.int32)
    return found


def make_postings(numbers: Numbers, lengths: Numbers, terms: int) -> Postings:
    """Sort the words of passages into postings.

    Args:
        numbers: term number of each word, passage after passage, shape (words,).
        lengths: words per passage, shape (passages,).
        terms: number of terms.

    Returns:
        The postings.
    """
    pairs = numbers.astype(np.int64)
    pairs <<= 32
    pairs |= np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    pairs.sort()
    first = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    del first
    counts = np.empty(len(starts), dtype=np.int32)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1], casting="unsafe")
    if len(starts):
        counts[-1] = len(pairs) - starts[-1]
    pairs = pairs[starts]
    del starts
    rows = (pairs & 0xFFFFFFFF).astype(np.int32)
    pairs >>= 32
    return Postings(np.searchsorted(pairs, np.arange(terms + 1)), rows, counts)


def inverse_frequencies(found: NDArray[np.int64], passages: int) -> NDArray[np.float32]:
    """Return the weight of each term, shape (terms,), from the number of passages that hold it."""
    # math.log, not NumPy's, whose last bit differs; few numbers of passages are different.
    values, place = np.unique(found, return_inverse=True)
    weights = [math.log(1 + (passages - df + 0.5) / (df + 0.5)) for df in values.tolist()]
    return np.array(weights, dtype=np.float32)[place]


def bm25_scores(
    counts: NDArray[np.integer[Any]], norm: NDArray[np.float64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute what each posting adds to the score of its passage.

    Args:
        counts: how often the passage holds the term, shape (postings,).
        norm: k1 (1 - b + b length / mean length) of the passage, shape (postings,).
        weights: inverse frequency of the term, shape (postings,).

    Returns:
        Scores, shape (postings,).
    """
    often = counts.astype(np.float32)
    return np.asarray(weights * (often / (norm + often)), dtype=np.float32)
