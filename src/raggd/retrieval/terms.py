"""From text to the terms of BM25, and from terms to postings.

Terms are words in lower case, without English stop words, by their Snowball stems: English ones,
or those of the language that a script stands for. Words are what Unicode takes for them: marks
belong to their letters. Scripts without spaces give pairs of neighbouring characters, and Chinese
ones each character too (Lucene's CJK analyser, with unigrams). A name such as ``max_retry_count``
or ``maxRetryCount`` gives itself and its parts, and so does a number with its unit, ``10km``.

A word of a query that no passage holds is spelt otherwise: with the accents that it was typed
without ("zurich", "zuerich"), or apart ("email" for "e-mail", "3000" for "3,000"). Spellings are a
table of keys, (n, 2): of the other term, and of one it stands for.

Postings are pure functions on arrays.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import regex
import Stemmer
from numpy.typing import NDArray

from raggd.data.text import ONE_UNSPACED, UNSPACED, search_form
from raggd.records import content_id

_WORD = re.compile(r"\w+")
# Where marks may be left that the module re takes for no part of a word, or spaces are missing.
_FAR = re.compile("[\u07a6-\u1fff\u2de0-\u2dff\u3005-\uffff\U00010000-\U0003ffff]")
_FAR_WORD = rf"[\w\p{{M}}&&[{UNSPACED}]]+|[\w\p{{M}}--[{UNSPACED}]]+"
_FAR_WORDS, _CHARACTER = (regex.compile(each, regex.V1) for each in (_FAR_WORD, r".\p{M}*"))
_CHINESE = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Names in code: joined by "_"; a small letter first; three capitals; any beside a mark of code.
# "McDonald" and "YouTube" stay whole: so are they written in questions too.
_LETTER = rf"[^\W{UNSPACED}]"  # of words that are told by what surrounds them
_JOINED = re.compile(rf"(?<!{_LETTER}){_LETTER}*_{_LETTER}*")
_HUMP = re.compile(r"[A-Z](?:(?<=[a-z0-9][A-Z])|[A-Z][a-z])")
_HUMPED = re.compile(
    rf"(?<!{_LETTER})(?:[a-z]{{2,}}[A-Z][A-Za-z0-9]*|(?:[A-Z]+[a-z0-9]+){{3,}}"
    r"|[A-Z]{3,}[a-z]{3,}+[A-Za-z0-9]*|(?<=[.:<@#`])[A-Z][A-Za-z0-9]+"
    rf"|[A-Z][A-Za-z0-9]+(?=[`(<]|[.:]+\w))(?!{_LETTER})"
)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\WA-Z_]+")
# A number with its unit, "10km": in words "10" and "km" too, as it is written with a space.
_UNIT = re.compile(r"[0-9][a-z\u03bc\u03c9]")  # a cheap look first: most texts have none
_MEASURE = re.compile(
    rf"(?<![.,])(?<!{_LETTER})(\d+)([kmg]?hz|[kmgt]i?b|[kcmn\u03bc]?m|[km\u03bc]?g|lbs?|oz|[cdhm]?l|"
    r"k?wh?|k?va?|[km]?v|[m\u03bc]?a|m?ah|[km]?\u03c9|m?bar|[hkm]?pa|k?[nj]|ms|sec|mins?|hrs|[ap]m|"
    rf"px|dpi|fps|mph|rpm|psi|db|bits?)(?!{_LETTER})"
)
# Lucene's English stop words: function words that carry no topic.
_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
_STOPWORDS = frozenset(_STOP.split())
_TRIAL = (
    "stra\xdfe \u0451 \u03ac HTTPServer \u0130 e\u0301 10km \u0663 \u1e9e "
    "\u0627\u064f \u56fe\u4e66 \u0e44\u0e17 \u0928\u0947 maxRetries o\ufb03ce "
    "pump\u2122 pump\xb9 \u24602\xbd i\u02bbi"
)
_PROBES = ["running", "ponies", "university", "generously", "skies", "dying", "relational", "news"]
_PROBES += ["ελλαδας", "насосами", "الكتاب", "किताबें", "புத்தகங்கள்"]
# First and last letter of scripts, and the language whose stems are taken for all written in them.
_STEMS = (
    ("\u0370", "\u03ff", "greek"),
    ("\u0400", "\u052f", "russian"),
    ("\u0620", "\u06ff", "arabic"),
    ("\u0900", "\u097f", "hindi"),
    ("\u0b80", "\u0bff", "tamil"),
)
# Of other spellings: accents, what they are typed as, and what stands apart.
_ACCENTED, _ACCENT = re.compile("[\xdf-\u024f\u1e00-\u1eff]"), re.compile("[\u0300-\u036f]")
_BARE = str.maketrans({"ø": "o", "đ": "d", "ð": "d", "ł": "l", "æ": "ae", "œ": "oe"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_SIGN = rf"[^\W_{UNSPACED}]"  # a letter or digit: `_LETTER` without "_"
# From a hyphen or what separates thousands on, which is found fast; then what is before it.
_MARKED = re.compile(
    rf"([-\u2010\u2011,.'\u2019])(?:(?<={_SIGN}[-\u2010\u2011]){_SIGN}++(?![_-])"
    rf"|(?<=[0-9][,.'\u2019])[0-9]{{3}}(?:\1[0-9]{{3}})*+({_SIGN}|_|\1[0-9])?)"
)
_BEFORE, _LONGEST = re.compile(rf"(?<!{_SIGN})(?<![_.,-]){_SIGN}+\Z"), 32


_stemmer = cache(Stemmer.Stemmer)


def tokenize(text: str) -> list[str]:
    """Return the terms of a passage or a query, in order: lower case, no stop words, stemmed.

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
        words = [part for word in _FAR_WORDS.findall(lower) for part in _pairs(word)]
    if "_" in lower:
        words = [stripped for word in words if (stripped := word.strip("_"))]
        words += _parts(_JOINED.findall(text))
    if _HUMP.search(text):
        words += _parts(_HUMPED.findall(text))
    if _UNIT.search(lower):
        words += [part for measure in _MEASURE.findall(lower) for part in measure]
    return words


def _pairs(word: str) -> Iterator[str]:
    # Neighbouring characters of an unspaced script; any other word is left whole.
    characters = _CHARACTER.findall(word) if ONE_UNSPACED.match(word) else [word]
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
    if word in _STOPWORDS:
        return ""
    language = next((name for first, last, name in _STEMS if first <= word[0] <= last), "english")
    return str(_stemmer(language).stemWord(word)) or word


_term = lru_cache(maxsize=100_000)(_stemmed)


class TermNumbers(dict[str, int]):
    """The number of each word's term by first occurrence, -1 for stop words; it is stemmed once."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        term = _stemmed(word)
        self[word] = self.terms.setdefault(term, len(self.terms)) if term else -1
        return self[word]

    def of(self, text: str) -> list[int]:
        """Return the numbers of a text's terms, one per term of `tokenize`."""
        return [number for word in _words(text) if (number := self[word]) >= 0]


Numbers = NDArray[np.int32]  # term numbers, passage rows or counts

Keys = NDArray[np.uint64]  # 64-bit hashes of terms, shape (n,)


def term_keys(terms: Sequence[str]) -> Keys:
    """Return the keys of terms; different ones share a key with a probability of 2 to the -64."""
    digests = b"".join(blake2b(term.encode(), digest_size=8).digest() for term in terms)
    return np.frombuffer(digests, dtype="<u8")


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
    return np.unique(np.concatenate([one[:, :2], other[:, :2]]), axis=0)


def terms_fingerprint() -> str:
    """Return a hash of the rules of terms, the stems of probe words, and the other spellings."""
    ours = (_JOINED.pattern, _HUMPED.pattern, _PART.pattern, _MEASURE.pattern)
    rules = (_WORD.pattern, _FAR_WORD, *ours, f"search form, lower, pairs, {_STEMS}")
    probes = (*map(_term, _PROBES), *tokenize(_TRIAL))
    spelt = (_MARKED.pattern, _BEFORE.pattern, _ACCENTED.pattern, f"{_BARE} {_UMLAUTS}")
    return content_id(content_id(*rules, *sorted(_STOPWORDS), *probes), *spelt)


def make_postings(
    numbers: Numbers, lengths: Numbers, terms: int
) -> tuple[NDArray[np.int64], Numbers, Numbers]:
    """Sort the words of passages into postings: which passages hold which terms, and how often.

    `numbers`, (words,), are the terms of the words, passage after passage; `lengths`, (passages,),
    the words per passage. Returned are where the postings of each of the `terms` begin,
    (terms + 1,), their rows, rising within a term, and their counts, (postings,).
    """
    pairs = numbers.astype(np.int64)
    pairs <<= 32
    pairs |= np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    pairs.sort()
    first = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    del first
    counts = np.empty(len(starts), dtype=np.int32)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1], casting="unsafe")
    if len(starts):
        counts[-1] = len(pairs) - starts[-1]
    pairs = pairs[starts]
    del starts
    rows = (pairs & 0xFFFFFFFF).astype(np.int32)
    pairs >>= 32
    return np.searchsorted(pairs, np.arange(terms + 1)), rows, counts


def inverse_frequencies(found: NDArray[np.int64], passages: int) -> NDArray[np.float32]:
    """Return the weight of each term, shape (terms,), from the number of passages that hold it."""
    # math.log, not NumPy's, whose last bit differs; few numbers of passages are different.
    values, place = np.unique(found, return_inverse=True)
    weights = [math.log(1 + (passages - df + 0.5) / (df + 0.5)) for df in values.tolist()]
    return np.array(weights, dtype=np.float32)[place]
