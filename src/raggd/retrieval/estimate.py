"""What building an index will take, told before a long build starts.

The first passages of the corpus are indexed for a trial on this machine, and time and disk are
extrapolated with the growth that was measured up to a million passages (docs/retrieval.md).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raggd.records import Passage
from raggd.retrieval.bm25 import build_bm25
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.memory import Budget, held_memory, show_size
from raggd.retrieval.ranges import LEAST_MEMORY, ROWS, WORD_BYTES
from raggd.retrieval.store import SORT_BYTES
from raggd.retrieval.tokenizer import tokenize

LONG = 50_000
"""Passages from which an estimate is made."""
TRIAL = 2_000
"""Passages that are indexed for a trial."""
_ENCODED = 64

# Exponents of cost against the number of passages; see docs/retrieval.md for the fits.
TIME_GROWTH = 1.08
DISK_GROWTH = 0.99


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build will take.

    Attributes:
        passages: size of the corpus.
        seconds: of this machine as busy as it is now.
        disk: bytes of the finished index.
        memory: bytes that the process will hold at its peak.
    """

    passages: int
    seconds: float
    disk: int
    memory: int

    def __str__(self) -> str:
        """Return one line for people."""
        units = ((1, "s", 120), (60, "min", 7200), (3600, "h", float("inf")))
        size, unit = next((size, unit) for size, unit, below in units if self.seconds < below)
        took = f"{self.seconds / size:.0f} {unit}"
        return (
            f"indexing {self.passages:,} passages will take about {took}, "
            f"{show_size(self.disk)} of disk and {show_size(self.memory)} of memory"
        )


Announce = Callable[[Estimate], None]
"""Told the estimate before a long build."""


def estimate_bm25(sample: Sequence[Passage], count: int, budget: Budget) -> Estimate:
    """Estimate a BM25 build.

    Args:
        sample: the first passages of the corpus.
        count: number of all passages.
        budget: the memory bound.

    Returns:
        The estimate.
    """
    held = held_memory()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_bm25(sample, Path(folder) / "index")
        seconds = time.perf_counter() - start
        disk = sum(file.stat().st_size for file in (Path(folder) / "index").iterdir())
    words = sum(len(tokenize(f"{p.title}\n{p.text}")) for p in sample) / len(sample)
    segment = WORD_BYTES * words * min(count, ROWS)
    memory = held + LEAST_MEMORY + max(segment, SORT_BYTES * count)
    return Estimate(
        count,
        seconds * (count / len(sample)) ** TIME_GROWTH,
        int(disk * (count / len(sample)) ** DISK_GROWTH),
        int(min(budget.bound, memory)),
    )


def estimate_dense(sample: Sequence[Passage], count: int, encoder: Encoder) -> Estimate:
    """Estimate a dense build: the encoder takes nearly all of the time.

    Args:
        sample: the first passages of the corpus.
        count: number of all passages.
        encoder: encodes them.

    Returns:
        The estimate.
    """
    part = sample[:_ENCODED]
    encoder.encode_passages(part[:8])  # the first batch of a process is slow
    start = time.perf_counter()
    encoder.encode_passages(part)
    seconds = (time.perf_counter() - start) / len(part) * count
    size = sum(len(f"{p.id}{p.title}{p.text}".encode()) + 70 for p in sample) / len(sample)
    disk = int(count * (size + 4 * encoder.width))
    return Estimate(count, seconds, disk, held_memory() + LEAST_MEMORY + SORT_BYTES * count)
