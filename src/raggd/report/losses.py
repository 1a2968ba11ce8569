"""The teacher-forced answer loss: by method and benchmark, and paired differences.

The loss of the gold answer sees what exact match is too coarse for: a small change of every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.evaluation.statistics import Difference, holm, paired_bootstrap
from raggd.methods.spec import method_label
from raggd.records import RunRecord
from raggd.report.tables import Column, Table, p_text

_Key = tuple[str, str]  # benchmark, question id


@dataclass(frozen=True, slots=True)
class LossComparison:
    """`method` minus `other` in nats per answer token on the same questions; below 0 is better.

    `p` is two-sided and corrected by Holm over all pairs compared together.
    """

    method: str
    other: str
    difference: Difference
    p: float


def _losses(records: Sequence[RunRecord]) -> dict[str, dict[_Key, tuple[float, str]]]:
    # by method: loss and support of every question that has one
    found: dict[str, dict[_Key, tuple[float, str]]] = {}
    for record in records:
        for p in record.predictions:
            if p.answer_loss is not None:
                key = (record.benchmark, p.question_id)
                found.setdefault(record.method, {})[key] = (p.answer_loss, p.support_id)
    return found


def mean_losses(records: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """Average the answer losses, where they were recorded.

    Args:
        records: of any methods and benchmarks.

    Returns:
        By method, by benchmark: nats per answer token.
    """
    means: dict[str, dict[str, float]] = {}
    for method, losses in _losses(records).items():
        benchmarks = dict.fromkeys(benchmark for benchmark, _ in losses)
        for name in benchmarks:
            values = [loss for (benchmark, _), (loss, _) in losses.items() if benchmark == name]
            means.setdefault(method, {})[name] = sum(values) / len(values)
    return means


def compare_losses(
    records: Sequence[RunRecord], pairs: Sequence[tuple[str, str]]
) -> list[LossComparison]:
    """Compare pairs of methods question by question; support draws count as clusters.

    Args:
        records: of one backbone and one retriever.
        pairs: (method, other); pairs without recorded losses are left out.

    Returns:
        One comparison per pair, on the questions that both have.
    """
    losses = _losses(records)
    present = [pair for pair in pairs if set(pair) <= set(losses)]
    differences = []
    for method, other in present:
        keys = sorted(set(losses[method]) & set(losses[other]))
        differences.append(
            paired_bootstrap(
                [losses[method][key][0] for key in keys],
                [losses[other][key][0] for key in keys],
                groups=[benchmark for benchmark, _ in keys],
                clusters=[losses[method][key][1] for key in keys],
            )
        )
    adjusted = holm([d.p_value for d in differences]) if differences else []
    return [
        LossComparison(*pair, difference, p)
        for pair, difference, p in zip(present, differences, adjusted, strict=True)
    ]


def loss_table(records: Sequence[RunRecord]) -> Table:
    """Lay out mean losses, methods down, benchmarks across, with their mean.

    Args:
        records: with answer losses.

    Returns:
        The table.
    """
    means = mean_losses(records)
    benchmarks = list(dict.fromkeys(name for row in means.values() for name in row))
    columns = [Column("Answer loss"), *(Column(name, "right") for name in (*benchmarks, "mean"))]
    rows = []
    for method, row in means.items():
        values = [row[name] for name in benchmarks]
        shown = [f"{value:.3f}" for value in (*values, sum(values) / len(values))]
        rows.append((method_label(method), *shown))
    return Table(tuple(columns), tuple(rows))


def loss_comparison_table(comparisons: Sequence[LossComparison], alpha: float = 0.05) -> Table:
    """Lay out paired differences of the loss; significant ones are bold.

    Args:
        comparisons: from `compare_losses`.
        alpha: the corrected p-value must be below it.

    Returns:
        The table.
    """
    columns = (Column("Comparison"), Column("Answer loss", "right"), Column("p", "right"))
    rows = tuple(
        (
            f"{method_label(c.method)} minus {method_label(c.other)}",
            f"{c.difference.mean:+.3f} ({c.difference.low:+.3f} to {c.difference.high:+.3f})",
            p_text(c.p),
        )
        for c in comparisons
    )
    bold = frozenset((i, 1) for i, c in enumerate(comparisons) if c.p < alpha)
    return Table(columns, rows, bold=bold)
