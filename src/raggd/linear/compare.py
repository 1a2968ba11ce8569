"""Two predictors side by side: line searches, losses, predictions, sensitivities to the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from raggd.linear.attention import LinearSelfAttention, constructed
from raggd.linear.objective import Weights
from raggd.linear.tasks import Tasks

Predictor = Callable[[Tasks], Tensor]
"""Tasks to predictions at the queries, (R, B)."""
CHUNK = 1000
_SEARCHED = 4000
"""Tasks that two numbers are learned on: a fraction of a thousandth from their best."""


def attention_predictor(network: LinearSelfAttention) -> Predictor:
    """Return the network as a predictor of scalar labels."""

    def predict(tasks: Tasks) -> Tensor:
        context, queries = tasks.tokens()
        shifts: Tensor = network(context, queries, tasks.documents)
        return shifts[..., 0, 0]

    return predict


def descent_predictor(
    eta: Tensor, tasks: Tasks, steps: int = 1, weights: Weights | None = None
) -> Predictor:
    """Return K gradient steps of size eta (R,), from zero or other weights, on tasks like these."""
    if weights is None:
        first, second = (x.new_zeros(len(x), 1, x.shape[-1]) for x in (tasks.x1, tasks.x2))
        weights = Weights(first, second)
    return attention_predictor(constructed(weights, eta, tasks.x1.shape[-2] - 1, steps))


def sensitivity(predictor: Predictor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """Return predictions (R, B) and their derivatives by the test input, dy/dx (R, B, d1)."""
    x = tasks.x1[..., -1, :].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        predictions = predictor(tasks.with_query(x))
        (slope,) = torch.autograd.grad(predictions.sum(), x)
    return predictions.detach(), slope


def compare(trained: Predictor, construction: Predictor, tasks: Tasks) -> Mapping[str, Tensor]:
    """Measure both predictors on the same held-out tasks.

    Returns:
        By name, each (R,): ``trained_loss`` and ``constructed_loss`` (mean squared errors),
        ``null_loss`` (of the prediction zero), ``prediction_difference`` (mean absolute),
        ``sensitivity_distance`` (mean l2), ``sensitivity_norm`` (of the construction),
        ``cosine`` (mean over tasks).
    """
    parts: dict[str, list[Tensor]] = {}
    for chunk in tasks.chunks(CHUNK):
        one, one_slope = sensitivity(trained, chunk)
        other, other_slope = sensitivity(construction, chunk)
        measured = {
            "trained_loss": (one - chunk.labels).square(),
            "constructed_loss": (other - chunk.labels).square(),
            "null_loss": chunk.labels.square(),
            "prediction_difference": (one - other).abs(),
            "sensitivity_distance": (one_slope - other_slope).norm(dim=-1),
            "sensitivity_norm": other_slope.norm(dim=-1),
            "cosine": torch.cosine_similarity(one_slope, other_slope, dim=-1),
        }
        for name, value in measured.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values, 1).mean(1) for name, values in parts.items()}


def mean_loss(predictor: Predictor, tasks: Tasks) -> Tensor:
    """Return the mean squared error per replica, (R,)."""
    with torch.no_grad():
        pieces = [(predictor(c) - c.labels).square() for c in tasks.chunks(CHUNK)]
    return torch.cat(pieces, 1).mean(1)


class _Spectrum(NamedTuple):
    """Tasks in the eigenbasis of their Gram matrices / N, in which every step is elementwise.

    Both steps of GD++ are polynomials of the Gram matrix, and polynomials keep its eigenvectors:
    the line search needs one decomposition and no matrix product.
    """

    eigenvalues: Tensor  # (R, B, N)
    start: Tensor  # predictions of the start weights
    targets: Tensor
    query: Tensor  # inner products of query and context, / N
    labels: Tensor  # (R, B)

    def losses(self, eta: Tensor, gamma: Tensor, steps: int) -> Tensor:
        """Return mean squared errors (R,) after K steps of GD++, eta and gamma (R,)."""
        eta, gamma = eta[:, None, None], gamma[:, None, None]
        values, start, targets, query = self[:4]
        prediction = torch.zeros_like(self.labels)
        for _ in range(steps):
            step = eta * (start - targets)
            prediction = prediction - (query * step).sum(-1)
            targets = targets + values * step
            move = 1 - gamma * values
            values, start, query = values * move.square(), start * move, query * move.square()
        return (prediction - self.labels).square().mean(1)


def _spectrum(tasks: Tasks, weights: Weights | None) -> _Spectrum:
    x = torch.cat([tasks.x1, tasks.x2], -1).double()
    context, count = x[..., :-1, :], x.shape[-2] - 1
    values, vectors = torch.linalg.eigh(context @ context.mT / count)
    y = tasks.y.double()
    rows = [
        torch.zeros_like(y[..., 1:]),
        y[..., :-1],
        (context @ x[..., -1:, :].mT)[..., 0] / count,
    ]
    if weights is not None:
        rows[0] = (context @ torch.cat(list(weights), -1).double().mT.unsqueeze(1))[..., 0]
    start, targets, query = ((row.unsqueeze(-2) @ vectors).squeeze(-2) for row in rows)
    return _Spectrum(values, start, targets, query, y[..., -1])


def search_eta(
    tasks: Tasks, steps: int, weights: Weights | None = None, *, points: int = 24, rounds: int = 3
) -> Tensor:
    """Find the step size with the least loss on training tasks, per replica.

    A logarithmic grid, then `rounds` finer grids around the best of its `points`. One step has a
    quadratic loss, whose minimum is written down instead.

    Returns:
        eta per replica, (R,), of K steps from zero or other weights.
    """
    if steps == 1:
        unit = descent_predictor(torch.ones(len(tasks.x1)), tasks, 1, weights)(tasks)
        return (unit * tasks.labels).mean(1) / unit.square().mean(1)
    spectrum = _spectrum(tasks, weights)
    none = spectrum.labels.new_zeros(len(spectrum.labels))
    size = (tasks.x1.square().sum(-1) + tasks.x2.square().sum(-1)).mean((1, 2))  # trace per token
    low, high = (1e-3 * tasks.x1.shape[-2] / size).log(), (30.0 / size).log()
    for _ in range(rounds + 1):
        grid = torch.stack([low + (high - low) * i / (points - 1) for i in range(points)])
        losses = torch.stack([spectrum.losses(eta, none, steps) for eta in grid.exp()])
        best = losses.nan_to_num(float("inf")).argmin(0)
        pick = torch.arange(grid.shape[1])
        low = grid[(best - 1).clamp_min(0), pick]
        high = grid[(best + 1).clamp_max(points - 1), pick]
    return ((low + high) / 2).exp()


def search_gd_plus_plus(
    tasks: Tasks, steps: int, eta: Tensor, weights: Weights | None = None
) -> tuple[Tensor, Tensor]:
    """Learn GD++'s eta and gamma, which K layers share, on training tasks.

    A quasi-Newton search in two numbers per replica, from the best plain eta and a tenth of it.

    Returns:
        eta and gamma, (R,) each.
    """
    spectrum = _spectrum(next(tasks.chunks(_SEARCHED)), weights)
    unit = eta.double()
    scaled = torch.tensor([[1.0], [0.1]], dtype=unit.dtype).repeat(1, len(unit)).requires_grad_()
    search = torch.optim.LBFGS([scaled], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = spectrum.losses(scaled[0] * unit, scaled[1] * unit, steps).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    found = scaled.detach() * unit
    return found[0].to(eta.dtype), found[1].to(eta.dtype)
