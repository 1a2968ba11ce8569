"""Averages, differences and drops of a study, paired by question: in a block, and over blocks.

The unit is a question of a benchmark. Seeds, and in the pooled scope backbones and retrievers,
answer the same question several times: its scores are averaged before questions are resampled.
Every interval of every table comes from here, with support draws counted as a source of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from raggd.evaluation.statistics import Difference, Interval, Pair, Sample, holm
from raggd.methods.spec import HEADLINE, NAMED
from raggd.report.grid import StudyBlock, subsets

METRICS = ("em", "f1", "loss")
SCALES = {"em": 100.0, "f1": 100.0, "loss": 1.0}  # percent, but nats for the loss
ALPHA = 0.05
POOLED = "pooled"
BASE, REFERENCE = "base", "tt-sgd"
EVIDENCE = {True: "an answer in the passages", False: "no answer in the passages"}
"""Subsets of questions by what their passages hold."""
ANSWERABLE = "answer in the passages"
"""All benchmarks, but only the questions that their passages can answer: the use of evidence."""
EVIDENCE_PAIRS = (
    (BASE, "vanilla-rag"),
    *((name, BASE) for name in HEADLINE if name not in {BASE, "vanilla-rag"}),
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """`method` minus `other` on the same questions."""

    scope: str  # name of a block, or ``pooled`` over the blocks that have both methods
    # ``all``, ``training tasks`` or ``held-out tasks``, the mean of benchmark means; or one of
    # `EVIDENCE`, the mean over questions
    subset: str
    method: str
    other: str
    metric: str  # ``em``, ``f1`` or ``loss``
    n: int
    blocks: int
    difference: Difference  # in points of percent, or nats for the loss
    p: float  # two-sided, corrected by Holm over the pairs of scope, subset and metric
    p_named: float | None = None  # corrected over the pairs in `NAMED` alone; None for the others


def sample(
    blocks: Sequence[StudyBlock],
    methods: Sequence[str],
    benchmarks: Sequence[str],
    metric: str,
    *,
    macro: bool = True,
) -> Sample | None:
    """Average scores of methods on questions that all answered in all blocks; None of no question.

    With `macro`, for means of benchmark means, there is none of a part of the benchmarks either.
    """
    found: dict[tuple[str, str], dict[tuple[str, int, str], tuple[float, str]]] = {}
    for block in blocks:
        for method in methods:
            for benchmark in benchmarks:
                for answer in block.answers.get(method, {}).get(benchmark, ()):
                    value = getattr(answer, metric)
                    if value is not None:
                        mine = found.setdefault((benchmark, answer.question), {})
                        label = f"{benchmark} {answer.seed} {answer.draw}"
                        mine[block.name, answer.seed, method] = (value, label)
    rows, groups, clusters = [], [], []
    for (benchmark, _), mine in sorted(found.items()):
        times = len(blocks) * len({seed for _, seed, _ in mine})
        if len(mine) != times * len(methods):
            continue
        sums = dict.fromkeys(methods, 0.0)
        for (_, _, method), (value, _) in mine.items():
            sums[method] += value
        rows.append([total / times for total in sums.values()])
        groups.append(benchmark)
        clusters.append(tuple(sorted({label for _, label in mine.values()})))
    if not rows or (macro and set(groups) != set(benchmarks)):
        return None
    return Sample(tuple(methods), np.array(rows), groups, clusters, macro, blocks[0].resamples)


def average(
    block: StudyBlock, method: str, metric: str, benchmarks: Sequence[str] = ()
) -> Interval | None:
    """Return a mean of benchmark means in percent (the loss in nats); None if one is lacking.

    It is over all benchmarks of the block where none are named. All methods share resamples.
    """
    key = (tuple(benchmarks) or block.benchmarks, metric)
    if key not in block.averages:
        methods = [m for m in block.methods if block.has(m, key[0])]
        given = sample([block], methods, *key)
        found = given.intervals() if given else {}
        block.averages[key] = {m: _shown(interval, metric) for m, interval in found.items()}
    return block.averages[key].get(method)


def _shown(interval: Interval, metric: str) -> Interval:
    scaled = interval.scaled(SCALES[metric])
    return scaled if metric == "loss" else scaled.within(0.0, 100.0)


def _family(
    scope: str,
    subset: str,
    blocks: Sequence[StudyBlock],
    pairs: Sequence[Pair],
    benchmarks: Sequence[str],
    *,
    macro: bool = True,
) -> list[Contrast]:
    # one family for Holm's rule in each metric
    methods, found = tuple(dict.fromkeys(name for pair in pairs for name in pair)), []
    for metric in METRICS:
        given = sample(blocks, methods, benchmarks, metric, macro=macro)
        if given is None:
            continue
        differences = given.differences(pairs)
        whole = holm({pair: d.p_value for pair, d in differences.items()})
        named = holm({pair: d.p_value for pair, d in differences.items() if pair in NAMED})
        n, count, scale = len(given.values), len(blocks), SCALES[metric]
        found += [
            Contrast(scope, subset, *pair, metric, n, count, d.scaled(scale), p, named.get(pair))
            for (pair, d), p in zip(differences.items(), whole.values(), strict=True)
        ]
    return found


def all_pairs(methods: Sequence[str]) -> list[Pair]:
    """Return every pair of methods once: the later one minus the earlier one, or as named."""
    pairs = combinations(methods, 2)
    return [(a, b) if (a, b) in NAMED else (b, a) for a, b in pairs]


def contrasts(blocks: Sequence[StudyBlock], pairs: Sequence[Pair] | None = None) -> list[Contrast]:
    """Compare pairs of methods (None: all) in every block and pooled over blocks, scope by scope.

    Pooled, a pair is compared over the blocks that have both; pairs of the same blocks are one
    family for Holm's rule.
    """
    scopes = [(block.name, [block], block.benchmarks) for block in blocks]
    if len(blocks) > 1:
        shared = (b for b in blocks[0].benchmarks if all(b in x.benchmarks for x in blocks))
        scopes.append((POOLED, list(blocks), tuple(shared)))
    found = []
    for scope, given, benchmarks in scopes:
        methods = dict.fromkeys(m for block in given for m in block.methods)
        for subset, chosen in subsets(benchmarks):
            together: dict[tuple[str, ...], list[Pair]] = {}
            for pair in all_pairs(list(methods)) if pairs is None else pairs:
                names = tuple(b.name for b in given if all(b.has(m, chosen) for m in pair))
                if len(names) > (scope == POOLED):
                    together.setdefault(names, []).append(pair)
            for names, alike in together.items():
                both = [block for block in given if block.name in names]
                found += _family(scope, subset, both, alike, chosen)
    return found


def significant(found: Sequence[Contrast]) -> set[Contrast]:
    """Return what has a p-value below 0.05, corrected over the contrasts of a scope and metric."""
    families: dict[tuple[str, str], dict[Contrast, float]] = {}
    for c in found:
        families.setdefault((c.scope, c.metric), {})[c] = c.difference.p_value
    return {c for family in families.values() for c, p in holm(family).items() if p < ALPHA}


def only(block: StudyBlock, answerable: bool) -> StudyBlock:
    """Return a block with the questions of one kind of evidence, known to be so."""
    answers = {
        method: {
            name: kept
            for name, given in by_benchmark.items()
            if (kept := [a for a in given if a.answerable is answerable])
        }
        for method, by_benchmark in block.answers.items()
    }
    shown = tuple(name for name in block.benchmarks if any(name in x for x in answers.values()))
    return replace(block, answers=answers, benchmarks=shown)


def evidence_gains(blocks: Sequence[StudyBlock]) -> list[Contrast]:
    """Return mean gains over questions, apart for both kinds of evidence; p is uncorrected."""
    found = []
    for block in blocks:
        parts = {subset: only(block, answerable) for answerable, subset in EVIDENCE.items()}
        for pair in EVIDENCE_PAIRS:
            for subset, part in parts.items():
                given = (block.name, subset, [part], [pair], part.benchmarks)
                found += _family(*given, macro=False)
    return found


@dataclass(frozen=True, slots=True)
class Drop:
    """What a method takes from the answer loss of the base adapter, on the same questions."""

    scope: str  # name of a block
    # ``all``, ``training tasks``, ``held-out tasks`` or `ANSWERABLE`; the mean of benchmark means
    subset: str
    method: str  # name
    n: int  # questions
    drop: Interval  # nats per answer token; above 0 is better
    times: Interval | None  # of TT-SGD's drop; None where that is not surely positive


def loss_drops(blocks: Sequence[StudyBlock]) -> list[Drop]:
    """Return the drops on what every method of a block answered, base and TT-SGD among them."""
    found = []
    for block in blocks:
        held = only(block, answerable=True)
        parts = [(subset, block, chosen) for subset, chosen in subsets(block.benchmarks)]
        for subset, part, benchmarks in [*parts, (ANSWERABLE, held, held.benchmarks)]:
            methods = [m for m in part.methods if part.has(m, benchmarks)]
            given = sample([part], methods, benchmarks, "loss")
            if given is None or not {BASE, REFERENCE} <= set(methods):
                continue
            gained = replace(given, values=given.column(BASE)[:, None] - given.values)
            drops = gained.intervals()
            times = gained.intervals(over=REFERENCE) if drops[REFERENCE].low > 0 else {}
            found += [
                Drop(block.name, subset, method, len(given.values), drop, times.get(method))
                for method, drop in drops.items()
                if method != BASE
            ]
    return found
