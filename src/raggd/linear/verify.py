"""Lemma 1 and GD++ held against closed form and autograd, and the cases they do not cover."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from raggd.linear.attention import Head, LinearSelfAttention, constructed, gd_construction
from raggd.linear.objective import (
    Examples,
    Interface,
    Weights,
    autograd_descend,
    autograd_gd_plus_plus,
    descend,
    dot_product_weight,
    gd_plus_plus,
    predict,
    projection_weight,
    query_tokens,
    tokens,
)

TOLERANCE = 1e-12
MUST_DIFFER = 1e-2
QUERIES = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One random problem in float64.

    `curvature` is GD++'s gamma times the Hessian's largest eigenvalue; 0 is gradient descent.
    """

    interface: Interface = Interface.projection
    shared_encoder: bool = False  # dot-product only: W_q = W_d, documents as wide as x
    zero_start: bool = False  # W1 = W2 = 0
    curvature: float = 0.0
    steps: int = 1  # K
    examples: int = 4  # N
    features: int = 3
    outputs: int = 2  # m
    documents: int = 3  # k
    document_size: int = 2
    seed: int = 0

    @property
    def label(self) -> str:
        """Name of the interface, of its encoders, of the start and of the algorithm."""
        form = "projection"
        if self.interface == Interface.dot_product:
            form = f"dot-product, {'shared encoder' if self.shared_encoder else 'two encoders'}"
        start = "W = 0" if self.zero_start else "W != 0"
        return f"{form}, {start}{', GD++' if self.curvature else ''}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A case with its numbers; all tensors are float64 without leading axes."""

    weights: Weights
    examples: Examples
    x1: Tensor
    x2: Tensor
    eta: float
    gamma: float


def _draw(case: Case) -> tuple[Weights, Tensor, Tensor]:
    """Return weights, and x1 and x2 of the context and then of the queries."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, size = case.examples + QUERIES, case.document_size
    x1, w1 = normal(rows, case.features), normal(case.outputs, case.features)
    if case.interface == Interface.projection:
        x2 = normal(rows, case.documents * size)
        w2 = projection_weight(w1, normal(case.features, x2.shape[-1]))
        return Weights(w1, w2), x1, x2
    size = case.features if case.shared_encoder else size
    w_q = normal(case.features, case.features) / case.features**0.5
    w_d = w_q if case.shared_encoder else normal(case.features, size) / size**0.5
    documents = normal(case.documents, size) / (case.documents * size) ** 0.5
    w2 = dot_product_weight(normal(case.outputs, size), documents, w_q.mT @ w_d)
    return Weights(w1, w2), x1, x1


def problem(case: Case) -> Problem:
    """Return weights, examples, queries and step size of a case.

    The step size is a random share of the largest stable one, so that ten steps stay finite.
    """
    weights, x1, x2 = _draw(case)
    generator = torch.Generator().manual_seed(case.seed + 1)
    y = torch.randn(case.examples, case.outputs, generator=generator, dtype=torch.float64)
    if case.zero_start:
        weights = Weights(weights.w1 * 0, weights.w2 * 0)
    n = case.examples
    examples = Examples(x1[:n], x2[:n], y)
    gram = x1[:n] @ x1[:n].mT + x2[:n] @ x2[:n].mT
    share = 0.3 + 1.2 * float(torch.rand(1, generator=generator))  # stable below 2
    unit = n / float(torch.linalg.matrix_norm(gram, 2))
    return Problem(weights, examples, x1[n:], x2[n:], share * unit, case.curvature * unit)


def _ask(network: LinearSelfAttention, given: Problem, context: Tensor | None = None) -> Tensor:
    context = tokens(given.examples) if context is None else context
    queries = query_tokens(given.x1, given.x2, given.examples.y.shape[-1])
    with torch.no_grad():
        shifts: Tensor = network(context[None, None], queries[None, None])
    return shifts[0, 0]


def _replicas(given: Problem) -> tuple[Weights, Tensor, Tensor | None]:
    """Return weights, eta and gamma with a replica axis; no gamma for plain descent."""
    weights = Weights(given.weights.w1[None], given.weights.w2[None])
    eta, gamma = torch.tensor([[given.eta], [given.gamma]], dtype=torch.float64)
    return weights, eta, gamma if given.gamma else None


def _head(given: Problem, *, residual: bool) -> Head:
    weights, eta, gamma = _replicas(given)
    count = given.examples.y.shape[-2]
    return gd_construction(weights, eta, count, residual=residual, gamma=gamma)


def construction(given: Problem, steps: int, *, residual: bool, sign: float = 1.0) -> Tensor:
    """Return what the constructed network says at the queries, (queries, m)."""
    weights, eta, gamma = _replicas(given)
    count = given.examples.y.shape[-2]
    network = constructed(weights, sign * eta, count, steps, residual=residual, gamma=gamma)
    return _ask(network, given)


def shift_by(
    method: Callable[[Weights, Examples, float, int], Weights], given: Problem, steps: int
) -> Tensor:
    """Return ``(W^(K) - W) x`` at the queries after K plain steps by `descend` or its oracle."""
    after = method(given.weights, given.examples, given.eta, steps)
    change = Weights(after.w1 - given.weights.w1, after.w2 - given.weights.w2)
    return predict(change, given.x1, given.x2)


def references(given: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Return closed form and autograd of K steps, plain or GD++, (queries, m) each."""
    if not given.gamma:
        return shift_by(descend, given, steps), shift_by(autograd_descend, given, steps)
    queries, numbers = (given.x1, given.x2), (given.eta, given.gamma, steps)
    closed = gd_plus_plus(given.weights, given.examples, queries, *numbers)
    return closed, autograd_gd_plus_plus(given.weights, given.examples, queries, *numbers)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest entry of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def measure(case: Case) -> tuple[float, float]:
    """Return the construction's relative deviation from the closed form and from autograd."""
    given = problem(case)
    shift = construction(given, case.steps, residual=case.steps > 1)
    closed, oracle = references(given, case.steps)
    return deviation(shift, closed), deviation(shift, oracle)


def standard_cases() -> Iterator[Case]:
    """Yield 240 cases: three forms, two starts, K = 1 to 10, two sizes, each plain and as GD++."""
    dot = Interface.dot_product
    forms = ((Interface.projection, False), (dot, True), (dot, False))
    settings = product(forms, (True, False), range(1, 11), range(2))
    for number, ((interface, shared), zero, steps, extra) in enumerate(settings, start=1):
        seed = 2 * number
        sizes = {
            "examples": 1 + (7 * seed) % 12,
            "features": 1 + (5 * seed) % 9,
            "outputs": 1 + extra * (seed % 4),
            "documents": 1 + (3 * seed) % 6,
            "document_size": 1 + seed % 5,
        }
        case = Case(interface, shared, zero, steps=steps, seed=seed, **sizes)
        yield case
        yield replace(case, curvature=0.05 + 0.05 * (seed % 8))


def _softmax(given: Problem) -> Tensor:
    head, outputs = _head(given, residual=False), given.examples.y.shape[-1]
    network = LinearSelfAttention(head, outputs=outputs, residual=False, softmax=True)
    return _ask(network, given)


def _other_context(given: Problem, *, query: bool) -> Tensor:
    """Return what a layer says with the query among the keys, or without the targets."""
    weights, eta, _ = _replicas(given)
    network = constructed(weights, eta, given.examples.y.shape[-2], residual=False)
    outputs = given.examples.y.shape[-1]
    context = tokens(given.examples)
    if not query:
        context[..., -outputs:] = 0
        return _ask(network, given, context)
    rows = []
    for x1, x2 in zip(given.x1, given.x2, strict=True):
        one = replace(given, x1=x1[None], x2=x2[None])
        own = query_tokens(one.x1, one.x2, outputs)
        rows.append(_ask(network, one, torch.cat([context, own])))
    return torch.cat(rows)


def _changed_head(given: Problem, change: Callable[[Head], Head]) -> Tensor:
    """Return what three layers of a changed head say."""
    head, outputs = change(_head(given, residual=True)), given.examples.y.shape[-1]
    return _ask(LinearSelfAttention(head, layers=3, outputs=outputs), given)


def _keys_read_y(head: Head) -> Head:
    """Return the head with W_K = I in place of diag(I, I, 0)."""
    whole = torch.eye(head.key.shape[-1], dtype=head.key.dtype)[None]
    return head._replace(key=whole, query=whole)


def _without_x_rows(head: Head) -> Head:
    """Return the head without the block of the x rows in W_V: plain steps."""
    return head._replace(value=head.value - head.key)


_THREE, _CURVED = Case(steps=3), Case(steps=3, curvature=0.3)
DEPARTURES: dict[str, tuple[Case, Callable[[Problem], Tensor]]] = {
    "softmax in place of linear scores": (Case(), _softmax),
    "flipped sign of P": (Case(), lambda g: construction(g, 1, residual=False, sign=-1.0)),
    "context tokens without their y slot": (Case(), partial(_other_context, query=False)),
    "query token among the keys": (Case(), partial(_other_context, query=True)),
    "3 layers that do not see the residual": (
        _THREE,
        partial(construction, steps=3, residual=False),
    ),
    "3 layers whose keys read the y slot": (_THREE, partial(_changed_head, change=_keys_read_y)),
    "3 layers of GD++ without the x rows of W_V": (
        _CURVED,
        partial(_changed_head, change=_without_x_rows),
    ),
    "3 layers of GD++, gamma's sign turned": (
        _CURVED,
        lambda g: construction(replace(g, gamma=-g.gamma), 3, residual=True),
    ),
}
"""Constructions that must not equal their algorithm: a case, with K, and the prediction shift."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: what was checked, over how many cases, with what result."""

    label: str
    cases: int
    closed_form: float
    autograd: float
    must_differ: bool = False

    @property
    def holds(self) -> bool:
        """Whether the line is as it has to be."""
        if self.must_differ:
            return self.autograd > MUST_DIFFER
        return max(self.closed_form, self.autograd) <= TOLERANCE


def departure_line(label: str, seeds: int = 8) -> Line:
    """Return the *smallest* deviation of one of `DEPARTURES`, on cases with a non-zero start."""
    case, build = DEPARTURES[label]
    closed, oracle = [], []
    for seed in range(seeds):
        given = problem(replace(case, seed=1000 + 2 * seed))
        shift = build(given)
        pair = references(given, case.steps)
        closed.append(deviation(shift, pair[0]))
        oracle.append(deviation(shift, pair[1]))
    return Line(label, seeds, min(closed), min(oracle), must_differ=True)


def verify() -> list[Line]:
    """Return a line per form, start and algorithm, and one per departure."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for case in standard_cases():
        groups.setdefault(f"{case.label}, K = 1..10", []).append(measure(case))
    lines = [
        Line(label, len(pairs), max(c for c, _ in pairs), max(a for _, a in pairs))
        for label, pairs in groups.items()
    ]
    return [*lines, *(departure_line(label) for label in DEPARTURES)]


def summary(lines: list[Line]) -> dict[str, float | int | bool]:
    """Return ``cases``, ``max_relative_error``, ``min_must_differ`` and ``holds`` of the table."""
    exact = [line for line in lines if not line.must_differ]
    return {
        "cases": sum(line.cases for line in exact),
        "max_relative_error": max(max(line.closed_form, line.autograd) for line in exact),
        "min_must_differ": min(line.autograd for line in lines if line.must_differ),
        "holds": all(line.holds for line in lines),
    }
