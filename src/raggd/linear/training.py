"""Predictors side by side and how they are found: line searches, training on fresh tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raggd.linear.attention import LinearSelfAttention, constructed
from raggd.linear.tasks import Tasks
from raggd.records import RaggdError

Predictor = Callable[[Tasks], Tensor]  # tasks to predictions at the queries, (R, B)
Objective = Callable[[Tasks], Tensor]  # tasks to their losses, (R, B)
CHUNK = 1000
_SEARCHED = 4000  # tasks that two numbers are learned on, to a thousandth
_POINTS = 24
_TAIL = 4.0  # times the error of predicting zero; beyond, errors are trained on by their logarithm


def attention_predictor(network: LinearSelfAttention) -> Predictor:
    """Return the network as a predictor of scalar labels."""

    def predict(tasks: Tasks) -> Tensor:
        shifts: Tensor = network(*tasks.tokens(), tasks.documents)
        return shifts[..., 0, 0]

    return predict


def descent_predictor(
    eta: Tensor, tasks: Tasks, steps: int = 1, weights: Tensor | None = None
) -> Predictor:
    """Return K gradient steps of size eta (R,), from zero or other weights, on tasks like these."""
    weights = tasks.zero_weights() if weights is None else weights
    return attention_predictor(constructed(weights, eta, tasks.x1.shape[-2] - 1, steps))


def sensitivity(predictor: Predictor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    """Return predictions (R, B) and their derivatives by the test input, dy/dx (R, B, d1)."""
    x = tasks.x1[..., -1, :].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        predictions = predictor(tasks.with_query(x))
        (slope,) = torch.autograd.grad(predictions.sum(), x)
    return predictions.detach(), slope


def compare(trained: Predictor, construction: Predictor, tasks: Tasks) -> dict[str, Tensor]:
    """Measure both predictors on the same held-out tasks: means over them, (R,), by name."""
    parts = []
    for chunk in tasks.chunks(CHUNK):
        one, one_slope = sensitivity(trained, chunk)
        other, other_slope = sensitivity(construction, chunk)
        parts.append(
            {
                "trained_loss": (one - chunk.labels).square(),
                "constructed_loss": (other - chunk.labels).square(),
                "null_loss": chunk.labels.square(),
                "prediction_difference": (one - other).abs(),
                "sensitivity_distance": (one_slope - other_slope).norm(dim=-1),
                "sensitivity_norm": other_slope.norm(dim=-1),
                "cosine": torch.cosine_similarity(one_slope, other_slope, dim=-1),
            }
        )
    return {name: torch.cat([part[name] for part in parts], 1).mean(1) for name in parts[0]}


def mean_loss(objective: Objective, tasks: Tasks) -> Tensor:
    """Return the mean loss per replica, (R,)."""
    with torch.no_grad():
        return torch.cat([objective(chunk) for chunk in tasks.chunks(CHUNK)], 1).mean(1)


def _losses_of_steps(
    tasks: Tasks, weights: Tensor | None, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what gives the mean squared errors (R,) of K steps of GD++ by eta and gamma, (R,).

    Its steps are polynomials of a task's Gram matrix, in whose eigenbasis each is elementwise: a
    search needs one decomposition and no matrix product.
    """
    x = torch.cat([tasks.x1, tasks.x2], -1).double()
    context, asked = x[..., :-1, :], x[..., -1:, :]
    count = context.shape[-2]
    eigenvalues, vectors = torch.linalg.eigh(context @ context.mT / count)
    targets, labels = tasks.y[..., :-1].double(), tasks.y[..., -1].double()
    weights = tasks.zero_weights() if weights is None else weights
    predictions = (context @ weights.double().mT.unsqueeze(1))[..., 0]
    products = (context @ asked.mT)[..., 0] / count
    rows = [(r.unsqueeze(-2) @ vectors).squeeze(-2) for r in (predictions, targets, products)]

    def losses(eta: Tensor, gamma: Tensor) -> Tensor:
        eta, gamma, values = eta[:, None, None], gamma[:, None, None], eigenvalues
        start, left, query = rows
        prediction = torch.zeros_like(labels)
        for _ in range(steps):
            step = eta * (start - left)
            prediction = prediction - (query * step).sum(-1)
            left = left + values * step
            move = 1 - gamma * values
            values, start, query = values * move.square(), start * move, query * move.square()
        return (prediction - labels).square().mean(1)

    return losses


def search_eta(tasks: Tasks, steps: int, weights: Tensor | None = None) -> Tensor:
    """Return the step size (R,) with the least loss of K steps: a grid and finer ones, or exact."""
    if steps == 1:
        unit = descent_predictor(torch.ones(len(tasks.x1)), tasks, 1, weights)(tasks)
        return (unit * tasks.labels).mean(1) / unit.square().mean(1)
    losses_of = _losses_of_steps(tasks, weights, steps)
    size = (tasks.x1.square().sum(-1) + tasks.x2.square().sum(-1)).mean((1, 2))  # trace per token
    low, high = (1e-3 * tasks.x1.shape[-2] / size).log(), (30.0 / size).log()
    for _ in range(4):
        grid = torch.stack([low + (high - low) * i / (_POINTS - 1) for i in range(_POINTS)])
        losses = torch.stack([losses_of(eta, torch.zeros_like(eta)) for eta in grid.exp()])
        best = losses.nan_to_num(float("inf")).argmin(0)
        pick = torch.arange(grid.shape[1])
        low = grid[(best - 1).clamp_min(0), pick]
        high = grid[(best + 1).clamp_max(_POINTS - 1), pick]
    return ((low + high) / 2).exp()


def search_gd_plus_plus(
    tasks: Tasks, steps: int, eta: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Learn GD++'s eta and gamma, (R,) each, from the best plain eta; plain steps if no better."""
    losses_of = _losses_of_steps(next(tasks.chunks(_SEARCHED)), weights, steps)
    plain = torch.stack([eta.double(), torch.zeros_like(eta).double()])
    scaled = torch.tensor([[1.0], [0.1]], dtype=torch.float64).repeat(1, len(eta)).requires_grad_()
    search = torch.optim.LBFGS([scaled], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        # Its logarithm, since a step too long is a loss of 10^100, and the search would be lost.
        value = losses_of(*(scaled * plain[0])).log().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    found = scaled.detach() * plain[0]
    found = torch.where(losses_of(*found) <= losses_of(*plain), found, plain).to(eta.dtype)
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How a predictor is trained: Adam, a linear warm-up over a twentieth, a cosine to zero."""

    steps: int = 7500
    learning_rate: float = 3e-3  # its peak
    clip: float = 10.0  # largest norm of a replica's gradient
    memory: float = 0.999  # decay of squared gradients; short, it leaves a plateau sooner

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, self.steps // 20)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        share = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def squared_error(predictor: Predictor) -> Objective:
    """Return the squared error at the query that was drawn."""
    return lambda tasks: (predictor(tasks) - tasks.labels).square()


def expected_error(network: LinearSelfAttention, input_range: float) -> Objective:
    """Return the squared error in expectation over queries in +-`input_range`, given the teacher w.

    A stack without softmax is a form a on the query's token: the expectation is ``v |a - w|^2`` for
    independent features of variance v. A task then tells d numbers in place of one.
    """

    def error(tasks: Tasks) -> Tensor:
        assert tasks.teacher is not None
        context, _ = tasks.tokens()
        form = network.form(context, tasks.documents)[..., 0, :-1]
        return input_range**2 / 3 * (form - tasks.teacher).square().sum(-1)

    return error


def without_tail(objective: Objective, null: float) -> Objective:
    """Return the objective, linear up to four times the loss `null` and logarithmic beyond.

    K layers are a polynomial of degree 3^K in their tokens: where the step is too long, on a task
    in ten thousand, error and gradient are 10^6 times the others'.
    """

    def bounded(tasks: Tasks) -> Tensor:
        error, limit = objective(tasks), _TAIL * null
        beyond = limit * (1 + (error.clamp_min(limit) / limit).log())
        return torch.where(error > limit, beyond, error)

    return bounded


def _clip(parameters: list[Tensor], limit: float) -> None:
    """Clip the gradient of every replica by its own norm; one that is not finite skips the step."""
    gradients = [p.grad.view(len(p), -1) for p in parameters if p.grad is not None]
    norm = torch.cat(gradients, 1).norm(dim=1, keepdim=True)
    factor, broken = (limit / norm.clamp_min(1e-12)).clamp_max(1.0), ~norm.isfinite()
    for gradient in gradients:
        gradient.mul_(factor).masked_fill_(broken, 0.0)


def train(
    objective: Objective,
    parameters: Iterable[Tensor],
    draw: Callable[[], Tasks],
    spec: TrainSpec,
    watch: Callable[[int], None] = lambda step: None,
) -> None:
    """Fit parameters (R, ...) to freshly drawn tasks, in place; `watch` is told the steps done.

    Raises:
        RaggdError: the loss of a replica is no longer finite.
    """
    tensors = list(parameters)
    betas = (0.9, spec.memory)
    optimizer = torch.optim.Adam(tensors, lr=spec.learning_rate, betas=betas, fused=True)
    watch(0)
    for step in range(spec.steps):
        optimizer.param_groups[0]["lr"] = spec.rate(step)
        value = objective(draw()).mean(1).sum()
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        _clip(tensors, spec.clip)
        optimizer.step()
        if step % 100 == 99 and not math.isfinite(float(value.detach())):
            raise RaggdError(
                f"the training loss is not finite after {step + 1} steps: lower the learning rate "
                f"(now {spec.learning_rate}) or the initial scale of the weights."
            )
        watch(step + 1)
