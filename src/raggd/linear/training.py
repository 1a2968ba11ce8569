"""Training attention on fresh tasks: several seeds as one batch of replicas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raggd.linear.attention import LinearSelfAttention
from raggd.linear.compare import Predictor
from raggd.linear.tasks import Tasks
from raggd.records import RaggdError

Objective = Callable[[Tasks], Tensor]
"""Tasks to their losses, (R, B)."""


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How a predictor is trained: Adam, a linear warm-up over a twentieth, a cosine to zero."""

    steps: int = 7500
    batch: int = 512  # fresh tasks per replica and step
    learning_rate: float = 3e-3  # its peak
    clip: float = 10.0  # largest norm of a replica's gradient
    memory: float = 0.999  # decay of squared gradients; short, it leaves a plateau sooner

    def check(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            RaggdError: a number is out of range.
        """
        if self.steps < 1 or self.batch < 1 or self.learning_rate <= 0:
            raise RaggdError(
                "training needs steps, batch and learning rate above zero, got "
                f"{self.steps}, {self.batch} and {self.learning_rate}."
            )

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


def expected_error(network: LinearSelfAttention, variance: float) -> Objective:
    """Return the squared error in expectation over the query, given context and teacher.

    A stack without softmax is a form a on the query's token, and the y slot of that is zero: for
    independent features of mean 0 and variance v the expectation is ``v |a - w|^2``. Its gradient
    is the mean of the gradients of all queries, so that a task tells d numbers in place of one.
    """

    def error(tasks: Tasks) -> Tensor:
        assert tasks.teacher is not None
        context, _ = tasks.tokens()
        form = network.form(context, tasks.documents)[..., 0, :-1]
        return variance * (form - tasks.teacher).square().sum(-1)

    return error


def _clip(parameters: list[Tensor], limit: float) -> None:
    """Clip the gradient of every replica by its own norm: replicas stay independent.

    A replica whose gradient is not finite (a stack that overflowed on one task) skips the step.
    """
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
    """Fit parameters (R, ...) to freshly drawn tasks, in place.

    The loss is the sum over replicas of their mean losses, so that no replica moves another.
    `watch` is told the number of steps done, before the first and after each.

    Raises:
        RaggdError: the loss of a replica is no longer finite.
    """
    spec.check()
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
