"""Dates and large numbers, as examples write them and passages do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import NamedTuple

_MONTHS = """
january jan januar jänner janvier enero gennaio
february feb februar février febrero febbraio
march mar märz mars marzo
april apr avril abril aprile
may mai mayo maggio
june jun juni juin junio giugno
july jul juli juillet julio luglio
august aug août agosto
september sep sept septembre septiembre settembre
october oct okt oktober octobre octubre ottobre
november nov novembre noviembre
december dec dez dezember décembre diciembre dicembre
"""
_NUMBERS = {
    name: number
    for number, line in enumerate(_MONTHS.strip().splitlines(), start=1)
    for name in line.split()
}
_ENGLISH = [line.split()[0].capitalize() for line in _MONTHS.strip().splitlines()]
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


def _dates_in(text: str) -> list[tuple[str, date]]:
    # as they are written, with what they mean
    found = []
    for spelling in _SPELLINGS:
        for match in spelling.finditer(text):
            told = match.groupdict()
            month = told.get("m") or _NUMBERS.get(told["name"].lower(), 0)
            try:
                found.append((match[0], date(int(told["y"]), int(month), int(told["d"]))))
            except ValueError:  # no month, or one without that day
                continue
    return found


Write = Callable[[Mapping[str, int | str]], str]


def _dated(write: Write) -> Callable[[str], str]:
    def change(text: str) -> str:
        for _, day in _dates_in(text)[:1]:
            name = _ENGLISH[day.month - 1]
            return write({"d": day.day, "m": day.month, "y": day.year, "name": name})
        return text

    return change


def _without(marks: str) -> Callable[[str], str]:
    between = re.compile(rf"(?<=\d)[{marks}](?=\d{{3}}(?!\d))")
    return lambda text: between.sub("", text)


def _grouped(marks: str) -> Callable[[str], list[str]]:
    number = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:[{marks}]\d{{3}})+(?![\w]|[.,]\d)")
    return number.findall


class Figure(NamedTuple):
    """One way to write dates or numbers."""

    written: str  # a pattern of the whole
    change: Callable[[str], str]  # into it; what is neither stays as it is
    among: Callable[[str], list[str]]  # what may become it, in a text


def _date(written: str, write: Write) -> Figure:
    return Figure(written, _dated(write), lambda text: [spelt for spelt, _ in _dates_in(text)])


_COMMAS, _DOTS = ",'’\u00a0\u202f", "."
FIGURES: Mapping[str, Figure] = {
    "iso dates": _date(r"\d{4}-\d\d-\d\d", "{y:04}-{m:02}-{d:02}".format_map),
    "dotted dates": _date(r"\d\d\.\d\d\.\d{4}", "{d:02}.{m:02}.{y:04}".format_map),
    "slashed dates": _date(r"\d\d/\d\d/\d{4}", "{d:02}/{m:02}/{y:04}".format_map),
    "slashed dates, month first": _date(r"\d\d/\d\d/\d{4}", "{m:02}/{d:02}/{y:04}".format_map),
    "dates in words": _date(r"\d{1,2} [A-Z][a-z]+ \d{4}", "{d} {name} {y:04}".format_map),
    "dates in words, month first": _date(
        r"[A-Z][a-z]+ \d{1,2}, \d{4}", "{name} {d}, {y:04}".format_map
    ),
    "plain digits": Figure(r"\d{4,}", _without(_COMMAS), _grouped(_COMMAS)),
    "plain digits, dots left out": Figure(r"\d{4,}", _without(_DOTS), _grouped(_DOTS)),
}
"""By what they are called. Each leaves its own result as it is."""
