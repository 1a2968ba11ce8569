"""One training run against the construction on synthetic tasks: the cell of figures 1, 5, 6, 8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raggd.linear.attention import Head, LinearSelfAttention, constructed, random_attention
from raggd.linear.boundary.base import Cell, Progress, Row, TableLoader, changed_cell
from raggd.linear.compare import (
    Predictor,
    attention_predictor,
    compare,
    descent_predictions,
    mean_loss,
    search_eta,
    with_range,
)
from raggd.linear.interfaces import Interface
from raggd.linear.objective import Weights
from raggd.linear.tasks import Tasks, TaskSpec, sample
from raggd.linear.training import TrainSpec, train

RANGES = (0.5, 1.0, 1.5, 2.0)


def synthetic_cell(interface: str, documents: int, **changes: Any) -> Row:
    """Settings of a synthetic cell.

    Args:
        interface: ``"projection"`` or ``"dot-product"``.
        documents: k.
        **changes: settings other than the defaults below.

    Returns:
        The complete settings.
    """
    cell: Row = {
        "kind": "synthetic",
        "interface": interface,
        "documents": documents,
        "document_size": 2,
        "sigma": 0.1,
        "spread": 1.0,
        "irrelevant": 0.0,
        "layers": 1,
        "heads": 1,
        "shared": True,
        "target_only": False,
        "softmax": False,
        "seeds": 3,
        "seed": 0,
        "steps": 7500,
        "batch": 256,
        "learning_rate": 3e-3,
        "scale": 0.05,
        "tasks": 10_000,
        "evaluations": 25,
    }
    return changed_cell(cell, changes)


def task_spec(cell: Cell) -> TaskSpec:
    """Return the family of tasks that a cell trains on."""
    return TaskSpec(
        Interface(cell["interface"]),
        documents=cell["documents"],
        document_size=cell["document_size"],
        sigma=cell["sigma"],
        spread=cell["spread"],
        irrelevant=cell["irrelevant"],
    )


def zero_weights(spec: TaskSpec, replicas: int) -> Weights:
    """Return W1 = W2 = 0 for scalar outputs."""
    first = torch.zeros(replicas, 1, spec.features)
    return Weights(first, torch.zeros(replicas, 1, spec.second_size))


def interpolate(
    trained: LinearSelfAttention, construction: LinearSelfAttention
) -> LinearSelfAttention:
    """Half-way between two one-layer networks, in their merged matrices.

    Only K^T Q and P V act on the context, and a factor can move from one to the other: the trained
    pair is first scaled so that its y-to-y entry of P V is the construction's. Rows for documents
    are not merged matrices; they are left out (the construction does not read them).

    Args:
        trained: one layer, one head.
        construction: Lemma 1's.

    Returns:
        The network with the averaged matrices.
    """
    one, other = trained.heads(0)[0], construction.heads(0)[0]
    u, v = one.project @ one.value, other.project @ other.value
    factor = (v[:, -1, -1] / u[:, -1, -1]).view(-1, 1, 1)
    query = (one.key.mT @ one.query / factor + other.key.mT @ other.query) / 2
    project = (u * factor + v) / 2
    identity = torch.eye(query.shape[-1]).expand_as(query)
    head = Head(identity, query.detach(), identity, project.detach())
    return LinearSelfAttention([[head]], layers=1)


def without_documents(predictor: Predictor) -> Predictor:
    """Return a predictor that does not see the rows appended to keys and values."""
    return lambda tasks: predictor(replace(tasks, documents=None))


def metric_rows(found: dict[str, Tensor], **labels: Any) -> list[Row]:
    """One row per replica.

    Args:
        found: numbers by name, each (R,).
        **labels: fields that all rows share.

    Returns:
        The rows, with the replica as ``seed``.
    """
    count = len(next(iter(found.values())))
    return [
        {**labels, "seed": r, **{name: float(v[r]) for name, v in found.items()}}
        for r in range(count)
    ]


def preconditioner(spec: TaskSpec) -> Tensor:
    """The best diagonal preconditioner of one step from zero, up to a common factor.

    Minimising ``E (w . (I - S A) x)^2`` over A with S the mean of N outer products gives
    ``A = E[S^2]^-1 Sigma``. For independent uniform features with variances v_j (kurtosis 9/5):
    ``A_j = 1 / ((sum v + 0.8 v_j) / N + (1 - 1/N) v_j)``.

    Args:
        spec: the family.

    Returns:
        A for the features of x1, then of x2, (d1 + d2,).
    """
    first = spec.feature_scales().square() * spec.input_range**2 / 3
    if spec.interface == Interface.dot_product:
        variances = first
    else:
        variances = torch.cat([first, torch.full((spec.second_size,), spec.input_range**2 / 3)])
    n = spec.examples
    found = 1 / ((variances.sum() + 0.8 * variances) / n + (1 - 1 / n) * variances)
    return torch.cat([found, found]) if spec.interface == Interface.dot_product else found


def scaling(spec: TaskSpec) -> Callable[[Tasks], Tasks]:
    """Return the change of features that turns a plain step into the preconditioned one."""
    root = preconditioner(spec).sqrt()
    first, second = root[: spec.features], root[spec.features :]

    def scale(tasks: Tasks) -> Tasks:
        x1 = tasks.x1 * first
        return replace(tasks, x1=x1, x2=x1 if tasks.tied else tasks.x2 * second)

    return scale


def _final(
    cell: Cell, spec: TaskSpec, net: LinearSelfAttention, gd: LinearSelfAttention, held: Tasks
) -> list[Row]:
    """Return rows after training: every input range, and the interpolation where defined."""
    one, other = attention_predictor(net), attention_predictor(gd)
    middle = None
    if cell["layers"] == 1 and cell["heads"] == 1 and not cell["softmax"]:
        middle = without_documents(attention_predictor(interpolate(net, gd)))
    rows: list[Row] = []
    for factor in RANGES if cell["layers"] == 1 else (1.0,):
        tasks = with_range(held, factor)
        found = dict(compare(one, other, tasks))
        if middle is not None:
            found["interpolated_loss"] = mean_loss(middle, tasks)
        rows += metric_rows(found, stage="final", step=cell["steps"], input_range=factor)
    return rows


def run_synthetic(cell: Cell, progress: Progress, tables: TableLoader) -> list[Row]:
    """Train attention on fresh tasks and compare it with the construction.

    Args:
        cell: settings, as `synthetic_cell` gives them.
        progress: told label, steps done, steps in all.
        tables: not used.

    Returns:
        Rows with ``stage`` "curve" (during training) and "final" (all input ranges).
    """
    spec, replicas = task_spec(cell), cell["seeds"]
    generator = torch.Generator().manual_seed(cell["seed"])
    net = random_attention(
        generator,
        replicas=replicas,
        width=spec.width,
        layers=cell["layers"],
        heads=cell["heads"],
        shared=cell["shared"],
        scale=cell["scale"],
        target_only=cell["target_only"],
        softmax=cell["softmax"],
    )
    eta = search_eta(sample(spec, replicas, cell["tasks"], generator), cell["layers"])
    gd = constructed(zero_weights(spec, replicas), eta, spec.examples, cell["layers"])
    held = sample(spec, replicas, cell["tasks"], generator)
    one, other = attention_predictor(net), attention_predictor(gd)
    rows: list[Row] = []
    every = max(1, cell["steps"] // cell["evaluations"])
    label = f"{cell['interface']}, {cell['layers']} layers, {cell['documents']} documents"

    def watch(step: int) -> None:
        if step % 25 == 0:
            progress(label, step, cell["steps"])
        if step % every == 0 or step == cell["steps"]:
            found = dict(compare(one, other, held))
            rows.extend(metric_rows(found, stage="curve", step=step, input_range=1.0))

    train(
        one,
        [(p, 2) for p in net.parameters()],
        lambda: sample(spec, replicas, cell["batch"], generator),
        TrainSpec(cell["steps"], cell["batch"], cell["learning_rate"]),
        watch,
    )
    rows += _final(cell, spec, net, gd, held)
    if cell["spread"] != 1.0:
        rows += _preconditioned(cell, spec, one, held, generator)
    names = ("interface", "documents", "layers", "target_only", "softmax", "spread", "irrelevant")
    fixed = {name: cell[name] for name in names}
    return [{**fixed, "eta": float(eta[row["seed"]]), **row} for row in rows]


def _preconditioned(
    cell: Cell, spec: TaskSpec, one: Predictor, held: Tasks, generator: torch.Generator
) -> list[Row]:
    """Return the trained network against a gradient step in the best diagonal metric."""
    scale = scaling(spec)
    eta = search_eta(scale(sample(spec, cell["seeds"], cell["tasks"], generator)), cell["layers"])

    def step(tasks: Tasks) -> Tensor:
        return descent_predictions(scale(tasks), eta, cell["layers"])

    found = dict(compare(one, step, held))
    return metric_rows(found, stage="preconditioned", step=cell["steps"], input_range=1.0)
