"""Figures as SVG text: method families, steps K, cost, gains by evidence, alignment.

Ink (text, axes, whiskers) takes the colour of the surrounding text, so that an inline figure
follows the page; a figure opened alone chooses by the reader's colour scheme. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

from raggd.evaluation.statistics import Interval
from raggd.methods.spec import FAMILIES, SPECS, by_family, method_label
from raggd.records import content_id
from raggd.report.contrasts import EVIDENCE, Contrast, average
from raggd.report.grid import StudyBlock
from raggd.report.study_tables import benchmark_title, minus_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0a0b0c"  # stands for currentColor, which matplotlib does not know
_STYLE = (
    "<style>.raggd-figure{color:#1d2126}@media(prefers-color-scheme:dark)"
    "{.raggd-figure{color:#e8e6e1}}</style>"
)
_NEAR = 0.022  # share of the axis by which equal costs are set apart
_STEPS = {name: {1: f"{name}-k1", 5: name, 10: f"{name}-k10"} for name in ("tt-sgd", "rag-gd")}


@contextmanager
def drawing(salt: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Make an empty figure in the house's style, in inches; equal content has an equal `salt`."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.parse_math": False,  # a dollar in a method's name is a dollar
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(inks, INK),
    }
    with rc_context(style):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Return so many panels of a figure, row by row; options are matplotlib's ``subplots``'."""
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, **options)
    places: list[Axes] = list(grid.flat)
    for place in places[count:]:
        place.set_axis_off()
    return places[:count]


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as an inline ``<svg>`` in the page's text colour; its numbers described."""
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


def _paneled(
    title: str,
    said: str,
    names: Sequence[str],
    heights: Sequence[float],
    draw: Callable[[Axes, int], None],
    legend: Sequence[tuple[Any, str]] = (),
    **options: Any,
) -> str:
    """Draw a panel for each name, two in a row of the height of the higher, one legend below."""
    rows = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]
    with drawing(content_id(title, said, *names), (8.4, sum(rows) + 0.4)) as figure:
        places = panels(figure, len(names), min(2, len(names)), height_ratios=rows, **options)
        for number, (place, name) in enumerate(zip(places, names, strict=True)):
            draw(place, number)
            place.set_title(name)
        found = legend or list(zip(*places[0].get_legend_handles_labels(), strict=True))
        if found:
            marks, labels = zip(*found, strict=True)
            below: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
            figure.legend(marks, labels, ncols=5 if legend else 3, **below)
        return to_svg(figure, title, said)


def _spreads(found: Sequence[Interval]) -> tuple[tuple[float, ...], ...]:
    # how far intervals reach below and above their means, 0 where that is unknown
    reached = [
        (x.mean - x.low, x.high - x.mean) if math.isfinite(x.low) else (0.0, 0.0) for x in found
    ]
    return tuple(zip(*reached, strict=True))


def _said(blocks: Sequence[StudyBlock]) -> str:
    lines = []
    for block in blocks:
        shown = [(m, average(block, m, "f1")) for m in block.methods]
        numbers = ", ".join(f"{method_label(m)} {x.mean:.1f}" for m, x in shown if x)
        lines.append(f"{block.name}: {numbers}")
    return "; ".join(lines)


def families_figure(blocks: Sequence[StudyBlock]) -> str:
    """Return F1 of all methods as bars, coloured by family (the paper's figure 3a)."""
    from matplotlib.patches import Patch

    methods = [m for family in FAMILIES for m in by_family(family)]
    shown = [[(m, x) for m in methods if (x := average(b, m, "f1"))] for b in blocks]
    heights = [0.7 + 0.21 * len(bars) for bars in shown]

    def draw(place: Axes, number: int) -> None:
        for row, (method, found) in enumerate(shown[number]):
            place.barh(row, found.mean, color=FAMILIES[SPECS[method].family], height=0.72)
            place.errorbar(found.mean, row, xerr=_spreads([found]), color=INK, linewidth=1)
        labels = [method_label(method) for method, _ in shown[number]]
        place.set_yticks(range(len(labels)), labels, fontsize=8)
        place.invert_yaxis()
        place.set_xlabel("F1 in percent, average of benchmarks")

    legend = [(Patch(facecolor=colour), name) for name, colour in FAMILIES.items()]
    names, said = [block.name for block in blocks], _said(blocks)
    return _paneled("Average F1 by method", said, names, heights, draw, legend)


def steps_figure(blocks: Sequence[StudyBlock]) -> str:
    """Return F1 against the number of gradient steps K (the paper's figure 3b)."""

    def draw(place: Axes, number: int) -> None:
        block = blocks[number]
        if base := average(block, "base", "f1"):
            colour = FAMILIES["trained once"]
            place.axhline(base.mean, color=colour, lw=1, ls="--", label="Base adapter")
        for shift, (name, methods) in enumerate(_STEPS.items()):
            shown = {k: x for k, m in methods.items() if (x := average(block, m, "f1"))}
            if not shown:
                continue
            found, spec = list(shown.values()), SPECS[name]
            place.errorbar(
                [k * (1 + 0.06 * shift) for k in shown],  # side by side, not one over the other
                [x.mean for x in found],
                _spreads(found),
                color=FAMILIES[spec.family],
                marker=spec.mark,
                markersize=5,
                linewidth=1.4,
                label=spec.label,
            )
        place.set_xscale("log")
        place.set_xticks([1, 5, 10], ["1", "5", "10"])
        place.minorticks_off()
        place.set_xlabel("K")
        place.set_ylabel("F1 in percent")

    names, title = [block.name for block in blocks], "Average F1 against the number of steps K"
    return _paneled(title, _said(blocks), names, [2.5] * len(names), draw)


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


def cost_figure(block: StudyBlock) -> str:
    """Return F1 against the time of a question, adaptation included (the paper's figure 4).

    Controls cost what the methods cost that they control, and are left out; it may be empty.
    """
    shown, gradients = [], by_family("gradients at test time")
    for method in (m for m in block.methods if m not in by_family("controls")):
        found, costs = average(block, method, "f1"), block.costs.get(method, {})
        if found is not None and {"adapt_ms", "answer_ms"} <= set(costs):
            ((below,), (above,)) = _spreads([found])
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


def evidence_figure(found: Sequence[Contrast], metric: str) -> str:
    """Return gains of one metric, apart for questions whose passages hold an answer and others."""
    chosen = [c for c in found if c.metric == metric]
    if not chosen:
        return ""
    names = list(dict.fromkeys(minus_label(c.method, c.other) for c in chosen))
    scopes = list(dict.fromkeys(c.scope for c in chosen))
    looks = [("#009e73", "o", -0.13), ("#b07d00", "s", 0.13)]

    def draw(place: Axes, number: int) -> None:
        place.axvline(0, color=INK, alpha=0.4, linewidth=0.8)
        for subset, (colour, marker, shift) in zip(EVIDENCE.values(), looks, strict=True):
            mine = [c for c in chosen if (c.scope, c.subset) == (scopes[number], subset)]
            if mine:
                rows = [names.index(minus_label(c.method, c.other)) + shift for c in mine]
                gains = [c.difference for c in mine]
                place.errorbar(
                    [d.mean for d in gains],
                    rows,
                    xerr=_spreads(gains),
                    fmt=marker,
                    color=colour,
                    markersize=5,
                    label=subset,
                )
        place.set_yticks(range(len(names)), names, fontsize=8)
        place.set_ylim(len(names) - 0.5, -0.5)
        place.set_xlabel("nats per token; below 0 is better" if metric == "loss" else "points")

    said = "; ".join(
        f"{c.scope}, {minus_label(c.method, c.other)}, {c.subset}: {c.difference.mean:+.2f}"
        for c in chosen
    )
    heights = [1.1 + 0.34 * len(names)] * len(scopes)
    return _paneled(f"Gain by evidence, {metric}", said, scopes, heights, draw, sharex=True)


def _fitting(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    # method, kind of tasks, and how its updates match
    for method in ("rag-gd", "mean-update"):
        for kind, by_method in record["found"].items():
            if method in by_method:
                yield method, kind, by_method[method]


def heat_map(name: str, record: Mapping[str, Any]) -> str:
    """Return the cosine of predicted and true update by layer and projection; may be empty."""
    found = [(f"{method_label(m)}, {kind}", f["by_place"]) for m, kind, f in _fitting(record)]
    if not found:
        return ""
    cosines = [value for _, places in found for row in places for value in row]
    low, high = min(0.0, *cosines), max(1e-3, *cosines)
    with drawing(content_id(name, repr(found)), (8.4, 1.25 * len(found) + 0.5)) as figure:
        axes = panels(figure, len(found), 1)
        for place, (title, places) in zip(axes, found, strict=True):
            drawn = place.pcolormesh(places, cmap="viridis", vmin=low, vmax=high)
            place.set_yticks([0.5, 1.5, 2.5], ["q", "k", "v"])
            place.invert_yaxis()
            place.set_title(title)
        axes[-1].set_xlabel("layer, input to output")
        bar = figure.colorbar(drawn, ax=axes, label="cosine", aspect=30)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)  # the page shows no images
        means = [(title, sum(map(sum, rows)) / sum(map(len, rows))) for title, rows in found]
        said = "; ".join(f"{title}: mean {mean:.2f}" for title, mean in means)
        return to_svg(figure, f"Predicted and true update by place, {name}", said)


def distribution_figure(name: str, record: Mapping[str, Any]) -> str:
    """Return the cosine of every support set by task; stars mark tasks never trained on."""
    found: dict[str, dict[str, list[float]]] = {}
    for method, _, fit in _fitting(record):
        for entry in fit["by_set"]:
            by_task = found.setdefault(method, {})
            by_task.setdefault(benchmark_title(entry["task"]), []).append(entry["cosine"])
    if not found:
        return ""
    said = "; ".join(
        f"{method_label(method)} on {task}: mean {sum(xs) / len(xs):.2f}"
        for method, by_task in found.items()
        for task, xs in by_task.items()
    )
    with drawing(content_id(name, said), (8.4, 3.0)) as figure:
        place = figure.add_subplot()
        for shift, (method, by_task) in enumerate(found.items()):
            colour = FAMILIES[SPECS[method].family]
            for number, xs in enumerate(by_task.values()):
                at, mean = number + 0.25 * (shift - 0.5), sum(xs) / len(xs)
                place.plot([at] * len(xs), xs, "o", color=colour, markersize=3.5, alpha=0.55)
                label = method_label(method) if number == 0 else None
                ends = (at - 0.1, at + 0.1)
                place.plot(ends, (mean, mean), color=colour, linewidth=2, label=label)
        names = list(next(iter(found.values())))
        place.set_xticks(range(len(names)), names)
        place.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        place.set_ylabel("cosine, mean over places")
        place.legend(frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.14))
        return to_svg(figure, f"Predicted and true update by task, {name}", said)
