"""Figures 1, 5, 6 and 8 and the departures from Lemma 1: trained attention against its algorithm.

Figures 6 and 8 have two and five stacked layers. The authors compare a stack that may write whole
tokens with GD++, which moves the features too; ``--reading ours`` compares plain K steps with
layers that write the y slot only, and with layers that write the whole token.
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


def after_training(rows: Sequence[Row], *stages: str) -> list[Row]:
    """Return the rows of some stages with their losses compared.

    ``gap``: what training gains, of the constructed loss; ``share``: the trained loss, of the
    variance of the label; ``residual``, ``residual_blind``: distances of losses.
    """
    found = []
    for row in (row for row in rows if row["stage"] in stages):
        trained, constructed = row["trained_loss"], row["constructed_loss"]
        more = {"gap": (constructed - trained) / constructed, "share": trained / row["null_loss"]}
        more["residual"] = abs(trained - constructed)
        if "blind_loss" in row:
            more["residual_blind"] = abs(trained - row["blind_loss"])
        found.append(row | more)
    return found


def alignment(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows of one setting, one per seed, condensed: means, intervals, the worst."""
    keys = ("trained_loss", "constructed_loss", "null_loss", "prediction_difference", "cosine")
    found: dict[str, Any] = {"seeds": len(rows)}
    for key in (*keys, *(key for key in ("plain_loss", "blind_loss") if key in rows[0])):
        found[key] = rounded(interval(row[key] for row in rows))
    gaps = [abs(row["gap"]) for row in rows]
    found["relative_gap"] = rounded(interval(gaps))
    found["largest_gap"] = max(gaps)
    found["smallest_cosine"] = min(row["cosine"] for row in rows)
    return found


def _fig1_cells(quick: bool, reading: str) -> list[Row]:
    changes = QUICK if quick else {"seeds": 5}
    return [synthetic_cell(i, 5, reading=reading, **changes) for i in INTERFACES]


def _draw_fig1(rows: Sequence[Row]) -> Figure:
    title = "Figure 1. One layer of linear self-attention: trained against one gradient step"
    figure, axes = canvas(2, 4, title)
    for interface, (first, *others) in zip(INTERFACES, axes, strict=True):
        curve = select(rows, interface=interface, stage="curve")
        losses = [(NAMES[key], curve, key) for key in LOSSES]
        lines(first, interface, "step", "loss, held-out tasks", losses)
        keys = ("prediction_difference", "sensitivity_distance", "cosine")
        for axis, key in zip(others, keys, strict=True):
            at = 1.0 if key == "cosine" else None
            lines(axis, interface, "step", key, [("", curve, key)], named=False, at=at)
            axis.set_ylim(bottom=min(0.0, *(row[key] for row in curve)))
        others[-1].set_ylim(top=1.05)
    return figure


def _summarise_fig1(rows: Sequence[Row]) -> dict[str, Any]:
    final = after_training(rows, "final")
    found: dict[str, Any] = {i: alignment(select(final, interface=i)) for i in INTERFACES}
    found["gap_at_most_2_percent"] = all(found[i]["largest_gap"] <= 0.02 for i in INTERFACES)
    found["cosine_at_least_0.99"] = all(found[i]["smallest_cosine"] >= 0.99 for i in INTERFACES)
    return found


_FIG5_RATES = {
    "projection": {"learning_rate": 5e-3, "scale": 0.05},
    "dot-product": {"learning_rate": 2e-2, "scale": 0.1},
}


def _fig5_cells(quick: bool, reading: str) -> list[Row]:
    changes: dict[str, Any] = {"reading": reading, "steps": 5000}
    rates: dict[str, dict[str, float]] = {}
    if reading == "authors":
        rates = _FIG5_RATES
        changes |= (
            {"batch": 64, "steps": 300, "tasks": 2000} if quick else {"batch": 64, "steps": 1500}
        )
    elif quick:
        changes |= {**QUICK, "steps": 600}
    changes["evaluations"] = 1
    return [
        synthetic_cell(i, k, **changes, **rates.get(i, {})) for i in INTERFACES for k in DOCUMENTS
    ]


def _draw_fig5(rows: Sequence[Row]) -> Figure:
    title = "Figure 5. Documents and input range: trained, constructed and half-way weights"
    figure, axes = canvas(2, 3, title)
    keys = (*LOSSES, "interpolated_loss")
    shown = 2 if rows[0]["reading"] == "authors" else 10
    for interface, (first, second, third) in zip(INTERFACES, axes, strict=True):
        final = select(rows, stage="final", interface=interface)
        mine = [*final, *select(rows, stage="range", interface=interface)]
        wide = sorted(select(mine, documents=shown), key=itemgetter("input_range"))
        near = f"{interface}, inputs in ±{final[0]['input_range']}"
        lines(first, near, "documents", "loss", [(NAMES[key], final, key) for key in keys])
        wider = f"{interface}, {shown} documents"
        lines(second, wider, "input_range", "loss", [(NAMES[key], wide, key) for key in keys])
        by_range = [(a, select(mine, input_range=a)) for a in (0.5, 1.0, 1.5, 2.0)]
        cosines = [(f"in ±{a}", part, "cosine") for a, part in by_range]
        lines(third, interface, "documents", "cosine", cosines)
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
        mine = select(after_training(rows, "final"), interface=interface)
        found[interface] = {
            "by_documents": {k: alignment(select(mine, documents=k)) for k in DOCUMENTS},
            "largest_gap": max(abs(row["gap"]) for row in mine),
            "slope_trained": _slope(mine, "trained_loss"),
            "slope_constructed": _slope(mine, "constructed_loss"),
            "slope_share_of_variance": _slope(mine, "share"),
        }
    found["within_5_percent"] = all(found[i]["largest_gap"] <= 0.05 for i in INTERFACES)
    return found


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


def _draw_depth(rows: Sequence[Row]) -> Figure:
    interface, against = rows[0]["interface"], "GD++" if "gamma" in rows[0] else "K steps"
    number = 6 if interface == "dot-product" else 8
    title = f"Figure {number}. {interface.capitalize()}, stacked layers: trained against {against}"
    final = after_training(rows, "final")
    writes = values_of(final, "target_only")
    figure, axes = canvas(len(writes), 4, title)
    for only, (first, *others) in zip(writes, axes, strict=True):
        name = f"layers write {WRITES[only]}"
        parts = {f"{d} layers": select(final, target_only=only, layers=d) for d in DEPTHS}
        losses = [(f"{NAMES[k]}, {d}", part, k) for d, part in parts.items() for k in LOSSES]
        lines(first, name, "documents", "loss", losses)
        for axis, key in zip(others, ("residual", "prediction_difference", "cosine"), strict=True):
            shown = [(d, part, key) for d, part in parts.items()]
            lines(axis, name, "documents", key, shown)
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
    final = after_training(rows, "final")
    keys = [k for k in ("residual", "residual_blind", "prediction_difference") if k in final[0]]
    found: dict[str, Any] = {}
    for only in values_of(final, "target_only"):
        parts = [select(final, target_only=only, layers=d) for d in DEPTHS]
        counts, seeds = values_of(parts[0], "documents"), values_of(final, "seed")
        whole = [s for s in seeds if len(select(parts[0], seed=s)) == len(counts)]
        reading: dict[str, Any] = {
            f"depth_{d}": {k: alignment(select(part, documents=k)) for k in counts}
            for d, part in zip(DEPTHS, parts, strict=True)
        }
        for key in keys:
            reading[key] = {
                k: _fall(*([r[key] for r in select(part, documents=k)] for part in parts))
                for k in counts
            }
            largest = [[max(r[key] for r in select(p, seed=s)) for s in whole] for p in parts]
            reading[f"largest_{key}"] = _fall(*largest)
        found[WRITES[only]] = reading
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
    changes["evaluations"] = 1
    return [synthetic_cell(i, 5, **changes, **v) for i in INTERFACES for v in VARIANTS.values()]


def _named(rows: Sequence[Row]) -> list[Row]:
    """Return the rows after training with the name of their ``variant``."""
    found = []
    for row in after_training(rows, "final", "preconditioned"):
        key = {name: row[name] for name in _PLAIN}
        name = next(n for n, v in VARIANTS.items() if {**_PLAIN, **v} == key)
        name += ", preconditioned step" if row["stage"] == "preconditioned" else ""
        found.append({**row, "variant": name})
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
    variants = values_of(final, "variant")
    return {
        i: {v: alignment(select(final, interface=i, variant=v)) for v in variants}
        for i in INTERFACES
    }


_OURS_FIRST, _THEIRS_FIRST = ("ours", "authors"), ("authors", "ours")
_fig6_cells, _fig8_cells = (partial(_depth_cells, i) for i in ("dot-product", "projection"))
FIGURES = (
    FigureSpec("fig1", _fig1_cells, run_synthetic, _draw_fig1, _summarise_fig1, _OURS_FIRST),
    FigureSpec("fig5", _fig5_cells, run_synthetic, _draw_fig5, _summarise_fig5, _THEIRS_FIRST),
    FigureSpec("fig6", _fig6_cells, run_synthetic, _draw_depth, _summarise_depth, _THEIRS_FIRST),
    FigureSpec("fig8", _fig8_cells, run_synthetic, _draw_depth, _summarise_depth, _THEIRS_FIRST),
    FigureSpec(
        "departures", _departure_cells, run_synthetic, _draw_departures, _summarise_departures
    ),
)
