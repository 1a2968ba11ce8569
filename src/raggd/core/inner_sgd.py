"""K steps of plain SGD as a pure function (paper section 5, the inner loop of equation 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def inner_sgd(
    loss: Callable[[list[Tensor]], Tensor],
    start: Sequence[Tensor],
    learning_rate: float,
    steps: int,
    watch: Callable[[int, list[Tensor]], None] = lambda *_: None,
) -> list[Tensor]:
    """Take `steps` first-order gradient steps, ``w <- w - lr * grad loss(w)``.

    Equal to `torch.optim.SGD` without momentum. Nothing is changed in place, and the result carries
    no graph. For several independent problems in one batch, give their parameters a leading axis
    and let `loss` be the *sum* of their losses. `watch` is told the number of steps taken and the
    parameters after each.
    """
    current = [p.detach().clone() for p in start]
    for taken in range(1, steps + 1):
        leaves = [p.requires_grad_(True) for p in current]
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(leaves), leaves)
        current = [(p - learning_rate * g).detach() for p, g in zip(leaves, gradients, strict=True)]
        watch(taken, current)
    return current
