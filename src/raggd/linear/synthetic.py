"""One training run against the construction on synthetic tasks: the cell of figures 1, 5, 6, 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raggd.linear import training
from raggd.linear.attention import Head, LinearSelfAttention, constructed, random_attention
from raggd.linear.figure import Cell, Row, TableLoader, changed_cell, is_evaluated, rows_of
from raggd.linear.objective import Interface
from raggd.linear.tasks import (
    TaskReading,
    Tasks,
    TaskSpec,
    authors_tasks,
    document_offset,
    document_weight,
    sample,
    without_direction,
)
from raggd.progress import Progress

Networks = Mapping[str, LinearSelfAttention]
RANGES = {
    TaskReading.ours: (0.5, 1.0, 1.5, 2.0),
    TaskReading.authors: (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
}


def synthetic_cell(interface: str, documents: int, **changes: Any) -> Row:
    """Return the settings of a synthetic cell: the reading's defaults with `changes`."""
    reading = TaskReading(changes.get("reading", "ours"))
    ours = reading == TaskReading.ours
    cell: Row = {"kind": "synthetic", "reading": str(reading)}
    cell |= {"interface": interface, "documents": documents, "document_size": 2 if ours else 10}
    cell |= {"sigma": 0.1, "spread": 1.0, "irrelevant": 0.0, "input_range": 1.0 if ours else 0.5}
    cell |= {"layers": 1, "target_only": False, "softmax": False, "symmetric": not ours}
    cell |= {"seeds": 3, "seed": 0, "steps": 7500, "batch": 256, "scale": 0.05}
    cell |= {"tasks": 10_000, "authors_tasks": 10_000, "evaluations": 25}
    cell |= {"learning_rate": 3e-3 if ours else 1e-2, "clip": 10.0 if ours else 0.01}
    cell |= {"memory": 0.999 if ours else 0.98}
    return changed_cell(cell, changes)


def task_spec(cell: Cell) -> TaskSpec:
    """Return the family of tasks that a cell trains on."""
    names = ("documents", "document_size", "sigma", "input_range", "spread", "irrelevant")
    interface, reading = Interface(cell["interface"]), TaskReading(cell["reading"])
    return TaskSpec(interface, reading, **{name: cell[name] for name in names})


def halfway(trained: LinearSelfAttention, construction: LinearSelfAttention) -> LinearSelfAttention:
    """Return the network half-way between two of one layer, in their merged matrices (figure 5).

    Only K^T Q and P V act on the context, and a factor can move from one to the other: the trained
    pair is first scaled so that its y-to-y entry of P V is the construction's. What the trained
    keys and values read beside the context is left out.
    """
    one, other = trained.head(), construction.head()
    u, v = one.project @ one.value, other.project @ other.value
    factor = (v[:, -1, -1] / u[:, -1, -1]).view(-1, 1, 1)
    query = (one.key.mT @ one.query / factor + other.key.mT @ other.query) / 2
    project = (u * factor + v) / 2
    identity = torch.eye(query.shape[-1]).expand_as(query)
    return LinearSelfAttention(Head(identity, query.detach(), identity, project.detach()))


def preconditioner(spec: TaskSpec) -> Tensor:
    """Return the best diagonal preconditioner of one step from zero, (d1 + d2,), up to a factor.

    Minimising ``E (w . (I - S A) x)^2`` over A with S the mean of N outer products gives
    ``A = E[S^2]^-1 Sigma``, here for independent uniform features with variances v_j.
    """
    tied = spec.interface == Interface.dot_product  # x2 = x1: scales differ in our reading alone
    variances = spec.feature_scales().square() * spec.input_range**2 / 3
    if not tied:
        rest = torch.full((spec.second_size,), spec.input_range**2 / 3)
        variances = torch.cat([variances, rest])
    n = spec.examples
    best = 1 / ((variances.sum() + 0.8 * variances) / n + (1 - 1 / n) * variances)  # kurtosis 9/5
    return torch.cat([best, best]) if tied else best


def scaling(spec: TaskSpec) -> Callable[[Tasks], Tasks]:
    """Return the change of features that turns a plain step into the preconditioned one."""
    root = preconditioner(spec).sqrt()
    first, second = root[: spec.features], root[spec.features :]
    return lambda tasks: replace(tasks, x1=tasks.x1 * first, x2=tasks.x2 * second)


class _Run:
    """What one cell holds: tasks, the network to train, what it is held against."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.spec, self.seeds = cell, task_spec(cell), cell["seeds"]
        self.ours = self.spec.reading == TaskReading.ours
        self.generator = torch.Generator().manual_seed(cell["seed"])
        shown = not self.ours and self.spec.interface == Interface.dot_product
        self.w2 = document_weight(self.spec, self.seeds) if shown else None
        names = ("layers", "scale", "symmetric", "target_only", "softmax")
        self.net = random_attention(
            self.generator,
            replicas=self.seeds,
            width=self.spec.width,
            offset=None if self.w2 is None else document_offset(self.w2),
            **{name: cell[name] for name in names},
        )
        self.trained = training.attention_predictor(self.net)
        self.networks, self.numbers = self.searched(self.tasks(cell["tasks"]))
        self.held = self.tasks(cell["tasks"])

    def tasks(self, count: int) -> Tasks:
        return sample(self.spec, self.seeds, count, self.generator)

    def searched(self, search: Tasks) -> tuple[Networks, dict[str, Tensor]]:
        """Return the constructions, with the numbers of their steps.

        "blind" leaves out the direction of the documents' weight, as layers have to whose keys and
        values read a multiple of it in every token (see docs/linear.md).
        """
        zero = search.zero_weights()
        if self.w2 is None:
            return self._steps(search, zero)
        start = torch.cat([zero[..., : self.spec.features], self.w2], -1)
        found, numbers = self._steps(search, start)
        blind, _ = self._steps(without_direction(search, self.w2), zero)
        return {**found, "blind": blind["constructed"]}, numbers

    def _steps(self, search: Tasks, weights: Tensor) -> tuple[Networks, dict[str, Tensor]]:
        # the authors hold a stack of layers against GD++, plain steps beside it
        layers, examples = self.cell["layers"], self.spec.examples
        eta = training.search_eta(search, layers, weights)
        plain = constructed(weights, eta, examples, layers)
        if self.ours or layers == 1:
            return {"constructed": plain}, {"eta": eta}
        eta, gamma = training.search_gd_plus_plus(search, layers, eta, weights)
        curving = constructed(weights, eta, examples, layers, gamma=gamma)
        return {"constructed": curving, "plain": plain}, {"eta": eta, "gamma": gamma}

    def rows(self, measured: Mapping[str, Tensor], **labels: Any) -> list[Row]:
        """Return a row per seed; the authors' loss is half the squared error."""
        factor = 1.0 if self.ours else 0.5
        scaled = {n: v * (factor if n.endswith("_loss") else 1.0) for n, v in measured.items()}
        return rows_of(scaled, [{**labels, "seed": seed} for seed in range(self.seeds)])

    def compared(self, tasks: Tasks) -> dict[str, Tensor]:
        construction = training.attention_predictor(self.networks["constructed"])
        return training.compare(self.trained, construction, tasks)

    def losses(self, tasks: Tasks, networks: Networks, input_range: float) -> dict[str, Tensor]:
        """Return all losses; of tasks with teachers in expectation over queries."""
        asked = {"trained": tasks} | dict.fromkeys(networks, tasks)
        measured = {"trained": self.net, **networks}
        if self.w2 is not None:
            asked["blind"] = without_direction(tasks, self.w2)
        if self.cell["layers"] == 1 and not self.cell["softmax"]:
            measured["interpolated"] = halfway(self.net, networks["constructed"])
            asked["interpolated"] = replace(tasks, documents=None)
        found: dict[str, Tensor] = {}
        if tasks.teacher is not None:
            found["null_loss"] = input_range**2 / 3 * tasks.teacher.square().sum(-1).mean(1)
        for name, network in measured.items():
            objective = training.squared_error(training.attention_predictor(network))
            if tasks.teacher is not None:
                objective = training.expected_error(network, input_range)
            found[f"{name}_loss"] = training.mean_loss(objective, asked[name])
        return found

    def train(self, progress: Progress) -> list[Row]:
        cell = self.cell
        rows: list[Row] = []
        label = f"{cell['interface']}, {cell['layers']} layers, {cell['documents']} documents"

        def watch(step: int) -> None:
            if step % 25 == 0:
                progress(label, step, cell["steps"])
            if cell["evaluations"] > 1 and is_evaluated(cell, step):
                labels = {"input_range": self.spec.input_range, "stage": "curve", "step": step}
                rows.extend(self.rows(self.compared(self.held), **labels))

        objective = training.squared_error(self.trained)
        if not self.ours:
            expected = training.expected_error(self.net, self.spec.input_range)
            null = (self.spec.width - 1) * (self.spec.input_range**2 / 3)
            objective = training.without_tail(expected, null)
        settings = ("steps", "learning_rate", "clip", "memory")
        spec = training.TrainSpec(**{name: cell[name] for name in settings})
        draw = partial(self.tasks, cell["batch"])
        training.train(objective, self.net.parameters(), draw, spec, watch)
        return rows

    def final(self) -> list[Row]:
        """Return rows after training: held-out tasks, every input range, the authors' tasks."""
        width, step = self.spec.input_range, self.cell["steps"]
        rows: list[Row] = []
        ranges = RANGES[self.spec.reading] if self.cell["layers"] == 1 else (width,)
        for a in ranges:
            tasks = self.held.scaled(a / width)
            measured = self.compared(tasks) | self.losses(tasks, self.networks, a)
            stage = "final" if a == width else "range"
            rows += self.rows(measured, input_range=a, stage=stage, step=step)
        if self.ours or not self.cell["authors_tasks"]:
            return rows
        tasks = authors_tasks(self.spec, self.seeds, self.cell["authors_tasks"])
        networks, _ = self.searched(tasks)  # they search on their test tasks, too
        for a in ranges if self.cell["documents"] == 2 else (width,):
            measured = self.losses(tasks.scaled(a / width), networks, a)
            rows += self.rows(measured, input_range=a, stage="authors", step=step)
        return rows

    def preconditioned(self) -> list[Row]:
        """Return the trained network against a gradient step in the best diagonal metric."""
        scale = scaling(self.spec)
        search = scale(self.tasks(self.cell["tasks"]))
        step = training.descent_predictor(training.search_eta(search, 1), search)
        measured = training.compare(self.trained, lambda tasks: step(scale(tasks)), self.held)
        labels = {"input_range": self.spec.input_range, "stage": "preconditioned"}
        return self.rows(measured, **labels, step=self.cell["steps"])


def run_synthetic(cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
    """Return rows, by ``stage``, of attention trained on fresh tasks beside the construction."""
    run = _Run(cell)
    rows = run.train(progress) + run.final()
    if cell["spread"] != 1.0:
        rows += run.preconditioned()
    settings = ("reading", "interface", "documents", "layers", "target_only", "softmax")
    fixed = {name: cell[name] for name in (*settings, "spread", "irrelevant")}
    by_seed = rows_of(run.numbers, [fixed] * cell["seeds"])
    return [by_seed[row["seed"]] | row for row in rows]
