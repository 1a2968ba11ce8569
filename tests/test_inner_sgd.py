"""The inner loop against torch.optim.SGD, the gradient, and itself without the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raggd.core.inner_sgd import inner_sgd


def _problem(seed: int, problems: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights of a small network, inputs and outputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    lead = (problems,) if problems else ()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    return [normal(3, 4), normal(4, 2)], normal(6, 3), normal(6, 2)


def _loss(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error per problem, summed over a leading axis of problems."""
    first, second = parameters
    return ((torch.tanh(x @ first) @ second - y) ** 2).mean((-2, -1)).sum()


def _by_optimizer(
    start: list[Tensor], x: Tensor, y: Tensor, rate: float, steps: int, momentum: float = 0.0
) -> list[Tensor]:
    parameters = [p.clone().requires_grad_(True) for p in start]
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(parameters, x, y).backward()
        optimizer.step()
    return [p.detach() for p in parameters]


def _distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_it_is_plain_sgd(steps: int) -> None:
    start, x, y = _problem(0)
    got = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, steps)
    assert _distance(got, start) > 1e-3
    assert _distance(got, _by_optimizer(start, x, y, 0.1, steps)) < 1e-12
    if steps > 1:  # the comparison sees a wrong optimizer, rate, or number of steps
        assert _distance(got, _by_optimizer(start, x, y, 0.1, steps, momentum=0.5)) > 1e-3
        assert _distance(got, _by_optimizer(start, x, y, 0.11, steps)) > 1e-4
        assert _distance(got, _by_optimizer(start, x, y, 0.1, steps - 1)) > 1e-4
    assert _loss(got, x, y) < _loss(start, x, y)


def test_one_step_is_minus_the_rate_times_the_gradient() -> None:
    start, x, y = _problem(1)
    leaves = [p.clone().requires_grad_(True) for p in start]
    gradients = torch.autograd.grad(_loss(leaves, x, y), leaves)
    got = inner_sgd(lambda p: _loss(p, x, y), start, 0.3, 1)
    for after, before, gradient in zip(got, start, gradients, strict=True):
        torch.testing.assert_close(after - before, -0.3 * gradient, atol=1e-14, rtol=1e-12)


def test_the_callers_tensors_stay_as_they_are() -> None:
    start, x, y = _problem(2)
    start[1].requires_grad_(True)
    copies = [p.detach().clone() for p in start]
    versions = [p._version for p in start]
    got = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, 3)
    assert all(torch.equal(p, c) for p, c in zip(start, copies, strict=True))
    assert [p._version for p in start] == versions
    assert [p.requires_grad for p in start] == [False, True]
    assert all(p.grad is None for p in start)
    assert not any(p.requires_grad or p.grad_fn for p in got)


def test_no_steps_give_copies() -> None:
    start, x, y = _problem(3)
    got = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, 0)
    assert all(torch.equal(a, b) for a, b in zip(got, start, strict=True))
    got[0].add_(1)
    assert not torch.equal(got[0], start[0])


def test_problems_in_one_batch_equal_each_alone() -> None:
    start, x, y = _problem(4, problems=3)
    together = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, 5)
    assert not torch.equal(together[0][0], together[0][1])
    for i in range(3):
        own = [p[i] for p in start]
        alone = inner_sgd(lambda p, i=i: _loss(p, x[i], y[i]), own, 0.1, 5)
        assert _distance([p[i] for p in together], alone) < 1e-12


def test_it_works_where_gradients_are_switched_off() -> None:
    start, x, y = _problem(5)
    wanted = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, 2)
    with torch.no_grad():
        got = inner_sgd(lambda p: _loss(p, x, y), start, 0.1, 2)
    assert _distance(got, wanted) == 0
