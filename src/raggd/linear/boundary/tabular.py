"""An MLP before the attention, on real tables: the cell of figures 2 and 7.

Two readings of "the constructed predictor" are run. *Shared features*: one gradient step on the
features that the trained network's own MLP computes. *Own features*: an MLP of its own, from the
same start, trained through the gradient step.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raggd.linear.attention import LinearSelfAttention, random_attention
from raggd.linear.boundary.base import Cell, Progress, Row, TableLoader, changed_cell
from raggd.linear.compare import Predictor, compare, descent_predictions, search_eta
from raggd.linear.tables import TableData, draw, prepare, statistics
from raggd.linear.tasks import Tasks
from raggd.linear.training import TrainSpec, train

READINGS = ("shared features", "own features")


def table_cell(table: str, **changes: Any) -> Row:
    """Settings of a table's cell: four normalisations and all seeds in one run.

    Args:
        table: its name.
        **changes: settings other than the defaults below.

    Returns:
        The complete settings.
    """
    cell: Row = {
        "kind": "table",
        "table": table,
        "seeds": 5,
        "seed": 0,
        "examples": 10,
        "documents": 5,
        "embedding": 16,
        "hidden": 64,
        "features": 16,
        "steps": 3000,
        "batch": 32,
        "learning_rate": 2e-3,
        "scale": 0.05,
        "tasks": 2000,
        "evaluations": 15,
    }
    return changed_cell(cell, changes)


class FeatureMap(nn.Module):
    """Input embedding, then one hidden layer, for R replicas at once."""

    def __init__(self, generator: torch.Generator, replicas: int, sizes: list[int]) -> None:
        """Draw the weights.

        Args:
            generator: source.
            replicas: R.
            sizes: widths of input, embedding, hidden layer, output.
        """
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
    """Put features in place of inputs and documents at token width.

    Args:
        tasks: from `raggd.linear.tables.draw`.
        features: the MLP.
        mapping: fixed projection of documents, (F, d).

    Returns:
        Tasks in feature space.
    """
    x = features(tasks.x1)
    assert tasks.documents is not None
    h = tasks.documents @ mapping.mT
    rows = torch.cat([h, h, h.new_zeros(*h.shape[:-1], 1)], -1)
    return replace(tasks, x1=x, x2=x, documents=rows)


def _attention(net: LinearSelfAttention, features: FeatureMap, mapping: Tensor) -> Predictor:
    def predict(tasks: Tasks) -> Tensor:
        lifted = lift(tasks, features, mapping)
        context, queries = lifted.tokens()
        shifts: Tensor = net(context, queries, lifted.documents)
        return shifts[..., 0, 0]

    return predict


def _descent(features: FeatureMap, eta: Tensor) -> Predictor:
    def predict(tasks: Tasks) -> Tensor:
        x = features(tasks.x1)  # the step does not read the documents
        return descent_predictions(replace(tasks, x1=x, x2=x), eta, 1)

    return predict


class _Run:
    """What one cell holds: data, the two networks, the draws."""

    def __init__(self, cell: Cell, data: TableData) -> None:
        self.cell, self.data = cell, data
        replicas, size = data.inputs.shape[0], data.inputs.shape[-1]
        generator = torch.Generator().manual_seed(cell["seed"])
        widths = [size, cell["embedding"], cell["hidden"], cell["features"]]
        self.features = FeatureMap(generator, replicas, widths)
        self.own = FeatureMap(generator, replicas, widths)
        self.own.load_state_dict(self.features.state_dict())
        self.net = random_attention(
            generator, replicas=replicas, width=2 * cell["features"] + 1, scale=cell["scale"]
        )
        self.mapping = torch.randn(cell["features"], size, generator=generator) / size**0.5
        self.replicas = replicas

    def tasks(self, count: int, generator: torch.Generator, *, test: bool = False) -> Tasks:
        return draw(self.data, count, self.cell["examples"], generator, test=test)

    def eta(self, features: FeatureMap, tasks: Tasks) -> Tensor:
        with torch.no_grad():
            return search_eta(lift(tasks, features, self.mapping), 1)

    def parameters(self, module: nn.Module, axis: int) -> list[tuple[Tensor, int]]:
        return [(p, axis) for p in module.parameters()]


def _train_own(run: _Run, progress: Progress) -> None:
    """Fit the construction's own MLP; the size of its step is absorbed by its features."""
    cell = run.cell
    generator = torch.Generator().manual_seed(cell["seed"] + 1)
    start = run.eta(run.own, run.tasks(cell["tasks"], generator))
    train(
        _descent(run.own, start),
        run.parameters(run.own, 0),
        lambda: run.tasks(cell["batch"], generator),
        TrainSpec(cell["steps"], cell["batch"], cell["learning_rate"]),
        lambda step: progress(f"{cell['table']}, construction", step, cell["steps"]),
    )


def run_table(cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
    """Train MLP and attention on a table and compare with both constructions.

    Args:
        cell: settings, as `table_cell` gives them.
        progress: told label, steps done, steps in all.
        tables: loads the table.

    Returns:
        Rows with ``stage`` "curve" (shared features, during training) and "final" (both readings,
        with the statistics of the table).
    """
    x, y = tables(cell["table"])
    data = prepare(
        cell["table"], x, y, seeds=cell["seeds"], seed=cell["seed"], documents=cell["documents"]
    )
    run = _Run(cell, data)
    _train_own(run, progress)
    generator = torch.Generator().manual_seed(cell["seed"] + 1)  # the same tasks once more
    search = run.tasks(cell["tasks"], generator)
    held = run.tasks(cell["tasks"], torch.Generator().manual_seed(cell["seed"] + 2), test=True)
    one = _attention(run.net, run.features, run.mapping)
    rows: list[Row] = []
    every = max(1, cell["steps"] // cell["evaluations"])

    def measure(features: FeatureMap) -> dict[str, Tensor]:
        other = _descent(features, run.eta(features, search))
        return dict(compare(one, other, held))

    def watch(step: int) -> None:
        progress(f"{cell['table']}, attention", step, cell["steps"])
        if step % every == 0 or step == cell["steps"]:
            rows.extend(_rows(cell, data, measure(run.features), step, "curve", READINGS[0]))

    train(
        one,
        [*run.parameters(run.features, 0), *run.parameters(run.net, 2)],
        lambda: run.tasks(cell["batch"], generator),
        TrainSpec(cell["steps"], cell["batch"], cell["learning_rate"]),
        watch,
    )
    extra = statistics(data)
    for reading, features in zip(READINGS, (run.features, run.own), strict=True):
        rows += _rows(cell, data, {**measure(features), **extra}, cell["steps"], "final", reading)
    return rows


def _rows(
    cell: Cell, data: TableData, found: dict[str, Tensor], step: int, stage: str, reading: str
) -> list[Row]:
    fixed = {"table": cell["table"], "stage": stage, "reading": reading, "step": step}
    return [
        {
            **fixed,
            "normalisation": how,
            "seed": seed,
            **{name: float(v[r]) for name, v in found.items()},
        }
        for r, (how, seed) in enumerate(data.labels)
    ]
