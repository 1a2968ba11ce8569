"""Figures 1, 5, 6 and 8 and the departures from Lemma 1: trained attention against its algorithm.

Figures 6 and 8 have two and five stacked layers with shared parameters. The authors compare a stack
that may write whole tokens with GD++, which moves the features too, and that is the default. Our
reading before their code was known is run with ``--reading ours``: plain K steps against layers
that write the y slot only, and against layers that write the whole token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from operator import itemgetter
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from raggd.linear.figure import (
    NAMES,
    FigureSpec,
    Row,
    canvas,
    dots,
    interval,
    legend_below,
    lines,
    rounded,
    select,
    values_of,
    write,
)
from raggd.linear.synthetic import run_synthetic, synthetic_cell, task_spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERFACES = ("projection", "dot-product")
DOCUMENTS = (2, 5, 10, 25)
LOSSES = ("trained_loss", "constructed_loss")
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
    for key in (*keys, *(key for key in ("plain_loss", "blind_loss") if key in rows[0])):
        found[key] = rounded(interval(row[key] for row in rows))
    found["relative_gap"] = rounded(interval(gaps(rows)))
    found["largest_gap"] = max(gaps(rows))
    found["smallest_cosine"] = min(row["cosine"] for row in rows)
    return found


# Figure 1: one layer over training.


def _fig1_cells(quick: bool, reading: str) -> list[Row]:
    changes = QUICK if quick else {"seeds": 5}
    return [synthetic_cell(i, 5, reading=reading, **changes) for i in INTERFACES]


def _draw_fig1(rows: Sequence[Row]) -> Figure:
    title = "Figure 1. One layer of linear self-attention: trained against one gradient step"
    figure, axes = canvas(2, 4, title)
    for interface, (first, *others) in zip(INTERFACES, axes, strict=True):
        curve = select(rows, interface=interface, stage="curve")
        lines(first, "step", [(NAMES[key], curve, key) for key in LOSSES])
        write(first, interface, "step", "loss, held-out tasks")
        keys = ("prediction_difference", "sensitivity_distance", "cosine")
        for axis, key in zip(others, keys, strict=True):
            lines(axis, "step", [("", curve, key)], named=False)
            write(axis, interface, "step", key, 1.0 if key == "cosine" else None)
            axis.set_ylim(bottom=min(0.0, *(row[key] for row in curve)))
        others[-1].set_ylim(top=1.05)
    return figure


def _summarise_fig1(rows: Sequence[Row]) -> dict[str, Any]:
    final = select(rows, stage="final")
    found: dict[str, Any] = {i: alignment(select(final, interface=i)) for i in INTERFACES}
    found["gap_at_most_2_percent"] = all(found[i]["largest_gap"] <= 0.02 for i in INTERFACES)
    found["cosine_at_least_0.99"] = all(found[i]["smallest_cosine"] >= 0.99 for i in INTERFACES)
    return found


# Figure 5: documents and input range.


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
    keys = (*LOSSES, "interpolated_loss")
    shown = 2 if rows[0]["reading"] == "authors" else 10
    for interface, (first, second, third) in zip(INTERFACES, axes, strict=True):
        final = select(rows, stage="final", interface=interface)
        mine = [*final, *select(rows, stage="range", interface=interface)]
        wide = sorted(select(mine, documents=shown), key=itemgetter("input_range"))
        lines(first, "documents", [(NAMES[key], final, key) for key in keys])
        lines(second, "input_range", [(NAMES[key], wide, key) for key in keys])
        by_range = {a: select(mine, input_range=a) for a in (0.5, 1.0, 1.5, 2.0)}
        lines(third, "documents", [(f"in ±{a}", part, "cosine") for a, part in by_range.items()])
        write(first, f"{interface}, inputs in ±{final[0]['input_range']}", "documents", "loss")
        write(second, f"{interface}, {shown} documents", "input_range", "loss")
        write(third, interface, "documents", "cosine")
        first.set_ylim(bottom=0)
        second.set_yscale("log")
    return figure


def _slope(rows: Sequence[Row], key: str) -> list[float]:
    """Return mean and interval over seeds of a loss's slope against documents."""
    slopes = []
    for seed in values_of(rows, "seed"):
        mine = select(rows, seed=seed)
        line = linear_regression([r["documents"] for r in mine], [r[key] for r in mine])
        slopes.append(line.slope)
    return rounded(interval(slopes))


def _summarise_fig5(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for interface in INTERFACES:
        mine = select(rows, stage="final", interface=interface)
        mine = [{**r, "share": r["trained_loss"] / r["null_loss"]} for r in mine]
        found[interface] = {
            "by_documents": {k: alignment(select(mine, documents=k)) for k in DOCUMENTS},
            "largest_gap": max(gaps(mine)),
            "slope_trained": _slope(mine, "trained_loss"),
            "slope_constructed": _slope(mine, "constructed_loss"),
            "slope_share_of_variance": _slope(mine, "share"),
        }
    found["within_5_percent"] = all(found[i]["largest_gap"] <= 0.05 for i in INTERFACES)
    return found


# Figures 6 and 8: stacks of layers.

DEPTHS = (2, 5)
WRITES = {True: "y slot only", False: "whole token"}
_STACKED = {"dot-product": (2, 5, 10, 25), "projection": (2, 5, 10, 15)}
# Layers that rewrite whole tokens overflow at the rate that suits the others.
_RATE: dict[bool, dict[str, float]] = {True: {}, False: {"learning_rate": 1e-3, "scale": 0.02}}


def _depth_cells(interface: str, quick: bool, reading: str) -> list[Row]:
    changes: dict[str, Any] = {"evaluations": 1, "reading": reading}
    counts: Sequence[int] = _STACKED[interface]
    if quick:
        changes |= {"tasks": 1000}
        counts = (counts[0], counts[-1])
    if reading == "ours":
        changes |= {"batch": 64, "steps": 250} if quick else {"batch": 128, "steps": 3000}
        return [
            synthetic_cell(interface, k, layers=depth, target_only=only, **changes | _RATE[only])
            for only in WRITES
            for depth in DEPTHS
            for k in counts
        ]
    changes |= {"scale": 0.02}
    if interface == "dot-product":
        changes |= {"batch": 64, "steps": 800, "learning_rate": 8e-3, "tasks": 4000}
    else:
        changes |= {"batch": 32, "tasks": 2000}
    cells = []
    for depth, k in product(DEPTHS, counts):
        cell = synthetic_cell(interface, k, layers=depth, **changes)
        if interface == "projection":
            # An Adam step moves a T x T matrix by up to rate x T in its largest singular value:
            # the wider the token, the smaller the steps, and the more of them.
            width = task_spec(cell).width
            cell["learning_rate"] = float(f"{0.1 / width:.2g}")
            cell["steps"], cell["seeds"] = (1000, 6) if width < 100 else (2500, 3)
        if k != 25:  # the count whose numbers are published
            cell["authors_tasks"] = 0
        cells.append(cell | ({"steps": 100, "tasks": 1000, "seeds": 3} if quick else {}))
    return cells


def _with_residual(rows: Sequence[Row]) -> list[Row]:
    """Return final rows with ``|trained - constructed loss|``, and that to the blind one."""
    residuals = {"residual": "constructed_loss", "residual_blind": "blind_loss"}
    return [
        row | {n: abs(row["trained_loss"] - row[k]) for n, k in residuals.items() if k in row}
        for row in select(rows, stage="final")
    ]


def _draw_depth(rows: Sequence[Row]) -> Figure:
    interface, against = rows[0]["interface"], "GD++" if "gamma" in rows[0] else "K steps"
    number = 6 if interface == "dot-product" else 8
    title = f"Figure {number}. {interface.capitalize()}, stacked layers: trained against {against}"
    final = _with_residual(rows)
    writes = values_of(final, "target_only")
    figure, axes = canvas(len(writes), 4, title)
    for only, (first, *others) in zip(writes, axes, strict=True):
        name = f"layers write {WRITES[only]}"
        parts = {f"{d} layers": select(final, target_only=only, layers=d) for d in DEPTHS}
        losses = [(f"{NAMES[k]}, {d}", part, k) for d, part in parts.items() for k in LOSSES]
        lines(first, "documents", losses)
        write(first, name, "documents", "loss")
        for axis, key in zip(others, ("residual", "prediction_difference", "cosine"), strict=True):
            lines(axis, "documents", [(d, part, key) for d, part in parts.items()])
            write(axis, name, "documents", key)
        for axis in (first, *others[:2]):
            if only or against == "GD++":
                axis.set_ylim(bottom=0)
            else:  # a few tasks on which a stack overflows can dominate a mean
                axis.set_yscale("log")
    return figure


def _fall(two: Sequence[float], five: Sequence[float]) -> dict[str, Any]:
    """Return intervals over seeds at both depths and of their differences: does it surely fall?"""
    shallow, deep = interval(two), interval(five)
    fall = interval(a - b for a, b in zip(two, five, strict=True))
    found = {"depth_2": rounded(shallow), "depth_5": rounded(deep), "fall": rounded(fall)}
    return {**found, "falls": fall[0] > 0, "intervals_apart": deep[2] < shallow[1]}


def _summarise_depth(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what differs by depth: for every document count, and the largest over counts."""
    final = _with_residual(rows)
    keys = [k for k in ("residual", "residual_blind", "prediction_difference") if k in final[0]]
    found: dict[str, Any] = {}
    for only in values_of(final, "target_only"):
        parts = [select(final, target_only=only, layers=d) for d in DEPTHS]
        counts, seeds = values_of(parts[0], "documents"), values_of(final, "seed")
        reading: dict[str, Any] = {
            f"depth_{d}": {k: alignment(select(part, documents=k)) for k in counts}
            for d, part in zip(DEPTHS, parts, strict=True)
        }
        for key in keys:
            reading[key] = {
                k: _fall(*([r[key] for r in select(part, documents=k)] for part in parts))
                for k in counts
            }
            every = [s for s in seeds if len(select(parts[0], seed=s)) == len(counts)]
            largest = [[max(r[key] for r in select(p, seed=s)) for s in every] for p in parts]
            reading[f"largest_{key}"] = _fall(*largest)
        found[WRITES[only]] = reading
    return found


# Departures from the lemma's setting.

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


def _named(rows: Sequence[Row]) -> list[Row]:
    """Return final rows with ``variant``, the signed ``gap`` and ``share`` of the variance."""
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
    final = _named(rows)
    for axis, key in zip(axes[0], ("gap", "cosine", "share"), strict=True):
        dots(axis, final, key, "variant", "interface", sideways=True)
        write(axis, "", key, "")
        if key != "gap":
            axis.set_yticklabels([])
        if key != "share":
            axis.axvline(float(key == "cosine"), color="#888888", linewidth=0.8)
    legend_below(figure, axes[0][0])
    return figure


def _summarise_departures(rows: Sequence[Row]) -> dict[str, Any]:
    final = _named(rows)
    found: dict[str, Any] = {}
    for interface in INTERFACES:
        mine = select(final, interface=interface)
        found[interface] = {
            v: alignment(select(mine, variant=v)) for v in values_of(mine, "variant")
        }
    return found


_BOTH = ("ours", "authors")
FIGURES = (
    FigureSpec("fig1", _fig1_cells, run_synthetic, _draw_fig1, _summarise_fig1, _BOTH),
    FigureSpec("fig5", _fig5_cells, run_synthetic, _draw_fig5, _summarise_fig5, _BOTH[::-1]),
    *(
        FigureSpec(
            name,
            partial(_depth_cells, interface),
            run_synthetic,
            _draw_depth,
            _summarise_depth,
            _BOTH[::-1],
        )
        for name, interface in (("fig6", "dot-product"), ("fig8", "projection"))
    ),
    FigureSpec(
        "departures", _departure_cells, run_synthetic, _draw_departures, _summarise_departures
    ),
)
