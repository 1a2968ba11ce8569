"""Accuracy against cost: F1 with its interval over the logarithm of time (the paper's figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

from raggd.methods.spec import FAMILIES, SPECS, by_family, method_label
from raggd.records import content_id
from raggd.report.figures import INK, Average, drawing, spread, to_svg
from raggd.report.grid import StudyBlock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NEAR = 0.022  # share of the axis by which equal costs are set apart


def marks_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return colour and marker by method: fixed for the known ones, distinct for the others."""
    others = cycle(product(FAMILIES.values(), "18|"))
    known = [SPECS.get(name) for name in methods]
    return [(FAMILIES[spec.family], spec.mark) if spec else next(others) for spec in known]


def side_by_side(costs: Sequence[float]) -> list[float]:
    """Return where to draw costs on a logarithmic axis; (nearly) equal ones are set apart."""
    near = _NEAR * (math.log10(max(costs) / min(costs)) + 1)
    places, group = list(costs), list[int]()
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if group and math.log10(costs[index] / costs[group[0]]) > near:
            group = []
        group.append(index)
        for rank, member in enumerate(group if len(group) > 1 else ()):
            places[member] = costs[group[0]] * 10 ** ((rank - (len(group) - 1) / 2) * near)
    return places


def label_points(
    figure: Figure, axes: Axes, names: Sequence[str], places: Sequence[float], f1: Any
) -> None:
    """Write each name where it covers nothing, last of all; `f1` are mean, low and high."""
    from adjustText import adjust_text

    means = [mean for mean, *_ in f1]
    texts = [axes.text(*at, fontsize=8.5) for at in zip(places, means, names, strict=True)]
    for text in texts:
        text.set_in_layout(False)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # pixels stay where they are now
    # whiskers are obstacles at three heights; limited by steps, not by time: equal every time
    adjust_text(
        texts,
        x=[x for x in places for _ in range(3)],
        y=[y for limits in f1 for y in limits],
        target_x=list(places),
        target_y=means,
        ax=axes,
        iter_lim=1500,
        expand=(1.1, 1.35),
        force_text=(0.2, 0.5),
        force_static=(0.1, 0.25),
        force_explode=(0.1, 0.6),
        min_arrow_len=9,
        arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.7},
    )


def cost_figure(block: StudyBlock, average: Average) -> str:
    """Return F1 against the time of a question, adaptation included (the paper's figure 4).

    Controls cost what the methods cost that they control, and are left out; it may be empty.
    """
    shown, gradients = [], by_family("gradients at test time")
    for method in (m for m in block.methods if m not in by_family("controls")):
        found, costs = average(block, method), block.costs.get(method, {})
        if found is not None and {"adapt_ms", "answer_ms"} <= set(costs):
            below, above = spread(found)
            limits = (found.mean, found.mean - below, found.mean + above)
            shown.append((method, costs["adapt_ms"] + costs["answer_ms"], limits))
    if not shown:
        return ""
    methods, times, f1 = (list(column) for column in zip(*shown, strict=True))
    said = "; ".join(
        f"{method_label(method)}: F1 {limits[0]:.1f}, {time:.0f} milliseconds"
        for method, time, limits in shown
    )
    from matplotlib.ticker import EngFormatter

    seconds = EngFormatter("s", places=0)  # 100 ms, 10 s
    with drawing(content_id(repr(shown)), (7.2, 4.4)) as figure:
        axes = figure.add_subplot()
        # logarithms are drawn on a linear axis, where labels find their places
        low, high = math.log10(min(times)) - 0.4, math.log10(max(times)) + 0.6
        decades = range(min(math.ceil(low), math.floor(high)), math.floor(high) + 1)
        axes.set_xlim(min(low, decades[0] - 0.1), high)  # at least one decade is marked
        axes.set_xticks(list(decades), [seconds(10.0**decade / 1000) for decade in decades])
        zone = [time for method, time, _ in shown if method in gradients]
        if zone:
            start = math.log10(min(zone)) - 0.12
            axes.axvspan(start, high, color=INK, alpha=0.07, linewidth=0)
        places = [math.log10(place) for place in side_by_side(times)]
        for method, x, limits, look in zip(methods, places, f1, marks_of(methods), strict=True):
            (mean, low, high), (colour, marker) = limits, look
            axes.vlines(x, low, high, color=colour, linewidth=1.6, zorder=2)
            size = 8.5 if method == "rag-gd" else 7
            axes.plot(x, mean, marker, markersize=size, color=colour, zorder=3)
        lowest, highest = min(low for _, low, _ in f1), max(high for *_, high in f1)
        room = max(1.0, 0.12 * (highest - lowest))  # labels may stand above and below whiskers
        axes.set_ylim(lowest - room, highest + room)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        shaded = "; shaded: gradients at test time" if zone else ""
        axes.set_xlabel(f"time per question, adaptation included (logarithmic){shaded}")
        axes.set_ylabel("F1 in percent, average, with 95 % interval")
        axes.set_title(block.name)
        label_points(figure, axes, list(map(method_label, methods)), places, f1)
        return to_svg(figure, f"Accuracy against cost, {block.name}", said)
