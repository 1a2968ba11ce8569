"""Other spellings of the terms of passages, for words of a query that no passage holds.

A word with accents is found as it is typed without ("zurich", "zuerich"), and what is written apart
as one word ("email" for "e-mail", "3000" for "3,000"). A term that some passage holds is never
spelt otherwise. Spellings are a table of keys, (n, 2): of the other term, and of one it stands for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from raggd.data.text import UNSPACED
from raggd.records import content_id
from raggd.retrieval.terms import Keys, term_keys, tokenize, tokenizer_fingerprint

_ACCENTED, _ACCENT = re.compile("[\xdf-\u024f\u1e00-\u1eff]"), re.compile("[\u0300-\u036f]")
_BARE = str.maketrans({"ø": "o", "đ": "d", "ð": "d", "ł": "l", "æ": "ae", "œ": "oe"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_LETTER = rf"[^\W_{UNSPACED}]"
# From a hyphen or what separates thousands on, which is found fast; then what is before it.
_MARKED = re.compile(
    rf"([-\u2010\u2011,.'\u2019])(?:(?<={_LETTER}[-\u2010\u2011]){_LETTER}++(?![_-])"
    rf"|(?<=[0-9][,.'\u2019])[0-9]{{3}}(?:\1[0-9]{{3}})*+({_LETTER}|_|\1[0-9])?)"
)
_BEFORE, _LONGEST = re.compile(rf"(?<!{_LETTER})(?<![_.,-]){_LETTER}+\Z"), 32


def bare_terms(term: str) -> list[str]:
    """Return a Latin term without its accents, and with "ue" for an umlaut, if it has any."""
    if term.isascii() or not _ACCENTED.search(term):
        return []
    both = (unicodedata.normalize("NFD", one) for one in (term, term.translate(_UMLAUTS)))
    words = (_ACCENT.sub("", one).translate(_BARE) for one in both)
    return sorted({bare for word in words for bare in tokenize(word)} - {term})


def bare_spellings(terms: Sequence[str]) -> Keys:
    """Return the table of terms by what they are without accents."""
    pairs = [(bare, term) for term in terms for bare in bare_terms(term)]
    return term_keys([each for pair in pairs for each in pair]).reshape(-1, 2)


def keys_apart(text: str) -> Iterator[list[int]]:
    """Yield for what is written apart the key of the term that it is as one word, and of its own.

    These are one or two letters with a hyphen, a hyphen between word and number, and thousands.
    """
    for found in _MARKED.finditer(text):
        at, mark, after = found.start(), found[1], found[0][1:]
        before = next(iter(_BEFORE.findall(text, max(0, at - _LONGEST), at)), "")
        if mark in "-\u2010\u2011":
            apart = len(before) <= 2 or after.isdecimal()
            apart = apart and not (before + after).isdecimal()
        else:
            apart = len(before) <= 3 and before.isdecimal() and not found[2]
        if before and apart and (keys := _keys(before + found[0])):
            yield keys


@lru_cache(maxsize=20_000)
def _keys(apart: str) -> list[int]:
    joined = tokenize(re.sub(r"\W", "", apart))  # "10-km" has several: it is known by its parts
    return term_keys([*joined, *tokenize(apart)]).tolist() if len(joined) == 1 else []


def merged(one: Keys, other: Keys) -> Keys:
    """Return the sorted table of two, of which further columns are left out, each row once."""
    table = np.concatenate([one[:, :2], other[:, :2]])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    first = np.ones(len(table), dtype=bool)
    first[1:] = (table[1:] != table[:-1]).any(axis=1)
    return np.asarray(table[first])


def spellings_fingerprint() -> str:
    """Return a hash of the rules of terms and of their other spellings."""
    rules = (_MARKED.pattern, _BEFORE.pattern, _ACCENTED.pattern, f"{_BARE} {_UMLAUTS}")
    return content_id(tokenizer_fingerprint(), *rules)
