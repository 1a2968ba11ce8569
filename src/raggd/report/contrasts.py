"""Differences between methods of a study, paired by question: within a block, and over blocks.

The unit is a question of a benchmark. Seeds, and in the pooled scope backbones and retrievers,
answer the same question several times: its scores are averaged before questions are resampled.
Every interval of every table comes from here, with support draws counted as a source of chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from raggd.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_intervals,
    holm,
    paired_bootstraps,
)
from raggd.methods.spec import NAMED
from raggd.report.grid import Answer, Block, subsets

METRICS = ("em", "f1", "loss")
SCALES = {"em": 100.0, "f1": 100.0, "loss": 1.0}
"""EM and F1 are shown in percent, the answer loss in nats per token."""
POOLED = "pooled"
Pair = tuple[str, str]
"""(method, other): the difference is method minus other."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """`method` minus `other` on the same questions.

    Attributes:
        scope: name of a block, or ``pooled`` over the blocks that have both methods.
        subset: ``all``, ``training tasks`` or ``held-out tasks``; the mean of benchmark means.
        metric: ``em``, ``f1`` or ``loss``.
        difference: in points of percent, or nats for the loss.
        p: two-sided, corrected by Holm over the pairs of scope, subset and metric.
        named: whether the pair is one of `NAMED`.
        p_named: corrected over the named pairs alone; None for the others.
    """

    scope: str
    subset: str
    method: str
    other: str
    metric: str
    n: int
    blocks: int
    difference: Difference
    p: float
    named: bool
    p_named: float | None

    def turned(self) -> Contrast:
        """Return the same difference the other way round."""
        d = self.difference
        turned = replace(d, mean=-d.mean, low=-d.high, high=-d.low)
        return replace(self, method=self.other, other=self.method, difference=turned)


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores (questions, methods) on common questions, with benchmark and support draws of each."""

    methods: tuple[str, ...]
    values: NDArray[np.float64]
    groups: list[str]
    clusters: list[tuple[str, ...]]


def _value(answer: Answer, metric: str) -> float | None:
    return answer.loss if metric == "loss" else float(getattr(answer, metric))


def sample(
    blocks: Sequence[Block], methods: Sequence[str], benchmarks: Sequence[str], metric: str
) -> Sample | None:
    """Collect the scores of methods on the questions that all of them answered in all blocks.

    Blocks' scores are averaged question by question; None where there is no such question.
    """
    found: dict[tuple[str, str], dict[tuple[str, int, str], tuple[float, str]]] = {}
    for block in blocks:
        for method in methods:
            for benchmark in benchmarks:
                for seed, answer in block.answers.get(method, {}).get(benchmark, ()):
                    value = _value(answer, metric)
                    if value is not None:
                        mine = found.setdefault((benchmark, answer.question), {})
                        label = f"{benchmark} {seed} {answer.draw}"
                        mine[block.name, seed, method] = (value, label)
    return _averaged(found, len(blocks), tuple(methods))


def _averaged(
    found: dict[tuple[str, str], dict[tuple[str, int, str], tuple[float, str]]],
    blocks: int,
    methods: tuple[str, ...],
) -> Sample | None:
    rows, groups, clusters = [], [], []
    for (benchmark, _), mine in sorted(found.items()):
        seeds = {seed for _, seed, _ in mine}
        if len(mine) != blocks * len(methods) * len(seeds):
            continue
        sums = dict.fromkeys(methods, 0.0)
        for (_, _, method), (value, _) in mine.items():
            sums[method] += value
        rows.append([total / (blocks * len(seeds)) for total in sums.values()])
        groups.append(benchmark)
        clusters.append(tuple(sorted({label for _, label in mine.values()})))
    return Sample(methods, np.array(rows), groups, clusters) if rows else None


def _shown(interval: Interval, metric: str) -> Interval:
    # In percent. Effects and residuals are resampled apart, so the limits of a score near 0 can
    # fall outside of what a score can be.
    scaled = interval.scaled(SCALES[metric])
    if metric == "loss" or not math.isfinite(scaled.low):
        return scaled
    return replace(scaled, low=max(0.0, scaled.low), high=min(100.0, scaled.high))


class Averages:
    """Means of benchmark means with their intervals; all methods of a block share resamples."""

    def __init__(self, resamples: int = 10_000) -> None:
        """Compute nothing yet."""
        self.resamples = resamples
        self._known: dict[tuple[str, tuple[str, ...], str], dict[str, Interval]] = {}

    def of(
        self, block: Block, method: str, benchmarks: Sequence[str], metric: str
    ) -> Interval | None:
        """Return a method's average over benchmarks, in percent (the loss in nats).

        It is None if the method lacks a benchmark.
        """
        key = (block.name, tuple(benchmarks), metric)
        if key not in self._known:
            self._known[key] = self._compute(block, benchmarks, metric)
        return self._known[key].get(method)

    def _compute(self, block: Block, benchmarks: Sequence[str], metric: str) -> dict[str, Interval]:
        methods = [m for m in block.methods if block.has(m, benchmarks)]
        given = sample([block], methods, benchmarks, metric) if methods else None
        if given is None or set(given.groups) != set(benchmarks):
            return {}
        intervals = bootstrap_intervals(
            given.values,
            groups=given.groups,
            clusters=given.clusters,
            macro=True,
            resamples=self.resamples,
        )
        return {m: _shown(i, metric) for m, i in zip(methods, intervals, strict=True)}


def _family(
    scope: str,
    subset: str,
    metric: str,
    blocks: Sequence[Block],
    pairs: Sequence[Pair],
    benchmarks: Sequence[str],
    resamples: int,
) -> list[Contrast]:
    methods = tuple(dict.fromkeys(name for pair in pairs for name in pair))
    given = sample(blocks, methods, benchmarks, metric)
    if given is None or set(given.groups) != set(benchmarks):
        return []
    differences = paired_bootstraps(
        given.values,
        [(methods.index(a), methods.index(b)) for a, b in pairs],
        groups=given.groups,
        clusters=given.clusters,
        macro=True,
        resamples=resamples,
    )
    adjusted = holm([d.p_value for d in differences])
    chosen = [i for i, pair in enumerate(pairs) if pair in NAMED]
    among = dict(zip(chosen, holm([differences[i].p_value for i in chosen]), strict=True))
    n, count = len(given.groups), len(blocks)
    return [
        Contrast(
            *(scope, subset, *pair, metric, n, count, differences[i].scaled(SCALES[metric])),
            *(adjusted[i], pair in NAMED, among.get(i)),
        )
        for i, pair in enumerate(pairs)
    ]


def contrast_of(block: Block, pair: Pair, metric: str, resamples: int) -> Contrast | None:
    """Return how two methods differ on all questions of a block, each counted once.

    It is uncorrected; None if no question was answered by both.
    """
    given = sample([block], pair, block.benchmarks, metric)
    if given is None:
        return None
    difference = paired_bootstraps(
        given.values, [(0, 1)], groups=given.groups, clusters=given.clusters, resamples=resamples
    )[0].scaled(SCALES[metric])
    n, p, named = len(given.groups), difference.p_value, pair in NAMED
    return Contrast(block.name, "all", *pair, metric, n, 1, difference, p, named, None)


def all_pairs(methods: Sequence[str]) -> list[Pair]:
    """Return every pair of methods once: the later one minus the earlier one, or as named."""
    pairs = combinations(methods, 2)
    return [(a, b) if (a, b) in NAMED else (b, a) for a, b in pairs]


def contrasts(
    blocks: Sequence[Block], resamples: int = 10_000, pairs: Sequence[Pair] | None = None
) -> list[Contrast]:
    """Compare pairs of methods (None: all) in every block and pooled over blocks, scope by scope.

    In the pooled scope a pair is compared over the blocks that have both methods; the pairs of one
    set of blocks are one family for Holm's rule.
    """
    found = []
    for block in blocks:
        for subset, benchmarks in subsets(block.benchmarks):
            methods = [m for m in block.methods if block.has(m, benchmarks)]
            wanted = all_pairs(methods)
            if pairs is not None:
                wanted = [pair for pair in pairs if set(pair) <= set(methods)]
            for metric in METRICS if wanted else ():
                found += _family(block.name, subset, metric, [block], wanted, benchmarks, resamples)
    return found + (_pooled(blocks, resamples) if len(blocks) > 1 else [])


def _pooled(blocks: Sequence[Block], resamples: int) -> list[Contrast]:
    everywhere = [b for b in blocks[0].benchmarks if all(b in x.benchmarks for x in blocks)]
    methods = list(dict.fromkeys(m for block in blocks for m in block.methods))
    found = []
    for subset, benchmarks in subsets(everywhere):
        together: dict[tuple[str, ...], list[Pair]] = {}
        for pair in all_pairs(methods):
            names = tuple(b.name for b in blocks if all(b.has(m, benchmarks) for m in pair))
            if len(names) > 1:
                together.setdefault(names, []).append(pair)
        for names, pairs in together.items():
            chosen = [b for b in blocks if b.name in names]
            for metric in METRICS:
                found += _family(POOLED, subset, metric, chosen, pairs, benchmarks, resamples)
    return found
