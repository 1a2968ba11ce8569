"""CSV and TSV files: a line per row, each value after the name of its column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from raggd.data.documents.passages import Block
from raggd.data.documents.plain import read_text
from raggd.records import RaggdError

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
    if len(rows) > 1 and _names_columns(rows[0]):
        names, values = rows[0], rows[1:]
        yield Block("\n".join(_line(names, row) for row in values), lines=True)
    else:
        yield Block("\n".join("; ".join(filter(None, row)) for row in rows), lines=True)


def _rows(text: str, path: Path) -> Iterator[list[str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    first = text.lstrip("\n").partition("\n")[0][:_SAMPLE]
    if delimiter not in first:
        delimiter = max(",;\t|", key=first.count)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _names_columns(row: Sequence[str]) -> bool:
    numbers = any(cell.replace(".", "").replace("-", "").isdigit() for cell in row)
    return len(row) > 1 and all(row) and len(set(row)) == len(row) and not numbers


def _line(names: Sequence[str], row: Sequence[str]) -> str:
    named = [f"{name}: {cell}" for name, cell in zip(names, row, strict=False) if cell]
    return "; ".join([*named, *filter(None, row[len(names) :])])
