"""Words of passages and queries for BM25: lower case, English stop words, Snowball stems.

Words are what Unicode takes for them: marks belong to their letters. Scripts without spaces give
pairs of neighbouring characters, and Chinese ones each character too (Lucene's CJK analyser, with
unigrams). A name such as ``max_retry_count`` or ``maxRetryCount`` gives itself and its parts.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from raggd.data.text import UNSPACED, search_form
from raggd.records import content_id

_WORD = re.compile(r"\w+")
# Where marks may be left that the module re takes for no part of a word, or spaces are missing.
_FAR = re.compile("[\u07a6-\u1fff\u2de0-\u2dff\u3005-\uffff\U00010000-\U0003ffff]")
_FAR_WORD = rf"[\w\p{{M}}&&[{UNSPACED}]]+|[\w\p{{M}}--[{UNSPACED}]]+"
_CHINESE = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_UNSPACED = re.compile(f"[{UNSPACED}]")
# Names in code: joined by "_"; a small letter first; three capitals; any beside a mark of code.
# "McDonald" and "YouTube" stay whole: so are they written in questions too.
_JOINED = re.compile(r"\w*_\w*")
_HUMP = re.compile(r"[A-Z](?:(?<=[a-z0-9][A-Z])|[A-Z][a-z])")
_HUMPED = re.compile(
    r"(?<!\w)(?:[a-z]{2,}[A-Z][A-Za-z0-9]*|(?:[A-Z]+[a-z0-9]+){3,}|[A-Z]{3,}[a-z]{3,}[A-Za-z0-9]*"
    r"|(?<=[.:<@#`])[A-Z][A-Za-z0-9]+|[A-Z][A-Za-z0-9]+(?=[`(<]|[.:]+\w))(?!\w)"
)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\WA-Z_]+")
# Lucene's English stop words: function words that carry no topic.
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their "
        "then there these they this to was will with",
    )
)
_TRIAL = "stra\xdfe \u0451 \u03ac HTTPServer \u0130 e\u0301 "
_TRIAL += "\u0627\u064f \u56fe\u4e66 \u0e44\u0e17 \u0928\u0947 maxRetries o\ufb03ce"
_PROBES = ("running", "ponies", "university", "generously", "skies", "dying", "relational", "news")

Tokenize = Callable[[str], list[str]]
"""From a query to its terms."""


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


@cache
def _far_patterns() -> tuple[Any, Any]:
    import regex  # it knows marks and set operations, and comes with transformers

    return regex.compile(_FAR_WORD, regex.V1), regex.compile(r".\p{M}*", regex.V1)


def tokenize(text: str) -> list[str]:
    """Split text into index terms: words in lower case, no stop words, stemmed.

    Args:
        text: a passage or a query.

    Returns:
        The terms in order, with repetitions.

    >>> tokenize("The capitals of Europe")
    ['capit', 'europ']
    >>> tokenize("max_retries")
    ['max_retri', 'max', 'retri']
    """
    return [term for term in map(_term, _words(text)) if term]


def _words(text: str) -> list[str]:
    ascii_only = text.isascii()
    text = text if ascii_only else search_form(text)
    lower = text.lower()
    if ascii_only or not _FAR.search(lower):
        words = _WORD.findall(lower)
    else:
        word, character = _far_patterns()
        words = [part for found in word.findall(lower) for part in _pairs(found, character)]
    if "_" in lower:
        words = [stripped for word in words if (stripped := word.strip("_"))]
        words += _parts(_JOINED.findall(text))
    if _HUMP.search(text):
        words += _parts(_HUMPED.findall(text))
    return words


def _pairs(word: str, character: Any) -> Iterator[str]:
    # Neighbouring characters of an unspaced script; any other word is left whole.
    if not _UNSPACED.match(word):
        yield word
        return
    characters = character.findall(word)
    if len(characters) == 1:
        yield word
        return
    for first, second in pairwise(characters):
        yield first + second
    yield from filter(_CHINESE.match, characters)


def _parts(names: list[str]) -> Iterator[str]:
    for name in names:
        parts = _PART.findall(name)
        if len(parts) > 1:
            yield from map(str.lower, parts)


def _stemmed(word: str) -> str:
    return "" if word in _STOPWORDS else str(_stemmer().stemWord(word))


_term = lru_cache(maxsize=100_000)(_stemmed)


def tokenizer_fingerprint() -> str:
    """Return a hash of the tokenizer's rules and of the stems of probe words."""
    rules = (
        _WORD.pattern,
        _FAR_WORD,
        _JOINED.pattern,
        _HUMPED.pattern,
        _PART.pattern,
        "search form, lower, pairs",
    )
    return content_id(*rules, *sorted(_STOPWORDS), *map(_term, _PROBES), *tokenize(_TRIAL))


class TermNumbers:
    """Numbers the terms of many texts in the order of their first occurrence.

    Each word is looked up once, so a text costs little more than splitting it.

    Attributes:
        terms: number of each term.
    """

    def __init__(self) -> None:
        self.terms: dict[str, int] = {}
        self._words: dict[str, int] = {}  # -1 for stop words

    def __len__(self) -> int:
        """Return the number of entries held: words and terms."""
        return len(self.terms) + len(self._words)

    def add(self, text: str, numbers: array[int]) -> int:
        """Append the term numbers of a text.

        Args:
            text: a passage.
            numbers: where they are appended, one per term of `tokenize`.

        Returns:
            How many were appended.
        """
        before = len(numbers)
        known = self._words
        for word in _words(text):
            number = known.get(word)
            if number is None:
                number = self._number(word)
            if number >= 0:
                numbers.append(number)
        return len(numbers) - before

    def _number(self, word: str) -> int:
        term = _stemmed(word)
        number = self.terms.setdefault(term, len(self.terms)) if term else -1
        self._words[word] = number
        return number
