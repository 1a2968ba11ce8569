"""A small table of strings, written as Markdown, LaTeX, CSV, plain text or for a rich terminal."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raggd.evaluation.statistics import Difference, Interval
from raggd.methods.spec import method_label
from raggd.records import RaggdError, unknown_name
from raggd.report.summary import Comparison, SummaryRow

Align = Literal["left", "right", "center"]
NOTHING = "–"
"""Stands where a table has no number."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NOTHING: "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and the side its cells lean to."""

    heading: str
    align: Align = "left"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; every row has one cell per column.

    Attributes:
        columns: the columns, left to right.
        rows: the cells.
        caption: one line above (CSV leaves it out).
        bold: (row, column) of cells to stand out where the format can (not in CSV, plain text).
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise RaggdError(
                    f"row {number} of the table has {len(row)} cells for {len(self.columns)} "
                    "columns: give one for each."
                )

    def render(self, style: str) -> str:
        """Render by the name of a format.

        Args:
            style: ``markdown``, ``latex``, ``csv`` or ``text``.

        Returns:
            The table as text, ending in a line break.

        Raises:
            RaggdError: there is no such format.
        """
        known: dict[str, Callable[[], str]] = {
            "markdown": self.to_markdown,
            "latex": self.to_latex,
            "csv": self.to_csv,
            "text": self.to_text,
        }
        if style not in known:
            raise RaggdError(str(unknown_name("table format", style, list(known))))
        return known[style]()

    def _marked(
        self, escape: Callable[[str], str], mark: Callable[[str], str]
    ) -> list[tuple[str, ...]]:
        return [
            tuple(
                mark(escape(cell)) if (i, j) in self.bold and cell else escape(cell)
                for j, cell in enumerate(row)
            )
            for i, row in enumerate(self.rows)
        ]

    def to_markdown(self) -> str:
        """Render as a pipe table; pipes, stars and line breaks in cells are escaped.

        Returns:
            The table.
        """
        rule = {"left": ":---", "right": "---:", "center": ":---:"}
        lines = [
            [_markdown_escape(column.heading) for column in self.columns],
            [rule[column.align] for column in self.columns],
            *self._marked(_markdown_escape, lambda cell: f"**{cell}**"),
        ]
        body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        return f"{_markdown_escape(self.caption)}\n\n{body}" if self.caption else body

    def to_latex(self) -> str:
        """Render as a tabular, in a table environment if there is a caption.

        Returns:
            LaTeX source; it needs the package booktabs.
        """
        spec = "".join(column.align[0] for column in self.columns)
        heading = tuple(_latex_escape(column.heading) for column in self.columns)
        rows = self._marked(_latex_escape, lambda cell: f"\\textbf{{{cell}}}")
        lines = [f"\\begin{{tabular}}{{{spec}}}", "\\toprule", " & ".join(heading) + r" \\"]
        lines += ["\\midrule", *(" & ".join(row) + r" \\" for row in rows)]
        lines += ["\\bottomrule", "\\end{tabular}"]
        if self.caption:
            caption = f"\\caption{{{_latex_escape(self.caption)}}}"
            lines = ["\\begin{table}", "\\centering", caption, *lines, "\\end{table}"]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Render as comma-separated values with a header line.

        Returns:
            The table; quoted where needed.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.heading for column in self.columns])
        writer.writerows(self.rows)
        return stream.getvalue()

    def to_text(self) -> str:
        """Render as aligned plain text for a terminal or a log.

        Returns:
            The table.
        """
        cells = [tuple(column.heading for column in self.columns), *self.rows]
        flat = [tuple(" ".join(cell.split()) for cell in row) for row in cells]
        widths = [max(map(_width, column)) for column in zip(*flat, strict=True)]
        lines = [
            "  ".join(
                _pad(cell, width, column.align)
                for cell, width, column in zip(row, widths, self.columns, strict=True)
            ).rstrip()
            for row in flat
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.caption, *lines] if self.caption else lines) + "\n"


def _markdown_escape(cell: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", "]("):
        cell = cell.replace(sign, f"\\{sign}")
    return " ".join(cell.split())


def _latex_escape(cell: str) -> str:
    return " ".join("".join(_LATEX.get(sign, sign) for sign in cell).split())


def _width(cell: str) -> int:
    """Return the columns of a terminal that a text takes: wide characters two, marks none."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in cell)
    return len(cell) + wide - sum(unicodedata.combining(sign) != 0 for sign in cell)


def _pad(cell: str, width: int, align: Align) -> str:
    free = width - _width(cell)
    left = {"left": 0, "right": free, "center": free // 2}[align]
    return " " * left + cell + " " * (free - left)


def interval_text(interval: Interval | Difference, *, sign: bool = False) -> str:
    """Write a mean with its limits, e.g. ``41.3 [33.0, 49.7]``.

    Args:
        interval: the numbers.
        sign: write a plus before positive numbers (for differences).

    Returns:
        The text; ``[–]`` where the interval is unknown.
    """
    form = "+.1f" if sign else ".1f"
    if not math.isfinite(interval.low):
        return f"{interval.mean:{form}} [–]"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def milliseconds_text(value: float | None) -> str:
    """Write a time in milliseconds with at most three significant digits below 1000.

    Args:
        value: milliseconds, or None when not measured.

    Returns:
        The text; a dash for None.

    >>> [milliseconds_text(value) for value in (None, 0, 0.123, 12.34, 123.4, 12345)]
    ['–', '0', '0.12', '12.3', '123', '12345']
    """
    if value is None:
        return NOTHING
    digits = 0 if value == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def relative_text(value: float | None) -> str:
    """Write a relative cost with two significant digits.

    Args:
        value: the ratio, or None.

    Returns:
        The text; a dash for None.

    >>> [relative_text(value) for value in (None, 0, 0.0123, 1)]
    ['–', '0', '0.012', '1.0']
    """
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def p_text(value: float) -> str:
    """Write a p-value; below 0.001 as a bound.

    Args:
        value: the p-value.

    Returns:
        The text.
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def summary_table(
    rows: Sequence[SummaryRow], *, macro: bool = False, numbers: bool = False
) -> Table:
    """Lay out the summary of methods.

    Args:
        rows: from `summary_rows`.
        macro: show the mean of the benchmarks' means instead of the mean over all questions.
        numbers: one number per cell, the limits in columns of their own (for CSV).

    Returns:
        The table.
    """
    columns = [Column("Method"), Column("n", "right")]
    for name in ("EM", "F1"):
        ends = ["", " low", " high"] if numbers else [" (95 % interval)"]
        if rows and not numbers and rows[0].em.level != 0.95:
            ends = [f" ({100 * rows[0].em.level:g} % interval)"]
        columns += [Column(name + end, "right") for end in ends]
    columns += [
        Column(heading, "right") for heading in ("Adapt ms", "Answer ms", "Adapt cost / TT-SGD")
    ]
    body = []
    for row in rows:
        cells = [row.method if numbers else method_label(row.method), str(row.n)]
        for score in (row.macro_em, row.macro_f1) if macro else (row.em, row.f1):
            if numbers:
                cells += [f"{number:.4f}" for number in (score.mean, score.low, score.high)]
            else:
                cells.append(interval_text(score))
        cells += [milliseconds_text(row.adapt_ms), milliseconds_text(row.answer_ms)]
        body.append((*cells, relative_text(row.relative_cost)))
    return Table(tuple(columns), tuple(body))


def comparison_table(comparisons: Sequence[Comparison], *, alpha: float = 0.05) -> Table:
    """Lay out paired comparisons; significant differences (after correction) are bold.

    Args:
        comparisons: from `compare`.
        alpha: the corrected p-value must be below it.

    Returns:
        The table.
    """
    columns = (
        Column("Comparison"),
        Column("EM points", "right"),
        Column("p", "right"),
        Column("F1 points", "right"),
        Column("p", "right"),
    )
    rows, bold = [], set()
    for index, pair in enumerate(comparisons):
        rows.append(
            (
                f"{method_label(pair.method)} minus {method_label(pair.other)}",
                interval_text(pair.em, sign=True),
                p_text(pair.em_p),
                interval_text(pair.f1, sign=True),
                p_text(pair.f1_p),
            )
        )
        bold |= {(index, 1)} if pair.em_p < alpha else set()
        bold |= {(index, 3)} if pair.f1_p < alpha else set()
    return Table(columns, tuple(rows), bold=frozenset(bold))
