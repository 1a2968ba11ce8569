"""Figures 6 and 8: two and five stacked layers with shared parameters.

The paper does not say what a stacked layer may write. Two readings are run: *y slot only*, as in
the construction, and *whole token*, where a trained layer may also change x1 and x2 on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raggd.linear.boundary.base import FigureSpec, Row, interval, rounded, select, values_of
from raggd.linear.boundary.one_layer import alignment
from raggd.linear.boundary.synthetic import run_synthetic, synthetic_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS = (2, 5)
WRITES = {True: "y slot only", False: "whole token"}
_DOCUMENTS = {"dot-product": (2, 5, 10, 25), "projection": (2, 5, 10, 15)}
_FULL: dict[str, Any] = {"evaluations": 1, "batch": 128, "steps": 3000}
# Layers that rewrite whole tokens overflow at the rate that suits the others.
_RATE: dict[bool, dict[str, float]] = {True: {}, False: {"learning_rate": 1e-3, "scale": 0.02}}


def _cells(interface: str, quick: bool) -> list[Row]:
    changes = dict(_FULL)
    counts: Sequence[int] = _DOCUMENTS[interface]
    if quick:
        changes |= {"steps": 250, "batch": 64, "tasks": 1000}
        counts = (counts[0], counts[-1])
    return [
        synthetic_cell(interface, k, layers=depth, target_only=only, **changes | _RATE[only])
        for only in WRITES
        for depth in DEPTHS
        for k in counts
    ]


def residual(row: Row) -> float:
    """Return ``|trained loss - constructed loss|`` of a row."""
    return float(abs(row["trained_loss"] - row["constructed_loss"]))


def _draw(rows: Sequence[Row]) -> Figure:
    from raggd.linear.boundary.draw import NAMES, band, canvas, label, legend

    interface = rows[0]["interface"]
    number = 6 if interface == "dot-product" else 8
    title = f"Figure {number}. {interface.capitalize()}, stacked layers: trained against K steps"
    figure, axes = canvas(2, 4, title)
    final = select(rows, stage="final", input_range=1.0)
    final = [{**row, "residual": residual(row)} for row in final]
    panels = (
        ("residual", "|trained - constructed| loss"),
        ("prediction_difference", NAMES["prediction_difference"]),
        ("cosine", NAMES["cosine"]),
    )
    for line, (only, name) in enumerate(WRITES.items()):
        for index, depth in enumerate(DEPTHS):
            mine = select(final, target_only=only, layers=depth)
            for offset, key in enumerate(("trained_loss", "constructed_loss")):
                text = f"{NAMES[key]}, {depth} layers"
                band(axes[line][0], mine, "documents", key, text, 2 * index + offset)
            for column, (key, _) in enumerate(panels, start=1):
                band(axes[line][column], mine, "documents", key, f"{depth} layers", 2 * index)
        label(axes[line][0], f"layers write {name}", "documents", "squared error")
        for column, (_, text) in enumerate(panels, start=1):
            label(axes[line][column], f"layers write {name}", "documents", text)
        for axis in axes[line][:3]:
            if only:
                axis.set_ylim(bottom=0)
            else:  # a few tasks on which a stack overflows can dominate a mean
                axis.set_yscale("log")
        for axis in axes[line]:
            legend(axis)
    return figure


def _summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the largest residual over document counts at each depth, for both readings."""
    final = select(rows, stage="final", input_range=1.0)
    found: dict[str, Any] = {}
    for only, name in WRITES.items():
        mine = select(final, target_only=only)
        reading: dict[str, Any] = {}
        for depth in DEPTHS:
            part = select(mine, layers=depth)
            by_count = {k: select(part, documents=k) for k in values_of(part, "documents")}
            reading[f"depth_{depth}"] = {k: alignment(v) for k, v in by_count.items()}
            for key in ("residual", "prediction_difference"):
                per_seed = [
                    max(
                        residual(row) if key == "residual" else row[key]
                        for row in select(part, seed=seed)
                    )
                    for seed in values_of(part, "seed")
                ]
                reading[f"largest_{key}_depth_{depth}"] = rounded(interval(per_seed))
        for key in ("residual", "prediction_difference"):
            two, five = (reading[f"largest_{key}_depth_{depth}"][0] for depth in DEPTHS)
            reading[f"{key}_smaller_at_depth_5"] = five < two
        found[name] = reading
    return found


FIG6 = FigureSpec(
    "fig6",
    "Dot-product, two and five layers",
    lambda quick: _cells("dot-product", quick),
    run_synthetic,
    _draw,
    _summarise,
)
FIG8 = FigureSpec(
    "fig8",
    "Projection, two and five layers",
    lambda quick: _cells("projection", quick),
    run_synthetic,
    _draw,
    _summarise,
)
