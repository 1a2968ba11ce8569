"""One layer, trained against constructed: figures 1 and 5, and the departures from Lemma 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raggd.linear.boundary.figure import (
    NAMES,
    STYLES,
    FigureSpec,
    Row,
    band,
    canvas,
    interval,
    label,
    legend,
    legend_below,
    possible,
    rounded,
    select,
    slope,
    values_of,
)
from raggd.linear.boundary.synthetic import run_synthetic, synthetic_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERFACES = ("projection", "dot-product")
DOCUMENTS = (2, 5, 10, 25)
QUICK: dict[str, Any] = {"steps": 1000, "batch": 256, "tasks": 2000, "evaluations": 10}


def gaps(rows: Sequence[Row]) -> list[float]:
    """Return ``|trained - constructed| / constructed`` loss per row."""
    return [
        abs(row["trained_loss"] - row["constructed_loss"]) / row["constructed_loss"] for row in rows
    ]


def alignment(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows of one setting, one per seed, condensed: means, intervals, the worst."""
    keys = ("trained_loss", "constructed_loss", "null_loss", "prediction_difference", "cosine")
    found: dict[str, Any] = {"seeds": len(rows)}
    for key in (*keys, *(("plain_loss",) if "plain_loss" in rows[0] else ())):
        found[key] = rounded(interval(row[key] for row in rows))
    found["relative_gap"] = rounded(interval(gaps(rows)))
    found["largest_gap"] = max(gaps(rows))
    found["smallest_cosine"] = min(row["cosine"] for row in rows)
    return found


def _fig1_cells(quick: bool, reading: str) -> list[Row]:
    changes = QUICK if quick else {"seeds": 5}
    return [synthetic_cell(i, 5, reading=reading, **changes) for i in INTERFACES]


def _draw_fig1(rows: Sequence[Row]) -> Figure:
    title = "Figure 1. One layer of linear self-attention: trained against one gradient step"
    figure, axes = canvas(2, 4, title)
    keys = ("prediction_difference", "sensitivity_distance", "cosine")
    for line, interface in enumerate(INTERFACES):
        curve = select(rows, interface=interface, stage="curve")
        for style, key in enumerate(("trained_loss", "constructed_loss")):
            band(axes[line][0], curve, "step", key, NAMES[key], style)
        label(axes[line][0], interface, "training step", "loss, held-out tasks")
        legend(axes[line][0])
        for column, key in enumerate(keys, start=1):
            band(axes[line][column], curve, "step", key, NAMES[key], column + 1)
            label(axes[line][column], interface, "training step", NAMES[key])
            axes[line][column].set_ylim(bottom=min(0.0, *(row[key] for row in curve)))
        axes[line][3].set_ylim(top=1.05)
        axes[line][3].axhline(1.0, color="#888888", linewidth=0.8)
    return figure


def _summarise_fig1(rows: Sequence[Row]) -> dict[str, Any]:
    final = select(rows, stage="final")
    found: dict[str, Any] = {i: alignment(select(final, interface=i)) for i in INTERFACES}
    found["gap_at_most_2_percent"] = all(found[i]["largest_gap"] <= 0.02 for i in INTERFACES)
    found["cosine_at_least_0.99"] = all(found[i]["smallest_cosine"] >= 0.99 for i in INTERFACES)
    return found


def _fig5_cells(quick: bool, reading: str) -> list[Row]:
    changes: dict[str, Any] = {"steps": 5000, "reading": reading, "evaluations": 1}
    rates: dict[str, Row] = {interface: {} for interface in INTERFACES}
    if reading == "authors":
        changes |= (
            {"steps": 300, "batch": 64, "tasks": 2000} if quick else {"steps": 1500, "batch": 64}
        )
        rates = {
            "projection": {"learning_rate": 5e-3, "scale": 0.05},
            "dot-product": {"learning_rate": 2e-2, "scale": 0.1},
        }
    elif quick:
        changes |= {**QUICK, "steps": 600, "evaluations": 1}
    return [synthetic_cell(i, k, **changes, **rates[i]) for i in INTERFACES for k in DOCUMENTS]


def _draw_fig5(rows: Sequence[Row]) -> Figure:
    title = "Figure 5. Documents and input range: trained, constructed and half-way weights"
    figure, axes = canvas(2, 3, title)
    keys = ("trained_loss", "constructed_loss", "interpolated_loss")
    ranges = [row for row in rows if row["stage"] in {"final", "range"}]
    shown = 2 if rows[0]["reading"] == "authors" else 10
    for line, interface in enumerate(INTERFACES):
        mine = select(ranges, interface=interface)
        final = select(rows, stage="final", interface=interface)
        for style, key in enumerate(keys):
            band(axes[line][0], final, "documents", key, NAMES[key], style)
            part = select(mine, documents=shown)
            band(axes[line][1], part, "input_range", key, NAMES[key], style)
        for style, factor in enumerate((0.5, 1.0, 1.5, 2.0)):
            part = select(mine, input_range=factor)
            band(axes[line][2], part, "documents", "cosine", f"inputs in ±{factor}", style)
        name = f"{interface}, inputs in ±{final[0]['input_range']}"
        label(axes[line][0], name, "documents", "loss")
        label(axes[line][1], f"{interface}, {shown} documents", "input range a", "loss")
        label(axes[line][2], interface, "documents", NAMES["cosine"])
        axes[line][0].set_ylim(bottom=0)
        axes[line][1].set_yscale("log")
        for axis in axes[line]:
            legend(axis)
    return figure


def loss_slopes(rows: Sequence[Row], key: str) -> list[float]:
    """Return the slope of a loss against documents, one number per seed."""
    return [
        slope([r["documents"] for r in mine], [r[key] for r in mine])
        for mine in (select(rows, seed=seed) for seed in values_of(rows, "seed"))
    ]


def _summarise_fig5(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for interface in INTERFACES:
        mine = select(rows, stage="final", interface=interface)
        shares = [{**r, "share": r["trained_loss"] / r["null_loss"]} for r in mine]
        found[interface] = {
            "by_documents": {k: alignment(select(mine, documents=k)) for k in DOCUMENTS},
            "largest_gap": max(gaps(mine)),
            "slope_trained": rounded(interval(loss_slopes(mine, "trained_loss"))),
            "slope_constructed": rounded(interval(loss_slopes(mine, "constructed_loss"))),
            "slope_share_of_variance": rounded(interval(loss_slopes(shares, "share"))),
        }
    found["within_5_percent"] = all(found[i]["largest_gap"] <= 0.05 for i in INTERFACES)
    return found


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


def _departure_cells(quick: bool, reading: str) -> list[Row]:
    changes = {**QUICK, "steps": 300} if quick else {"steps": 5000}
    return [
        synthetic_cell(interface, 5, **{**changes, "evaluations": 1, **variant})
        for interface in INTERFACES
        for variant in VARIANTS.values()
    ]


def named(rows: Sequence[Row]) -> list[Row]:
    """Final rows with ``variant``, ``gap`` (signed, of the constructed loss) and ``share``.

    Returns:
        The rows; a gradient step in the best metric is the variant "... , preconditioned step".
    """
    found = []
    for row in (r for r in rows if r["stage"] in {"final", "preconditioned"}):
        key = {name: row[name] for name in _PLAIN}
        name = next(n for n, v in VARIANTS.items() if {**_PLAIN, **v} == key)
        if row["stage"] == "preconditioned":
            name = f"{name}, preconditioned step"
        gap = (row["constructed_loss"] - row["trained_loss"]) / row["constructed_loss"]
        share = row["trained_loss"] / row["null_loss"]
        found.append({**row, "variant": name, "gap": gap, "share": share})
    return found


def _draw_departures(rows: Sequence[Row]) -> Figure:
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


def _summarise_departures(rows: Sequence[Row]) -> dict[str, Any]:
    final = named(rows)
    found: dict[str, Any] = {}
    for interface in INTERFACES:
        mine = select(final, interface=interface)
        found[interface] = {
            v: alignment(select(mine, variant=v)) for v in values_of(mine, "variant")
        }
    return found


FIG1 = FigureSpec(
    "fig1",
    _fig1_cells,
    run_synthetic,
    _draw_fig1,
    _summarise_fig1,
    ("ours", "authors"),
)
FIG5 = FigureSpec(
    "fig5",
    _fig5_cells,
    run_synthetic,
    _draw_fig5,
    _summarise_fig5,
    ("authors", "ours"),
)
DEPARTURES = FigureSpec(
    "departures",
    _departure_cells,
    run_synthetic,
    _draw_departures,
    _summarise_departures,
)
