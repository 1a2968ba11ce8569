"""How far a method lowers the answer loss of the base adapter, and how many times TT-SGD does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raggd.evaluation.statistics import Interval, bootstrap_intervals
from raggd.methods.spec import method_label
from raggd.report.contrasts import sample
from raggd.report.evidence import only
from raggd.report.grid import Block, subsets
from raggd.report.tables import NOTHING, Column, Table

BASE, REFERENCE = "base", "tt-sgd"
ANSWERABLE = "answer in the passages"
"""All benchmarks, but only the questions that their passages can answer: the use of evidence."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What a method takes from the answer loss of the base adapter, on the same questions.

    Attributes:
        scope: name of a block.
        subset: ``all``, ``training tasks``, ``held-out tasks`` or `ANSWERABLE`; the mean of
            benchmark means.
        method: name.
        n: questions.
        drop: nats per answer token; above 0 is better.
        times: the drop divided by that of TT-SGD; None where TT-SGD's own is not surely positive.
    """

    scope: str
    subset: str
    method: str
    n: int
    drop: Interval
    times: Interval | None


def _of_subset(
    block: Block, subset: str, benchmarks: tuple[str, ...], resamples: int
) -> list[Drop]:
    methods = [m for m in block.methods if block.has(m, benchmarks)]
    if not {BASE, REFERENCE} <= set(methods):
        return []
    given = sample([block], methods, benchmarks, "loss")
    if given is None or set(given.groups) != set(benchmarks):
        return []
    gained = given.values[:, [methods.index(BASE)]] - given.values
    groups, clusters = given.groups, given.clusters
    drops = bootstrap_intervals(
        gained, groups=groups, clusters=clusters, macro=True, resamples=resamples
    )
    at = methods.index(REFERENCE)
    times: Sequence[Interval | None] = [None] * len(methods)
    if math.isfinite(drops[at].low) and drops[at].low > 0:
        times = bootstrap_intervals(
            gained, over=at, groups=groups, clusters=clusters, macro=True, resamples=resamples
        )
    return [
        Drop(block.name, subset, method, len(given.groups), drop, ratio)
        for method, drop, ratio in zip(methods, drops, times, strict=True)
        if method != BASE
    ]


def loss_drops(blocks: Sequence[Block], resamples: int) -> list[Drop]:
    """Return the drops on the questions that every method of a block answered.

    Blocks without base adapter or TT-SGD, and answers without a loss, are left out.
    """
    found = []
    for block in blocks:
        for subset, benchmarks in subsets(block.benchmarks):
            found += _of_subset(block, subset, benchmarks, resamples)
        held = only(block, answerable=True)
        found += _of_subset(held, ANSWERABLE, held.benchmarks, resamples)
    return found


def _text(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return NOTHING
    low, high = (f"{limit:.{digits}f}" for limit in (interval.low, interval.high))
    return f"{interval.mean:.{digits}f} [{low}, {high}]"


def _cells(drop: Drop | None) -> list[str]:
    if drop is None:
        return [NOTHING, NOTHING]
    rises = drop.drop.high < 0  # surely: a rise of the loss is not shown as a multiple of a drop
    return [_text(drop.drop, 3), NOTHING if rises else _text(drop.times, 2)]


def drops_table(found: Sequence[Drop]) -> Table:
    """Return the drops by block and method, for each subset, and as multiples of TT-SGD's."""
    names = list(dict.fromkeys(drop.subset for drop in found))
    columns = [Column("Scope"), Column("Method")]
    for name in names:
        columns += [Column(f"Drop, {name}", "right"), Column("x TT-SGD", "right")]
    by_row: dict[tuple[str, str], dict[str, Drop]] = {}
    for drop in found:
        by_row.setdefault((drop.scope, drop.method), {})[drop.subset] = drop
    rows = []
    for (scope, method), mine in by_row.items():
        cells = [scope, method_label(method)]
        for name in names:
            cells += _cells(mine.get(name))
        rows.append(tuple(cells))
    caption = "Drop of the answer loss from the base adapter, nats per answer token, 95 % intervals"
    return Table(tuple(columns), tuple(rows), caption=caption)
