"""Questions side by side: evidence with the gold answers marked, and what each method answered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from raggd.data.answers import normalise_answer
from raggd.records import Passage, Prediction, Question, SupportSet

if TYPE_CHECKING:
    from markupsafe import Markup

_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # ASCII, as normalise_answer removes it
_BETWEEN = r"(?:[\W_]|(?<!\w)(?:a|an|the)(?!\w))+"
_TOO_COMMON = {"yes", "no"}


class Case(TypedDict):
    """A question with its evidence and what each method answered, by the method's name."""

    question: Question
    passages: Sequence[Passage]
    predictions: Mapping[str, Prediction]
    support: SupportSet | None


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


def case_view(case: Case, before: str, after: str) -> dict[str, Any]:
    """Return what the page shows of a case: ``change`` says how `after` differs from `before`."""
    question, predictions = case["question"], case["predictions"]
    old, new = predictions.get(before), predictions.get(after)
    change = "same"
    if old and new and normalise_answer(old.answer) != normalise_answer(new.answer):
        gain = new.f1 - old.f1
        change = "better" if gain > 0 else "worse" if gain < 0 else "other"
    support = case["support"]
    return {
        "question": question.text,
        "benchmark": question.task,
        "answers": question.answers,
        "passages": [
            {"title": p.title, "text": mark_answers(p.text, question.answers)}
            for p in case["passages"]
        ],
        "predictions": [
            {"method": name, "answer": given.answer, "em": given.em, "f1": given.f1}
            for name, given in predictions.items()
        ],
        "support": support.demonstrations if support else (),
        "change": change,
    }
