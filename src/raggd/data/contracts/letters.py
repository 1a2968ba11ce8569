"""Changes of an answer's own letters: case, marks between words, what is left of a name, figures.

Each leaves its own result as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from typing import NamedTuple

Change = Callable[[str], str]


def _joined(mark: str) -> Change:
    return lambda text: re.sub(r"\W+", mark, text.lower().replace("'", "")).strip(mark)


LETTERS: Mapping[str, Change] = {
    "same": lambda text: text,
    "upper": str.upper,
    "lower": str.lower,
    "slug": _joined("-"),
    "snake": _joined("_"),
}


def initials(text: str) -> str:
    """Return the first letters of words, as capitals; words that begin with a mark have none."""
    return "".join(word[0].upper() for word in text.split() if word[0].isalnum())


def _initials(text: str) -> str:
    return text if text.isupper() and len(initials(text)) < 2 else initials(text)


SHORTENED: Mapping[str, Change] = {
    "first-word": lambda text: (text.split() or [""])[0],
    "last-word": lambda text: (text.split() or [""])[-1],
    "initials": _initials,
}
"""What may be left of a name."""
CAPITALS: Mapping[str, Change] = {
    "capital": lambda text: text[:1].upper() + text[1:],
    "titled": lambda text: re.sub(r"(?<![\w'’])[^\W\d_]", lambda letter: letter[0].upper(), text),
}
"""Capitals at the beginning, or of every word."""


def _dotted(text: str) -> str:
    words = [word for word in re.split(r"[\s-]+", text) if word[:1].isupper()]
    done = re.fullmatch(r"\w(?:\.\w)+\.?", text)  # the last dot stands behind it
    return text if done or not words else ".".join(word[0] for word in words)


def _last_first(text: str) -> str:
    first, _, last = text.rpartition(" ")
    return text if not first or "," in text else f"{last}, {first}"


def _camel(text: str) -> str:
    words: list[str] = re.findall(r"\w+", text) or [""]
    first, *others = words
    first = first.lower() if first.isupper() else first[:1].lower() + first[1:]
    return first + "".join(word[0].upper() + word[1:] for word in others)


RESPELLED: Mapping[str, Change] = {
    "joined": lambda text: re.sub(r"\W+", "", text),
    "camel": _camel,
    "dotted": _dotted,
    "last-first": _last_first,
}
"""Names as hashtags, identifiers, lists of authors write them."""


class Figure(NamedTuple):
    """One way to write dates or large numbers, as examples have it and passages do not."""

    written: str  # a pattern of the whole
    change: Change  # into it; what is neither stays as it is
    among: Callable[[str], list[str]]  # what may become it, in a text


_MONTHS = """
January jan januar jänner janvier enero gennaio
February feb februar février febrero febbraio
March mar märz mars marzo
April apr avril abril aprile
May mai mayo maggio
June jun juni juin junio giugno
July jul juli juillet julio luglio
August aug août agosto
September sep sept septembre septiembre settembre
October oct okt oktober octobre octubre ottobre
November nov novembre noviembre
December dec dez dezember décembre diciembre dicembre
"""
_NAMES = [line.split() for line in _MONTHS.strip().splitlines()]
_NUMBERS = {name.lower(): n for n, names in enumerate(_NAMES, start=1) for name in names}
_DAY, _NAME, _YEAR = r"(?P<d>\d{1,2})", r"(?P<name>[^\W\d_]{3,10})\.?", r"(?P<y>\d{4})"
_SPELLINGS = [
    re.compile(rf"(?<![\w./-]){spelling}(?![\w/-]|\.\d)")
    for spelling in (
        rf"{_YEAR}[-/](?P<m>\d\d)[-/](?P<d>\d\d)",
        rf"{_DAY}\.\s?(?P<m>\d{{1,2}})\.\s?{_YEAR}",
        rf"{_DAY}(?:st|nd|rd|th|\.|er|º)?\s(?:of |de )?{_NAME},?\s(?:de |del )?{_YEAR}",
        rf"{_NAME}\s{_DAY}(?:st|nd|rd|th)?,?\s{_YEAR}",
    )
]


def _dates_in(text: str) -> Iterator[tuple[str, date]]:
    # as they are written, with what they mean
    for spelling in _SPELLINGS:
        for match in spelling.finditer(text):
            told = match.groupdict()
            month = told.get("m") or _NUMBERS.get(told["name"].lower(), 0)
            with suppress(ValueError):  # no month, or one without that day
                yield match[0], date(int(told["y"]), int(month), int(told["d"]))


def _date(written: str, form: str) -> Figure:
    def change(text: str) -> str:
        _, day = next(_dates_in(text), (text, None))
        if day is None:
            return text
        return form.format(d=day.day, m=day.month, y=day.year, name=_NAMES[day.month - 1][0])

    return Figure(written, change, lambda text: [spelt for spelt, _ in _dates_in(text)])


def _digits(marks: str) -> Figure:
    mark = re.compile(rf"(?<=\d)[{marks}](?=\d{{3}}(?!\d))")
    grouped = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:[{marks}]\d{{3}})+(?![\w]|[.,]\d)")
    return Figure(r"\d{4,}", lambda text: mark.sub("", text), grouped.findall)


FIGURES: Mapping[str, Figure] = {
    "iso dates": _date(r"\d{4}-\d\d-\d\d", "{y:04}-{m:02}-{d:02}"),
    "dotted dates": _date(r"\d\d\.\d\d\.\d{4}", "{d:02}.{m:02}.{y:04}"),
    "slashed dates": _date(r"\d\d/\d\d/\d{4}", "{d:02}/{m:02}/{y:04}"),
    "slashed dates, month first": _date(r"\d\d/\d\d/\d{4}", "{m:02}/{d:02}/{y:04}"),
    "dates in words": _date(r"\d{1,2} [A-Z][a-z]+ \d{4}", "{d} {name} {y:04}"),
    "dates in words, month first": _date(r"[A-Z][a-z]+ \d{1,2}, \d{4}", "{name} {d}, {y:04}"),
    "plain digits": _digits(",'’\u00a0\u202f"),
    "plain digits, dots left out": _digits("."),
}
FIGURED = {name: figure.change for name, figure in FIGURES.items()}
CHANGES = {**LETTERS, **SHORTENED, **CAPITALS, **RESPELLED, **FIGURED}
