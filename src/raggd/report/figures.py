"""Figures as SVG text: readable on light and dark pages, without outside references.

Ink (text, axes, whiskers) takes the colour of the surrounding text, so that an inline figure
follows the page; a figure opened alone chooses by the reader's colour scheme. Text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import TYPE_CHECKING

from raggd.evaluation.statistics import Interval
from raggd.methods.spec import FAMILIES, SPECS, method_label
from raggd.records import RaggdError, content_id
from raggd.report.summary import SummaryRow
from raggd.report.svg import INK, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the canvas; all numbers in one unit, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """The area."""
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True, slots=True)
class Stem:
    """A point at (x, y) with its whisker from low to high, in the unit of the boxes."""

    x: float
    y: float
    low: float
    high: float

    def distance(self, box: Box) -> float:
        """Return how far a box is from the whisker."""
        across = max(box.left - self.x, self.x - box.right, 0.0)
        along = max(box.bottom - self.high, self.low - box.top, 0.0)
        return math.hypot(across, along)


def _candidates(stem: Stem, width: float, height: float, gap: float) -> Iterator[Box]:
    """Yield places for a label, the nearest first: beside the point, then at the whisker's ends."""
    right, left, centre = stem.x + gap, stem.x - gap - width, stem.x - width / 2
    for ring in range(12):
        far = ring * height / 2
        level, up, down = stem.y - height / 2, stem.y + gap + far, stem.y - gap - far - height
        places = [(right + far, level), (left - far, level)]
        places += [(centre, stem.high + 2 + far), (centre, stem.low - 2 - far - height)]
        places += [(right, up), (right, down), (left, up), (left, down)]
        for x, y in places:
            yield Box(x, y, x + width, y + height)


def place_labels(
    stems: Sequence[Stem],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    bounds: Box,
    *,
    gap: float,
) -> list[Box]:
    """Find a free place beside each point for its label.

    Greedy: each label takes the nearest candidate that touches no obstacle and no label placed
    before; where none is free, the one that overlaps least.

    Args:
        stems: the points with their whiskers.
        sizes: width and height of each label.
        obstacles: what labels must not cover (markers, whiskers).
        bounds: labels stay inside.
        gap: distance of the nearest candidates from their point.

    Returns:
        The labels' boxes, in the order of the points.
    """
    placed: list[Box] = []
    for stem, (width, height) in zip(stems, sizes, strict=True):
        taken = [*obstacles, *placed]

        def cost(box: Box, taken: list[Box] = taken) -> float:
            outside = box.area - box.overlap(bounds)
            return round(10 * outside + sum(box.overlap(other) for other in taken), 6)

        # Of equally good places `min` takes the first, which is the nearest.
        placed.append(min(_candidates(stem, width, height, gap), key=cost))
    return placed


def marks_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return colour and marker by method: fixed for the known ones, distinct for the others."""
    others = cycle(product(FAMILIES.values(), "18|"))
    known = [SPECS.get(name) for name in methods]
    return [(FAMILIES[spec.family], spec.mark) if spec else next(others) for spec in known]


def _time_label(decade: int) -> str:
    for unit, scale in (("s", 3), ("ms", 0), ("µs", -3)):
        if decade >= scale:
            return f"{10 ** (decade - scale)} {unit}"
    return f"1e{decade} ms"


@dataclass(frozen=True, slots=True)
class LogAxis:
    """Logarithm of milliseconds, with a column left of it for methods that adapt nothing."""

    low: float
    high: float
    zeros: int

    @classmethod
    def of(cls, costs: Sequence[float]) -> LogAxis:
        """Return the axis that shows all costs (milliseconds, 0 for none)."""
        logs = [math.log10(cost) for cost in costs if cost > 0] or [1.0]
        low, high = min(logs) - 0.4, max(logs) + 0.6
        low = min(low, math.floor(high) - 0.1)  # at least one decade is marked
        return cls(low, high, sum(cost == 0 for cost in costs))

    @property
    def column(self) -> float:
        """Width of the column at zero, in decades: more for more methods, at most 3/5 in all."""
        return (self.high - self.low) * min(1.5, 0.25 + 0.2 * self.zeros) if self.zeros else 0.0

    def positions(self, costs: Sequence[float]) -> list[float]:
        """Return where to draw each cost; (nearly) equal ones are set side by side."""
        near = 0.022 * (self.high - self.low + self.column)
        step = self.column / max(1, self.zeros)
        places, group = [0.0] * len(costs), list[int]()
        zero = 0
        for index in sorted(range(len(costs)), key=costs.__getitem__):
            if costs[index] == 0:
                places[index] = self.low - self.column + (zero + 0.3) * step
                zero += 1
                continue
            true = math.log10(costs[index])
            if not group or true - math.log10(costs[group[0]]) > near:
                group = []
            group.append(index)
            centre = math.log10(costs[group[0]])
            for rank, member in enumerate(group):
                places[member] = centre + (rank - (len(group) - 1) / 2) * near
            if len(group) == 1:
                places[index] = true
        return places

    def draw(self, axes: Axes) -> None:
        """Set limits, ticks and the shaded column of a plot's horizontal axis.

        Args:
            axes: the plot.
        """
        decades = range(math.ceil(self.low), math.floor(self.high) + 1)
        ticks: list[float] = list(decades)
        names = [_time_label(decade) for decade in decades]
        if self.zeros:
            centre = self.low - self.column / 2
            ticks, names = [centre, *ticks], ["no adaptation", *names]
            axes.axvspan(self.low - self.column, self.low, color=INK, alpha=0.06, linewidth=0)
        axes.set_xticks(ticks, names)
        minor = [
            d + math.log10(m) for d in range(decades[0] - 1, decades[-1] + 1) for m in range(2, 10)
        ]
        axes.set_xticks([m for m in minor if self.low < m < self.high], minor=True)
        axes.set_xlim(self.low - self.column, self.high)


@dataclass(frozen=True, slots=True)
class Point:
    """A method in a figure: its F1 in percent and the time it takes."""

    method: str
    score: Interval
    milliseconds: float

    @property
    def limits(self) -> tuple[float, float, float]:
        """Mean, low and high; an unknown interval has no length."""
        mean, low, high = self.score.mean, self.score.low, self.score.high
        return (mean, low, high) if math.isfinite(low) else (mean, mean, mean)


def _points(rows: Sequence[SummaryRow], macro: bool) -> list[Point]:
    if not rows:
        raise RaggdError("a figure needs at least one summary row: evaluate a method first.")
    points = []
    for row in rows:
        if row.adapt_ms is None or not math.isfinite(row.adapt_ms) or row.adapt_ms < 0:
            raise RaggdError(
                f"the records of '{row.method}' give no adaptation cost (adapt_ms is "
                f"{row.adapt_ms}): it must be a time in milliseconds, 0 for none."
            )
        points.append(Point(row.method, row.macro_f1 if macro else row.f1, row.adapt_ms))
    return points


def draw_points(axes: Axes, points: Sequence[Point], places: Sequence[float]) -> None:
    """Draw F1 of each method with its whisker.

    Args:
        axes: the plot.
        points: the methods.
        places: horizontal position of each.
    """
    marks = marks_of([point.method for point in points])
    for point, x, (colour, marker) in zip(points, places, marks, strict=True):
        mean, low, high = point.limits
        size = 8.5 if point.method == "rag-gd" else 7
        axes.vlines(x, low, high, color=colour, linewidth=1.6, zorder=2)
        axes.plot(x, mean, marker, markersize=size, color=colour, zorder=3)
    lowest = min(point.limits[1] for point in points)
    highest = max(point.limits[2] for point in points)
    room = max(1.0, 0.12 * (highest - lowest))  # labels may stand above and below the whiskers
    axes.set_ylim(lowest - room, highest + room)


def _stems(axes: Axes, points: Sequence[Point], places: Sequence[float]) -> list[Stem]:
    """Return the points with their whiskers in pixels."""
    stems = []
    for point, x in zip(points, places, strict=True):
        ends = axes.transData.transform([(x, value) for value in point.limits]).tolist()
        stems.append(Stem(ends[0][0], *(y for _, y in ends)))
    return stems


def label_points(
    figure: Figure, axes: Axes, points: Sequence[Point], places: Sequence[float]
) -> None:
    """Write each method's name where it covers nothing; the last thing done to a figure.

    Args:
        figure: the figure, whose layout is fixed by this.
        axes: its plot.
        points: the methods.
        places: horizontal position of each.
    """
    texts = [axes.text(0, 0, method_label(point.method), transform=None) for point in points]
    for text in texts:
        text.set_in_layout(False)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # pixels stay where they are now
    stems = _stems(axes, points, places)
    obstacles = [Box(s.x - 5, s.y - 5, s.x + 5, s.y + 5) for s in stems]
    obstacles += [Box(s.x - 2, s.low, s.x + 2, s.high) for s in stems]
    extents = [text.get_window_extent() for text in texts]
    sizes = [(extent.width + 4, extent.height + 2) for extent in extents]
    frame = axes.get_window_extent()
    bounds = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    boxes = place_labels(stems, sizes, obstacles, bounds, gap=7)
    for text, box, stem in zip(texts, boxes, stems, strict=True):
        text.set_position((box.left + 2, box.bottom + 3))
        if stem.distance(box) > 14:  # far from its whisker: a thin line says whose it is
            ends = (stem.x, min(max(stem.x, box.left), box.right))
            levels = (stem.y, min(max(stem.y, box.bottom), box.top))
            axes.plot(ends, levels, color=INK, alpha=0.5, linewidth=0.7, zorder=1, transform=None)


def _describe(points: Sequence[Point]) -> str:
    return "; ".join(
        f"{method_label(point.method)}: F1 {point.score.mean:.1f}, "
        + (
            f"adaptation {cost:.3g} milliseconds"
            if (cost := point.milliseconds)
            else "no adaptation"
        )
        for point in points
    )


def cost_accuracy_figure(rows: Sequence[SummaryRow], *, macro: bool = False) -> str:
    """Draw F1 with its interval against the cost of one adaptation.

    The cost axis is logarithmic; methods that adapt nothing stand in a column of their own at
    its left end, side by side.

    Args:
        rows: from `summary_rows`; each needs its `adapt_ms`.
        macro: show the mean of the benchmarks' means.

    Returns:
        One ``<svg>`` element, to be written to a file or put into a page.
    """
    points = _points(rows, macro)
    costs = [point.milliseconds for point in points]
    axis = LogAxis.of(costs)
    places = axis.positions(costs)
    with drawing(content_id(*(repr(row) for row in rows)), (5.4, 3.8)) as figure:
        axes = figure.add_subplot()
        axis.draw(axes)
        draw_points(axes, points, places)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("time of one adaptation (logarithmic)")
        level = 100 * points[0].score.level
        of = ", mean of benchmarks" if macro else ""
        axes.set_ylabel(f"F1 in percent{of}, with {level:g} % interval")
        label_points(figure, axes, points, places)
        return to_svg(figure, "Accuracy against adaptation cost", _describe(points))
