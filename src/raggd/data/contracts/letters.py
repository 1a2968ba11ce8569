"""Changes of an answer's own letters: case, marks between words, what is left of a name, figures.

Each leaves its own result as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
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


def _of_name(form: str) -> Change:
    def change(text: str) -> str:
        names = [word for word in text.split() if word[:1].isupper() and not word.endswith(".")]
        if len(names) < 2 or len(names[-1]) < 2:
            return text
        first, last = names[0], names[-1]
        return form.format(first=first.lower(), last=last, small=last.lower(), initial=first[0])

    return change


RESPELLED: Mapping[str, Change] = {
    "joined": lambda text: re.sub(r"\W+", "", text),
    "camel": _camel,
    "dotted": _dotted,
    "last-first": _last_first,
    "initial-last": _of_name("{initial}. {last}"),
    "last-initial": _of_name("{last}, {initial}"),
    "last-letter": _of_name("{last} {initial}"),
    "first.last": _of_name("{first}.{small}"),
}
"""Names as hashtags, identifiers, lists of authors, addresses write them."""


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
_TIME = re.compile(
    r"(?<![\w.,:])(?=\d+(?::| ?(?:[ap]\.?m|uhr|h)))(?P<h>\d{1,2})(?:(?::| ?h ?)(?P<m>\d\d))?"
    r"(?: ?(?:(?P<half>[ap])(?:m|\.m\.)|uhr|h))?(?![\w:])",
    re.IGNORECASE,
)
_DAY, _NAME, _YEAR = r"(?P<d>\d{1,2})", r"(?P<name>[^\W\d_]{3,10})\.?", r"(?P<y>\d{4})"
_Found = Iterator[tuple[str, datetime]]  # as they are written, with what they mean
_SPELLINGS = [
    re.compile(rf"(?<![\w./-]){spelling}(?![\w/-]|\.\d)")
    for spelling in (
        rf"{_YEAR}[-/](?P<m>\d\d)[-/](?P<d>\d\d)",
        rf"{_DAY}\.\s?(?P<m>\d{{1,2}})\.\s?{_YEAR}",
        rf"{_DAY}(?:st|nd|rd|th|\.|er|º)?\s(?:of |de )?{_NAME},?\s(?:de |del )?{_YEAR}",
        rf"{_NAME}\s{_DAY}(?:st|nd|rd|th)?,?\s{_YEAR}",
    )
]


def _dates_in(text: str) -> _Found:
    for spelling in _SPELLINGS:
        for match in spelling.finditer(text):
            told = match.groupdict()
            month = told.get("m") or _NUMBERS.get(told["name"].lower(), 0)
            with suppress(ValueError):  # no month, or one without that day
                yield match[0], datetime(int(told["y"]), int(month), int(told["d"]))


def _times_in(text: str) -> _Found:
    for match in _TIME.finditer(text):
        hour, half = int(match["h"]), (match["half"] or "").lower()
        hour = hour % 12 + 12 * (half == "p") if half else hour
        with suppress(ValueError):  # no hour of a day
            yield match[0], datetime(1, 1, 1, hour, int(match["m"] or 0))


def _form(written: str, form: str, found: Callable[[str], _Found] = _dates_in) -> Figure:
    def change(text: str) -> str:
        _, t = next(found(text), (text, None))
        if t is None:
            return text
        name, half = _NAMES[t.month - 1][0], "pm" if t.hour > 11 else "am"
        hour = (t.hour - 1) % 12 + 1
        return form.format(y=t.year, m=t.month, d=t.day, t=t, name=name, hour=hour, half=half)

    return Figure(written, change, lambda text: [spelt for spelt, _ in found(text)])


def _digits(marks: str) -> Figure:
    mark = re.compile(rf"(?<=\d)[{marks}](?=\d{{3}}(?!\d))")
    grouped = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:[{marks}]\d{{3}})+(?![\w]|[.,]\d)")
    return Figure(r"\d{4,}", lambda text: mark.sub("", text), grouped.findall)


FIGURES: Mapping[str, Figure] = {
    "iso dates": _form(r"\d{4}-\d\d-\d\d", "{y:04}-{m:02}-{d:02}"),
    "dotted dates": _form(r"\d\d\.\d\d\.\d{4}", "{d:02}.{m:02}.{y:04}"),
    "slashed dates": _form(r"\d\d/\d\d/\d{4}", "{d:02}/{m:02}/{y:04}"),
    "slashed dates, month first": _form(r"\d\d/\d\d/\d{4}", "{m:02}/{d:02}/{y:04}"),
    "dates in words": _form(r"\d{1,2} [A-Z][a-z]+ \d{4}", "{d} {name} {y:04}"),
    "dates in words, month first": _form(r"[A-Z][a-z]+ \d{1,2}, \d{4}", "{name} {d}, {y:04}"),
    "short dates": _form(r"\d{1,2} [A-Z][a-z]{2} \d{4}", "{d} {name:.3} {y:04}"),
    "short dates, month first": _form(r"[A-Z][a-z]{2} \d{1,2}, \d{4}", "{name:.3} {d}, {y:04}"),
    "dotted dates without zeros": _form(r"\d{1,2}\.\d{1,2}\.\d{4}", "{d}.{m}.{y:04}"),
    "dotted dates of two digits": _form(r"\d\d\.\d\d\.\d\d", "{d:02}.{m:02}.{t:%y}"),
    "months": _form(r"\d{4}-\d\d", "{y:04}-{m:02}"),
    "months, slashed": _form(r"\d\d/\d{4}", "{m:02}/{y:04}"),
    "times": _form(r"\d\d:\d\d", "{t:%H:%M}", _times_in),
    "times of twelve hours": _form(r"\d{1,2}:\d\d [ap]m", "{hour}:{t:%M} {half}", _times_in),
    "plain digits": _digits(",'’\u00a0\u202f"),
    "plain digits, dots left out": _digits("."),
}
FIGURED = {name: figure.change for name, figure in FIGURES.items()}
CHANGES = {**LETTERS, **SHORTENED, **CAPITALS, **RESPELLED, **FIGURED}
