"""What a figure is: cells to run, rows of numbers, a picture and a summary; and how it is drawn.

A cell is a plain dictionary of settings, one training run of all its seeds. Its rows depend on
nothing else, so that a finished cell is stored under the hash of its settings and never run twice;
figures that share a cell share its rows. Pictures are readable without colour: colours are after
Okabe and Ito, every line has its own marker and dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import mean
from typing import TYPE_CHECKING, Any

from raggd.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

Cell = Mapping[str, Any]
Row = dict[str, Any]
TableLoader = Callable[[str], "tuple[Tensor, Tensor]"]
"""Name of a table to its features (rows, d) and target (rows,), float64."""


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One figure."""

    name: str  # as on the command line
    cells: Callable[[bool, str], list[Row]]  # settings of its runs: quick or not, the reading
    run: Callable[[Cell, Progress, TableLoader], list[Row]]  # of one cell
    draw: Callable[[Sequence[Row]], Figure]
    summarise: Callable[[Sequence[Row]], dict[str, Any]]  # the numbers that a reader asks for
    readings: tuple[str, ...] = ("ours",)  # the default first (see `tasks.TaskReading`)


def changed_cell(cell: Row, changes: Cell) -> Row:
    """Return the default settings of a cell with some changed; there are no others."""
    unknown = set(changes) - set(cell)
    assert not unknown, f"no such settings: {unknown}"
    return cell | dict(changes)


def is_evaluated(cell: Cell, step: int) -> bool:
    """Return whether a cell's curve has a point after so many steps: the last, and every few."""
    every = max(1, cell["steps"] // cell["evaluations"])
    return bool(step % every == 0 or step == cell["steps"])


def rows_of(measured: Mapping[str, Tensor], labels: Sequence[Row]) -> list[Row]:
    """Return a row per replica: its labels and the numbers, each (R,), by name."""
    return [
        {**label, **{name: float(values[replica]) for name, values in measured.items()}}
        for replica, label in enumerate(labels)
    ]


# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % interval over seeds; of one seed all are equal."""
    numbers = list(values)
    middle, count = mean(numbers), len(numbers)
    if count == 1:
        return middle, middle, middle
    quantile = _T95[count - 2] if count <= 31 else 1.96
    variance = sum((number - middle) ** 2 for number in numbers) / (count - 1)
    half = quantile * math.sqrt(variance / count)
    return middle, middle - half, middle + half


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose fields equal all of `wanted`."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def values_of(rows: Iterable[Row], key: str) -> list[Any]:
    """Return the distinct values of a field, in the order of first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def rounded(values: Iterable[float], digits: int = 5) -> list[float]:
    """Return numbers rounded to significant digits, for records that people read."""
    return [float(f"{value:.{digits}g}") for value in values]


SOURCE = "github.com/ToneLi/ICL_RAG, ICL_equ_GD.ipynb, commit 672f453"
"""The authors' notebook: what the paper's figure 5 shows, and the losses of five layers."""
_COUNTS, _WIDER = (2, 5, 10, 25), (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_BY_DOCUMENTS = {  # figure 5, inputs in +-1/2, by `_COUNTS`
    ("projection", "constructed"): (0.94, 2.08, 4.20, 10.50),
    ("projection", "trained"): (0.94, 2.08, 4.20, 10.55),
    ("dot-product", "constructed"): (0.56, 0.56, 0.57, 0.57),
    ("dot-product", "trained"): (0.56, 0.57, 0.57, 0.57),
}
_BY_RANGE = {  # figure 5, 2 documents, by `_WIDER`
    ("projection", "constructed"): (3.16, 14.39, 56.70, 178.29, 468.50, 1100.0),
    ("projection", "trained"): (3.23, 14.89, 58.76, 184.73, 485.17, 1100.0),
    ("dot-product", "constructed"): (2.26, 12.20, 50.72, 162.59, 430.49, 992.1),
    ("dot-product", "trained"): (2.30, 12.60, 53.20, 170.90, 452.71, 1043.43),
}


def _figure5() -> Iterator[Row]:
    for (interface, which), by_documents in _BY_DOCUMENTS.items():
        line = {"interface": interface, "documents": 2, "layers": 1, "input_range": 0.5}
        line |= {"which": which, "tolerance": 0.02 if which == "constructed" else 0.03}
        for k, value in zip(_COUNTS, by_documents, strict=True):
            yield line | {"documents": k, "theirs": value}
        for a, value in zip(_WIDER, _BY_RANGE[interface, which], strict=True):
            far = 0.05 if a <= 1.5 else 0.10
            yield line | {"input_range": a, "theirs": value, "tolerance": far}


_DEEP = {"interface": "dot-product", "documents": 25, "layers": 5, "input_range": 0.5}
PUBLISHED: dict[str, list[Row]] = {
    "fig5": list(_figure5()),
    "fig6": [
        _DEEP | {"which": "plain steps", "theirs": 0.4567, "tolerance": 0.04},
        _DEEP | {"which": "constructed", "theirs": 0.4316, "tolerance": 0.04},
        _DEEP | {"which": "trained", "theirs": 0.4772, "tolerance": 0.07},
    ],
}
"""Losses that the authors publish, half the mean squared error, and what counts as agreement."""


def compared(figure: str, rows: list[Row]) -> list[Row]:
    """Return the published numbers of a figure beside the means over seeds of its rows.

    ``ours`` is on the authors' tasks, ``fresh`` on our own draws.
    """
    table = []
    for line in PUBLISHED.get(figure, []):
        key = line["which"].split()[0] + "_loss"
        cell = select((r for r in rows if key in r), **{name: line[name] for name in _DEEP})
        ours = [r[key] for r in select(cell, stage="authors")]
        if not ours:
            continue
        ratio = round(mean(ours) / line["theirs"] - 1, 4)
        row = line | {"ours": rounded([mean(ours)])[0], "relative": ratio, "verdict": "agrees"}
        if fresh := [r[key] for r in cell if r["stage"] in {"final", "range"}]:
            row["fresh"] = rounded([mean(fresh)])[0]
        if abs(ratio) > line["tolerance"]:  # training may have found more
            lower = line["which"] == "trained" and ratio < 0
            row["verdict"] = "lower than theirs" if lower else "missed"
        table.append(row)
    return table


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
    "residual": "|trained - constructed| loss",
    "model_difference": "relative sensitivity distance",
    "loss_ratio": "constructed loss / trained loss",
    "gap": "advantage of training (share of the step's loss)",
    "share": "trained loss / variance of the label",
    "step": "training step",
    "input_range": "input range a",
}
"""Fields as pictures call them, where not by their own name."""


def canvas(rows: int, columns: int, title: str, *, height: float = 2.9) -> tuple[Figure, Any]:
    """Return a figure without a display and its axes as a 2-d array; height in inches per row."""
    from matplotlib.figure import Figure  # slow to load

    figure = Figure(figsize=(3.5 * columns, height * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(which="both", labelsize=8)
    return figure, axes


def write(
    axis: Axes, title: str, x: str, y: str, *, named: bool = False, at: float | None = None
) -> None:
    """Write the texts of a panel, of fields by their `NAMES`, and rule a line at a height."""
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(NAMES.get(x, x), fontsize=9)
    axis.set_ylabel(NAMES.get(y, y), fontsize=9)
    if named:
        axis.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
    if at is not None:
        axis.axhline(at, color="#888888", linewidth=0.8)


def spread_of(key: str, rows: Sequence[Row]) -> tuple[float, float, float]:
    """Return a field's interval cut to what can be: cosines in [-1, 1], all but gaps above zero."""
    middle, low, high = interval(row[key] for row in rows)
    if key == "gap":
        return middle, low, high
    if key == "cosine":
        return middle, max(low, -1.0), min(high, 1.0)
    return middle, max(low, 0.02 * middle), high


def lines(
    axis: Axes,
    title: str,
    x: str,
    y: str,
    shown: Iterable[tuple[str, Sequence[Row], str]],
    *,
    named: bool = True,
    at: float | None = None,
) -> None:
    """Draw lines (a name, rows, a field) against x: means over seeds, bands of 95 % intervals."""
    for (name, rows, key), style in zip(shown, cycle(STYLES), strict=False):
        points = values_of(rows, x)
        spread = [spread_of(key, select(rows, **{x: point})) for point in points]
        middle, low, high = zip(*spread, strict=True)
        axis.plot(points, middle, label=name, linewidth=1.6, markersize=4.5, **style)
        axis.fill_between(points, low, high, color=style["color"], alpha=0.18, linewidth=0)
    write(axis, title, x, y, named=named, at=at)


def dots(
    axis: Axes, rows: Sequence[Row], key: str, by: str, line: str, *, sideways: bool = False
) -> None:
    """Mark a field's mean and 95 % interval for every value of `by` and `line`, side by side."""
    groups, names = values_of(rows, by), values_of(rows, line)
    width = (0.25 if sideways else 0.7) / max(1, len(names) - 1)
    for index, (name, style) in enumerate(zip(names, cycle(STYLES), strict=False)):
        places = [g + width * (index - (len(names) - 1) / 2) for g in range(len(groups))]
        spread = [spread_of(key, select(rows, **{by: group, line: name})) for group in groups]
        middle = [s[0] for s in spread]
        error = [[s[0] - s[1] for s in spread], [s[2] - s[0] for s in spread]]
        x, y = (middle, places) if sideways else (places, middle)
        marks = {"fmt": style["marker"], "color": style["color"], "markersize": 5, "label": name}
        marks |= {"capsize": 2.5, "linewidth": 1.2, "xerr" if sideways else "yerr": error}
        axis.errorbar(x, y, **marks)
    (axis.set_yticks if sideways else axis.set_xticks)(range(len(groups)), groups)
    if sideways:
        axis.invert_yaxis()
        return
    for edge in range(len(groups) - 1):
        axis.axvline(edge + 0.5, color="#bbbbbb", linewidth=0.6)


def legend_below(figure: Figure, axis: Axes) -> None:
    """Write the entries of one panel below all panels, in one line."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False
    )
