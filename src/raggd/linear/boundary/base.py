"""What a figure is: cells to run, rows of numbers, a picture and a summary of them.

A cell is a plain dictionary of settings, one training run of all its seeds. Its rows depend on
nothing else, so that a finished cell is stored under the hash of its settings and never run twice;
figures that share a cell share its rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raggd.records import content_id

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from torch import Tensor

Cell = Mapping[str, Any]
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
TableLoader = Callable[[str], "tuple[Tensor, Tensor]"]
"""Name of a table to its features (rows, d) and target (rows,), float64."""

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Runner(Protocol):
    """Runs one cell."""

    def __call__(self, cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
        """Return the rows of a cell."""


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One figure.

    Attributes:
        name: as on the command line.
        title: one line.
        cells: settings of its runs; the argument asks for the quick ones.
        run: runs a cell.
        draw: makes the picture of all rows.
        summarise: the numbers that a reader asks for, JSON-friendly.
    """

    name: str
    title: str
    cells: Callable[[bool], list[Row]]
    run: Runner
    draw: Callable[[Sequence[Row]], Canvas]
    summarise: Callable[[Sequence[Row]], dict[str, Any]]


def changed_cell(cell: Row, changes: Cell) -> Row:
    """Return the default settings of a cell with some changed; there are no others."""
    unknown = set(changes) - set(cell)
    assert not unknown, f"no such settings: {unknown}"
    return cell | dict(changes)


def cell_id(cell: Cell) -> str:
    """Return the hash that a finished cell is stored under."""
    return content_id(json.dumps(cell, sort_keys=True))


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean with its 95 % confidence interval over seeds (Student's t).

    Args:
        values: one number per seed.

    Returns:
        Mean, low, high. A single value has no interval: all three are equal.
    """
    numbers = list(values)
    count = len(numbers)
    mean = sum(numbers) / count
    if count == 1:
        return mean, mean, mean
    variance = sum((v - mean) ** 2 for v in numbers) / (count - 1)
    quantile = _T95[count - 2] if count <= 31 else 1.96
    half = quantile * math.sqrt(variance / count)
    return mean, mean - half, mean + half


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose fields equal all of `wanted`."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def values_of(rows: Iterable[Row], key: str) -> list[Any]:
    """Return the distinct values of a field, in the order of first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of y against x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - mean_x) ** 2 for a in x)


def rounded(values: Iterable[float], digits: int = 5) -> list[float]:
    """Return numbers rounded to significant digits, for records that people read."""
    return [float(f"{value:.{digits}g}") for value in values]
