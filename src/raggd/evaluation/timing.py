"""Wall-clock times: of pieces of work measured in turn, and of the steps of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]
Times = Mapping[str, Sequence[float]]  # milliseconds of each round, by the name of the work


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of A over time of B: median and range over rounds, and both median times."""

    ratio: float
    low: float
    high: float
    a_ms: float
    b_ms: float
    rounds: int


def in_turn(works: Mapping[str, Work], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Time several pieces of work one after the other, round after round; milliseconds by name.

    A disturbance meets all of them alike; every other round is reversed; `warm` runs each before.
    """
    import torch  # a stopwatch alone does not load it

    for work in works.values() if warm else ():
        work()
    watch = Stopwatch(cuda=torch.cuda.is_available())
    for number in range(rounds):
        for name in reversed(list(works)) if number % 2 else works:
            with watch.timed(name):
                works[name]()
    return watch.times


def ratio_of(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Return A / B of two pieces of work that were timed in turn."""
    ratios = [one / two for one, two in zip(a, b, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios), median(a), median(b), len(ratios))


class Stopwatch:
    """Collects wall times by name.

    >>> watch = Stopwatch()
    >>> with watch.timed("answer", units=8):  # a batch of 8: one question's share is kept
    ...     pass
    >>> list(watch.medians())
    ['answer']
    """

    def __init__(self, *, cuda: bool = False) -> None:
        self._cuda = cuda  # work is over when the card has done it, not when it is queued
        self.times: dict[str, list[float]] = {}  # milliseconds, by name in the order of first use

    def _now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def timed(self, name: str, *, units: int = 1) -> Iterator[None]:
        """Time a block of so many pieces of work, and keep the time of one; not if it raises."""
        start = self._now()
        yield
        self.times.setdefault(name, []).append((self._now() - start) * 1000 / units)

    def medians(self) -> dict[str, float]:
        """Return the median milliseconds of everything."""
        return {name: median(times) for name, times in self.times.items()}
