"""Figures 6 and 8: two and five stacked layers with shared parameters.

The authors compare a stack that may write whole tokens with GD++, which moves the features too, and
that is the default. Our reading before their code was known is run with ``--reading ours``: plain K
steps against layers that write the y slot only, and against layers that write the whole token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from raggd.linear.boundary.figure import (
    NAMES,
    FigureSpec,
    Row,
    band,
    canvas,
    interval,
    label,
    legend,
    rounded,
    select,
    values_of,
)
from raggd.linear.boundary.one_layer import alignment
from raggd.linear.boundary.synthetic import run_synthetic, synthetic_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS = (2, 5)
WRITES = {True: "y slot only", False: "whole token"}
_DOCUMENTS = {"dot-product": (2, 5, 10, 25), "projection": (2, 5, 10, 15)}
# Layers that rewrite whole tokens overflow at the rate that suits the others.
_RATE: dict[bool, dict[str, float]] = {True: {}, False: {"learning_rate": 1e-3, "scale": 0.02}}


def _cells(interface: str, quick: bool, reading: str) -> list[Row]:
    changes: dict[str, Any] = {"evaluations": 1, "reading": reading}
    counts: Sequence[int] = _DOCUMENTS[interface]
    if quick:
        changes |= {"tasks": 1000}
        counts = (counts[0], counts[-1])
    if reading == "authors":
        changes |= {"batch": 64, "steps": 800, "learning_rate": 8e-3, "scale": 0.02, "tasks": 4000}
        if interface == "projection":
            changes |= {"batch": 32, "steps": 400, "learning_rate": 5e-3, "tasks": 2000}
        changes |= {"steps": 100} if quick else {}
        public: dict[int, dict[str, Any]] = {25: {}}  # the count whose numbers are published
        return [
            synthetic_cell(interface, k, layers=d, **changes, **public.get(k, {"authors_tasks": 0}))
            for d in DEPTHS
            for k in counts
        ]
    changes |= {"batch": 64, "steps": 250} if quick else {"batch": 128, "steps": 3000}
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
    interface, against = rows[0]["interface"], "GD++" if "gamma" in rows[0] else "K steps"
    number = 6 if interface == "dot-product" else 8
    title = f"Figure {number}. {interface.capitalize()}, stacked layers: trained against {against}"
    final = [{**row, "residual": residual(row)} for row in select(rows, stage="final")]
    writes = values_of(final, "target_only")
    figure, axes = canvas(len(writes), 4, title)
    panels = (
        ("residual", "|trained - constructed| loss"),
        ("prediction_difference", NAMES["prediction_difference"]),
        ("cosine", NAMES["cosine"]),
    )
    for line, only in enumerate(writes):
        name = f"layers write {WRITES[only]}"
        for index, depth in enumerate(values_of(final, "layers")):
            mine = select(final, target_only=only, layers=depth)
            for offset, key in enumerate(("trained_loss", "constructed_loss")):
                text = f"{NAMES[key]}, {depth} layers"
                band(axes[line][0], mine, "documents", key, text, 2 * index + offset)
            for column, (key, _) in enumerate(panels, start=1):
                band(axes[line][column], mine, "documents", key, f"{depth} layers", 2 * index)
        label(axes[line][0], name, "documents", "loss")
        for column, (_, text) in enumerate(panels, start=1):
            label(axes[line][column], name, "documents", text)
        for axis in axes[line][:3]:
            if only or against == "GD++":
                axis.set_ylim(bottom=0)
            else:  # a few tasks on which a stack overflows can dominate a mean
                axis.set_yscale("log")
        for axis in axes[line]:
            legend(axis)
    return figure


def _largest(rows: Sequence[Row], key: str) -> tuple[float, float, float]:
    """Return mean and interval over seeds of the largest value over document counts."""
    return interval(
        max(residual(r) if key == "residual" else r[key] for r in select(rows, seed=seed))
        for seed in values_of(rows, "seed")
    )


def _summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the largest residual over document counts at each depth, and whether it falls."""
    final = select(rows, stage="final")
    found: dict[str, Any] = {}
    for only in values_of(final, "target_only"):
        part = {d: select(final, target_only=only, layers=d) for d in DEPTHS}
        reading: dict[str, Any] = {
            f"depth_{d}": {k: alignment(select(p, documents=k)) for k in values_of(p, "documents")}
            for d, p in part.items()
        }
        for key in ("residual", "prediction_difference"):
            two, five = (_largest(part[d], key) for d in DEPTHS)
            reading[f"largest_{key}_depth_2"] = rounded(two)
            reading[f"largest_{key}_depth_5"] = rounded(five)
            reading[f"{key}_smaller_at_depth_5"] = five[0] < two[0]
            reading[f"{key}_intervals_apart"] = five[2] < two[1]
        found[WRITES[only]] = reading
    return found


FIG6, FIG8 = (
    FigureSpec(
        name,
        partial(_cells, interface),
        run_synthetic,
        _draw,
        _summarise,
        ("authors", "ours"),
    )
    for name, interface in (("fig6", "dot-product"), ("fig8", "projection"))
)
