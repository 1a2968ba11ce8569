"""Lemma 1 and GD++ held against closed form and autograd, and the cases they do not cover."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from raggd.linear.attention import LinearSelfAttention, constructed
from raggd.linear.objective import (
    Descent,
    Examples,
    Interface,
    autograd_descend,
    descend,
    dot_product_weight,
    gd_plus_plus,
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
        form = str(self.interface)
        if self.interface == Interface.dot_product:
            form += ", shared encoder" if self.shared_encoder else ", two encoders"
        start = "W = 0" if self.zero_start else "W != 0"
        return f"{form}, {start}{', GD++' if self.curvature else ''}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A case with its numbers; all tensors are float64 without leading axes."""

    weights: Tensor
    examples: Examples
    queries: Tensor
    eta: float
    gamma: float
    steps: int

    def network(self) -> LinearSelfAttention:
        """Return the construction, of plain steps without gamma."""
        eta, gamma = torch.tensor([[self.eta], [self.gamma]], dtype=torch.float64)
        curved = gamma if self.gamma else None
        count = len(self.examples.y)
        return constructed(self.weights[None], eta, count, self.steps, gamma=curved)

    def shift(self, network: LinearSelfAttention | None = None) -> Tensor:
        """Return what the construction says at the queries, (queries, m), or another network."""
        network = self.network() if network is None else network
        context = torch.cat(self.examples, -1)
        asked = nn.functional.pad(self.queries, (0, self.examples.y.shape[-1]))  # no targets
        with torch.no_grad():
            shifts: Tensor = network(context[None, None], asked[None, None])
        return shifts[0, 0]

    def reference(self, descent: Descent) -> Tensor:
        """Return the prediction shifts of K steps, plain or GD++, by closed form or autograd."""
        if self.gamma:
            numbers = (self.eta, self.gamma, self.steps)
            return gd_plus_plus(self.weights, self.examples, self.queries, *numbers, descent)
        after = descent(self.weights, self.examples, self.eta, self.steps)
        return self.queries @ (after - self.weights).mT


Shift = Callable[[Problem], Tensor]


def problem(case: Case) -> Problem:
    """Return a case's numbers; its step size is a random share of the largest stable one."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, size, n = case.examples + QUERIES, case.document_size, case.examples
    x1, w1 = normal(rows, case.features), normal(case.outputs, case.features)
    if case.interface == Interface.projection:
        x2 = normal(rows, case.documents * size)
        w2 = w1 @ normal(case.features, x2.shape[-1])  # W1 W_d
    else:
        x2, size = x1, case.features if case.shared_encoder else size
        w_q = normal(case.features, case.features) / case.features**0.5
        w_d = w_q if case.shared_encoder else normal(case.features, size) / size**0.5
        documents = normal(case.documents, size) / (case.documents * size) ** 0.5
        w2 = dot_product_weight(normal(case.outputs, size), documents, w_q.mT @ w_d)
    x, weights = torch.cat([x1, x2], -1), torch.cat([w1, w2], -1)
    if case.zero_start:
        weights = torch.zeros_like(weights)
    generator.manual_seed(case.seed + 1)
    examples = Examples(x[:n], normal(n, case.outputs))
    share = 0.3 + 1.2 * float(torch.rand(1, generator=generator))  # stable below 2
    unit = n / float(torch.linalg.matrix_norm(examples.x @ examples.x.mT, 2))
    numbers = (share * unit, case.curvature * unit, case.steps)
    return Problem(weights, examples, x[n:], *numbers)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest deviation over the largest size of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def measure(case: Case, shift_of: Shift = Problem.shift) -> tuple[float, float]:
    """Return how far a construction is from K steps in closed form and by autograd."""
    given = problem(case)
    shift = shift_of(given)
    closed, oracle = (relative(shift, given.reference(by)) for by in (descend, autograd_descend))
    return closed, oracle


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
    network = given.network()
    network.softmax = True
    return given.shift(network)


def _without_targets(given: Problem) -> Tensor:
    x, y = given.examples
    return replace(given, examples=Examples(x, 0 * y)).shift()


def _query_among_keys(given: Problem) -> Tensor:
    (x, y), shifts = given.examples, []
    for query in torch.split(given.queries, 1):
        keys = Examples(torch.cat([x, query]), torch.cat([y, 0 * y[:1]]))
        shifts.append(replace(given, examples=keys, queries=query).shift(given.network()))
    return torch.cat(shifts)


def _keys_read_y(given: Problem) -> Tensor:
    network = given.network()
    for matrix in (network.key, network.query):  # I in place of diag(I, I, 0)
        matrix[0].fill_diagonal_(1)
    return given.shift(network)


def _without_x_rows(given: Problem) -> Tensor:
    network = given.network()
    network.value.sub_(network.key)  # the block of the x rows, without which steps are plain
    return given.shift(network)


_THREE, _CURVED = Case(steps=3), Case(steps=3, curvature=0.3)
DEPARTURES: dict[str, tuple[Case, Shift]] = {
    "softmax in place of linear scores": (Case(), _softmax),
    "flipped sign of P": (Case(), lambda g: replace(g, eta=-g.eta).shift()),
    "context tokens without their y slot": (Case(), _without_targets),
    "query token among the keys": (Case(), _query_among_keys),
    "3 layers that do not see the residual": (_THREE, lambda g: -replace(g, eta=-g.eta).shift()),
    "3 layers whose keys read the y slot": (_THREE, _keys_read_y),
    "3 layers of GD++ without the x rows of W_V": (_CURVED, _without_x_rows),
    "3 layers of GD++, gamma's sign turned": (
        _CURVED,
        lambda g: replace(g, gamma=-g.gamma).shift(),
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
    case, shift_of = DEPARTURES[label]
    cases = [replace(case, seed=1000 + 2 * seed) for seed in range(seeds)]
    closed, oracle = zip(*(measure(c, shift_of) for c in cases), strict=True)
    return Line(label, seeds, min(closed), min(oracle), must_differ=True)


def checked_lines() -> list[Line]:
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
