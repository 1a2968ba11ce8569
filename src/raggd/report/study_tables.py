"""The paper's tables from a study: scores by benchmark, averages, differences, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raggd.data.benchmarks import BENCHMARKS
from raggd.evaluation.statistics import Interval, holm
from raggd.methods.spec import NAMED, method_label
from raggd.report.contrasts import POOLED, Averages, Contrast
from raggd.report.grid import Block, Grid, held_out, subsets
from raggd.report.tables import (
    NOTHING,
    Column,
    Table,
    interval_text,
    milliseconds_text,
    p_text,
    relative_text,
)

ALPHA = 0.05


def benchmark_title(name: str) -> str:
    """Return the paper's name of a benchmark; held-out ones are marked by a star."""
    title = BENCHMARKS[name].title if name in BENCHMARKS else name
    return f"{title}*" if held_out(name) else title


def significant(family: Sequence[Contrast]) -> set[Contrast]:
    """Return the contrasts of a family with a p-value below 0.05, corrected over the family."""
    adjusted = holm([c.difference.p_value for c in family])
    return {c for c, p in zip(family, adjusted, strict=True) if p < ALPHA}


def above_base(found: Sequence[Contrast], scope: str, metric: str) -> set[str]:
    """Return the methods that are significantly better than the base adapter.

    Their difference is positive with a p-value below 0.05, corrected by Holm over all methods of
    the scope, so that rivals and controls meet the same bar.
    """
    chosen = [
        c
        for c in found
        if (c.scope, c.subset, c.metric) == (scope, "all", metric) and "base" in (c.method, c.other)
    ]
    return {
        c.method if c.other == "base" else c.other
        for c in significant(chosen)
        if (c.difference.mean > 0) == (c.other == "base")
    }


def _pair(em: Interval | None, f1: Interval | None) -> str:
    return NOTHING if em is None or f1 is None else f"{em.mean:.1f} / {f1.mean:.1f}"


def _average(interval: Interval | None) -> str:
    return NOTHING if interval is None else interval_text(interval)


def benchmark_table(
    blocks: Sequence[Block], found: Sequence[Contrast], caption: str, averages: Averages
) -> Table:
    """Return EM / F1 by benchmark of one backbone's blocks: the paper's main tables.

    Significant gains over the base adapter are bold.
    """
    benchmarks = list(dict.fromkeys(name for block in blocks for name in block.benchmarks))
    columns = [Column("Retriever"), Column("Method")]
    columns += [Column(benchmark_title(name), "right") for name in benchmarks]
    columns += [Column("EM, average", "right"), Column("F1, average", "right")]
    rows: list[tuple[str, ...]] = []
    bold = set()
    for block in blocks:
        better = {metric: above_base(found, block.name, metric) for metric in ("em", "f1")}
        for method in block.methods:
            cells = [block.retriever, method_label(method)]
            for name in benchmarks:
                cells.append(_pair(*(averages.of(block, method, (name,), m) for m in ("em", "f1"))))
            for metric in ("em", "f1"):
                if method in better[metric]:
                    bold.add((len(rows), len(cells)))
                cells.append(_average(averages.of(block, method, benchmarks, metric)))
            rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), caption=caption, bold=frozenset(bold))


def average_table(
    blocks: Sequence[Block], found: Sequence[Contrast], caption: str, averages: Averages
) -> Table:
    """Return the averages of all methods, a pair of columns per block: the paper's overview."""
    methods = list(dict.fromkeys(m for block in blocks for m in block.methods))
    columns = [Column("Method")]
    columns += [
        Column(f"{block.name}: {metric.upper()}", "right")
        for block in blocks
        for metric in ("em", "f1")
    ]
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for method in methods:
        cells = [method_label(method)]
        for block in blocks:
            for metric in ("em", "f1"):
                if method in above_base(found, block.name, metric):
                    bold.add((len(rows), len(cells)))
                average = averages.of(block, method, block.benchmarks, metric)
                cells.append(_average(average))
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), caption=caption, bold=frozenset(bold))


def numbers_table(grid: Grid, averages: Averages) -> Table:
    """Return every number with its interval, one line each, for other programs."""
    names = ("backbone", "retriever", "method", "benchmark", "metric", "n", "mean", "low", "high")
    rows = []
    for block in grid.blocks:
        sets: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in block.benchmarks]
        sets += [(f"average, {name}", chosen) for name, chosen in subsets(block.benchmarks)]
        for method in block.methods:
            for label, chosen in sets:
                for metric in ("em", "f1", "loss"):
                    found = averages.of(block, method, chosen, metric)
                    if found is None:
                        continue
                    answers = [a for name in chosen for _, a in block.answers[method][name]]
                    n = len({answer.question for answer in answers})
                    shown = [
                        f"{x:.4f}" if math.isfinite(x) else ""
                        for x in (found.mean, found.low, found.high)
                    ]
                    head = (block.backbone, block.retriever, method, label, metric, str(n))
                    rows.append((*head, *shown))
    return Table(tuple(Column(name) for name in names), tuple(rows))


def contrast_text(c: Contrast | None) -> str:
    """Return a difference with its interval; a dash for None."""
    if c is None:
        return NOTHING
    d, form = c.difference, "+.3f" if c.metric == "loss" else "+.1f"
    limits = f" [{d.low:{form}}, {d.high:{form}}]" if math.isfinite(d.low) else ""
    return f"{d.mean:{form}}{limits}"


def contrast_table(found: Sequence[Contrast], subset: str, caption: str) -> Table:
    """Lay out the named comparisons, block by block and pooled; significant ones are bold.

    `subset` is named as by `subsets`. P-values are corrected by Holm over the named comparisons of
    a scope; there is no column for a single scope.
    """
    scopes = len({c.scope for c in found}) > 1
    columns = [Column("Comparison"), *([Column("Scope")] if scopes else []), Column("n", "right")]
    chosen = [c for c in found if c.named and c.subset == subset]
    titles = {"em": "EM", "f1": "F1", "loss": "Answer loss"}
    metrics = [metric for metric in titles if any(c.metric == metric for c in chosen)]
    for metric in metrics:
        columns += [Column(titles[metric], "right"), Column("p", "right")]
    chosen.sort(key=lambda c: (NAMED.index((c.method, c.other)), c.scope != POOLED))
    groups: dict[tuple[str, str, str], dict[str, Contrast]] = {}
    for c in chosen:
        groups.setdefault((c.method, c.other, c.scope), {})[c.metric] = c
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for (method, other, scope), by_metric in groups.items():
        first = next(iter(by_metric.values()))
        label = f"{scope} ({first.blocks} blocks)" if first.blocks > 1 else scope
        cells = [f"{method_label(method)} minus {method_label(other)}", str(first.n)]
        cells[1:1] = [label] if scopes else []
        for metric in metrics:
            shown = by_metric.get(metric)
            p = shown.p_named if shown else None
            if p is not None and p < ALPHA:
                bold.add((len(rows), len(cells)))
            cells += [contrast_text(shown), NOTHING if p is None else p_text(p)]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), caption=caption, bold=frozenset(bold))


def pairs_table(found: Sequence[Contrast]) -> Table:
    """Return contrasts one line each; `p_holm` is over all pairs of scope, subset and metric."""
    names = (
        *("scope", "subset", "method", "other", "metric", "n", "blocks"),
        *("difference", "low", "high", "p", "p_holm", "p_holm_named"),
    )
    rows = tuple(
        (
            *(c.scope, c.subset, c.method, c.other, c.metric, str(c.n), str(c.blocks)),
            *(
                f"{x:.4f}" if math.isfinite(x) else ""
                for x in (c.difference.mean, c.difference.low, c.difference.high)
            ),
            *(f"{c.difference.p_value:.4f}", f"{c.p:.4f}"),
            "" if c.p_named is None else f"{c.p_named:.4f}",
        )
        for c in found
    )
    return Table(tuple(Column(name) for name in names), rows)


def per_draw(block: Block, method: str) -> float:
    """Return how many questions share a support set when support is given per task."""
    draws = {
        (name, seed, a.draw) for name, given in block.answers[method].items() for seed, a in given
    }
    return sum(len(given) for given in block.answers[method].values()) / max(1, len(draws))


def _flops(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1e9:.3g}"


def cost_table(block: Block, caption: str) -> Table:
    """Return what a question costs, measured and counted, with support per query and per task."""
    columns = [Column("Method")]
    columns += [
        Column(name, "right")
        for name in (
            *("Adapt ms", "Answer ms", "Per query ms", "Per task ms", "Adapt / TT-SGD"),
            *("Adapt GFLOP", "Answer GFLOP", "Adapt / TT-SGD, counted"),
        )
    ]
    reference = block.costs.get("tt-sgd", {})
    rows = []
    for method in block.methods:
        costs = block.costs.get(method, {})
        adapt, answer = costs.get("adapt_ms"), costs.get("answer_ms")
        query = task = None
        if adapt is not None and answer is not None:
            query = adapt + answer
            task = adapt / per_draw(block, method) + answer
        shares = [
            costs[name] / reference[name] if name in costs and reference.get(name) else None
            for name in ("adapt_ms", "adapt_flops")
        ]
        times = [milliseconds_text(value) for value in (adapt, answer, query, task)]
        counts = [_flops(costs.get(name)) for name in ("adapt_flops", "answer_flops")]
        rows.append(
            (
                *(method_label(method), *times, relative_text(shares[0])),
                *(*counts, relative_text(shares[1])),
            )
        )
    return Table(tuple(columns), tuple(rows), caption=caption)


def scores_table(block: Block, averages: Averages) -> Table:
    """Return one block's scores and costs, a row per method: what a small study shows."""
    columns = [Column("Method"), Column("n", "right")]
    columns += [Column(f"{name} (95 % interval)", "right") for name in ("EM", "F1")]
    columns += [Column(x, "right") for x in ("Adapt ms", "Answer ms", "Adapt cost / TT-SGD")]
    unit = block.costs.get("tt-sgd", {}).get("adapt_ms")
    rows = []
    for method in block.methods:
        n = sum(len(given) for given in block.answers[method].values())
        scores = [averages.of(block, method, block.benchmarks, metric) for metric in ("em", "f1")]
        costs = block.costs.get(method, {})
        adapt, answer = costs.get("adapt_ms"), costs.get("answer_ms")
        share = adapt / unit if unit and adapt is not None else None
        times = (milliseconds_text(adapt), milliseconds_text(answer), relative_text(share))
        rows.append((method_label(method), str(n), *map(_average, scores), *times))
    return Table(tuple(columns), tuple(rows))


def loss_table(block: Block) -> Table:
    """Return the mean answer loss by benchmark, where it was recorded."""
    names = block.benchmarks
    columns = [Column("Answer loss"), *(Column(name, "right") for name in (*names, "mean"))]
    rows = []
    for method in block.methods:
        by_benchmark = block.answers[method]
        losses = [[a.loss for _, a in by_benchmark.get(n, ()) if a.loss is not None] for n in names]
        if all(losses):
            means = [sum(values) / len(values) for values in losses]
            shown = [f"{value:.3f}" for value in (*means, sum(means) / len(means))]
            rows.append((method_label(method), *shown))
    return Table(tuple(columns), tuple(rows))
