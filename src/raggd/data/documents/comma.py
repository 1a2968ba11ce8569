"""CSV and TSV files: a line per row, each value after the name of its column."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from raggd.data.documents.passages import Block
from raggd.data.documents.plain import read_text
from raggd.records import RaggdError

_NAMED = re.compile(r"\s*sep=([,;\t|])[ \t]*\n")
_SAMPLE = 20_000


def read(path: Path) -> Iterator[Block]:
    """Read a table of values.

    Args:
        path: the file; the delimiter (comma, semicolon, tab, bar) is told from its start.

    Yields:
        One block: ``column: value; column: value`` per row, or the values where the first row
        names no columns.

    Raises:
        RaggdError: the rows cannot be told apart.
    """
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        rows = [[" ".join(cell.split()) for cell in row] for row in _rows(text, path)]
    except csv.Error as error:
        raise RaggdError(f"its rows cannot be read as CSV ({error}).") from error
    rows = [row for row in rows if any(row)]
    at = next((n for n, row in enumerate(rows) if len(row) > 1 and any(row[1:])), 0)
    title, rows = rows[:at], rows[at:]  # exports begin with a title, a date, a remark
    yield Block("\n".join("; ".join(filter(None, row)) for row in title), lines=True)
    if len(rows) > 1 and _names_columns(rows[0]):
        names, values = rows[0], rows[1:]
        yield Block("\n".join(_line(names, row) for row in values), lines=True)
    else:
        yield Block("\n".join("; ".join(filter(None, row)) for row in rows), lines=True)


def _rows(text: str, path: Path) -> list[list[str]]:
    named = _NAMED.match(text)  # as Excel writes it
    if named:
        text, delimiter = text[named.end() :], named[1]
    else:
        tab = path.suffix.lower() == ".tsv" and "\t" in text
        delimiter = "\t" if tab else max(",;\t|", key=partial(_fit, text[:_SAMPLE]))
    closed = True
    try:
        list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        closed = "end of data" not in str(error)
    lines = io.StringIO(text, newline="")
    if closed:
        return list(csv.reader(lines, delimiter=delimiter))
    # a quotation mark that is never closed is a character
    return list(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE))


def _fit(sample: str, delimiter: str) -> tuple[int, int]:
    # How many rows have the same number of cells, more than one; a comma before a space is prose.
    rows = [row for row in csv.reader(sample.split("\n")[:50], delimiter=delimiter) if len(row) > 1]
    same = Counter(map(len, rows)).most_common(1)
    return same[0][1] if same else 0, -sum(cell[:1] == " " for row in rows for cell in row)


def _names_columns(row: Sequence[str]) -> bool:
    numbers = any(cell.replace(".", "").replace("-", "").isdigit() for cell in row)
    return len(row) > 1 and all(row) and len(set(row)) == len(row) and not numbers


def _line(names: Sequence[str], row: Sequence[str]) -> str:
    named = [f"{name}: {cell}" for name, cell in zip(names, row, strict=False) if cell]
    return "; ".join([*named, *filter(None, row[len(names) :])])
