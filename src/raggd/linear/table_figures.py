"""Figures 2 and 7: attention behind an MLP on real tables, and which statistic predicts them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import StatisticsError, mean
from statistics import correlation as pearson
from typing import TYPE_CHECKING, Any

from raggd.linear.figure import (
    NAMES,
    STYLES,
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
from raggd.linear.tables import READINGS, SPLITS, Normalisation, run_table, table_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = tuple(SPLITS)
STATISTICS = {
    "kurtosis": "mean excess kurtosis of the inputs",
    "leverage": "largest leverage / mean leverage",
    "effective_rank": "effective rank of the documents' Gram matrix",
    "target_kurtosis": "excess kurtosis of the target",
}
_RESAMPLES = 2000
_ORDERED = ("bike", "calories", "california", "wine")


def _cells(quick: bool, reading: str) -> list[Row]:
    few = {"steps": 150, "seeds": 2, "tasks": 400, "evaluations": 5, "batch": 32}
    return [table_cell(table, **(few if quick else {})) for table in TABLES]


def _with_difference(row: Row) -> Row:
    """Return a row with the relative l2 distance of the sensitivities, and the ratio of losses."""
    distance = row["sensitivity_distance"] / row["sensitivity_norm"]
    ratio = row["constructed_loss"] / row["trained_loss"]
    return {**row, "model_difference": distance, "loss_ratio": ratio}


def _draw_fig2(rows: Sequence[Row]) -> Figure:
    title = "Figure 2. MLP and attention on tables, over training (construction on shared features)"
    figure, axes = canvas(3, len(TABLES), title)
    curve = [_with_difference(row) for row in select(rows, stage="curve")]
    for table, (first, second, third) in zip(TABLES, axes.T, strict=True):
        ways = {str(how): select(curve, table=table, normalisation=how) for how in Normalisation}
        plain = ways[Normalisation.z_score]
        losses = [(f"{NAMES[k]}, z-score", plain, k) for k in ("trained_loss", "constructed_loss")]
        named = table == TABLES[0]
        lines(first, table, "step", "squared error / variance", losses, named=named)
        cosines = [(how, part, "cosine") for how, part in ways.items()]
        lines(second, table, "step", "cosine", cosines, named=False)
        differences = [
            (how, [row for row in part if row["step"] > 0], "model_difference")
            for how, part in ways.items()
        ]
        lines(third, table, "step", "model_difference", differences, named=False)
        first.set_yscale("log")
        second.set_ylim(top=1.02)
        third.set_yscale("log")
    legend_below(figure, axes[1][0])
    return figure


def _draw_fig7(rows: Sequence[Row]) -> Figure:
    title = "Figure 7. Four tables, four input normalisations, after training (95 % over seeds)"
    figure, axes = canvas(3, len(READINGS), title)
    final = [_with_difference(row) for row in select(rows, stage="final")]
    keys = ("cosine", "model_difference", "loss_ratio")
    for reading, column in zip(READINGS, axes.T, strict=True):
        mine = select(final, reading=reading)
        for axis, key in zip(column, keys, strict=True):
            dots(axis, mine, key, "table", "normalisation")
            at = None if key == "model_difference" else 1.0
            write(axis, f"construction with {reading}", "", key, at=at)
            if key != "cosine":
                axis.set_yscale("log")
    legend_below(figure, axes[0][0])
    return figure


def _ordering(mine: Sequence[Row]) -> dict[str, Any]:
    """Return whether Bike under min-max and Calories align better than California and Wine."""
    seeds = values_of(mine, "seed")
    cosine, by_seed = {}, {}
    for table in TABLES:
        part = select(mine, table=table)
        for how in values_of(mine, "normalisation"):
            found = interval(r["cosine"] for r in select(part, normalisation=how))
            cosine[f"{table}, {how}"] = rounded(found)
        by_seed[table] = [mean(r["cosine"] for r in select(part, seed=s)) for s in seeds]
    average = {table: rounded(interval(values)) for table, values in by_seed.items()}
    bike, calories, california, wine = (by_seed[t] for t in _ORDERED)
    gap = [(b + c - h - w) / 2 for b, c, h, w in zip(bike, calories, california, wine, strict=True)]
    aligned = min(cosine["bike, min-max"][0], average["calories"][0])
    return {
        "cosine": cosine,
        "cosine_by_table": average,
        "difference_of_the_two_groups": rounded(interval(gap)),
        "every_aligned_above_every_degraded": aligned
        > max(average["california"][0], average["wine"][0]),
    }


def _summarise(rows: Sequence[Row]) -> dict[str, Any]:
    final = select(rows, stage="final")
    return {reading: _ordering(select(final, reading=reading)) for reading in READINGS}


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(v) + (order.count(v) - 1) / 2 for v in values]  # ties share their mean rank


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; 0 when one side is constant."""
    try:
        return pearson(_ranks(x), _ranks(y))
    except StatisticsError:  # no variance
        return 0.0


def correlation(rows: Sequence[Row], statistic: str) -> dict[str, Any]:
    """Return a field's rank correlation with the cosine, resampled over whole tables x ways."""
    groups = [
        select(rows, table=table, normalisation=how)
        for table in values_of(rows, "table")
        for how in values_of(rows, "normalisation")
    ]
    chance = random.Random(0)
    drawn = []
    for _ in range(_RESAMPLES):
        picked = [row for _ in groups for row in chance.choice(groups)]
        drawn.append(spearman([r[statistic] for r in picked], [r["cosine"] for r in picked]))
    drawn.sort()
    value = spearman([r[statistic] for r in rows], [r["cosine"] for r in rows])
    low, high = drawn[int(0.025 * _RESAMPLES)], drawn[int(0.975 * _RESAMPLES)]
    found = {"spearman": value, "low": low, "high": high}
    return {k: round(v, 3) for k, v in found.items()} | {"cells": len(groups), "n": len(rows)}


def _summarise_statistics(rows: Sequence[Row]) -> dict[str, Any]:
    final = select(rows, stage="final")
    return {
        reading: {s: correlation(select(final, reading=reading), s) for s in STATISTICS}
        for reading in READINGS
    }


def _draw_statistics(rows: Sequence[Row]) -> Figure:
    title = "Which statistic of a table predicts the alignment? (one point per normalisation, seed)"
    figure, axes = canvas(len(READINGS), len(STATISTICS), title)
    final = select(rows, stage="final")
    for reading, panels in zip(READINGS, axes, strict=True):
        mine = select(final, reading=reading)
        for axis, (statistic, text) in zip(panels, STATISTICS.items(), strict=True):
            for style, table in zip(STYLES, TABLES, strict=False):
                part = select(mine, table=table)
                x, y = [r[statistic] for r in part], [r["cosine"] for r in part]
                marks = {"color": style["color"], "marker": style["marker"], "s": 18}
                axis.scatter(x, y, label=table, alpha=0.75, linewidths=0, **marks)
            rank = spearman([r[statistic] for r in mine], [r["cosine"] for r in mine])
            title = f"{reading}: rank correlation {rank:+.2f}"
            write(axis, title, text, "cosine", named=statistic == "kurtosis")
        panels[0].set_xscale("symlog")  # kurtosis
        panels[1].set_xscale("log")  # leverage
    return figure


FIGURES = (
    FigureSpec("fig2", _cells, run_table, _draw_fig2, _summarise),
    FigureSpec("fig7", _cells, run_table, _draw_fig7, _summarise),
    FigureSpec("statistics", _cells, run_table, _draw_statistics, _summarise_statistics),
)
