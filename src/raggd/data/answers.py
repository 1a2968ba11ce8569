"""Gold answers, sets without order: their normal form, SQuAD v1.1's EM and F1, which to show."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from raggd.data.text import INDIC, UNSPACED, normal_text, search_form
from raggd.records import Demonstration, Passage, RaggdError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_BETWEEN_WORDS = re.compile(rf"(?:(?![{INDIC}])[\W_])+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_SHORTEST_WORD = 4


def normalise_answer(text: str) -> str:
    """Bring an answer to SQuAD's normal form, in which exact match and F1 compare.

    Lower case, ASCII punctuation and the articles a, an, the removed, white space made single.

    >>> normalise_answer("The  U.S. (a country)")
    'us country'
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


@functools.lru_cache(maxsize=8192)  # the same passages and aliases are compared again and again
def _forms(text: str) -> tuple[str, ...]:
    # SQuAD's, and one with a break at every mark (1940-44) and beside every character of a script
    # without spaces; a space around and two between tokens: neighbouring matches share no space.
    text = search_form(text)
    words = _UNSPACED.sub(r" \g<0> ", _BETWEEN_WORDS.sub(" ", text.lower()))
    forms = (normalise_answer(text), " ".join(_ARTICLES.sub(" ", words).split()))
    return tuple(f" {form.replace(' ', '  ')} " if form else "" for form in forms)


def _count(text: str, answer: str) -> int:
    # Whole-token occurrences, in the form that finds more of them.
    pairs = zip(_forms(text), _forms(answer), strict=True)
    return max(held.count(wanted) if wanted else 0 for held, wanted in pairs)


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Tell whether a text holds one of the answers as a run of whole tokens.

    Tokens are compared in SQuAD's normal form (``US`` is found in ``U.S.``) and split at every
    punctuation mark (``1944`` is found in ``1940-1944``) and between the characters of scripts
    without spaces, both of `search_form`. Nothing is found of which normalisation leaves nothing.

    >>> contains_answer("He lives in Parisian style.", ["Paris"])
    False
    >>> contains_answer("He lives in Paris.", ["Paris", "Paname"])
    True
    """
    return any(_count(text, answer) for answer in answers)


def held(text: str, shown: Demonstration) -> bool:
    """Return whether a demonstration's passages hold a text as an answer."""
    return contains_answer("\n".join(p.text for p in shown.passages), [text])


def _is_plain(alias: str) -> bool:
    # like a name, a number or a date: no abbreviation, no remark in brackets
    letters = [c for c in alias if c.isalpha()]
    capitals = all(c.isupper() for c in letters)
    odd = capitals or alias.endswith(".") or "(" in alias or len(alias) < _SHORTEST_WORD
    return not letters or not odd


def choose_answer(answers: Iterable[str], passages: Sequence[Passage]) -> str:
    """Choose the one answer to show or to train on: the alias that the passages hold.

    Of the aliases in the passages' titles and texts the most frequent wins, then the shortest,
    then the first by code point. If the passages hold none, it is the shortest that reads like a
    name or a number, not like an abbreviation or a remark in brackets; else the shortest. White
    space around it goes; the choice is the same for every order of the answers.

    Raises:
        RaggdError: there is no answer, or all are blank.

    >>> choose_answer(["Places named Paris", "Paname", "Paris"], [Passage("1", "Paris is large.")])
    'Paris'
    >>> choose_answer(["politician", "political leader", "pol"], [])
    'politician'
    """
    aliases = {answer.strip() for answer in answers} - {""}
    if not aliases:
        raise RaggdError(
            "a question has no answer to choose from: give at least one that is not blank."
        )
    texts = [part for passage in passages for part in (passage.title, passage.text)]
    counts = {alias: sum(_count(text, alias) for text in texts) for alias in aliases}
    found = any(counts.values())

    def rank(alias: str) -> tuple[int, bool, int, str]:
        return -counts[alias], not (found or _is_plain(alias)), len(alias), alias

    return min(aliases, key=rank)


def _squad(text: str) -> str:
    return normalise_answer(normal_text(text))


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise RaggdError(
            "an answer cannot be scored without gold answers: expected a list of strings, at least "
            f"one, got {answers!r}."
        )
    return answers


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 where the prediction equals a gold answer after normalisation, else 0.0.

    Two texts that are both empty after normalisation (only articles and punctuation) are equal.

    >>> exact_match("The Denver Broncos!", ["Broncos", "Denver Broncos"])
    1.0
    """
    given = _squad(prediction)
    return float(any(given == _squad(answer) for answer in _checked(answers)))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words, best over the gold answers.

    A word counts as often as it occurs in both texts. As in SQuAD v1.1, a text without words scores
    0, also against an answer without words.

    >>> token_f1("Paris, Texas", ["Paris"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    given, best = Counter(_squad(prediction).split()), 0.0
    for answer in _checked(answers):
        wanted = Counter(_squad(answer).split())
        if common := (given & wanted).total():
            # 2PR/(P+R) with P = common/|prediction| and R = common/|answer|, in one division
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best
