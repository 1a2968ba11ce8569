"""What a figure is: cells to run, rows of numbers, a picture and a summary; and how it is drawn.

A cell is a plain dictionary of settings, one training run of all its seeds. Its rows depend on
nothing else, so that a finished cell is stored under the hash of its settings and never run twice;
figures that share a cell share its rows. Pictures are small multiples with bands over seeds,
readable without colour: colours are after Okabe and Ito, every line has its own marker and dash.
Matplotlib is slow to load and imported when a picture is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from raggd.records import content_id

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
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


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One figure."""

    name: str  # as on the command line
    cells: Callable[[bool, str], list[Row]]  # settings of its runs: quick or not, the reading
    run: Callable[[Cell, Progress, TableLoader], list[Row]]  # of one cell
    draw: Callable[[Sequence[Row]], Figure]
    summarise: Callable[[Sequence[Row]], dict[str, Any]]  # the numbers that a reader asks for
    readings: tuple[str, ...] = ("ours",)  # the default first (see `tasks.Reading`)


def changed_cell(cell: Row, changes: Cell) -> Row:
    """Return the default settings of a cell with some changed; there are no others."""
    unknown = set(changes) - set(cell)
    assert not unknown, f"no such settings: {unknown}"
    return cell | dict(changes)


def cell_id(cell: Cell) -> str:
    """Return the hash that a finished cell is stored under."""
    return content_id(json.dumps(cell, sort_keys=True))


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % confidence interval over seeds (Student's t).

    A single value has no interval: all three are equal.
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


STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    {"color": "#d55e00", "marker": "s", "linestyle": "--"},
    {"color": "#009e73", "marker": "^", "linestyle": "-."},
    {"color": "#b0578d", "marker": "D", "linestyle": (0, (1, 1.5))},
    {"color": "#444444", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#b07d00", "marker": "P", "linestyle": "-"},
)
NAMES = {
    "trained_loss": "trained",
    "constructed_loss": "constructed",
    "interpolated_loss": "half-way weights",
    "prediction_difference": "|difference of predictions|",
    "sensitivity_distance": "l2 distance of sensitivities",
    "cosine": "cosine of sensitivities",
}


def canvas(rows: int, columns: int, title: str, *, height: float = 2.9) -> tuple[Figure, Any]:
    """Return a figure without a display and its axes as a 2-d array; height in inches per row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * columns, height * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", labelsize=8)
    return figure, axes


def band(axis: Axes, rows: Sequence[Row], x: str, y: str, label: str, style: int) -> None:
    """Draw one line: means of the field y over seeds against x, a 95 % interval as a band."""
    chosen = STYLES[style % len(STYLES)]
    points = values_of(rows, x)
    spread = [interval(row[y] for row in select(rows, **{x: p})) for p in points]
    mean, low, high = zip(*(possible(y, *s) for s in spread), strict=True)
    axis.plot(points, mean, label=label, linewidth=1.6, markersize=4.5, **chosen)
    axis.fill_between(points, low, high, color=chosen["color"], alpha=0.18, linewidth=0)


def possible(key: str, mean: float, low: float, high: float) -> tuple[float, float, float]:
    """Return an interval cut to what can occur: cosines in [-1, 1], the rest above zero."""
    if key == "cosine":
        return mean, max(low, -1.0), min(high, 1.0)
    return mean, max(low, 0.02 * mean), high


def label(axis: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Write the texts of a panel."""
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def legend(axis: Axes, **changes: Any) -> None:
    """Put a legend inside a panel, small."""
    axis.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", **changes)


def legend_below(figure: Figure, axis: Axes) -> None:
    """Write the entries of one panel below all panels, in one line."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )


def dots(
    axis: Axes,
    groups: Sequence[str],
    lines: Sequence[str],
    values: Callable[[str, str], list[float]],
    key: str,
) -> None:
    """Mark mean and 95 % interval for every group (abscissa) and line, side by side.

    `values` gives the numbers over seeds of a group and a line; `key` is what they are.
    """
    width = 0.7 / max(1, len(lines) - 1)
    for index, (name, style) in enumerate(zip(lines, cycle(STYLES), strict=False)):
        places = [g - 0.35 + width * index for g in range(len(groups))]
        spread = [possible(key, *interval(values(group, name))) for group in groups]
        mean = [s[0] for s in spread]
        error = [[s[0] - s[1] for s in spread], [s[2] - s[0] for s in spread]]
        axis.errorbar(
            places,
            mean,
            yerr=error,
            fmt=style["marker"],
            color=style["color"],
            markersize=5,
            capsize=2.5,
            linewidth=1.2,
            label=name,
        )
    axis.set_xticks(range(len(groups)), groups)
    for edge in range(len(groups) - 1):
        axis.axvline(edge + 0.5, color="#bbbbbb", linewidth=0.6)
