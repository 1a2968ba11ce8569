"""What following examples is worth: on one's own questions, with advice; by contracts; audited."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raggd.evaluation.forms import PARTS, Form, refusal_scores
from raggd.evaluation.statistics import Array, Difference, Interval, Sample, holm, questions_needed
from raggd.files import write_text
from raggd.methods.spec import SPECS, method_label
from raggd.records import Question, RunRecord
from raggd.report.contrasts import ALPHA, BASE
from raggd.report.study_tables import minus_label
from raggd.report.tables import (
    NOTHING,
    Bold,
    Table,
    interval_text,
    milliseconds_text,
    numbers,
    p_text,
    texts,
)


@dataclass(frozen=True)
class OwnReport:
    """What is shown of one's own questions; the advice says which form was judged first."""

    tables: list[Table]
    advice: str
    result: dict[str, Any]

    def write(self, out: Path) -> None:
        """Write ``summary.md`` beside the records."""
        write_text(out / "summary.md", "\n".join(table.to_markdown() for table in self.tables))


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

    def cell(method: str, chosen: Sequence[Mapping[str, Any]]) -> str:
        sums = []
        for name in ("form", "content"):
            scored = [(r["n"], r["methods"][method].get(name)) for r in chosen]
            counts = [n * found["mean"] / 100 for n, found in scored if found]
            sums.append(f"{round(sum(counts), 1):g}" if counts else NOTHING)
        return " / ".join(sums)

    n = sum(result["n"] for result in results.values())
    totals = {m: cell(m, list(results.values())) for m in methods}
    rows = [
        [name, str(result["n"]), *(cell(m, [result]) for m in methods)]
        for name, result in results.items()
    ]
    rows.append(["all", str(n), *totals.values()])
    columns = texts("Examples") + numbers("n", *map(method_label, methods))
    words = ", ".join(f"{method} {total}" for method, total in totals.items())
    return OwnReport(
        [Table(columns, rows, "Answers that follow the form / that say what was wanted.")],
        f"Form followed / content right, of {n} questions: {words}.",
        {"n": n, "sets": results},
    )


def own_report(
    records: Sequence[RunRecord],
    questions: Mapping[str, Question],
    forms: Mapping[str, Form],
    adapting: str,
) -> OwnReport:
    """Return what one task's records, a method each, say of one's own questions.

    Intervals count support sets as a source of chance; the mean of form and content decides.
    """
    judged = {
        record.method: [
            forms[p.support_id].judge(p.answer, questions[p.question_id].answers)
            for p in record.predictions
        ]
        for record in records
    }
    first = records[0]
    scored = all(part.form is not None for part in judged[first.method])
    *headline, exact = PARTS if scored else PARTS[1:]
    values = {
        name: 100 * np.array([[getattr(p, name) for p in own] for own in judged.values()]).T
        for name in (*headline, exact)
    }
    clusters = [p.support_id for p in first.predictions]

    def sample(scores: Array) -> Sample:
        return Sample(list(judged), scores, clusters=clusters)

    shown = {
        name: {method: x.within(0.0, 100.0) for method, x in sample(scores).intervals().items()}
        for name, scores in values.items()
    }
    together = sample(np.mean([values[name] for name in headline], axis=0))
    pairs = [(m, BASE) for m in judged if m != BASE and BASE in judged]
    differences = {method: d for (method, _), d in together.differences(pairs).items()}
    adjusted = holm({method: d.p_value for method, d in differences.items()})
    refusals = {
        method: refusal_scores([p.refused for p in own], [p.wanted for p in own])
        for method, own in judged.items()
        if any(p.wanted for p in own)
    }
    sentence = form_sentence(list(forms.values()))
    means = {name: {m: x.mean for m, x in shown[name].items()} for name in headline}
    advice = _advice(together, means, differences, adjusted, adapting)
    result = {
        "n": len(together.values),
        "form": sentence,
        "methods": {
            record.method: {name: _limits(found[record.method]) for name, found in shown.items()}
            | ({"refusal": r} if (r := refusals.get(record.method)) else {})
            | dict(record.cost)
            for record in records
        },
        "minus_base": {m: _limits(d) for m, d in differences.items()},
        "advice": advice,
    }
    tables = [
        _score_table(records, shown, refusals),
        _difference_table(differences, adjusted, headline),
    ]
    return OwnReport(tables, f"{sentence}\n{advice}", result)


def _advice(
    together: Sample,
    means: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Difference],
    adjusted: Mapping[str, float],
    adapting: str,
) -> str:
    if not differences:
        return "Nothing was compared with the base adapter."
    n = len(together.values)
    sure = [m for m, d in differences.items() if d.mean > 0 and adjusted[m] < ALPHA]
    best = max(sure or differences, key=lambda m: differences[m].mean)
    d = differences[best]
    parts = ", ".join(f"{name} {x[best]:.0f} for {x[BASE]:.0f}" for name, x in means.items())
    gain = f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"
    if sure:
        more = ""
        if best != adapting:
            gains = adapting in sure
            told = f"gains {differences[adapting].mean:+.1f}" if gains else "is not surely better"
            more = f"; the default, {adapting}, {told}"
        reads = SPECS[best].encoded or SPECS[best].shown if best in SPECS else True
        alike = " It reads no demonstrations, so they are not needed for this gain."
        return (
            f"Adapt, with {best}: {gain} over the base adapter on {n} questions ({parts}){more}."
            f"{'' if reads else alike}"
        )
    if d.mean <= 0 or not math.isfinite(d.low):
        return f"Do not adapt: nothing is above the base adapter on {n} questions ({parts})."
    gained = together.column(best) - together.column(BASE)
    needed = questions_needed(d.mean, max(float(gained.std()), 1e-6))
    return (
        f"Do not count on adapting yet: nothing is surely above the base adapter on {n} questions "
        f"(best is {best}, {gain}; {parts}); about {needed} would show a gain of that size."
    )


def _limits(found: Interval) -> dict[str, float | None]:
    parts = {"mean": found.mean, "low": found.low, "high": found.high}
    return {name: x if math.isfinite(x) else None for name, x in parts.items()}


def _score_table(
    records: Sequence[RunRecord],
    shown: Mapping[str, Mapping[str, Interval]],
    refusals: Mapping[str, Mapping[str, float]],
) -> Table:
    rows = []
    for record in records:
        cells = [method_label(record.method), str(len(record.predictions))]
        cells += [interval_text(intervals[record.method]) for intervals in shown.values()]
        if found := refusals.get(record.method):
            cells.append(f"{found['recall']:.0f} % / {found['wrongly']:.0f} %")
        times = (record.cost.get(name) for name in ("adapt_ms", "answer_ms"))
        rows.append([*cells, *map(milliseconds_text, times)])
    titles = [f"{name.capitalize()} (95 %)" for name in shown]
    titles += ["Refused rightly / wrongly"] if refusals else []
    return Table(texts("Method") + numbers("n", *titles, "Adapt ms", "Answer ms"), rows)


def _difference_table(
    differences: Mapping[str, Difference], adjusted: Mapping[str, float], headline: Sequence[str]
) -> Table:
    rows = []
    for method, d in differences.items():
        text = interval_text(d, "+.1f")
        shown = Bold(text) if adjusted[method] < ALPHA else text
        rows.append([minus_label(method, BASE), shown, p_text(adjusted[method])])
    what = f"Mean of {' and '.join(headline)}" if len(headline) > 1 else headline[0].capitalize()
    columns = texts("Comparison") + numbers("Points (95 %)", "p")
    return Table(columns, rows, f"{what}; p corrected by Holm.")


def audit_table(result: Mapping[str, Any]) -> Table:
    """Return a row per task and control of `audit_result`: the right state minus the control."""
    forms = {"em": "+.1f", "f1": "+.1f", "loss": "+.3f"}
    rows = [
        [task, control, *(interval_text(Interval(*parts[p]), form) for p, form in forms.items())]
        for task, controls in result["worth"].items()
        for control, parts in controls.items()
    ]
    caption = f"What reading is worth: {result['audited']}, right minus control (95 %)"
    return Table(texts("task", "control") + numbers("EM", "F1", "answer loss"), rows, caption)


def contract_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the methods' means over contracts, and the first method's contracts one by one."""
    groups = {"": result["intervals"], **result.get("by_set", {})}
    rows = []
    for name, methods in groups.items():
        for method, scores in methods.items():
            label = f"{name}: {method_label(method)}" if name else method_label(method)
            refusal = {} if name else result["refusal"].get(method, {})
            refused = [f"{refusal[n]:.0f}" if refusal else "" for n in ("f1", "wrongly")]
            means = (interval_text(Interval(*scores[part])) for part in PARTS)
            rows.append([label, *means, *refused])
    caption = "Mean over contracts, percent (95 % interval)"
    columns = texts("method") + numbers(*PARTS, "refusal F1", "refused wrongly")
    first = next(iter(result["macro"]))
    single = [
        [name, *(f"{methods[first][part]:.0f}" for part in PARTS), str(methods[first]["n"])]
        for name, methods in result["contracts"].items()
    ]
    one_by_one = f"{method_label(first)}, contract by contract"
    own = Table(texts("contract") + numbers(*PARTS, "n"), single, one_by_one)
    return [Table(columns, rows, caption), own]
