"""Lemma 1 and GD++ held against closed form and autograd, and the cases they do not cover."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from raggd.linear.attention import Head, LinearSelfAttention, constructed
from raggd.linear.objective import (
    Descent,
    Examples,
    Interface,
    Weights,
    autograd_descend,
    descend,
    dot_product_weight,
    gd_plus_plus,
    predict,
)

TOLERANCE = 1e-12
MUST_DIFFER = 1e-2
QUERIES = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One random problem in float64; `curvature` is GD++'s gamma times the largest eigenvalue."""

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

    @property
    def outputs(self) -> int:
        """Return m."""
        return self.examples.y.shape[-1]

    def network(self, steps: int, *, residual: bool, sign: float = 1.0) -> LinearSelfAttention:
        """Return the construction of K steps, plain ones without gamma."""
        weights = Weights(self.weights.w1[None], self.weights.w2[None])
        eta, gamma = torch.tensor([[sign * self.eta], [self.gamma]], dtype=torch.float64)
        count, curved = len(self.examples.y), gamma if self.gamma else None
        return constructed(weights, eta, count, steps, residual=residual, gamma=curved)

    def ask(self, network: LinearSelfAttention, context: Tensor | None = None) -> Tensor:
        """Return what a network says at the queries, (queries, m); of other tokens if given."""
        context = torch.cat(self.examples, -1) if context is None else context
        with torch.no_grad():
            shifts: Tensor = network(context[None, None], self.asked()[None, None])
        return shifts[0, 0]

    def asked(self) -> Tensor:
        """Return the queries' tokens, their y slots zero."""
        return torch.cat([self.x1, self.x2, self.x1.new_zeros(QUERIES, self.outputs)], -1)


def _draw(case: Case) -> tuple[Weights, Tensor, Tensor]:
    """Return weights, and x1 and x2 of the context and then of the queries."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, size = case.examples + QUERIES, case.document_size
    x1, w1 = normal(rows, case.features), normal(case.outputs, case.features)
    if case.interface == Interface.projection:
        x2 = normal(rows, case.documents * size)
        return Weights(w1, w1 @ normal(case.features, x2.shape[-1])), x1, x2  # W2 = W1 W_d
    size = case.features if case.shared_encoder else size
    w_q = normal(case.features, case.features) / case.features**0.5
    w_d = w_q if case.shared_encoder else normal(case.features, size) / size**0.5
    documents = normal(case.documents, size) / (case.documents * size) ** 0.5
    w2 = dot_product_weight(normal(case.outputs, size), documents, w_q.mT @ w_d)
    return Weights(w1, w2), x1, x1


def problem(case: Case) -> Problem:
    """Return a case's numbers; its step size is a random share of the largest stable one."""
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


def construction(given: Problem, steps: int, *, residual: bool, sign: float = 1.0) -> Tensor:
    """Return what the constructed network says at the queries, (queries, m)."""
    return given.ask(given.network(steps, residual=residual, sign=sign))


def reference(given: Problem, steps: int, descent: Descent) -> Tensor:
    """Return the prediction shifts of K steps, plain or GD++, by closed form or autograd."""
    if given.gamma:
        queries, numbers = (given.x1, given.x2), (given.eta, given.gamma, steps)
        return gd_plus_plus(given.weights, given.examples, queries, *numbers, descent)
    after = descent(given.weights, given.examples, given.eta, steps)
    return predict(after.minus(given.weights), given.x1, given.x2)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest entry of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def deviations(given: Problem, shift: Tensor, steps: int) -> tuple[float, float]:
    """Return how far a prediction shift is from K steps in closed form and by autograd."""
    closed, oracle = (reference(given, steps, by) for by in (descend, autograd_descend))
    return relative(shift, closed), relative(shift, oracle)


def measure(case: Case) -> tuple[float, float]:
    """Return the construction's relative deviation from the closed form and from autograd."""
    given = problem(case)
    shift = construction(given, case.steps, residual=case.steps > 1)
    return deviations(given, shift, case.steps)


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
    network = given.network(1, residual=False)
    network.softmax = True
    return given.ask(network)


def _without_targets(given: Problem) -> Tensor:
    context = torch.cat(given.examples, -1)
    context[..., -given.outputs :] = 0
    return given.ask(given.network(1, residual=False), context)


def _query_among_keys(given: Problem) -> Tensor:
    network, context = given.network(1, residual=False), torch.cat(given.examples, -1)
    with_own = [torch.cat([context, own[None]]) for own in given.asked()]
    return torch.stack([given.ask(network, c)[row] for row, c in enumerate(with_own)])


def _changed(given: Problem, change: Callable[[Head], Head]) -> Tensor:
    """Return what three layers of a changed head say."""
    head = change(given.network(3, residual=True).head())
    return given.ask(LinearSelfAttention(head, layers=3, outputs=given.outputs))


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
    "context tokens without their y slot": (Case(), _without_targets),
    "query token among the keys": (Case(), _query_among_keys),
    "3 layers that do not see the residual": (_THREE, lambda g: construction(g, 3, residual=False)),
    "3 layers whose keys read the y slot": (_THREE, lambda g: _changed(g, _keys_read_y)),
    "3 layers of GD++ without the x rows of W_V": (_CURVED, lambda g: _changed(g, _without_x_rows)),
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
    given = [problem(replace(case, seed=1000 + 2 * seed)) for seed in range(seeds)]
    closed, oracle = zip(*(deviations(g, build(g), case.steps) for g in given), strict=True)
    return Line(label, seeds, min(closed), min(oracle), must_differ=True)


def verify() -> list[Line]:
    """Return a line per form, start and algorithm, and one per departure."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for case in standard_cases():
        groups.setdefault(f"{case.label}, K = 1..10", []).append(measure(case))
    lines = []
    for label, pairs in groups.items():
        closed, oracle = zip(*pairs, strict=True)
        lines.append(Line(label, len(pairs), max(closed), max(oracle)))
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
