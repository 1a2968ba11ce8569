"""What methods are worth on one's own questions: scores, differences, a sentence of advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.evaluation.metrics import exact_match, token_f1
from raggd.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_intervals,
    holm,
    paired_bootstraps,
    questions_needed,
)
from raggd.methods.spec import SPECS, method_label
from raggd.records import Question, RunRecord
from raggd.report.tables import Column, Table, interval_text, milliseconds_text, p_text

ALPHA = 0.05
BASE = "base"


def _same_string(answer: str, answers: Sequence[str]) -> float:
    return float(answer.strip() in {gold.strip() for gold in answers})


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "Exact string": _same_string,
    "EM": exact_match,
    "F1": token_f1,
}
"""Scores of an answer against the wanted ones, 0 to 1: as written, and but for case and points."""
HEADLINE = ("Exact string", "F1")
"""Their mean decides: form and content alike."""


@dataclass(frozen=True)
class OwnReport:
    """What is shown of one's own questions.

    Attributes:
        tables: scores, differences from the base.
        advice: whether to adapt, and with what.
        result: ready for JSON.
    """

    tables: list[Table]
    advice: str
    result: dict[str, Any]


def _values(
    records: Sequence[RunRecord], questions: Mapping[str, Question], score: str
) -> NDArray[np.float64]:
    # (questions, methods); all records hold the same questions in the same order
    judge = SCORES[score]
    return np.array(
        [
            [judge(p.answer, questions[p.question_id].answers) for p in record.predictions]
            for record in records
        ]
    ).T


def _advice(
    methods: Sequence[str], differences: Mapping[str, Difference], n: int, std: float, adapting: str
) -> str:
    if not differences:
        return "Nothing was compared with the base adapter."
    adjusted = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    sure = [m for m, d in differences.items() if d.mean > 0 and adjusted[m] < ALPHA]
    best = max(sure or differences, key=lambda m: differences[m].mean)
    d = differences[best]
    gain = f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"
    if sure:
        more = "" if best == adapting else f"; the default, {adapting}, is not surely better"
        if best != adapting and adapting in sure:
            more = f"; the default, {adapting}, gains {differences[adapting].mean:+.1f}"
        reads = SPECS[best].encoded or SPECS[best].shown if best in SPECS else True
        alike = (
            "" if reads else " It reads no demonstrations, so they are not needed for this gain."
        )
        return f"Adapt, with {best}: {gain} over the base adapter on {n} questions{more}.{alike}"
    if d.mean <= 0 or not math.isfinite(d.low):
        return f"Do not adapt: nothing is above the base adapter on {n} questions."
    needed = questions_needed(d.mean, max(std, 1e-6))
    return (
        f"Do not count on adapting yet: nothing is surely above the base adapter on {n} questions "
        f"(best is {best}, {gain}); about {needed} would show a gain of that size."
    )


def own_report(
    records: Sequence[RunRecord], questions: Mapping[str, Question], adapting: str
) -> OwnReport:
    """Return what one task's records, a method each, say of one's own questions, given by id.

    Intervals count support sets as a source of chance.
    """
    methods = [record.method for record in records]
    clusters = [p.support_id for p in records[0].predictions]
    scores = {name: 100 * _values(records, questions, name) for name in SCORES}
    shown = {
        name: bootstrap_intervals(values, clusters=clusters) for name, values in scores.items()
    }
    table = _score_table(records, shown)
    together = sum((scores[name] for name in HEADLINE), np.zeros_like(scores[HEADLINE[0]]))
    together = together / len(HEADLINE)
    rivals = [m for m in methods if m != BASE] if BASE in methods else []
    pairs = [(methods.index(m), methods.index(BASE)) for m in rivals]
    found = paired_bootstraps(together, pairs, clusters=clusters) if pairs else []
    differences = dict(zip(rivals, found, strict=True))
    n = len(clusters)
    best = max(rivals, key=lambda m: differences[m].mean) if rivals else methods[0]
    from_base = methods.index(BASE) if rivals else 0
    std = float((together[:, methods.index(best)] - together[:, from_base]).std())
    advice = _advice(methods, differences, n, std, adapting)
    result = {
        "n": n,
        "methods": {
            record.method: {name: _numbers(shown[name][i]) for name in SCORES} | dict(record.cost)
            for i, record in enumerate(records)
        },
        "minus_base": {m: _numbers(d) for m, d in differences.items()},
        "advice": advice,
    }
    return OwnReport([table, _difference_table(differences)], advice, result)


def _numbers(found: Interval | Difference) -> dict[str, float | None]:
    parts = {"mean": found.mean, "low": found.low, "high": found.high}
    return {name: x if math.isfinite(x) else None for name, x in parts.items()}


def _score_table(records: Sequence[RunRecord], shown: Mapping[str, Sequence[Interval]]) -> Table:
    columns = [Column("Method"), Column("n", "right")]
    columns += [Column(f"{name} (95 %)", "right") for name in shown]
    columns += [Column("Adapt ms", "right"), Column("Answer ms", "right")]
    rows = []
    for i, record in enumerate(records):
        cells = [method_label(record.method), str(len(record.predictions))]
        cells += [interval_text(intervals[i]) for intervals in shown.values()]
        cells += [milliseconds_text(record.cost.get(c)) for c in ("adapt_ms", "answer_ms")]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def _difference_table(differences: Mapping[str, Difference]) -> Table:
    adjusted = holm([d.p_value for d in differences.values()]) if differences else []
    rows = tuple(
        (
            f"{method_label(m)} minus {method_label(BASE)}",
            f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]",
            p_text(p),
        )
        for (m, d), p in zip(differences.items(), adjusted, strict=True)
    )
    columns = (Column("Comparison"), Column("Mean of both, points", "right"), Column("p", "right"))
    caption = f"Mean of {' and '.join(HEADLINE)}; p corrected by Holm."
    bold = frozenset((i, 1) for i, p in enumerate(adjusted) if p < ALPHA)
    return Table(columns, rows, caption=caption, bold=bold)
