"""Pictures of the boundary: small multiples with bands over seeds, readable without colour.

Colours are after Okabe and Ito; every line also has its own marker and dash. Imported only when a
picture is made, since matplotlib is slow to load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from raggd.linear.boundary.base import Row, interval, select, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    """Open a figure without a display.

    Args:
        rows: of panels.
        columns: of panels.
        title: above all.
        height: of a row, inches.

    Returns:
        The figure and its axes as a 2-d array.
    """
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
    """Draw the mean of a field over seeds, with its 95 % interval as a band.

    Args:
        axis: where.
        rows: all points of one line, several seeds each.
        x: field of the abscissa.
        y: field of the ordinate.
        label: in the legend.
        style: number in `STYLES`.
    """
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
    """Mark mean and 95 % interval for every group and line, side by side.

    Args:
        axis: where.
        groups: along the abscissa.
        lines: within a group, with a legend entry each.
        values: numbers over seeds of a group and a line.
        key: what they are; cuts the intervals to what can occur.
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
