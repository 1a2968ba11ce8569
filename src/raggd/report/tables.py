"""A small table of strings, written as Markdown, LaTeX, CSV or plain text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from raggd.evaluation.statistics import Interval

Align = Literal["left", "right"]
NOTHING = "–"  # stands where a table has no number
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NOTHING: "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


class Bold(str):
    """A cell that stands out where the format can."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and the side its cells lean to."""

    heading: str
    align: Align = "left"


def texts(*headings: str) -> list[Column]:
    """Return columns of text."""
    return [Column(heading) for heading in headings]


def numbers(*headings: str) -> list[Column]:
    """Return columns of numbers."""
    return [Column(heading, "right") for heading in headings]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; every row has one cell per column. CSV leaves the caption out."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def _lines(
        self, escape: Callable[[str], str], mark: Callable[[str], str]
    ) -> Iterator[list[str]]:
        yield [escape(column.heading) for column in self.columns]
        for row in self.rows:
            yield [
                mark(escape(cell)) if cell and isinstance(cell, Bold) else escape(cell)
                for cell in row
            ]

    def to_markdown(self) -> str:
        """Return a pipe table; pipes, stars and line breaks in cells are escaped."""
        rule = {"left": ":---", "right": "---:"}
        lines = list(self._lines(_markdown_escape, lambda cell: f"**{cell}**"))
        lines.insert(1, [rule[column.align] for column in self.columns])
        body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        return f"{_markdown_escape(self.caption)}\n\n{body}" if self.caption else body

    def to_latex(self) -> str:
        """Return a tabular, in a table environment if there is a caption; it needs booktabs."""
        spec = "".join(column.align[0] for column in self.columns)
        head, *rows = self._lines(_latex_escape, lambda cell: f"\\textbf{{{cell}}}")
        lines = [f"\\begin{{tabular}}{{{spec}}}", "\\toprule", " & ".join(head) + r" \\"]
        lines += ["\\midrule", *(" & ".join(row) + r" \\" for row in rows)]
        lines += ["\\bottomrule", "\\end{tabular}"]
        if self.caption:
            caption = f"\\caption{{{_latex_escape(self.caption)}}}"
            lines = ["\\begin{table}", "\\centering", caption, *lines, "\\end{table}"]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Return comma-separated values with a header line, quoted where needed."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.heading for column in self.columns])
        writer.writerows(self.rows)
        return stream.getvalue()

    def to_text(self) -> str:
        """Return aligned plain text for a terminal or a log."""
        from rich.cells import cell_len  # where letters are wide, or marks on the one before

        flat = list(self._lines(lambda cell: " ".join(cell.split()), lambda cell: cell))
        widths = [max(map(cell_len, cells)) for cells in zip(*flat, strict=True)]
        flat.insert(1, ["-" * width for width in widths])
        lines = []
        for row in flat:
            cells = []
            for cell, width, column in zip(row, widths, self.columns, strict=True):
                free = " " * (width - cell_len(cell))
                cells.append(cell + free if column.align == "left" else free + cell)
            lines.append("  ".join(cells).rstrip())
        return "\n".join([self.caption, *lines] if self.caption else lines) + "\n"


def _markdown_escape(cell: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", "]("):
        cell = cell.replace(sign, f"\\{sign}")
    return " ".join(cell.split())


def _latex_escape(cell: str) -> str:
    return " ".join("".join(_LATEX.get(sign, sign) for sign in cell).split())


def interval_text(interval: Interval | None, form: str = ".1f") -> str:
    """Return a mean with its limits, ``41.3 [33.0, 49.7]``; ``[–]`` where they are unknown."""
    if interval is None:
        return NOTHING
    if not math.isfinite(interval.low):
        return f"{interval.mean:{form}} [{NOTHING}]"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def milliseconds_text(value: float | None) -> str:
    """Return a time in milliseconds with at most three significant digits below 1000.

    >>> [milliseconds_text(value) for value in (None, 0, 0.123, 12.34, 123.4, 12345)]
    ['–', '0', '0.12', '12.3', '123', '12345']
    """
    if value is None:
        return NOTHING
    digits = 0 if value == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def relative_text(value: float | None) -> str:
    """Return a relative cost with two significant digits.

    >>> [relative_text(value) for value in (None, 0, 0.0123, 1)]
    ['–', '0', '0.012', '1.0']
    """
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def p_text(value: float | None) -> str:
    """Return a p-value; below 0.001 as a bound."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
