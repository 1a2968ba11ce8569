"""Figures as SVG text, and accuracy against cost: F1 with its interval over the logarithm of time.

Ink (text, axes, whiskers) takes the colour of the surrounding text, so that an inline figure
follows the page; a figure opened alone chooses by the reader's colour scheme. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

from raggd.evaluation.statistics import Interval
from raggd.methods.spec import FAMILIES, SPECS, by_family, method_label
from raggd.records import content_id
from raggd.report.contrasts import Averages
from raggd.report.grid import Block

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK = "#0a0b0c"  # stands for currentColor, which matplotlib does not know
_STYLE = (
    "<style>.raggd-figure{color:#1d2126}@media(prefers-color-scheme:dark)"
    "{.raggd-figure{color:#e8e6e1}}</style>"
)


@contextmanager
def drawing(salt: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Make an empty figure in the house's style, size in inches; turn it into text in the block.

    `salt` is equal for equal content: ids of two figures do not meet.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_style_of(salt)):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Return so many panels of a figure, row by row; what is left of the last row stays blank.

    Options are those of matplotlib's ``subplots``.
    """
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **options)
    places: list[Axes] = list(grid.flat)
    for place in places[count:]:
        place.set_axis_off()
    return places[:count]


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as one inline ``<svg>`` that follows the page's text colour.

    The description holds its numbers, for readers who cannot see it.
    """
    stream = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=empty)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].strip()  # no XML header and no document type with an address
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("*{stroke", ".raggd-figure *{stroke").replace(INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    opening = (
        f'<svg class="raggd-figure" role="img" aria-label="{escape(f"{title}. {description}")}"'
    )
    head, body = svg.removeprefix("<svg").split(">", 1)
    return f"{opening}{head}><title>{escape(title)}</title>{_STYLE}{body}\n"


def _style_of(salt: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # equal rows give equal text, and ids of two figures do not meet
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,  # a dollar in a method's name is a dollar
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
    }


Average = Callable[[Block, str], Interval | None]
"""The average of a method over the benchmarks of a block, with its interval."""


def f1_average(averages: Averages) -> Average:
    """Return the average that figures show: F1 in percent, mean of benchmark means."""
    return lambda block, method: averages.of(block, method, block.benchmarks, "f1")


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
    """Logarithm of milliseconds."""

    low: float
    high: float

    @classmethod
    def of(cls, costs: Sequence[float]) -> LogAxis:
        """Return the axis that shows all costs (milliseconds, above 0)."""
        logs = [math.log10(cost) for cost in costs]
        low, high = min(logs) - 0.4, max(logs) + 0.6
        return cls(min(low, math.floor(high) - 0.1), high)  # at least one decade is marked

    def positions(self, costs: Sequence[float]) -> list[float]:
        """Return where to draw each cost; (nearly) equal ones are set side by side."""
        near = 0.022 * (self.high - self.low)
        places, group = [0.0] * len(costs), list[int]()
        for index in sorted(range(len(costs)), key=costs.__getitem__):
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
        """Set limits and ticks of a plot's horizontal axis."""
        decades = range(math.ceil(self.low), math.floor(self.high) + 1)
        axes.set_xticks(list(decades), [_time_label(decade) for decade in decades])
        minor = [
            d + math.log10(m) for d in range(decades[0] - 1, decades[-1] + 1) for m in range(2, 10)
        ]
        axes.set_xticks([m for m in minor if self.low < m < self.high], minor=True)
        axes.set_xlim(self.low, self.high)


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


def draw_points(axes: Axes, points: Sequence[Point], places: Sequence[float]) -> None:
    """Draw F1 of each method with its whisker at its horizontal place."""
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


def label_points(
    figure: Figure, axes: Axes, points: Sequence[Point], places: Sequence[float]
) -> None:
    """Write each method's name where it covers nothing; the last thing done to a figure."""
    from adjustText import adjust_text

    texts = [
        axes.text(x, point.score.mean, method_label(point.method), fontsize=8.5)
        for point, x in zip(points, places, strict=True)
    ]
    for text in texts:
        text.set_in_layout(False)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # pixels stay where they are now
    # whiskers are obstacles at three heights; limited by steps, not by time: equal every time
    ends = [(x, *point.limits) for point, x in zip(points, places, strict=True)]
    adjust_text(
        texts,
        x=[x for x, *limits in ends for _ in limits],
        y=[y for _, *limits in ends for y in limits],
        target_x=list(places),
        target_y=[point.score.mean for point in points],
        ax=axes,
        iter_lim=1500,
        expand=(1.1, 1.35),
        force_text=(0.2, 0.5),
        force_static=(0.1, 0.25),
        force_explode=(0.1, 0.6),
        min_arrow_len=9,
        arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.7},
    )


def _cost_points(block: Block, average: Average) -> list[Point]:
    points = []
    controls = by_family("controls")  # they cost what the methods cost that they control
    for method in (m for m in block.methods if m not in controls):
        found, costs = average(block, method), block.costs.get(method, {})
        if found is not None and {"adapt_ms", "answer_ms"} <= set(costs):
            points.append(Point(method, found, costs["adapt_ms"] + costs["answer_ms"]))
    return points


def cost_figure(block: Block, average: Average) -> str:
    """Return F1 against the time of a question, adaptation included (the paper's figure 4).

    It is empty while no method has its costs.
    """
    points = _cost_points(block, average)
    if not points:
        return ""
    totals = [point.milliseconds for point in points]
    axis = LogAxis.of(totals)
    places = axis.positions(totals)
    with drawing(content_id(repr(points)), (7.2, 4.4)) as figure:
        axes = figure.add_subplot()
        axis.draw(axes)
        gradients = by_family("gradients at test time")
        zone = [point.milliseconds for point in points if point.method in gradients]
        if zone:
            left = math.log10(min(zone)) - 0.12
            axes.axvspan(left, axis.high, color=INK, alpha=0.07, linewidth=0)
        draw_points(axes, points, places)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        shaded = "; shaded: gradients at test time" if zone else ""
        axes.set_xlabel(f"time per question, adaptation included (logarithmic){shaded}")
        axes.set_ylabel("F1 in percent, average, with 95 % interval")
        axes.set_title(block.name, fontsize=9.5)
        label_points(figure, axes, points, places)
        said = "; ".join(
            f"{method_label(p.method)}: F1 {p.score.mean:.1f}, {p.milliseconds:.0f} milliseconds"
            for p in points
        )
        return to_svg(figure, f"Accuracy against cost, {block.name}", said)
