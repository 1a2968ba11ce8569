"""Words of passages and queries for BM25: lower case, English stop words, Snowball stems."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from raggd.records import content_id

_WORD = re.compile(r"\w+")
# Lucene's English stop words: function words that carry no topic.
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their "
        "then there these they this to was will with",
    )
)
_PROBES = ("running", "ponies", "university", "generously", "skies", "dying", "relational", "news")

Tokenize = Callable[[str], list[str]]
"""From a query to its terms."""


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


def tokenize(text: str) -> list[str]:
    """Split text into index terms: words in lower case, no stop words, stemmed.

    Args:
        text: a passage or a query.

    Returns:
        The terms in order, with repetitions.

    >>> tokenize("The capitals of Europe")
    ['capit', 'europ']
    """
    return [term for term in map(_term, _words(text)) if term]


def _words(text: str) -> list[str]:
    # NFKC joins accents to their letters and undoes ligatures, as PDF files hold them.
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _stemmed(word: str) -> str:
    return "" if word in _STOPWORDS else str(_stemmer().stemWord(word))


_term = lru_cache(maxsize=100_000)(_stemmed)


def tokenizer_fingerprint() -> str:
    """Return a hash of the tokenizer's rules and of the stems of probe words."""
    return content_id(_WORD.pattern, "NFKC lower", *sorted(_STOPWORDS), *map(_term, _PROBES))


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
