"""One HTML page that carries everything in itself: table, figure and questions side by side.

Every text goes through Jinja2 with autoescape on. The page refuses the network by a content
security policy, which also admits no script but the page's own, named by its hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from raggd.data.answers import normalise_answer
from raggd.methods.spec import SPECS
from raggd.records import Passage, Prediction, Question, RaggdError, RunRecord, SupportSet
from raggd.report.html import checked_figure, environment, script_hash, source
from raggd.report.summary import Comparison, SummaryRow

if TYPE_CHECKING:
    from markupsafe import Markup

_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # ASCII, as normalise_answer removes it
_BETWEEN = r"(?:[\W_]|(?<!\w)(?:a|an|the)(?!\w))+"
_TOO_COMMON = {"yes", "no"}


class CasePassage(TypedDict):
    """A passage shown with a case."""

    title: str
    text: str


class CaseAnswer(TypedDict):
    """What one method answered; `em` and `f1` in [0, 1]."""

    answer: str
    em: float
    f1: float


class CaseDemonstration(TypedDict):
    """A support demonstration, without its passages."""

    question: str
    answer: str


class Case(TypedDict):
    """A question with its evidence and what each method answered, by the method's name."""

    question: str
    benchmark: str
    answers: Sequence[str]
    passages: Sequence[CasePassage]
    predictions: Mapping[str, CaseAnswer]
    support: NotRequired[Sequence[CaseDemonstration]]


def make_case(
    question: Question,
    passages: Sequence[Passage],
    predictions: Mapping[str, Prediction],
    support: SupportSet | None = None,
) -> Case:
    """Build a case for the page from the types of a run.

    Args:
        question: the question.
        passages: the evidence that the methods saw.
        predictions: by method.
        support: the support set of the methods that adapt.

    Returns:
        The case.
    """
    shown = support.demonstrations if support else ()
    return Case(
        question=question.text,
        benchmark=question.task,
        answers=list(question.answers),
        passages=[CasePassage(title=p.title, text=p.text) for p in passages],
        predictions={
            name: CaseAnswer(answer=p.answer, em=p.em, f1=p.f1) for name, p in predictions.items()
        },
        support=[CaseDemonstration(question=d.question, answer=d.answer) for d in shown],
    )


def _answer_patterns(answer: str) -> list[str]:
    """Return patterns of an answer's two forms: SQuAD's (punctuation anywhere) and word by word."""
    if normalise_answer(answer) in _TOO_COMMON | {""}:
        return []
    joined = [
        f"{_PUNCTUATION}*".join(map(re.escape, token)) for token in normalise_answer(answer).split()
    ]
    split = [re.escape(token) for token in re.findall(r"[^\W_]+", answer)]
    forms = [_BETWEEN.join(tokens) for tokens in (joined, split) if tokens]
    return [rf"(?<![^\W_]){form}(?![^\W_])" for form in forms]


def mark_answers(text: str, answers: Iterable[str]) -> Markup:
    """Escape a text for HTML and put ``<mark>`` around the gold answers in it.

    Args:
        text: a passage, taken literally.
        answers: the gold answers; letter case and punctuation are ignored, "yes" and "no" skipped.

    Returns:
        Safe HTML: nothing of the text is taken as markup.

    >>> mark_answers("<b>Paris</b> in Parisian", ["paris"])
    Markup('&lt;b&gt;<mark>Paris</mark>&lt;/b&gt; in Parisian')
    """
    from markupsafe import Markup, escape

    longest_first = sorted(set(answers), key=lambda answer: (-len(answer), answer))
    patterns = [form for answer in longest_first for form in _answer_patterns(answer)]
    if not patterns:
        return escape(text)
    pieces, end = [], 0
    for found in re.finditer("|".join(patterns), text, re.IGNORECASE):
        pieces += [escape(text[end : found.start()]), Markup("<mark>%s</mark>") % found[0]]
        end = found.end()
    return Markup("").join([*pieces, escape(text[end:])])


def _view(case: Case, number: int, before: str, after: str) -> dict[str, Any]:
    # What the template shows of a case, and how the answer changed from one method to the other.
    try:
        answers, predictions = list(case["answers"]), case["predictions"]
        passages = [
            {"title": p["title"], "text": mark_answers(p["text"], answers)}
            for p in case["passages"]
        ]
        shown = [
            {"method": name, "answer": given["answer"], "em": given["em"], "f1": given["f1"]}
            for name, given in predictions.items()
        ]
        head = {"question": case["question"], "benchmark": case["benchmark"]}
    except KeyError as error:
        raise RaggdError(
            f"case {number} lacks {error}: give question, benchmark, answers, passages (title, "
            "text) and predictions (answer, em, f1 by method), e.g. by make_case."
        ) from error
    old, new = predictions.get(before), predictions.get(after)
    change = "same"
    if old and new and normalise_answer(old["answer"]) != normalise_answer(new["answer"]):
        gain = new["f1"] - old["f1"]
        change = "better" if gain > 0 else "worse" if gain < 0 else "other"
    return head | {
        "answers": answers,
        "passages": passages,
        "predictions": shown,
        "support": case.get("support", ()),
        "change": change,
    }


def details_of(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Gather settings, hashes and versions of records for the page.

    Args:
        records: of one run.

    Returns:
        By heading; where records differ, the values by method and benchmark.
    """
    found: dict[str, Any] = {}
    for name in ("backbone", "retriever", "seed", "settings", "hashes", "versions", "created"):
        values = {f"{r.method} on {r.benchmark}": getattr(r, name) for r in records}
        distinct = {json.dumps(value, sort_keys=True, default=dict) for value in values.values()}
        if len(distinct) == 1:
            found[name] = next(iter(values.values()))
        elif distinct:
            found[name] = values
    return found


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def demo_page(
    *,
    title: str,
    rows: Sequence[SummaryRow],
    figure_svg: str,
    cases: Sequence[Case],
    notes: Sequence[str],
    command: str,
    comparisons: Sequence[Comparison] = (),
    details: Mapping[str, Any] | None = None,
    before: str = "base",
    after: str = "rag-gd",
) -> str:
    """Render the demonstration page.

    Args:
        title: the heading.
        rows: from `summary_rows`.
        figure_svg: from `cost_accuracy_figure`; empty for none.
        cases: a dozen questions, e.g. from `make_case`.
        notes: paragraphs of plain text on how the numbers came about.
        command: the command line that makes the page again.
        comparisons: from `compare`; a table of differences when there are some.
        details: settings, hashes and versions by heading, e.g. from `details_of`.
        before: the method whose answers stand for "before" in the cases.
        after: the method whose answers are highlighted where they changed.

    Returns:
        A whole HTML document without outside references.

    Raises:
        RaggdError: there are no rows, a case lacks something, or the figure is not safe.
    """
    if not rows:
        raise RaggdError("a page needs at least one summary row: evaluate a method first.")
    views = [_view(case, number, before, after) for number, case in enumerate(cases)]
    script = source("page.js")
    return (
        environment()
        .get_template("demo.html.j2")
        .render(
            title=title,
            rows=rows,
            words=SPECS,
            level=f"{100 * rows[0].f1.level:g} %",
            figure=checked_figure(figure_svg),
            comparisons=comparisons,
            cases=views,
            notes=notes,
            command=command,
            details={name: _pretty(value) for name, value in (details or {}).items()},
            before=before,
            after=after,
            style=source("page.css"),
            script=script,
            script_hash=script_hash(script),
        )
    )
