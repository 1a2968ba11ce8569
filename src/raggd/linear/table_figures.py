"""An MLP before the attention, on real tables: figures 2 and 7, and what predicts them.

Two readings of "the constructed predictor" are run. *Shared features*: one gradient step on the
features that the trained network's own MLP computes. *Own features*: an MLP of its own, from the
same start, trained through the gradient step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import StatisticsError, mean
from statistics import correlation as pearson
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raggd.linear import training
from raggd.linear.attention import random_attention
from raggd.linear.figure import (
    NAMES,
    STYLES,
    Cell,
    FigureSpec,
    Row,
    TableLoader,
    canvas,
    changed_cell,
    dots,
    interval,
    legend,
    legend_below,
    lines,
    rounded,
    select,
    values_of,
    write,
)
from raggd.linear.tables import SPLITS, Normalisation, TableData, draw, prepare, statistics
from raggd.linear.tasks import Tasks
from raggd.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READINGS = ("shared features", "own features")


def table_cell(table: str, **changes: Any) -> Row:
    """Return a table's cell, four normalisations and all seeds in one run, with `changes`."""
    cell: Row = {"kind": "table", "table": table, "seeds": 5, "seed": 0}
    cell |= {"examples": 10, "documents": 5, "embedding": 16, "hidden": 64, "features": 16}
    cell |= {"steps": 3000, "batch": 32, "learning_rate": 2e-3, "scale": 0.05}
    cell |= {"tasks": 2000, "evaluations": 15}
    return changed_cell(cell, changes)


class FeatureMap(nn.Module):
    """Input embedding, then one hidden layer, for R replicas at once."""

    def __init__(self, generator: torch.Generator, replicas: int, sizes: list[int]) -> None:
        """Draw weights of R replicas; `sizes` are those of input, embedding, hidden, output."""
        super().__init__()
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(
            torch.randn(replicas, i, o, generator=generator) / i**0.5 for i, o in pairs
        )
        self.biases = nn.ParameterList(torch.zeros(replicas, 1, o) for _, o in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, ..., F) of inputs (R, ..., d)."""
        flat = x.flatten(1, -2)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            flat = torch.baddbmm(bias, flat, weight)
            if index == 1:  # after the hidden layer; the embedding before it is linear
                flat = torch.nn.functional.gelu(flat)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def lift(tasks: Tasks, features: FeatureMap, mapping: Tensor) -> Tasks:
    """Return tasks of `draw` in feature space; `mapping` (F, d) is the documents' projection."""
    x = features(tasks.x1)
    assert tasks.documents is not None
    h = tasks.documents @ mapping.mT
    rows = torch.cat([h, h, h.new_zeros(*h.shape[:-1], 1)], -1)
    return replace(tasks, x1=x, x2=x, documents=rows)


def _descent(features: FeatureMap, eta: Tensor) -> training.Predictor:
    def predict(tasks: Tasks) -> Tensor:
        x = features(tasks.x1)  # the step does not read the documents
        lifted = replace(tasks, x1=x, x2=x, documents=None)
        return training.descent_predictor(eta, lifted)(lifted)

    return predict


def _train(
    cell: Cell,
    data: TableData,
    predictor: training.Predictor,
    parameters: list[nn.Parameter],
    generator: torch.Generator,
    watch: Callable[[int], None],
) -> None:
    spec = training.TrainSpec(cell["steps"], cell["batch"], cell["learning_rate"])
    draws = partial(draw, data, cell["batch"], cell["examples"], generator, test=False)
    training.train(training.squared_error(predictor), parameters, draws, spec, watch)


def run_table(cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
    """Return rows, by ``stage``, of MLP and attention trained on a table beside constructions."""
    name, seed, steps = cell["table"], cell["seed"], cell["steps"]
    x, y = tables(name)
    data = prepare(name, x, y, seeds=cell["seeds"], seed=seed, documents=cell["documents"])
    replicas, size = data.inputs.shape[0], data.inputs.shape[-1]
    first, fresh, test = (torch.Generator().manual_seed(seed + n) for n in range(3))
    widths = [size, cell["embedding"], cell["hidden"], cell["features"]]
    shared, own = (FeatureMap(first, replicas, widths) for _ in range(2))
    own.load_state_dict(shared.state_dict())
    width = 2 * cell["features"] + 1
    net = random_attention(first, replicas=replicas, width=width, scale=cell["scale"])
    mapping = torch.randn(cell["features"], size, generator=first) / size**0.5
    search = draw(data, cell["tasks"], cell["examples"], fresh, test=False)
    held = draw(data, cell["tasks"], cell["examples"], test, test=True)
    attend = training.attention_predictor(net)

    def one(tasks: Tasks) -> Tensor:
        return attend(lift(tasks, shared, mapping))

    def step_on(features: FeatureMap) -> training.Predictor:
        with torch.no_grad():
            return _descent(features, training.search_eta(lift(search, features, mapping), 1))

    def measure(features: FeatureMap) -> Mapping[str, Tensor]:
        return training.compare(one, step_on(features), held)

    rows: list[Row] = []
    every = max(1, steps // cell["evaluations"])

    def watch(step: int) -> None:
        progress(f"{name}, attention", step, steps)
        if step % every == 0 or step == steps:
            labels = {"table": name, "stage": "curve", "reading": READINGS[0], "step": step}
            rows.extend(data.rows(measure(shared), **labels))

    # Both see the same tasks. The size of the construction's step is absorbed by its features.
    state = fresh.get_state()
    told = partial(progress, f"{name}, construction")
    _train(cell, data, step_on(own), list(own.parameters()), fresh, lambda step: told(step, steps))
    fresh.set_state(state)
    _train(cell, data, one, [*shared.parameters(), *net.parameters()], fresh, watch)
    extra = statistics(data)
    for reading, features in zip(READINGS, (shared, own), strict=True):
        labels = {"table": name, "stage": "final", "reading": reading, "step": steps}
        rows += data.rows({**measure(features), **extra}, **labels)
    return rows


# Figures 2 and 7, and what predicts them.

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
    changes: dict[str, Any] = (
        {"steps": 150, "seeds": 2, "tasks": 400, "evaluations": 5, "batch": 32} if quick else {}
    )
    return [table_cell(table, **changes) for table in TABLES]


def _with_difference(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the relative l2 distance of the sensitivities, and the ratio of losses."""
    return [
        {
            **row,
            "model_difference": row["sensitivity_distance"] / row["sensitivity_norm"],
            "loss_ratio": row["constructed_loss"] / row["trained_loss"],
        }
        for row in rows
    ]


def _draw_fig2(rows: Sequence[Row]) -> Figure:
    title = "Figure 2. MLP and attention on tables, over training (construction on shared features)"
    figure, axes = canvas(3, len(TABLES), title)
    curve = _with_difference(select(rows, stage="curve"))
    for table, (first, second, third) in zip(TABLES, axes.T, strict=True):
        ways = {str(how): select(curve, table=table, normalisation=how) for how in Normalisation}
        plain = ways[Normalisation.z_score]
        losses = [(f"{NAMES[k]}, z-score", plain, k) for k in ("trained_loss", "constructed_loss")]
        lines(first, "step", losses, named=table == TABLES[0])
        cosines = [(how, part, "cosine") for how, part in ways.items()]
        lines(second, "step", cosines, named=False)
        later = {how: [row for row in part if row["step"] > 0] for how, part in ways.items()}
        differences = [(how, part, "model_difference") for how, part in later.items()]
        lines(third, "step", differences, named=False)
        write(first, table, "step", "squared error / variance")
        write(second, table, "step", "cosine")
        write(third, table, "step", "model_difference")
        first.set_yscale("log")
        second.set_ylim(top=1.02)
        third.set_yscale("log")
    legend_below(figure, axes[1][0])
    return figure


def _draw_fig7(rows: Sequence[Row]) -> Figure:
    title = "Figure 7. Four tables, four input normalisations, after training (95 % over seeds)"
    figure, axes = canvas(3, len(READINGS), title)
    final = _with_difference(select(rows, stage="final"))
    for column, reading in enumerate(READINGS):
        mine = select(final, reading=reading)
        for line, key in enumerate(("cosine", "model_difference", "loss_ratio")):
            axis = axes[line][column]
            dots(axis, mine, key, "table", "normalisation")
            at = None if key == "model_difference" else 1.0
            write(axis, f"construction with {reading}", "", key, at)
            if key != "cosine":
                axis.set_yscale("log")
    legend_below(figure, axes[0][0])
    return figure


def _ordering(mine: Sequence[Row]) -> dict[str, Any]:
    """Return whether Bike under min-max and Calories align better than California and Wine."""
    cosine = {
        (table, how): interval(r["cosine"] for r in select(mine, table=table, normalisation=how))
        for table in TABLES
        for how in values_of(mine, "normalisation")
    }
    seeds = values_of(mine, "seed")
    by_seed = {
        table: [mean(r["cosine"] for r in select(mine, table=table, seed=s)) for s in seeds]
        for table in TABLES
    }
    average = {table: interval(values) for table, values in by_seed.items()}
    bike, calories, california, wine = (by_seed[t] for t in _ORDERED)
    gap = [(b + c - h - w) / 2 for b, c, h, w in zip(bike, calories, california, wine, strict=True)]
    aligned = min(cosine["bike", "min-max"][0], average["calories"][0])
    return {
        "cosine": {f"{table}, {how}": rounded(v) for (table, how), v in cosine.items()},
        "cosine_by_table": {table: rounded(v) for table, v in average.items()},
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
            write(axis, f"{reading}: rank correlation {rank:+.2f}", text, "cosine")
        panels[0].set_xscale("symlog")  # kurtosis
        panels[1].set_xscale("log")  # leverage
        legend(panels[0])
    return figure


FIGURES = (
    FigureSpec("fig2", _cells, run_table, _draw_fig2, _summarise),
    FigureSpec("fig7", _cells, run_table, _draw_fig7, _summarise),
    FigureSpec("statistics", _cells, run_table, _draw_statistics, _summarise_statistics),
)
