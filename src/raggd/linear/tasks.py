"""Synthetic tasks of the boundary experiments (paper section 4), thousands per call.

A teacher W ~ N(0, I) labels N + 1 inputs x ~ U(-a, a) with ``y = W1 x1 + W2 x2`` (scalar). All
tensors carry R replicas and B tasks in front. The authors' test tasks are 10,000 draws of JAX's
generator with key 5, drawn here again bit for bit, so that losses compare without the 1.4 % that
10,000 tasks leave to chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raggd.linear.objective import Interface, dot_product_weight

Words = NDArray[np.uint32]
_KEY, _CHUNK = 5, 1 << 15  # numbers that a processor's cache holds
_MAP, _DOCUMENTS = 20260525, 370
"""Seeds of what is drawn once for all replicas and runs. With 370, W2 has the lengths that the
authors' printed losses imply at 2, 5, 10 and 25 documents: 0.03, 0.085, 0.095, 0.16."""


class TaskReading(StrEnum):
    """How section 4 is read where the paper is silent (see docs/linear.md)."""

    authors = "authors"  # by the authors' code
    ours = "ours"  # before that code was known


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A family of tasks.

    In projection, x2 are the k document features of an example, U(-a, a); the documents of
    dot-product are U(-1/2, 1/2). A `spread` other than 1 and `irrelevant` documents, which have
    nothing to do with the label, are departures.
    """

    interface: Interface
    reading: TaskReading = TaskReading.ours
    features: int = 10  # numbers in x
    examples: int = 10  # N, of the context
    documents: int = 5  # k
    document_size: int = 2  # numbers per document feature (projection)
    sigma: float = 0.1  # standard deviation of the entries of W_z and M (dot-product)
    input_range: float = 1.0  # a, inputs are U(-a, a)
    spread: float = 1.0  # largest over smallest standard deviation in x, spaced geometrically
    irrelevant: float = 0.0  # share of irrelevant documents

    @property
    def second_size(self) -> int:
        """Width of x2."""
        if self.interface == Interface.projection:
            return self.documents * self.document_size
        return self.features

    @property
    def width(self) -> int:
        """Token width T, with one output."""
        return self.features + self.second_size + 1

    def feature_scales(self) -> Tensor:
        """Return what each feature of x is multiplied by, (features,)."""
        half = math.log(self.spread) / 2
        return torch.linspace(-half, half, self.features).exp()


@dataclass(frozen=True, slots=True)
class Tasks:
    """B tasks for each of R replicas, one query per task."""

    x1: Tensor  # (R, B, N + 1, d1); the last row is the query
    x2: Tensor  # (R, B, N + 1, d2)
    y: Tensor  # (R, B, N + 1); the query's label is for scoring only
    documents: Tensor | None = None  # rows appended to keys and values, (R, B, k, T)
    tied: bool = False  # x2 repeats x1: a change of the input moves both
    teacher: Tensor | None = None  # (W1, W2), (R, B, d1 + d2), for expectations over queries

    @property
    def labels(self) -> Tensor:
        """The queries' labels, (R, B)."""
        return self.y[..., -1]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return context tokens (R, B, N, T) and query tokens (R, B, 1, T)."""
        known = self.y.unsqueeze(-1).clone()
        known[..., -1, :] = 0
        both = torch.cat([self.x1, self.x2, known], -1)
        return both[..., :-1, :], both[..., -1:, :]

    def zero_weights(self) -> Tensor:
        """Return where a construction starts that no documents give a W2, (R, 1, d1 + d2)."""
        return torch.zeros(len(self.x1), 1, self.x1.shape[-1] + self.x2.shape[-1])

    def with_query(self, x: Tensor) -> Tasks:
        """Return the tasks asked at x1 = x, (R, B, d1), which stays differentiable."""
        x1 = torch.cat([self.x1[..., :-1, :], x.unsqueeze(-2)], -2)
        return replace(self, x1=x1, x2=x1 if self.tied else self.x2)

    def scaled(self, factor: float) -> Tasks:
        """Return the same teachers asked with inputs `factor` times as wide, and so the labels."""
        return replace(self, x1=self.x1 * factor, x2=self.x2 * factor, y=self.y * factor)

    def chunks(self, size: int) -> Iterator[Tasks]:
        """Yield pieces of at most `size` tasks."""
        names = ("x1", "x2", "y", "documents", "teacher")
        held = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        for start in range(0, self.x1.shape[1], size):
            yield replace(self, **{n: value[:, start : start + size] for n, value in held.items()})


def _uniform(shape: tuple[int, ...], half: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator).mul_(2 * half).sub_(half)


def document_map(spec: TaskSpec) -> Tensor:
    """Return the fixed projection f of documents, all as wide as x, to that width."""
    generator = torch.Generator().manual_seed(_MAP)
    return torch.randn(spec.features, spec.features, generator=generator) / math.sqrt(spec.features)


def document_weight(spec: TaskSpec, replicas: int) -> Tensor:
    """Return W2, (R, 1, features), of the authors' documents, k in U(-1/2, 1/2), for all tasks.

    ``W2 = W_z D M^T`` is where the construction starts, and a part of what keys and values read.
    """
    generator, size = torch.Generator().manual_seed(_DOCUMENTS), spec.features
    w_z = spec.sigma * torch.randn(1, size, generator=generator)
    mixing = spec.sigma * torch.randn(size, size, generator=generator)
    documents = _uniform((spec.documents, size), 0.5, generator)
    return dot_product_weight(w_z, documents, mixing).expand(replicas, 1, size)


def document_offset(w2: Tensor) -> Tensor:
    """Return what keys and values read of the documents' weight (R, 1, d2) beside a token, (R, T).

    The authors put ``0.1 x2 + 0.9 W2`` in place of x2. W_K and W_V can take any factor, so that
    ``x2 + 9 W2`` gives the same layers; it is found in fewer steps.
    """
    return nn.functional.pad(9 * w2[:, 0], (w2.shape[-1], 1))  # zeros for x1, as wide, and for y


def without_direction(tasks: Tasks, w2: Tensor) -> Tasks:
    """Return the tasks with x2 projected off a direction (R, 1, d2); teachers and labels stay."""
    unit = (w2 / w2.norm(dim=-1, keepdim=True)).unsqueeze(1)
    return replace(tasks, x2=tasks.x2 - (tasks.x2 @ unit.mT) * unit)


def sample(spec: TaskSpec, replicas: int, tasks: int, generator: torch.Generator) -> Tasks:
    """Return B fresh tasks for each of R replicas."""
    lead, rows = (replicas, tasks), spec.examples + 1
    if spec.reading == TaskReading.authors:
        size = spec.width - 1
        x = _uniform((*lead, rows, size), spec.input_range, generator)
        return from_features(spec, x, torch.randn(*lead, size, generator=generator))
    x1 = _uniform((*lead, rows, spec.features), spec.input_range, generator)
    if spec.spread != 1.0:
        x1 *= spec.feature_scales()
    w1 = torch.randn(*lead, spec.features, generator=generator)
    if spec.interface == Interface.projection:
        return _with_features(spec, x1, w1, generator)
    return _with_documents(spec, x1, w1, generator)


def from_features(spec: TaskSpec, x: Tensor, teacher: Tensor) -> Tasks:
    """Return the tasks of features (R, B, N + 1, d1 + d2) and teachers (R, B, d1 + d2)."""
    y = (x @ teacher.unsqueeze(-1)).squeeze(-1)
    return Tasks(x[..., : spec.features], x[..., spec.features :], y, teacher=teacher)


def _with_features(spec: TaskSpec, x1: Tensor, w1: Tensor, generator: torch.Generator) -> Tasks:
    size = spec.second_size
    x2 = _uniform((*x1.shape[:-1], size), spec.input_range, generator)
    w2 = torch.randn(*x1.shape[:2], size, generator=generator)
    y = (x1 @ w1.unsqueeze(-1) + x2 @ w2.unsqueeze(-1)).squeeze(-1)
    if spec.irrelevant > 0:  # the label came from the right document, the token shows another
        chosen = torch.rand(*x1.shape[:-1], spec.documents, 1, generator=generator)
        wrong = (chosen < spec.irrelevant).expand(*chosen.shape[:-1], spec.document_size)
        other = _uniform(tuple(x2.shape), spec.input_range, generator)
        x2 = torch.where(wrong.flatten(-2), other, x2)
    return Tasks(x1, x2, y)


def _with_documents(spec: TaskSpec, x1: Tensor, w1: Tensor, generator: torch.Generator) -> Tasks:
    # W2 = W_z D M^T with D = C^T C. Given s = D W_z^T, M s is N(0, sigma^2 |s|^2 I): M itself is
    # never needed, and its 100 normal numbers per task become 10 with the same distribution.
    lead, size = x1.shape[:2], spec.features
    documents = _uniform((*lead, spec.documents, size), 0.5, generator)
    w_z = spec.sigma * torch.randn(*lead, size, 1, generator=generator)
    mixed = (documents.mT @ (documents @ w_z)).squeeze(-1)  # s: (R, B, dd)
    length = mixed.square().sum(-1, keepdim=True).sqrt()
    w2 = spec.sigma * length * torch.randn(*lead, size, generator=generator)
    y = (x1 @ (w1 + w2).unsqueeze(-1)).squeeze(-1)
    shown = documents
    if spec.irrelevant > 0:
        wrong = torch.rand(*lead, spec.documents, 1, generator=generator) < spec.irrelevant
        shown = torch.where(wrong, _uniform(tuple(documents.shape), 0.5, generator), documents)
    h = shown @ document_map(spec).mT
    rows = torch.cat([h, h, h.new_zeros(*h.shape[:-1], 1)], -1)
    return Tasks(x1, x1, y, rows, tied=True)


def _threefry(key: tuple[Words, Words], low: Words) -> tuple[Words, Words]:
    """Return Threefry-2x32, 20 rounds (Salmon et al. 2011), of the counters (0, low)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = np.zeros_like(low) + schedule[0], low + schedule[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = (y << np.uint32(turn)) | (y >> np.uint32(32 - turn))
            y ^= x
        x = x + schedule[(group + 1) % 3]
        y = y + (schedule[(group + 2) % 3] + np.uint32(group + 1))
    return x, y


def _child(keys: tuple[Words, Words], number: int) -> tuple[Words, Words]:
    return _threefry(keys, np.full_like(keys[0], number))


def _unit(keys: tuple[Words, Words], count: int) -> Tensor:
    """Return uniform numbers in [0, 1), `count` for each of the B keys, (B, count) float32."""
    pieces = []
    rows, counters = max(1, _CHUNK // count), np.arange(count, dtype=np.uint32)
    for start in range(0, len(keys[0]), rows):
        high, low = (key[start : start + rows, None] for key in keys)
        first, second = _threefry((high, low), counters)
        bits = ((first ^ second) >> np.uint32(9)) | np.uint32(0x3F800000)
        pieces.append(torch.from_numpy(bits.view(np.float32) - np.float32(1)))
    return torch.cat(pieces)


def _normal(keys: tuple[Words, Words], count: int) -> Tensor:
    """Return standard normal numbers by the inverse of their distribution, (B, count)."""
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    uniform = (_unit(keys, count) * (1 - low) + low).clamp_min(low)
    return math.sqrt(2) * torch.erfinv(uniform)


def authors_tasks(spec: TaskSpec, replicas: int, tasks: int = 10_000) -> Tasks:
    """Return the first of the authors' 10,000 test tasks, the same for all replicas."""
    size = spec.width - 1
    root = (np.zeros(tasks, np.uint32), np.full(tasks, _KEY, np.uint32))
    keys = _threefry(root, np.arange(tasks, dtype=np.uint32))
    drawn = _child(keys, 0)
    whole = spec.interface == Interface.dot_product  # drawn at once, else x1's ten numbers first
    teacher = _normal(_child(drawn, 1), size if whole else 10)
    if not whole:
        teacher = torch.cat([teacher, _normal(_child(drawn, 2), size - 10)], 1)
    context = _unit(_child(keys, 1), 10 * size).view(tasks, 10, size)
    query = _unit(_child(keys, 2), size).view(tasks, 1, size)
    one = from_features(spec, (torch.cat([context, query], 1) - 0.5)[None], teacher[None])
    x1, x2, y = (part.expand(replicas, *part.shape[1:]) for part in (one.x1, one.x2, one.y))
    return Tasks(x1, x2, y)
