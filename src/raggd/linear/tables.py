"""An MLP before the attention, on real tables (paper appendix F): the cell of figures 2 and 7.

A task is a query row, N context rows and k documents, the corpus rows nearest to the query. The
input is normalised in one of four ways; the corpus is the training set and always z-scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raggd.linear import training
from raggd.linear.attention import random_attention
from raggd.linear.figure import Cell, Row, TableLoader, changed_cell, is_evaluated, rows_of
from raggd.linear.tasks import Tasks
from raggd.progress import Progress
from raggd.records import RaggdError

SPLITS = {
    "california": (16_640, 2_000),
    "bike": (15_641, 1_738),
    "wine": (4_408, 490),
    "calories": (13_500, 1_500),
}
"""Training and test rows; the paper's 1,540 test rows for Calories are 40 more than are left."""


class Normalisation(StrEnum):
    """What is done to each input feature; all constants come from the training rows."""

    z_score = "z-score"  # mean 0, standard deviation 1
    min_max = "min-max"  # smallest training value 0, largest 1
    rank = "rank"  # share of training rows below (ties: half of the equal ones), in [0, 1]
    tanh = "tanh"  # hyperbolic tangent of the z-score


def _z_score(x: Tensor, train: Tensor) -> Tensor:
    deviation = train.std(0, correction=0)
    return (x - train.mean(0)) / torch.where(deviation > 0, deviation, 1.0)


def normalise(x: Tensor, train: Tensor, how: Normalisation) -> Tensor:
    """Return rows x (n, d) normalised by the constants of the rows `train` (t, d), all finite."""
    if how == Normalisation.z_score:
        return _z_score(x, train)
    if how == Normalisation.tanh:
        return _z_score(x, train).tanh()
    if how == Normalisation.min_max:
        low, high = train.amin(0), train.amax(0)
        return (x - low) / torch.where(high > low, high - low, 1.0)
    ordered = train.T.contiguous().sort(-1).values  # (d, t)
    columns = x.T.contiguous()
    below = torch.searchsorted(ordered, columns, right=False)
    upto = torch.searchsorted(ordered, columns, right=True)
    return ((below + upto) / (2 * len(train))).T.to(x.dtype)


@dataclass(frozen=True, slots=True)
class TableData:
    """A table prepared for R replicas, each a normalisation and a seed with its own split."""

    inputs: Tensor  # normalised features, training rows first, (R, rows, d)
    targets: Tensor  # z-scored by the training rows, (R, rows)
    corpus: Tensor  # z-scored training rows, (R, train, d)
    neighbours: Tensor  # the k corpus rows nearest to each row but itself, (R, rows, k)
    labels: list[Row]  # normalisation and seed of each replica


def nearest(rows: Tensor, corpus: Tensor, k: int) -> Tensor:
    """Return the k nearest rows of the corpus (t, d), (n, k); its own rows leave themselves out."""
    indices = []
    square = corpus.square().sum(1)
    for index in torch.split(torch.arange(len(rows)), 2048):
        distance = square - 2 * rows[index] @ corpus.T  # the row's own square changes no order
        own = index < len(corpus)
        distance[own.nonzero()[:, 0], index[own]] = torch.inf
        indices.append(distance.topk(k, largest=False).indices)
    return torch.cat(indices)


def prepare(name: str, x: Tensor, y: Tensor, *, seeds: int, seed: int, documents: int) -> TableData:
    """Return a table x (rows, d), y (rows,) split, normalised and with its neighbours.

    Every seed, from `seed` on, is its own split; seeds run faster than normalisations.

    Raises:
        RaggdError: the table has fewer rows than its split needs.
    """
    train, test = SPLITS[name]
    if len(x) < train + test:
        raise RaggdError(
            f"table '{name}' has {len(x)} rows; the split needs {train} + {test}. Get it again."
        )
    numbers = range(seed, seed + seeds)
    raw, targets, corpora, neighbours = [], [], [], []  # of every seed
    for number in numbers:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        rows, target = x[order[: train + test]], y[order[: train + test], None]
        scored = _z_score(rows, rows[:train]).float()
        raw.append(rows)
        targets.append(_z_score(target, target[:train])[:, 0].float())
        corpora.append(scored[:train])
        neighbours.append(nearest(scored, scored[:train], documents))
    ways = len(Normalisation)
    inputs = [normalise(rows, rows[:train], how).float() for how in Normalisation for rows in raw]
    return TableData(
        torch.stack(inputs),
        torch.stack(targets * ways),
        torch.stack(corpora * ways),
        torch.stack(neighbours * ways),
        [{"normalisation": str(how), "seed": n} for how in Normalisation for n in numbers],
    )


def draw(
    data: TableData, tasks: int, examples: int, generator: torch.Generator, *, test: bool
) -> Tasks:
    """Return B tasks per replica: N training rows, a query of either kind, and its neighbours."""
    (replicas, rows), train = data.targets.shape, data.corpus.shape[1]
    low, high = (train, rows) if test else (0, train)
    query = torch.randint(low, high, (replicas, tasks, 1), generator=generator)
    context = torch.randint(0, train, (replicas, tasks, examples), generator=generator)
    index = torch.cat([context, query], -1)
    replica = torch.arange(replicas).view(-1, 1, 1)
    near = data.neighbours[replica[..., 0], query[..., 0]]  # (R, B, k)
    x = data.inputs[replica, index]
    return Tasks(x, x, data.targets[replica, index], data.corpus[replica, near], tied=True)


def statistics(data: TableData, queries: int = 512) -> dict[str, Tensor]:
    """Return numbers of a table that may predict how well training and construction align.

    By name, each (R,): mean excess ``kurtosis`` of the normalised features, largest ``leverage`` of
    a training row over the mean one, ``effective_rank`` (exponential of the entropy of the
    eigenvalues of ``sum_i d_i d_i^T``, mean over `queries`), excess ``target_kurtosis``.
    """
    train = data.corpus.shape[1]
    x = data.inputs[:, :train].double()
    centred = x - x.mean(1, keepdim=True)
    variance = centred.square().mean(1).clamp_min(1e-12)
    kurtosis = centred.pow(4).mean(1) / variance.square() - 3
    moment = centred.mT @ centred
    ridge = 1e-9 * moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    inverse = torch.linalg.inv(moment + ridge * torch.eye(x.shape[-1], dtype=x.dtype))
    leverage = torch.einsum("rni,rij,rnj->rn", centred, inverse, centred)
    replica = torch.arange(len(x))[:, None, None]
    near = data.neighbours[:, : min(queries, train)]
    documents = data.corpus[replica, near].double()  # (R, queries, k, d)
    eigenvalues = torch.linalg.svdvals(documents).square()
    share = eigenvalues / eigenvalues.sum(-1, keepdim=True).clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    y = data.targets[:, :train].double()
    tail = y.pow(4).mean(1) / y.square().mean(1).square() - 3
    return {
        "kurtosis": kurtosis.mean(1),
        "leverage": leverage.amax(1) / leverage.mean(1),
        "effective_rank": entropy.exp().mean(1),
        "target_kurtosis": tail,
    }


READINGS = ("shared features", "own features")
"""Of "the constructed predictor": one gradient step on the features of the trained network's MLP,
or on those of an MLP of its own, from the same start, trained through the step."""


def table_cell(table: str, **changes: Any) -> Row:
    """Return a table's cell, four normalisations and all seeds in one run, with `changes`."""
    cell: Row = {"kind": "table", "table": table, "seeds": 5, "seed": 0}
    cell |= {"examples": 10, "documents": 5, "embedding": 16, "hidden": 64, "features": 16}
    cell |= {"steps": 3000, "batch": 32, "learning_rate": 2e-3, "scale": 0.05}
    cell |= {"tasks": 2000, "evaluations": 15}
    return changed_cell(cell, changes)


class FeatureMap(nn.Module):
    """Input embedding, then one hidden layer, of R replicas; all four `sizes` are given."""

    def __init__(self, generator: torch.Generator, replicas: int, sizes: list[int]) -> None:
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


def lift(tasks: Tasks, features: FeatureMap, mapping: Tensor | None = None) -> Tasks:
    """Return tasks of `draw` in feature space; `mapping` (F, d) projects documents, if any read."""
    x, rows = features(tasks.x1), None
    if mapping is not None and tasks.documents is not None:
        h = tasks.documents @ mapping.mT
        rows = torch.cat([h, h, h.new_zeros(*h.shape[:-1], 1)], -1)
    return replace(tasks, x1=x, x2=x, documents=rows)


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

    def attention(tasks: Tasks) -> Tensor:
        return attend(lift(tasks, shared, mapping))

    def step_on(features: FeatureMap) -> training.Predictor:
        with torch.no_grad():
            eta = training.search_eta(lift(search, features), 1)

        def step(tasks: Tasks) -> Tensor:  # which does not read the documents
            lifted = lift(tasks, features)
            return training.descent_predictor(eta, lifted)(lifted)

        return step

    def rows_on(features: FeatureMap, extra: dict[str, Tensor], **labels: Any) -> list[Row]:
        measured = training.compare(attention, step_on(features), held) | extra
        return rows_of(measured, [{"table": name, **labels, **replica} for replica in data.labels])

    rows: list[Row] = []

    def watch(step: int) -> None:
        progress(f"{name}, attention", step, steps)
        if is_evaluated(cell, step):
            rows.extend(rows_on(shared, {}, stage="curve", reading=READINGS[0], step=step))

    def told(step: int) -> None:
        progress(f"{name}, construction", step, steps)

    spec = training.TrainSpec(steps, cell["learning_rate"])
    draws = partial(draw, data, cell["batch"], cell["examples"], fresh, test=False)
    # Both see the same tasks. The size of the construction's step is absorbed by its features.
    state = fresh.get_state()
    training.train(training.squared_error(step_on(own)), own.parameters(), draws, spec, told)
    fresh.set_state(state)
    both = [*shared.parameters(), *net.parameters()]
    training.train(training.squared_error(attention), both, draws, spec, watch)
    extra = statistics(data)
    for reading, features in zip(READINGS, (shared, own), strict=True):
        rows += rows_on(features, extra, stage="final", reading=reading, step=steps)
    return rows
