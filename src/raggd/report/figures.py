"""Figures as SVG text: method families, steps K, gains by evidence, alignment.

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
from typing import TYPE_CHECKING, Any

from raggd.evaluation.statistics import Interval
from raggd.methods.spec import FAMILIES, SPECS, by_family, method_label
from raggd.records import content_id
from raggd.report.contrasts import EVIDENCE, Averages, Contrast
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
    """Draw a panel for each name, two in a row of a height, with one legend below."""
    with drawing(content_id(title, said, *names), (8.4, sum(heights) + 0.4)) as figure:
        columns = min(2, len(names))
        places = panels(figure, len(names), columns, height_ratios=heights, **options)
        for number, (place, name) in enumerate(zip(places, names, strict=True)):
            draw(place, number)
            place.set_title(name)
        found = legend or list(zip(*places[0].get_legend_handles_labels(), strict=True))
        if found:
            marks, labels = zip(*found, strict=True)
            below: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
            figure.legend(marks, labels, ncols=5 if legend else 3, **below)
        return to_svg(figure, title, said)


Average = Callable[[StudyBlock, str], Interval | None]  # of a method over a block's benchmarks


def f1_average(averages: Averages) -> Average:
    """Return the average that figures show: F1 in percent, mean of benchmark means."""
    return lambda block, method: averages.of(block, method, block.benchmarks, "f1")


def spread(found: Interval) -> tuple[float, float]:
    """Return how far an interval reaches below and above its mean; 0 where that is unknown."""
    if not math.isfinite(found.low):
        return 0.0, 0.0
    return found.mean - found.low, found.high - found.mean


def _spreads(found: Sequence[Interval]) -> Any:
    # below and above, as matplotlib's error bars want them
    return tuple(zip(*map(spread, found), strict=True))


def _said(blocks: Sequence[StudyBlock], average: Average) -> str:
    lines = []
    for block in blocks:
        shown = [(m, average(block, m)) for m in block.methods]
        numbers = ", ".join(f"{method_label(m)} {x.mean:.1f}" for m, x in shown if x)
        lines.append(f"{block.name}: {numbers}")
    return "; ".join(lines)


def families_figure(blocks: Sequence[StudyBlock], average: Average) -> str:
    """Return F1 of all methods as bars, coloured by family (the paper's figure 3a)."""
    from matplotlib.patches import Patch

    methods = [m for family in FAMILIES for m in by_family(family)]
    shown = [[(m, x) for m in methods if (x := average(b, m))] for b in blocks]
    heights = [0.7 + 0.21 * max(map(len, shown[i : i + 2])) for i in range(0, len(shown), 2)]

    def draw(place: Axes, number: int) -> None:
        for row, (method, found) in enumerate(shown[number]):
            place.barh(row, found.mean, color=FAMILIES[SPECS[method].family], height=0.72)
            place.errorbar(found.mean, row, xerr=_spreads([found]), color=INK, linewidth=1)
        labels = [method_label(method) for method, _ in shown[number]]
        place.set_yticks(range(len(labels)), labels, fontsize=8)
        place.invert_yaxis()
        place.set_xlabel("F1 in percent, average of benchmarks")

    legend = [(Patch(facecolor=colour), name) for name, colour in FAMILIES.items()]
    names, said = [block.name for block in blocks], _said(blocks, average)
    return _paneled("Average F1 by method", said, names, heights, draw, legend)


def steps_figure(blocks: Sequence[StudyBlock], average: Average) -> str:
    """Return F1 against the number of gradient steps K (the paper's figure 3b)."""

    def draw(place: Axes, number: int) -> None:
        block = blocks[number]
        base, colour = average(block, "base"), FAMILIES["trained once"]
        if base:
            dashed: dict[str, Any] = {"linewidth": 1, "linestyle": "--"}
            place.axhline(base.mean, color=colour, label="Base adapter", **dashed)
        for shift, (name, methods) in enumerate(_STEPS.items()):
            shown = [(k, x) for k, method in methods.items() if (x := average(block, method))]
            if not shown:
                continue
            xs = [k * (1 + 0.06 * shift) for k, _ in shown]  # side by side, not one over the other
            found, spec = [x for _, x in shown], SPECS[name]
            place.errorbar(
                xs,
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

    heights, names = [2.5] * -(-len(blocks) // 2), [block.name for block in blocks]
    title = "Average F1 against the number of steps K"
    return _paneled(title, _said(blocks, average), names, heights, draw)


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
                look: dict[str, Any] = {
                    "fmt": marker,
                    "color": colour,
                    "markersize": 5,
                    "label": subset,
                }
                place.errorbar([d.mean for d in gains], rows, xerr=_spreads(gains), **look)
        place.set_yticks(range(len(names)), names, fontsize=8)
        place.set_ylim(len(names) - 0.5, -0.5)
        place.set_xlabel("nats per token; below 0 is better" if metric == "loss" else "points")

    said = "; ".join(
        f"{c.scope}, {minus_label(c.method, c.other)}, {c.subset}: {c.difference.mean:+.2f}"
        for c in chosen
    )
    heights = [1.1 + 0.34 * len(names)] * -(-len(scopes) // 2)
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
