"""Real tables as tasks of the boundary experiments (paper appendix F).

A task is a query row, N context rows and k documents, the corpus rows nearest to the query. The
input is normalised in one of four ways; the corpus is the training set and always z-scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from raggd.linear.figure import Row
from raggd.linear.tasks import Tasks
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
    train: int  # number of training rows
    labels: tuple[tuple[str, int], ...]  # normalisation and seed of each replica

    def rows(self, measured: Mapping[str, Tensor], **fixed: Any) -> list[Row]:
        """Return a row per replica of numbers by name, each (R,)."""
        return [
            {
                **fixed,
                "normalisation": how,
                "seed": seed,
                **{n: float(v[r]) for n, v in measured.items()},
            }
            for r, (how, seed) in enumerate(self.labels)
        ]


def nearest(rows: Tensor, corpus: Tensor, k: int) -> Tensor:
    """Return the k nearest rows of the corpus (t, d), (n, k); its own rows leave themselves out."""
    indices = []
    square = corpus.square().sum(1)
    for start in range(0, len(rows), 2048):
        part = rows[start : start + 2048]
        distance = square - 2 * part @ corpus.T  # the row's own square changes no order
        index = torch.arange(start, start + len(part))
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
    columns: dict[str, list[list[Tensor]]] = {how: [] for how in Normalisation}
    for number in range(seed, seed + seeds):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        rows, target = x[order[: train + test]], y[order[: train + test]]
        scored = _z_score(rows, rows[:train]).float()
        label = _z_score(target[:, None], target[:train, None])[:, 0].float()
        near = nearest(scored, scored[:train], documents)
        for how in Normalisation:
            inputs = normalise(rows, rows[:train], how).float()
            columns[how].append([inputs, label, scored[:train], near])
    parts = [part for how in Normalisation for part in columns[how]]
    stacked = [torch.stack([p[i] for p in parts]) for i in range(4)]
    labels = tuple((str(how), s) for how in Normalisation for s in range(seed, seed + seeds))
    return TableData(stacked[0], stacked[1], stacked[2], stacked[3], train, labels)


def draw(
    data: TableData, tasks: int, examples: int, generator: torch.Generator, *, test: bool
) -> Tasks:
    """Return B tasks per replica: N training rows, a query of either kind, and its neighbours."""
    replicas, rows = data.targets.shape
    low, high = (data.train, rows) if test else (0, data.train)
    query = torch.randint(low, high, (replicas, tasks, 1), generator=generator)
    context = torch.randint(0, data.train, (replicas, tasks, examples), generator=generator)
    index = torch.cat([context, query], -1)
    replica = torch.arange(replicas).view(-1, 1, 1)
    near = data.neighbours[replica[..., 0], query[..., 0]]  # (R, B, k)
    x = data.inputs[replica, index]
    return Tasks(x, x, data.targets[replica, index], data.corpus[replica, near], tied=True)


def statistics(data: TableData, queries: int = 512) -> dict[str, Tensor]:
    """Return numbers of a table that may predict how well training and construction align.

    By name, each (R,): ``kurtosis`` (mean excess kurtosis of the normalised features),
    ``leverage`` (largest leverage of a training row over the mean leverage), ``effective_rank``
    (exponential of the entropy of the eigenvalues of ``sum_i d_i d_i^T``, mean over that many
    queries), ``target_kurtosis`` (excess kurtosis of the target).
    """
    x = data.inputs[:, : data.train].double()
    centred = x - x.mean(1, keepdim=True)
    variance = centred.square().mean(1).clamp_min(1e-12)
    kurtosis = centred.pow(4).mean(1) / variance.square() - 3
    moment = centred.mT @ centred
    ridge = 1e-9 * moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    inverse = torch.linalg.inv(moment + ridge * torch.eye(x.shape[-1], dtype=x.dtype))
    leverage = torch.einsum("rni,rij,rnj->rn", centred, inverse, centred)
    replica = torch.arange(len(x))[:, None, None]
    near = data.neighbours[:, : min(queries, data.train)]
    documents = data.corpus[replica, near].double()  # (R, queries, k, d)
    eigenvalues = torch.linalg.svdvals(documents).square()
    share = eigenvalues / eigenvalues.sum(-1, keepdim=True).clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    y = data.targets[:, : data.train].double()
    tail = y.pow(4).mean(1) / y.square().mean(1).square() - 3
    return {
        "kurtosis": kurtosis.mean(1),
        "leverage": leverage.amax(1) / leverage.mean(1),
        "effective_rank": entropy.exp().mean(1),
        "target_kurtosis": tail,
    }
