"""Exact match and token F1 as in the SQuAD v1.1 evaluation, best over the gold answers.

Both compare answers in the normal form of text, after `raggd.data.answers.normalise_answer`. A
score is between 0 and 1. A question without gold answers cannot be scored: that
is an error, never a silent 0 or a skip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raggd.data.answers import normalise_answer
from raggd.data.text import normal_text
from raggd.records import RaggdError


def _form(text: str) -> str:
    return normalise_answer(normal_text(text))


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str):
        raise RaggdError(
            f"gold answers must be a list of strings, got the single string {answers!r}: "
            "write [answer] instead."
        )
    if not answers:
        raise RaggdError(
            "a question without gold answers cannot be scored: give at least one answer, or leave "
            "the question out of the benchmark."
        )
    return answers


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 where the prediction equals a gold answer after normalisation, else 0.0.

    Two texts that are both empty after normalisation (only articles and punctuation) are equal.

    >>> exact_match("The Denver Broncos!", ["Broncos", "Denver Broncos"])
    1.0
    """
    given = _form(prediction)
    return float(any(given == _form(answer) for answer in _checked(answers)))


def _pair_f1(prediction: Counter[str], answer: Counter[str]) -> float:
    common = (prediction & answer).total()
    # 2PR/(P+R) with P = common/|prediction| and R = common/|answer|, in one division.
    return 2 * common / (prediction.total() + answer.total()) if common else 0.0


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words, best over the gold answers.

    A word counts as often as it occurs in both texts. As in SQuAD v1.1, a text without words scores
    0, also against an answer without words.

    >>> token_f1("Paris, Texas", ["Paris"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    given = Counter(_form(prediction).split())
    return max(_pair_f1(given, Counter(_form(answer).split())) for answer in _checked(answers))
