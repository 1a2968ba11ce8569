"""One training run against the construction on synthetic tasks: the cell of figures 1, 5, 6, 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raggd.linear.attention import Head, LinearSelfAttention, constructed, random_attention
from raggd.linear.authors import TASKS, draw_tasks
from raggd.linear.boundary.figure import Cell, Progress, Row, TableLoader, changed_cell
from raggd.linear.compare import (
    Predictor,
    attention_predictor,
    compare,
    descent_predictor,
    mean_loss,
    search_eta,
    search_gd_plus_plus,
)
from raggd.linear.objective import Interface, Weights
from raggd.linear.tasks import (
    Reading,
    Tasks,
    TaskSpec,
    document_offset,
    document_weight,
    from_features,
    sample,
    start_weights,
)
from raggd.linear.training import TrainSpec, expected_error, squared_error, train

RANGES = {
    Reading.ours: (0.5, 1.0, 1.5, 2.0),
    Reading.authors: (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
}
TRAINING = ("steps", "batch", "learning_rate", "clip", "memory")
_READINGS: Mapping[Reading, Row] = {
    Reading.ours: {
        "document_size": 2,
        "input_range": 1.0,
        "learning_rate": 3e-3,
        "clip": 10.0,
        "memory": 0.999,
        "symmetric": False,
    },
    Reading.authors: {
        "document_size": 10,
        "input_range": 0.5,
        "learning_rate": 1e-2,
        "clip": 0.01,
        "memory": 0.98,
        "symmetric": True,
    },
}


def synthetic_cell(interface: str, documents: int, **changes: Any) -> Row:
    """Return the settings of a synthetic cell: the reading's defaults with `changes`."""
    reading = Reading(changes.get("reading", "ours"))
    cell: Row = {
        "kind": "synthetic",
        "reading": str(reading),
        "interface": interface,
        "documents": documents,
        "sigma": 0.1,
        "spread": 1.0,
        "irrelevant": 0.0,
        "layers": 1,
        "target_only": False,
        "softmax": False,
        "seeds": 3,
        "seed": 0,
        "steps": 7500,
        "batch": 256,
        "scale": 0.05,
        "tasks": 10_000,
        "authors_tasks": TASKS,
        "evaluations": 25,
    }
    return changed_cell(cell | _READINGS[reading], changes)


def task_spec(cell: Cell) -> TaskSpec:
    """Return the family of tasks that a cell trains on."""
    names = ("documents", "document_size", "sigma", "input_range", "spread", "irrelevant")
    interface, reading = Interface(cell["interface"]), Reading(cell["reading"])
    return TaskSpec(interface, reading, **{name: cell[name] for name in names})


def interpolate(trained: LinearSelfAttention, construction: LinearSelfAttention) -> Predictor:
    """Half-way between two one-layer networks, in their merged matrices (figure 5).

    Only K^T Q and P V act on the context, and a factor can move from one to the other: the trained
    pair is first scaled so that its y-to-y entry of P V is the construction's. Documents are left
    out, rows for keys and values or an offset of both (the construction does not read them).

    Returns:
        The predictor of the network with the averaged matrices.
    """
    one, other = trained.head(), construction.head()
    u, v = one.project @ one.value, other.project @ other.value
    factor = (v[:, -1, -1] / u[:, -1, -1]).view(-1, 1, 1)
    query = (one.key.mT @ one.query / factor + other.key.mT @ other.query) / 2
    project = (u * factor + v) / 2
    identity = torch.eye(query.shape[-1]).expand_as(query)
    head = Head(identity, query.detach(), identity, project.detach())
    half = attention_predictor(LinearSelfAttention(head))
    return lambda tasks: half(replace(tasks, documents=None))


def metric_rows(measured: Mapping[str, Tensor], **labels: Any) -> list[Row]:
    """Return a row per replica, its ``seed``, of numbers by name, each (R,)."""
    count = len(next(iter(measured.values())))
    return [
        {**labels, "seed": r, **{name: float(v[r]) for name, v in measured.items()}}
        for r in range(count)
    ]


def preconditioner(spec: TaskSpec) -> Tensor:
    """The best diagonal preconditioner of one step from zero, up to a common factor.

    Minimising ``E (w . (I - S A) x)^2`` over A with S the mean of N outer products gives
    ``A = E[S^2]^-1 Sigma``. For independent uniform features with variances v_j (kurtosis 9/5):
    ``A_j = 1 / ((sum v + 0.8 v_j) / N + (1 - 1/N) v_j)``.

    Returns:
        A for the features of x1, then of x2, (d1 + d2,).
    """
    variances = spec.feature_scales().square() * spec.input_range**2 / 3
    if not spec.tied:
        rest = torch.full((spec.second_size,), spec.input_range**2 / 3)
        variances = torch.cat([variances, rest])
    n = spec.examples
    best = 1 / ((variances.sum() + 0.8 * variances) / n + (1 - 1 / n) * variances)
    return torch.cat([best, best]) if spec.tied else best


def scaling(spec: TaskSpec) -> Callable[[Tasks], Tasks]:
    """Return the change of features that turns a plain step into the preconditioned one."""
    root = preconditioner(spec).sqrt()
    first, second = root[: spec.features], root[spec.features :]

    def scale(tasks: Tasks) -> Tasks:
        x1 = tasks.x1 * first
        return replace(tasks, x1=x1, x2=x1 if tasks.tied else tasks.x2 * second)

    return scale


class _Constructions:
    """What training is held against, its numbers found by line search on given tasks."""

    def __init__(self, spec: TaskSpec, steps: int, weights: Weights, search: Tasks) -> None:
        eta = search_eta(search, steps, weights)
        self.plain = constructed(weights, eta, spec.examples, steps)
        self.used, self.numbers = self.plain, {"eta": eta}
        if steps > 1 and spec.reading == Reading.authors:  # what the authors hold a stack against
            eta, gamma = search_gd_plus_plus(search, steps, eta, weights)
            self.used = constructed(weights, eta, spec.examples, steps, gamma=gamma)
            self.numbers = {"eta": eta, "gamma": gamma}


class _Run:
    """What one cell holds: tasks, the network to train, the constructions."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.spec = cell, task_spec(cell)
        self.ours = self.spec.reading == Reading.ours
        self.generator = torch.Generator().manual_seed(cell["seed"])
        seeds = cell["seeds"]
        shown = not self.ours and self.spec.interface == Interface.dot_product
        w2 = document_weight(self.spec, seeds) if shown else None
        names = ("layers", "scale", "symmetric", "target_only", "softmax")
        self.net = random_attention(
            self.generator,
            replicas=seeds,
            width=self.spec.width,
            offset=None if w2 is None else document_offset(w2),
            **{name: cell[name] for name in names},
        )
        self.weights = start_weights(self.spec, seeds, w2)
        search = self.tasks(cell["tasks"])
        self.steps = _Constructions(self.spec, cell["layers"], self.weights, search)
        self.held = self.tasks(cell["tasks"])
        self.one, self.other = map(attention_predictor, (self.net, self.steps.used))

    def tasks(self, count: int) -> Tasks:
        return sample(self.spec, self.cell["seeds"], count, self.generator)

    def rows(self, measured: Mapping[str, Tensor], **labels: Any) -> list[Row]:
        """Return a row per seed; the authors' loss is half the squared error."""
        factor = 1.0 if self.ours else 0.5
        scaled = {k: v * (factor if k.endswith("_loss") else 1.0) for k, v in measured.items()}
        return metric_rows(scaled, **{"input_range": self.spec.input_range, **labels})

    def compared(self, tasks: Tasks, **labels: Any) -> list[Row]:
        return self.rows(compare(self.one, self.other, tasks), **labels)

    def losses(self, tasks: Tasks, steps: _Constructions) -> dict[str, Tensor]:
        """Return the losses of all predictors that the cell has, halfway weights among them."""
        one, plain = self.one, attention_predictor(steps.plain)
        predictors = {"trained_loss": one, "constructed_loss": attention_predictor(steps.used)}
        if self.cell["layers"] > 1:
            predictors["plain_loss"] = plain
        elif not self.cell["softmax"]:
            predictors["interpolated_loss"] = interpolate(self.net, steps.plain)
        return {name: mean_loss(p, tasks) for name, p in predictors.items()}

    def train(self, progress: Progress) -> list[Row]:
        cell = self.cell
        rows: list[Row] = []
        every = max(1, cell["steps"] // cell["evaluations"])
        label = f"{cell['interface']}, {cell['layers']} layers, {cell['documents']} documents"

        def watch(step: int) -> None:
            if step % 25 == 0:
                progress(label, step, cell["steps"])
            if step % every == 0 and step < cell["steps"]:
                rows.extend(self.compared(self.held, stage="curve", step=step))

        error = expected_error(self.net, self.spec.input_range**2 / 3)
        train(
            squared_error(self.one) if self.ours else error,
            self.net.parameters(),
            lambda: self.tasks(cell["batch"]),
            TrainSpec(**{name: cell[name] for name in TRAINING}),
            watch,
        )
        return rows

    def final(self) -> list[Row]:
        """Return rows after training: held-out tasks, every input range, the authors' tasks."""
        width, label = self.spec.input_range, {"step": self.cell["steps"]}
        rows: list[Row] = self.compared(self.held, stage="curve", **label)
        ranges = RANGES[self.spec.reading] if self.cell["layers"] == 1 else (width,)
        for a in ranges:
            tasks = self.held.scaled(a / width)
            stage = "final" if a == width else "range"
            measured = {**self.losses(tasks, self.steps), **compare(self.one, self.other, tasks)}
            rows += self.rows(measured, stage=stage, input_range=a, **label)
        if self.ours or not self.cell["authors_tasks"]:
            return rows
        tasks = self.authors_tasks()
        steps = _Constructions(self.spec, self.cell["layers"], self.weights, tasks)
        for a in ranges if self.cell["documents"] == 2 else (width,):
            measured = self.losses(tasks.scaled(a / width), steps)
            rows += self.rows(measured, stage="authors", input_range=a, **label)
        return rows

    def authors_tasks(self) -> Tasks:
        """Return the authors' test tasks, the same for all replicas.

        They are what the authors search step sizes on, too.
        """
        documents = None if self.net.offset is not None else self.spec.documents
        x, teacher = (t.unsqueeze(0) for t in draw_tasks(documents, self.cell["authors_tasks"]))
        one, seeds = from_features(self.spec, x, teacher), self.cell["seeds"]
        x1, x2, y = (part.expand(seeds, *part.shape[1:]) for part in (one.x1, one.x2, one.y))
        return Tasks(x1, x2, y)

    def preconditioned(self) -> list[Row]:
        """Return the trained network against a gradient step in the best diagonal metric."""
        scale, steps = scaling(self.spec), self.cell["layers"]
        search = scale(self.tasks(self.cell["tasks"]))
        step = descent_predictor(search_eta(search, steps), search, steps)
        measured = compare(self.one, lambda tasks: step(scale(tasks)), self.held)
        return self.rows(measured, stage="preconditioned", step=self.cell["steps"])


def run_synthetic(cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
    """Return rows of attention trained on fresh tasks beside the construction.

    By ``stage``: "curve" (during training), "final" (after it), "range" (other ranges of test
    inputs), "authors" (losses on the authors' tasks), "preconditioned". No tables are used.
    """
    run = _Run(cell)
    rows = run.train(progress) + run.final()
    if cell["spread"] != 1.0:
        rows += run.preconditioned()
    names = (
        "reading",
        "interface",
        "documents",
        "layers",
        "target_only",
        "softmax",
        "spread",
        "irrelevant",
    )
    fixed = {name: cell[name] for name in names}
    step = [
        {name: float(v[r]) for name, v in run.steps.numbers.items()} for r in range(cell["seeds"])
    ]
    return [{**fixed, **step[row["seed"]], **row} for row in rows]
