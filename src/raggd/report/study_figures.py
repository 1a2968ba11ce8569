"""Figures of a study: method families, steps K, gain by evidence, predicted and true updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggd.evaluation.statistics import Interval
from raggd.files import read_json
from raggd.methods.spec import FAMILIES, SPECS, by_family, method_label
from raggd.records import content_id
from raggd.report.figures import INK, Average, drawing, panels, to_svg
from raggd.report.gains import EVIDENCE, EvidenceGain
from raggd.report.grid import Block
from raggd.report.study_tables import benchmark_title
from raggd.report.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


STEPS = {name: {1: f"{name}-k1", 5: name, 10: f"{name}-k10"} for name in ("tt-sgd", "rag-gd")}
"""Methods of the curves over K."""


def _spread(found: Interval) -> tuple[float, float]:
    if not math.isfinite(found.low):
        return 0.0, 0.0
    return found.mean - found.low, found.high - found.mean


def _salt(*parts: object) -> str:
    return content_id(*(repr(part) for part in parts))


def _said(blocks: Sequence[Block], average: Average) -> str:
    lines = []
    for block in blocks:
        shown = [(m, average(block, m)) for m in block.methods]
        numbers = ", ".join(f"{method_label(m)} {x.mean:.1f}" for m, x in shown if x)
        lines.append(f"{block.name}: {numbers}")
    return "; ".join(lines)


def families_figure(blocks: Sequence[Block], average: Average) -> str:
    """Return F1 of all methods as bars, coloured by family (the paper's figure 3a)."""
    methods = [m for family in FAMILIES for m in by_family(family)]
    shown = [[m for m in methods if average(b, m)] for b in blocks]
    longest = [max(map(len, shown[i : i + 2])) for i in range(0, len(shown), 2)]
    heights = [0.7 + 0.21 * count for count in longest]
    with drawing(_salt("families", _said(blocks, average)), (8.4, sum(heights) + 0.4)) as figure:
        places = panels(figure, len(blocks), min(2, len(blocks)), height_ratios=heights)
        for place, block, present in zip(places, blocks, shown, strict=True):
            _bars(place, block, present, average)
        marks = [_patch(colour) for colour in FAMILIES.values()]
        figure.legend(marks, list(FAMILIES), loc="outside lower center", ncols=5, frameon=False)
        return to_svg(figure, "Average F1 by method", _said(blocks, average))


def _patch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour)


def _bars(place: Axes, block: Block, methods: Sequence[str], average: Average) -> None:
    for row, method in enumerate(methods):
        found = average(block, method)
        if found is None:
            continue
        below, above = _spread(found)
        place.barh(row, found.mean, color=FAMILIES[SPECS[method].family], height=0.72)
        place.errorbar(found.mean, row, xerr=[[below], [above]], color=INK, linewidth=1)
    place.set_yticks(range(len(methods)), [method_label(m) for m in methods], fontsize=8)
    place.invert_yaxis()
    place.set_title(block.name, fontsize=9.5)
    place.set_xlabel("F1 in percent, average of benchmarks")


def steps_figure(blocks: Sequence[Block], average: Average) -> str:
    """Return F1 against the number of gradient steps K (the paper's figure 3b)."""
    lines = -(-len(blocks) // 2)
    with drawing(_salt("steps", _said(blocks, average)), (8.4, 2.5 * lines + 0.3)) as figure:
        places = panels(figure, len(blocks), min(2, len(blocks)))
        for place, block in zip(places, blocks, strict=True):
            _lines(place, block, average)
        handles, names = places[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return to_svg(figure, "Average F1 against the number of steps K", _said(blocks, average))


def _lines(place: Axes, block: Block, average: Average) -> None:
    base = average(block, "base")
    if base:
        place.axhline(base.mean, color="#009e73", linewidth=1, linestyle="--", label="Base adapter")
    for shift, (name, methods) in enumerate(STEPS.items()):
        points = [(k, average(block, method)) for k, method in methods.items()]
        shown = [(k, found) for k, found in points if found]
        if not shown:
            continue
        xs = [k * (1 + 0.06 * shift) for k, _ in shown]  # side by side, not one over the other
        spreads = [_spread(found) for _, found in shown]
        place.errorbar(
            xs,
            [found.mean for _, found in shown],
            tuple(zip(*spreads, strict=True)),
            color=FAMILIES[SPECS[name].family],
            marker=SPECS[name].mark,
            markersize=5,
            linewidth=1.4,
            label=SPECS[name].label,
        )
    place.set_xscale("log")
    place.set_xticks([1, 5, 10], ["1", "5", "10"])
    place.minorticks_off()
    place.set_title(block.name, fontsize=9.5)
    place.set_xlabel("K")
    place.set_ylabel("F1 in percent")


def evidence_figure(found: Sequence[EvidenceGain], metric: str) -> str:
    """Return gains of one metric, apart for questions whose passages hold an answer and others."""
    chosen = [g for g in found if g.contrast.metric == metric]
    if not chosen:
        return ""
    names = list(dict.fromkeys(_pair_name(g) for g in chosen))
    scopes = list(dict.fromkeys(g.contrast.scope for g in chosen))
    lines = -(-len(scopes) // 2)
    with drawing(
        _salt("evidence", chosen), (8.4, (0.9 + 0.34 * len(names)) * lines + 0.4)
    ) as figure:
        places = panels(figure, len(scopes), min(2, len(scopes)), sharex=True)
        for place, scope in zip(places, scopes, strict=True):
            _gains(place, [g for g in chosen if g.contrast.scope == scope], names)
            place.set_title(scope, fontsize=9.5)
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        unit = "nats per token; below 0 is better" if metric == "loss" else "points of percent"
        name = "answer loss" if metric == "loss" else metric.upper()
        figure.suptitle(f"{name}, {unit}", fontsize=10)
        said = "; ".join(
            f"{g.contrast.scope}, {_pair_name(g)}, {EVIDENCE[g.answerable]}: "
            f"{g.difference.mean:+.2f}"
            for g in chosen
        )
        return to_svg(figure, f"Gain by evidence, {metric}", said)


def _pair_name(gain: EvidenceGain) -> str:
    return f"{method_label(gain.contrast.method)} minus {method_label(gain.contrast.other)}"


def _gains(place: Axes, gains: Sequence[EvidenceGain], names: Sequence[str]) -> None:
    place.axvline(0, color=INK, alpha=0.4, linewidth=0.8)
    for answerable, colour, marker, shift in (
        (True, "#009e73", "o", -0.13),
        (False, "#b07d00", "s", 0.13),
    ):
        mine = [g for g in gains if g.answerable is answerable]
        if not mine:
            continue
        spreads = [_spread(_as_interval(g)) for g in mine]
        place.errorbar(
            [g.difference.mean for g in mine],
            [names.index(_pair_name(g)) + shift for g in mine],
            xerr=tuple(zip(*spreads, strict=True)),
            fmt=marker,
            color=colour,
            markersize=5,
            label=EVIDENCE[answerable],
        )
    place.set_yticks(range(len(names)), names, fontsize=8)
    place.set_ylim(len(names) - 0.5, -0.5)


def _as_interval(gain: EvidenceGain) -> Interval:
    d = gain.difference
    return Interval(d.mean, d.low, d.high)


ALIGNMENT_FILE = "alignment.json"
MAPPED = ("rag-gd", "mean-update")
Record = Mapping[str, Any]


def load_alignments(out: Path, backbones: Sequence[str]) -> dict[str, Record]:
    """Return the alignment records in a study's folder by the label of their backbone."""
    paths = {name: out / name / ALIGNMENT_FILE for name in backbones}
    return {n: read_json(p, what="alignment record") for n, p in paths.items() if p.is_file()}


def _panels(record: Record) -> list[tuple[str, list[list[float]]]]:
    return [
        (f"{method_label(method)}, {kind}", by_method[method]["by_place"])
        for method in MAPPED
        for kind, by_method in record["found"].items()
        if method in by_method
    ]


def heat_map(name: str, record: Record) -> str:
    """Return the cosine between predicted and true update by layer and projection, as SVG.

    It is empty without a predictor.
    """
    panels = _panels(record)
    if not panels:
        return ""
    cosines = [value for _, places in panels for row in places for value in row]
    low, high = min(0.0, *cosines), max(1e-3, *cosines)
    with drawing(content_id(name, repr(panels)), (8.4, 1.25 * len(panels) + 0.5)) as figure:
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for place, (title, places) in zip(axes, panels, strict=True):
            drawn = place.pcolormesh(places, cmap="viridis", vmin=low, vmax=high)
            place.set_yticks([0.5, 1.5, 2.5], ["q", "k", "v"])
            place.invert_yaxis()
            place.set_title(title, fontsize=9)
        axes[-1].set_xlabel("layer, input to output")
        bar = figure.colorbar(drawn, ax=list(axes), label="cosine", aspect=30)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)  # an image is refused by the page
        said = "; ".join(
            f"{title}: mean {sum(map(sum, places)) / sum(map(len, places)):.2f}"
            for title, places in panels
        )
        return to_svg(figure, f"Predicted and true update by place, {name}", said)


def _points(record: Record, method: str) -> list[tuple[str, list[float]]]:
    by_task: dict[str, list[float]] = {}
    for by_method in record["found"].values():
        for entry in by_method.get(method, {}).get("by_set", ()):
            by_task.setdefault(entry["task"], []).append(entry["cosine"])
    return list(by_task.items())


def distribution_figure(name: str, record: Record) -> str:
    """Return the cosine of every support set by task; stars mark tasks never trained on."""
    shown = [m for m in MAPPED if _points(record, m)]
    if not shown:
        return ""
    said = "; ".join(
        f"{method_label(m)} on {benchmark_title(task)}: mean {sum(xs) / len(xs):.2f}"
        for m in shown
        for task, xs in _points(record, m)
    )
    with drawing(content_id(name, said), (8.4, 3.0)) as figure:
        place = figure.add_subplot()
        for shift, (method, colour) in enumerate(zip(shown, ("#d55e00", "#c0699a"), strict=False)):
            _strip(place, _points(record, method), colour, 0.25 * (shift - 0.5), method)
        names = [benchmark_title(task) for task, _ in _points(record, shown[0])]
        place.set_xticks(range(len(names)), names)
        place.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        place.set_ylabel("cosine, mean over places")
        place.legend(frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.14))
        return to_svg(figure, f"Predicted and true update by task, {name}", said)


def _strip(
    place: Axes, points: list[tuple[str, list[float]]], colour: str, shift: float, method: str
) -> None:
    for at, (_, xs) in enumerate(points):
        place.plot([at + shift] * len(xs), xs, "o", color=colour, markersize=3.5, alpha=0.55)
        label = method_label(method) if at == 0 else None
        ends = (at + shift - 0.1, at + shift + 0.1)
        mean = sum(xs) / len(xs)
        place.plot(ends, (mean, mean), color=colour, linewidth=2, label=label)


def alignment_table(records: Mapping[str, Record]) -> Table:
    """Return the mean cosine of every predictor on both kinds of tasks, by backbone."""
    columns = [Column("Backbone"), Column("Method"), Column("K", "right"), Column("Tasks")]
    columns += [Column(x, "right") for x in ("Sets", "Cosine (95 % interval)", "Whole update")]
    rows = []
    for name, record in records.items():
        for kind, by_method in record["found"].items():
            for method, found in by_method.items():
                low, high = found["interval"]
                limits = "" if low is None else f" [{low:.3f}, {high:.3f}]"
                cells = (name, method_label(method), str(found["steps"]), kind)
                cosine = f"{found['cosine']:.3f}{limits}"
                whole = f"{found['total_cosine']:.3f}"
                rows.append((*cells, str(len(found["by_set"])), cosine, whole))
    return Table(tuple(columns), tuple(rows))
