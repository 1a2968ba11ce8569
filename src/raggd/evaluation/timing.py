"""Speed as ratios, measured side by side: A and B in turn, in one run, medians of the rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from raggd.records import RaggdError

Work = Callable[[], object]
Times = Mapping[str, Sequence[float]]
"""Milliseconds of each round, by the name of the work."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of A over time of B.

    Attributes:
        ratio: median over the rounds of A's time divided by B's of the same round.
        low: smallest of these.
        high: largest.
        a_ms: median time of A, milliseconds.
        b_ms: median time of B.
        rounds: how many pairs were timed.
    """

    ratio: float
    low: float
    high: float
    a_ms: float
    b_ms: float
    rounds: int


def _milliseconds(work: Work) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def in_turn(works: Mapping[str, Work], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Time several pieces of work one after the other, round after round.

    A disturbance of the machine meets all of them alike; the order is reversed in every other
    round, so that none always follows the same one.

    Args:
        works: by name.
        rounds: times that each is timed.
        warm: run each once before, untimed.

    Returns:
        Milliseconds by name, a number per round.

    Raises:
        RaggdError: fewer than one round.
    """
    if rounds < 1:
        raise RaggdError(f"a benchmark needs at least one round, got {rounds}.")
    for work in works.values() if warm else ():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in reversed(list(works)) if number % 2 else works:
            times[name].append(_milliseconds(works[name]))
    return times


def ratio_of(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Compare the times of two pieces of work that were timed in turn.

    Args:
        a: milliseconds of A by round.
        b: of B.

    Returns:
        The ratio A / B.
    """
    ratios = [one / two for one, two in zip(a, b, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios), median(a), median(b), len(ratios))


def paired(a: Work, b: Work, rounds: int) -> Ratio:
    """Time two pieces of work in turn, after one warm-up of each.

    Args:
        a: the work in question.
        b: what it is compared with.
        rounds: pairs to time; the order within a pair alternates.

    Returns:
        The ratio A / B.
    """
    times = in_turn({"a": a, "b": b}, rounds)
    return ratio_of(times["a"], times["b"])
