"""Beyond the paper: which departure from Lemma 1's setting costs how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raggd.linear.boundary.base import FigureSpec, Row, select, values_of
from raggd.linear.boundary.one_layer import INTERFACES, QUICK, alignment
from raggd.linear.boundary.synthetic import run_synthetic, synthetic_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS: dict[str, dict[str, Any]] = {
    "lemma's setting": {},
    "softmax scores": {"softmax": True},
    "feature scales 1 : 3": {"spread": 3.0},
    "feature scales 1 : 10": {"spread": 10.0},
    "25 % irrelevant documents": {"irrelevant": 0.25},
    "50 % irrelevant documents": {"irrelevant": 0.5},
    "75 % irrelevant documents": {"irrelevant": 0.75},
}
_PLAIN = {"softmax": False, "spread": 1.0, "irrelevant": 0.0}


def _cells(quick: bool) -> list[Row]:
    changes = (
        {**QUICK, "steps": 300, "evaluations": 1} if quick else {"steps": 5000, "evaluations": 1}
    )
    return [
        synthetic_cell(interface, 5, **{**changes, **variant})
        for interface in INTERFACES
        for variant in VARIANTS.values()
    ]


def named(rows: Sequence[Row]) -> list[Row]:
    """Final rows with ``variant``, ``gap`` (signed, of the constructed loss) and ``share``.

    Args:
        rows: of all cells.

    Returns:
        The rows; a gradient step in the best metric is the variant "... , preconditioned step".
    """
    found = []
    for row in rows:
        if row["stage"] == "curve" or row["input_range"] != 1.0:
            continue
        key = {name: row[name] for name in _PLAIN}
        name = next(n for n, v in VARIANTS.items() if {**_PLAIN, **v} == key)
        if row["stage"] == "preconditioned":
            name = f"{name}, preconditioned step"
        gap = (row["constructed_loss"] - row["trained_loss"]) / row["constructed_loss"]
        share = row["trained_loss"] / row["null_loss"]
        found.append({**row, "variant": name, "gap": gap, "share": share})
    return found


def _draw(rows: Sequence[Row]) -> Figure:
    from raggd.linear.boundary.base import interval
    from raggd.linear.boundary.draw import STYLES, canvas, label, legend_below, possible

    title = "Departures from the lemma's setting: trained attention against the gradient step"
    figure, axes = canvas(1, 3, title, height=4.2)
    final = named(rows)
    variants = values_of(final, "variant")
    panels = (
        ("gap", "advantage of training (share of the step's loss)"),
        ("cosine", "cosine of sensitivities"),
        ("share", "trained loss / variance of the label"),
    )
    for axis, (key, text) in zip(axes[0], panels, strict=True):
        for offset, (interface, style) in enumerate(zip(INTERFACES, STYLES, strict=False)):
            spread = [
                interval(r[key] for r in select(final, interface=interface, variant=v))
                for v in variants
            ]
            spread = [possible(key, *s) if key == "cosine" else s for s in spread]
            mean = [s[0] for s in spread]
            error = [[s[0] - s[1] for s in spread], [s[2] - s[0] for s in spread]]
            places = [i + 0.25 * offset - 0.125 for i in range(len(variants))]
            marks = {"fmt": style["marker"], "color": style["color"], "label": interface}
            axis.errorbar(mean, places, xerr=error, markersize=5.5, capsize=2.5, **marks)
        axis.set_yticks(range(len(variants)), variants if key == "gap" else [""] * len(variants))
        axis.invert_yaxis()
        label(axis, "", text, "")
    axes[0][0].axvline(0.0, color="#888888", linewidth=0.8)
    axes[0][1].axvline(1.0, color="#888888", linewidth=0.8)
    legend_below(figure, axes[0][0])
    return figure


def _summarise(rows: Sequence[Row]) -> dict[str, Any]:
    final = named(rows)
    found: dict[str, Any] = {}
    for interface in INTERFACES:
        mine = select(final, interface=interface)
        found[interface] = {
            v: alignment(select(mine, variant=v)) for v in values_of(mine, "variant")
        }
    return found


DEPARTURES = FigureSpec(
    "departures",
    "Softmax, uneven feature scales and irrelevant documents",
    _cells,
    run_synthetic,
    _draw,
    _summarise,
)
