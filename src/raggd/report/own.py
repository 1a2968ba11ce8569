"""What methods are worth on one's own questions: form, content and refusals apart, and advice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.evaluation.contracts import refusal_scores
from raggd.evaluation.forms import Form, Parts
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
from raggd.report.tables import NOTHING, Column, Table, interval_text, milliseconds_text, p_text

ALPHA = 0.05
BASE = "base"


@dataclass(frozen=True)
class OwnReport:
    """What is shown of one's own questions; the advice says which form was judged first."""

    tables: list[Table]
    advice: str
    result: dict[str, Any]


def form_sentence(forms: Sequence[Form]) -> str:
    """Say which form the support sets show; an empty name is none."""
    names = Counter(form.name for form in forms if form.name)
    if not names or names.total() < len(forms):
        return "The examples share no form that could be judged, so content alone is scored."
    if len(names) == 1:
        return f"Form that the examples show: {next(iter(names))}."
    shown = "; ".join(f"{name} ({n} of {len(forms)} sets)" for name, n in names.most_common())
    return f"Forms that the examples show: {shown}."


def sets_report(reports: Mapping[str, OwnReport]) -> OwnReport:
    """Return what several sets of questions say together: answers of the form, and right ones."""
    results = {name: report.result for name, report in reports.items()}
    methods = list(next(iter(results.values()))["methods"])

    def count(result: Mapping[str, Any], method: str, name: str) -> float | None:
        found = result["methods"][method].get(name)
        return None if found is None else found["mean"] * result["n"] / 100

    def cell(method: str, chosen: Sequence[Mapping[str, Any]]) -> str:
        sums = []
        for name in ("form", "content"):
            counts = [count(result, method, name) for result in chosen]
            known = [c for c in counts if c is not None]
            sums.append(f"{round(sum(known), 1):g}" if known else NOTHING)
        return " / ".join(sums)

    rows = [
        (name, str(result["n"]), *(cell(m, [result]) for m in methods))
        for name, result in results.items()
    ]
    n = sum(result["n"] for result in results.values())
    totals = {m: cell(m, list(results.values())) for m in methods}
    rows.append(("all", str(n), *totals.values()))
    columns = [Column("Examples"), Column("n", "right")]
    columns += [Column(method_label(m), "right") for m in methods]
    caption = "Answers that follow the form / that say what was wanted."
    words = ", ".join(f"{method} {total}" for method, total in totals.items())
    return OwnReport(
        [Table(tuple(columns), tuple(rows), caption=caption)],
        f"Form followed / content right, of {n} questions: {words}.",
        {"n": n, "sets": results},
    )


class _Scores:
    """Every method's answers to the same questions, judged by the forms of their support sets."""

    def __init__(
        self,
        records: Sequence[RunRecord],
        questions: Mapping[str, Question],
        forms: Mapping[str, Form],
    ) -> None:
        self.methods = [record.method for record in records]
        self.clusters = [p.support_id for p in records[0].predictions]
        self.judged: list[list[Parts]] = [
            [
                forms[p.support_id].judge(p.answer, questions[p.question_id].answers)
                for p in record.predictions
            ]
            for record in records
        ]
        scored = all(part.form is not None for part in self.judged[0])
        self.names = ("form", "content", "exact") if scored else ("content", "exact")
        self.values = {name: self._percent(name) for name in self.names}
        self.headline = self.names[:-1]
        self.together = np.mean([self.values[name] for name in self.headline], axis=0)

    def _percent(self, name: str) -> NDArray[np.float64]:
        # (questions, methods)
        return 100 * np.array([[getattr(p, name) for p in own] for own in self.judged]).T

    def means(self, method: str) -> dict[str, float]:
        at = self.methods.index(method)
        return {name: float(self.values[name][:, at].mean()) for name in self.headline}

    def refusal(self, method: str) -> dict[str, float] | None:
        judged = self.judged[self.methods.index(method)]
        if not any(part.wanted for part in judged):
            return None
        return refusal_scores([part.refused for part in judged], [part.wanted for part in judged])


def own_report(
    records: Sequence[RunRecord],
    questions: Mapping[str, Question],
    forms: Mapping[str, Form],
    adapting: str,
) -> OwnReport:
    """Return what one task's records, a method each, say of one's own questions.

    ``questions`` are given by id, ``forms`` by support set. Intervals count support sets as a
    source of chance; the mean of form and content decides.
    """
    scores = _Scores(records, questions, forms)
    methods, clusters = scores.methods, scores.clusters
    shown = {name: bootstrap_intervals(v, clusters=clusters) for name, v in scores.values.items()}
    rivals = [m for m in methods if m != BASE] if BASE in methods else []
    pairs = [(methods.index(m), methods.index(BASE)) for m in rivals]
    found = paired_bootstraps(scores.together, pairs, clusters=clusters) if pairs else []
    differences = dict(zip(rivals, found, strict=True))
    sentence = form_sentence(list(forms.values()))
    advice = _advice(scores, differences, adapting)
    refusals = {method: scores.refusal(method) for method in methods}
    result = {
        "n": len(clusters),
        "form": sentence,
        "methods": {
            record.method: {name: _numbers(shown[name][i]) for name in shown}
            | ({"refusal": refusals[record.method]} if refusals[record.method] else {})
            | dict(record.cost)
            for i, record in enumerate(records)
        },
        "minus_base": {m: _numbers(d) for m, d in differences.items()},
        "advice": advice,
    }
    tables = [
        _score_table(records, shown, refusals),
        _difference_table(differences, scores.headline),
    ]
    return OwnReport(tables, f"{sentence}\n{advice}", result)


def _advice(scores: _Scores, differences: Mapping[str, Difference], adapting: str) -> str:
    if not differences:
        return "Nothing was compared with the base adapter."
    n = len(scores.clusters)
    adjusted = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    sure = [m for m, d in differences.items() if d.mean > 0 and adjusted[m] < ALPHA]
    best = max(sure or differences, key=lambda m: differences[m].mean)
    d, own, base = differences[best], scores.means(best), scores.means(BASE)
    parts = ", ".join(f"{name} {own[name]:.0f} for {base[name]:.0f}" for name in own)
    gain = f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"
    if sure:
        more = "" if best == adapting else f"; the default, {adapting}, is not surely better"
        if best != adapting and adapting in sure:
            more = f"; the default, {adapting}, gains {differences[adapting].mean:+.1f}"
        reads = SPECS[best].encoded or SPECS[best].shown if best in SPECS else True
        alike = (
            "" if reads else " It reads no demonstrations, so they are not needed for this gain."
        )
        return (
            f"Adapt, with {best}: {gain} over the base adapter on {n} questions ({parts}){more}."
            f"{alike}"
        )
    if d.mean <= 0 or not math.isfinite(d.low):
        return f"Do not adapt: nothing is above the base adapter on {n} questions ({parts})."
    columns = [scores.methods.index(m) for m in (best, BASE)]
    std = float((scores.together[:, columns[0]] - scores.together[:, columns[1]]).std())
    needed = questions_needed(d.mean, max(std, 1e-6))
    return (
        f"Do not count on adapting yet: nothing is surely above the base adapter on {n} questions "
        f"(best is {best}, {gain}; {parts}); about {needed} would show a gain of that size."
    )


def _numbers(found: Interval | Difference) -> dict[str, float | None]:
    parts = {"mean": found.mean, "low": found.low, "high": found.high}
    return {name: x if math.isfinite(x) else None for name, x in parts.items()}


def _score_table(
    records: Sequence[RunRecord],
    shown: Mapping[str, Sequence[Interval]],
    refusals: Mapping[str, dict[str, float] | None],
) -> Table:
    columns = [Column("Method"), Column("n", "right")]
    columns += [Column(f"{name.capitalize()} (95 %)", "right") for name in shown]
    refusable = any(refusals.values())
    columns += [Column("Refused rightly / wrongly", "right")] if refusable else []
    columns += [Column("Adapt ms", "right"), Column("Answer ms", "right")]
    rows = []
    for i, record in enumerate(records):
        cells = [method_label(record.method), str(len(record.predictions))]
        cells += [interval_text(intervals[i]) for intervals in shown.values()]
        if found := refusals[record.method]:
            cells.append(f"{found['recall']:.0f} % / {found['wrongly']:.0f} %")
        cells += [milliseconds_text(record.cost.get(c)) for c in ("adapt_ms", "answer_ms")]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def _difference_table(differences: Mapping[str, Difference], headline: Sequence[str]) -> Table:
    adjusted = holm([d.p_value for d in differences.values()]) if differences else []
    rows = tuple(
        (
            f"{method_label(m)} minus {method_label(BASE)}",
            f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]",
            p_text(p),
        )
        for (m, d), p in zip(differences.items(), adjusted, strict=True)
    )
    columns = (Column("Comparison"), Column("Points (95 %)", "right"), Column("p", "right"))
    what = f"Mean of {' and '.join(headline)}" if len(headline) > 1 else headline[0].capitalize()
    bold = frozenset((i, 1) for i, p in enumerate(adjusted) if p < ALPHA)
    return Table(columns, rows, caption=f"{what}; p corrected by Holm.", bold=bold)
