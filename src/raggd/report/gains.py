"""Gains by evidence, beside test-time SGD, and beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raggd.evaluation.statistics import Difference, Interval, bootstrap_intervals
from raggd.methods.spec import HEADLINE, method_label
from raggd.report.contrasts import METRICS, POOLED, Contrast, contrast_of, sample
from raggd.report.grid import Block, subsets
from raggd.report.study_tables import contrast_text, significant
from raggd.report.tables import NOTHING, Column, Table

PAIRS = (
    ("base", "vanilla-rag"),
    *((name, "base") for name in HEADLINE if name not in {"base", "vanilla-rag"}),
)
FEWEST = 20
"""Questions below which resampling says too little to be called significant."""
EVIDENCE = {True: "an answer in the passages", False: "no answer in the passages"}


@dataclass(frozen=True, slots=True)
class EvidenceGain:
    """One pair of methods on the questions of one kind of evidence, all benchmarks together."""

    answerable: bool
    contrast: Contrast

    @property
    def difference(self) -> Difference:
        """The gain, in percent or nats."""
        return self.contrast.difference


def only(block: Block, answerable: bool) -> Block:
    """Return a block with the questions of one kind of evidence.

    Questions of unknown kind, and benchmarks left without questions, are dropped.
    """
    answers = {
        method: {
            name: kept
            for name, given in by_benchmark.items()
            if (kept := tuple((s, a) for s, a in given if a.answerable is answerable))
        }
        for method, by_benchmark in block.answers.items()
    }
    shown = tuple(name for name in block.benchmarks if any(name in x for x in answers.values()))
    return replace(block, answers=answers, benchmarks=shown)


def evidence_gains(blocks: Sequence[Block], resamples: int) -> list[EvidenceGain]:
    """Return what pairs of methods gain, apart for both kinds of evidence.

    It is the mean over questions, since some benchmarks have few of one kind.
    """
    found = []
    for block in blocks:
        for pair in PAIRS:
            if not set(pair) <= set(block.methods):
                continue
            for answerable in EVIDENCE:
                part = only(block, answerable)
                for metric in METRICS:
                    contrast = contrast_of(part, pair, metric, resamples)
                    if contrast:
                        found.append(EvidenceGain(answerable, contrast))
    return found


def _significant(found: Sequence[Contrast]) -> set[Contrast]:
    families: dict[tuple[str, str], list[Contrast]] = {}
    for c in found:
        families.setdefault((c.scope, c.metric), []).append(c)
    return {c for family in families.values() for c in significant(family) if c.n >= FEWEST}


def evidence_table(found: Sequence[EvidenceGain]) -> Table:
    """Return gains by evidence; bold is significant, corrected by Holm over the rows of a scope."""
    columns = [Column("Scope"), Column("Comparison"), Column("Passages hold"), Column("n", "right")]
    columns += [Column(name, "right") for name in ("EM", "F1", "Answer loss")]
    groups: dict[tuple[str, str, str, bool], dict[str, Contrast]] = {}
    for gain in found:
        c = gain.contrast
        groups.setdefault((c.scope, c.method, c.other, gain.answerable), {})[c.metric] = c
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    sure = _significant([gain.contrast for gain in found])
    for (scope, method, other, answerable), by_metric in groups.items():
        n = next(iter(by_metric.values())).n
        label = f"{method_label(method)} minus {method_label(other)}"
        cells = [scope, label, "an answer" if answerable else "none", str(n)]
        for metric in METRICS:
            shown = by_metric.get(metric)
            if shown in sure:
                bold.add((len(rows), len(cells)))
            cells.append(contrast_text(shown))
        rows.append(tuple(cells))
    caption = (
        "Gains by evidence, mean over questions. Bold: p < 0.05, corrected by Holm over the rows "
        f"of a scope, from {FEWEST} questions on."
    )
    return Table(tuple(columns), tuple(rows), caption=caption, bold=frozenset(bold))


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


COLUMNS = ("Qwen BM25", "Qwen E5", "Llama BM25", "Llama E5")
SCORES: Mapping[str, tuple[tuple[float, float] | None, ...]] = {
    "query-only": ((18.94, 25.09), (18.94, 25.09), (21.52, 28.08), (21.52, 28.08)),
    "vanilla-rag": ((27.16, 34.90), (32.61, 40.60), (28.72, 36.34), (34.01, 41.90)),
    "vanilla-few-shot": ((27.14, 34.76), (32.14, 40.31), None, None),
    "base": ((29.71, 37.72), (34.16, 42.54), (35.86, 45.34), (38.86, 48.04)),
    "base-few-shot": ((31.58, 40.20), (36.22, 44.75), None, None),
    "prompt-tuning": ((30.60, 40.22), (34.59, 43.60), None, None),
    "hyper-tuning": ((31.69, 40.65), (35.85, 44.21), None, None),
    "tt-sgd": ((32.36, 40.88), (36.54, 45.02), None, None),
    "rag-gd-k1": ((32.25, 40.81), (36.35, 44.94), (36.93, 45.79), (39.93, 48.65)),
    "rag-gd": ((32.43, 40.87), (36.71, 45.11), (36.83, 45.70), (40.54, 49.24)),
    "rag-gd-k10": ((32.40, 40.68), (36.68, 44.86), (36.96, 45.79), (40.59, 49.29)),
}
"""EM and F1 averages over seven benchmarks, as published (arXiv:2605.26356v1, CC BY 4.0)."""


def _published(method: str, column: int) -> str:
    ours, base = SCORES[method][column], SCORES["base"][column]
    if ours is None or base is None:
        return NOTHING
    return f"{ours[0] - base[0]:+.2f} / {ours[1] - base[1]:+.2f}"


def _against_base(
    found: Sequence[Contrast], scope: str, method: str, metric: str
) -> Contrast | None:
    for c in found:
        if (c.scope, c.subset, c.metric) == (scope, "all", metric):
            if (c.method, c.other) == (method, "base"):
                return c
            if (c.method, c.other) == ("base", method):
                return c.turned()
    return None


def _over_all_blocks(found: Sequence[Contrast]) -> list[Contrast]:
    # a pooled comparison of methods that not every backbone has is of fewer blocks than its column
    widest = max((c.blocks for c in found), default=0)
    return [c for c in found if c.scope != POOLED or c.blocks == widest]


def _scopes(found: Sequence[Contrast]) -> list[str]:
    return list(dict.fromkeys(c.scope for c in found))


def paper_table(found: Sequence[Contrast]) -> Table:
    """Set EM / F1 differences from the base adapter beside the published ones.

    Absolute scores of small backbones on other questions cannot be compared with the paper's; what
    a method adds to the base adapter can.
    """
    found = _over_all_blocks(found)
    scopes = _scopes(found)
    columns = [Column("Minus base adapter"), *(Column(f"paper: {x}", "right") for x in COLUMNS)]
    columns += [Column(scope, "right") for scope in scopes]
    rows = []
    for method in SCORES:
        if method == "base":
            continue
        cells = [method_label(method), *(_published(method, i) for i in range(len(COLUMNS)))]
        for scope in scopes:
            both = [_against_base(found, scope, method, metric) for metric in ("em", "f1")]
            shown = [f"{c.difference.mean:+.2f}" for c in both if c]
            cells.append(" / ".join(shown) if len(shown) == 2 else NOTHING)
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))
