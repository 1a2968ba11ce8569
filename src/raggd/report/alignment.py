"""How well predicted updates match true ones: where in the model, and on which tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggd.files import read_json
from raggd.methods.spec import method_label
from raggd.records import content_id
from raggd.report.study_tables import benchmark_title
from raggd.report.svg import INK, drawing, to_svg
from raggd.report.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
