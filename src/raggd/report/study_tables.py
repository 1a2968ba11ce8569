"""The tables of a study: scores, averages, differences, costs, drops, gains beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from raggd.data.benchmarks import BENCHMARKS, HELD_OUT
from raggd.evaluation.statistics import Interval
from raggd.methods.spec import NAMED, method_label
from raggd.report.contrasts import (
    ALPHA,
    BASE,
    EVIDENCE,
    METRICS,
    POOLED,
    REFERENCE,
    Contrast,
    Drop,
    average,
    significant,
)
from raggd.report.grid import Grid, StudyBlock, subsets
from raggd.report.tables import (
    NOTHING,
    Bold,
    Table,
    interval_text,
    milliseconds_text,
    numbers,
    p_text,
    relative_text,
    texts,
)

T = TypeVar("T", Contrast, Drop)
SCORES = ("em", "f1")
_BOLD = (
    "Bold: significantly above the base adapter (paired bootstrap, corrected by Holm over all "
    "methods of a block)."
)
FEWEST = 20  # questions below which resampling says too little to be called significant
_METRIC_TITLES = {"em": "EM", "f1": "F1", "loss": "Answer loss"}


def benchmark_title(name: str) -> str:
    """Return the paper's name of a benchmark; held-out ones are marked by a star."""
    title = BENCHMARKS.get(name, name)
    return f"{title}*" if name in HELD_OUT else title


def minus_label(method: str, other: str) -> str:
    """Return how tables call a comparison."""
    return f"{method_label(method)} minus {method_label(other)}"


def _marked(text: str, sure: bool) -> str:
    return Bold(text) if sure else text


def _limits(interval: Interval) -> list[str]:
    limits = (interval.mean, interval.low, interval.high)
    return [f"{x:.4f}" if math.isfinite(x) else "" for x in limits]


def _contrast_text(c: Contrast | None) -> str:
    form = "+.3f" if c and c.metric == "loss" else "+.1f"
    return interval_text(c.difference if c else None, form)


def _gains(found: Iterable[Contrast]) -> Iterator[tuple[Contrast, str, float]]:
    # of comparisons with the base adapter on all benchmarks: the other method, and what it gains
    for c in found:
        if (c.subset, c.other) == ("all", BASE):
            yield c, c.method, c.difference.mean
        elif (c.subset, c.method) == ("all", BASE):
            yield c, c.other, -c.difference.mean


def above_base(found: Sequence[Contrast]) -> set[tuple[str, str, str]]:
    """Return scope, method and metric where a method is significantly above the base adapter."""
    sure = significant([c for c, *_ in _gains(found)])
    return {(c.scope, m, c.metric) for c, m, gain in _gains(found) if gain > 0 and c in sure}


def benchmark_table(blocks: Sequence[StudyBlock], found: Sequence[Contrast]) -> Table:
    """Return EM / F1 by benchmark of one backbone's blocks: the paper's main tables.

    Significant gains over the base adapter are bold.
    """
    benchmarks = list(dict.fromkeys(name for block in blocks for name in block.benchmarks))
    rows, better = [], above_base(found)
    for block in blocks:
        for method in block.methods:
            cells = [block.retriever, method_label(method)]
            for name in benchmarks:
                both = [average(block, method, metric, (name,)) for metric in SCORES]
                cells.append(" / ".join(f"{x.mean:.1f}" for x in both if x) or NOTHING)
            for metric in SCORES:
                text = interval_text(average(block, method, metric, benchmarks))
                cells.append(_marked(text, (block.name, method, metric) in better))
            rows.append(cells)
    titles = map(benchmark_title, benchmarks)
    columns = texts("Retriever", "Method") + numbers(*titles, "EM, average", "F1, average")
    star = "A star marks tasks that nothing was trained on."
    caption = f"{blocks[0].backbone}: EM / F1 in percent by benchmark. {star} {_BOLD}"
    return Table(columns, rows, caption)


def average_table(blocks: Sequence[StudyBlock], found: Sequence[Contrast]) -> Table:
    """Return the averages of all methods, a pair of columns per block: the paper's overview."""
    methods = dict.fromkeys(m for block in blocks for m in block.methods)
    pairs = [(block, metric) for block in blocks for metric in SCORES]
    rows, better = [], above_base(found)
    for method in methods:
        cells = [method_label(method)]
        for block, metric in pairs:
            text = interval_text(average(block, method, metric))
            cells.append(_marked(text, (block.name, method, metric) in better))
        rows.append(cells)
    titles = (f"{block.name}: {metric.upper()}" for block, metric in pairs)
    caption = f"Averages over benchmarks with 95 % intervals, in percent. {_BOLD}"
    return Table(texts("Method") + numbers(*titles), rows, caption)


def numbers_table(grid: Grid) -> Table:
    """Return every number with its interval, one line each, for other programs."""
    rows = []
    for block in grid.blocks:
        sets: list[tuple[str, tuple[str, ...]]] = [(name, (name,)) for name in block.benchmarks]
        sets += [(f"average, {name}", chosen) for name, chosen in subsets(block.benchmarks)]
        for method in block.methods:
            for label, chosen in sets:
                for metric in METRICS:
                    found = average(block, method, metric, chosen)
                    if found is not None:
                        answers = [a for name in chosen for a in block.answers[method][name]]
                        n = str(len({answer.question for answer in answers}))
                        head = (block.backbone, block.retriever, method, label, metric, n)
                        rows.append([*head, *_limits(found)])
    names = ("backbone", "retriever", "method", "benchmark", "metric", "n", "mean", "low", "high")
    return Table(texts(*names), rows)


def contrast_table(found: Sequence[Contrast], subset: str, caption: str) -> Table:
    """Lay out the named comparisons, block by block and pooled; significant ones are bold.

    `subset` is named as by `subsets`. P-values are corrected by Holm over the named comparisons of
    a scope; there is no column for a single scope.
    """
    scopes = len({c.scope for c in found}) > 1
    chosen = [c for c in found if c.p_named is not None and c.subset == subset]
    metrics = [metric for metric in METRICS if any(c.metric == metric for c in chosen)]
    chosen.sort(key=lambda c: (NAMED.index((c.method, c.other)), c.scope != POOLED))
    rows, grouped = [], _by_row(chosen, "metric", "method", "other", "scope")
    for (method, other, scope), by_metric in grouped.items():
        first = next(iter(by_metric.values()))
        label = f"{scope} ({first.blocks} blocks)" if first.blocks > 1 else scope
        cells = [minus_label(method, other), *([label] if scopes else []), str(first.n)]
        for metric in metrics:
            shown = by_metric.get(metric)
            p = shown.p_named if shown else None
            cells += [_marked(_contrast_text(shown), p is not None and p < ALPHA), p_text(p)]
        rows.append(cells)
    titles = [title for metric in metrics for title in (_METRIC_TITLES[metric], "p")]
    columns = texts("Comparison", *(["Scope"] if scopes else [])) + numbers("n", *titles)
    return Table(columns, rows, caption)


def _by_row(found: Iterable[T], column: str, *names: str) -> dict[tuple[str, ...], dict[str, T]]:
    # by an attribute that columns stand for, in the rows that other attributes name
    groups: dict[tuple[str, ...], dict[str, T]] = {}
    for one in found:
        row = groups.setdefault(tuple(getattr(one, name) for name in names), {})
        row[getattr(one, column)] = one
    return groups


def pairs_table(found: Sequence[Contrast]) -> Table:
    """Return contrasts one line each; `p_holm` is over all pairs of scope, subset and metric."""
    names = ("scope", "subset", "method", "other", "metric", "n", "blocks")
    rows = [
        [
            *(str(getattr(c, name)) for name in names),
            *_limits(c.difference),
            f"{c.difference.p_value:.4f}",
            f"{c.p:.4f}",
            "" if c.p_named is None else f"{c.p_named:.4f}",
        ]
        for c in found
    ]
    more = ("difference", "low", "high", "p", "p_holm", "p_holm_named")
    return Table(texts(*names, *more), rows)


def evidence_table(found: Sequence[Contrast]) -> Table:
    """Return gains by evidence; bold is significant, corrected by Holm over the rows of a scope."""
    sure = {c for c in significant(found) if c.n >= FEWEST}
    rows = []
    groups = _by_row(found, "metric", "scope", "method", "other", "subset")
    for (scope, method, other, subset), by_metric in groups.items():
        n, holds = next(iter(by_metric.values())).n, subset == EVIDENCE[True]
        shown = [by_metric.get(metric) for metric in METRICS]
        cells = (_marked(_contrast_text(c), c in sure) for c in shown)
        label = "an answer" if holds else "none"
        rows.append([scope, minus_label(method, other), label, str(n), *cells])
    caption = (
        "Gains by evidence, mean over questions. Bold: p < 0.05, corrected by Holm over the rows "
        f"of a scope, from {FEWEST} questions on."
    )
    columns = texts("Scope", "Comparison", "Passages hold")
    return Table(columns + numbers("n", *_METRIC_TITLES.values()), rows, caption)


def drops_table(found: Sequence[Drop]) -> Table:
    """Return the drops by block and method, for each subset, and as multiples of TT-SGD's."""
    subsets_shown = list(dict.fromkeys(drop.subset for drop in found))
    rows = []
    for (scope, method), mine in _by_row(found, "subset", "scope", "method").items():
        cells = [scope, method_label(method)]
        for name in subsets_shown:
            one = mine.get(name)
            # a sure rise of the loss is not shown as a multiple of a drop
            times = one.times if one and one.drop.high >= 0 else None
            cells += [interval_text(one.drop if one else None, ".3f"), interval_text(times, ".2f")]
        rows.append(cells)
    titles = [title for name in subsets_shown for title in (f"Drop, {name}", "x TT-SGD")]
    caption = "Drop of the answer loss from the base adapter, nats per answer token, 95 % intervals"
    return Table(texts("Scope", "Method") + numbers(*titles), rows, caption)


PAPER_COLUMNS = ("Qwen BM25", "Qwen E5", "Llama BM25", "Llama E5")
PUBLISHED: Mapping[str, tuple[tuple[float, float] | None, ...]] = {
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


def paper_table(found: Sequence[Contrast]) -> Table:
    """Set EM / F1 differences from the base adapter beside the published ones.

    Absolute scores of small backbones on other questions cannot be compared with the paper's; what
    a method adds to the base adapter can.
    """
    # a pooled comparison of methods that not every backbone has is of fewer blocks than its column
    widest = max((c.blocks for c in found), default=0)
    whole = [c for c in found if c.scope != POOLED or c.blocks == widest]
    gains = {(c.scope, method, c.metric): gain for c, method, gain in _gains(whole)}
    scopes = list(dict.fromkeys(c.scope for c in whole))
    rows = []
    for method, published in PUBLISHED.items():
        if method == BASE:
            continue
        cells = [method_label(method)]
        for ours, base in zip(published, PUBLISHED[BASE], strict=True):
            pair = zip(ours or (), base or (), strict=False)
            cells.append(" / ".join(f"{a - b:+.2f}" for a, b in pair) or NOTHING)
        for scope in scopes:
            both = [gains.get((scope, method, metric)) for metric in SCORES]
            cells.append(" / ".join(f"{x:+.2f}" for x in both if x is not None) or NOTHING)
        rows.append(cells)
    titles = (*(f"paper: {name}" for name in PAPER_COLUMNS), *scopes)
    return Table(texts("Minus base adapter") + numbers(*titles), rows)


def _per_draw(block: StudyBlock, method: str) -> float:
    # how many questions share a support set when support is given per task
    given = [(name, a.seed, a.draw) for name, own in block.answers[method].items() for a in own]
    return len(given) / max(1, len(set(given)))


def _relative(block: StudyBlock, method: str, cost: str) -> str:
    # a cost as a share of TT-SGD's
    own, unit = (block.costs.get(name, {}).get(cost) for name in (method, REFERENCE))
    return relative_text(own / unit if own is not None and unit else None)


def cost_table(block: StudyBlock) -> Table:
    """Return what a question costs, measured and counted, with support per query and per task."""
    rows = []
    for method in block.methods:
        costs = block.costs.get(method, {})
        adapt, answer = costs.get("adapt_ms"), costs.get("answer_ms")
        query = task = None
        if adapt is not None and answer is not None:
            query = adapt + answer
            task = adapt / _per_draw(block, method) + answer
        flops = [
            f"{costs[name] / 1e9:.3g}" if name in costs else NOTHING
            for name in ("adapt_flops", "answer_flops")
        ]
        times = map(milliseconds_text, (adapt, answer, query, task))
        measured, counted = (_relative(block, method, f"adapt_{unit}") for unit in ("ms", "flops"))
        rows.append([method_label(method), *times, measured, *flops, counted])
    measured_titles = ("Adapt ms", "Answer ms", "Per query ms", "Per task ms", "Adapt / TT-SGD")
    caption = f"{block.name}: cost of a question; per task: one adaptation serves a draw."
    counted_titles = ("Adapt GFLOP", "Answer GFLOP", "Adapt / TT-SGD, counted")
    return Table(texts("Method") + numbers(*measured_titles, *counted_titles), rows, caption)


def scores_table(block: StudyBlock) -> Table:
    """Return one block's scores and costs, a row per method: what a small study shows."""
    rows = []
    for method in block.methods:
        n = sum(len(given) for given in block.answers[method].values())
        scores = [average(block, method, metric) for metric in SCORES]
        costs = block.costs.get(method, {})
        times = (milliseconds_text(costs.get(name)) for name in ("adapt_ms", "answer_ms"))
        shown = (*map(interval_text, scores), *times, _relative(block, method, "adapt_ms"))
        rows.append([method_label(method), str(n), *shown])
    titles = ("n", "EM (95 % interval)", "F1 (95 % interval)")
    costly = ("Adapt ms", "Answer ms", "Adapt cost / TT-SGD")
    return Table(texts("Method") + numbers(*titles, *costly), rows)


def loss_table(block: StudyBlock) -> Table:
    """Return the mean answer loss by benchmark, where it was recorded."""
    rows = []
    for method in block.methods:
        given = [block.answers[method].get(name, ()) for name in block.benchmarks]
        losses = [[a.loss for a in own if a.loss is not None] for own in given]
        if all(losses):
            means = [sum(values) / len(values) for values in losses]
            shown = [f"{value:.3f}" for value in (*means, sum(means) / len(means))]
            rows.append([method_label(method), *shown])
    return Table(texts("Answer loss") + numbers(*block.benchmarks, "mean"), rows)


def alignment_table(records: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the mean cosine of every predictor on both kinds of tasks, by backbone."""
    rows = []
    for name, record in records.items():
        for kind, by_method in record["found"].items():
            for method, found in by_method.items():
                low, high = found["interval"]
                limits = "" if low is None else f" [{low:.3f}, {high:.3f}]"
                cells = [name, method_label(method), str(found["steps"]), kind]
                cells += [str(len(found["by_set"])), f"{found['cosine']:.3f}{limits}"]
                rows.append([*cells, f"{found['total_cosine']:.3f}"])
    columns = texts("Backbone", "Method") + numbers("K") + texts("Tasks")
    return Table(columns + numbers("Sets", "Cosine (95 % interval)", "Whole update"), rows)
