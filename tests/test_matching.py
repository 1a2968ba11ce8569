"""The matching loss of equation 9 against a dense oracle, in both spaces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from torch import Tensor

from raggd.adaptation.training import matching_loss
from raggd.core.low_rank import (
    Factors,
    Space,
    Update,
    update_from_vector,
)
from test_alignment import flat
from test_low_rank import Case, cases, make_case, quick

BOTH = pytest.mark.parametrize("space", list(Space))


def dense_loss(case: Case, space: Space, weight: float) -> Tensor:
    """Equation 9 from dense vectors."""
    predicted, target = flat(case, case.left, space), flat(case, case.right, space)
    sizes = predicted.norm(dim=-1), target.norm(dim=-1)
    cosine = (predicted * target).sum(-1) / (sizes[0] * sizes[1])
    return (1 - cosine + weight * (sizes[0] / sizes[1]).log().abs()).sum((-2, -1))


@BOTH
@quick
@given(case=cases)
def test_the_loss_is_equation_9(space: Space, case: Case) -> None:
    got = matching_loss(case.base, case.left, case.right, space=space, norm_weight=0.3)
    torch.testing.assert_close(got, dense_loss(case, space, 0.3), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(got, dense_loss(case, space, 0.0), atol=1e-6)


@BOTH
def test_the_loss_is_zero_for_the_target_alone(space: Space) -> None:
    case = make_case(rows=2)
    own = matching_loss(case.base, case.right, case.right, space=space)
    torch.testing.assert_close(own, torch.zeros_like(own), atol=1e-10, rtol=0)
    assert (matching_loss(case.base, case.left, case.right, space=space) > 1).all()


def test_another_size_costs_lambda_times_the_log_of_the_ratio() -> None:
    case = make_case(layers=2, rows=2)
    places = 3 * 2
    for scale in (0.5, 2.0):
        loss = matching_loss(
            case.base, scale * case.right, case.right, space=Space.factor, norm_weight=0.1
        )
        wanted = 0.1 * places * math.log(2)  # the same for half and double
        torch.testing.assert_close(loss, torch.full_like(loss, wanted))
        free = matching_loss(
            case.base, scale * case.right, case.right, space=Space.factor, norm_weight=0.0
        )
        torch.testing.assert_close(free, torch.zeros_like(free), atol=1e-10, rtol=0)


def test_another_direction_of_the_same_size_costs_too() -> None:
    case = make_case(rows=2)

    def turned(factors: Factors) -> Factors:
        return Factors(factors.a.flip(-1), factors.b.flip(-2))

    rotated = replace(case.right, factors={p: turned(f) for p, f in case.right.factors.items()})
    loss = matching_loss(
        case.base, rotated, case.right, space=Space.factor, norm_weight=1000.0
    )  # the sizes are equal, so the second term stays zero
    assert (loss > 0.1).all()
    assert (loss < 2 * 6 + 1e-6).all()


@BOTH
def test_layers_without_a_target_are_left_out(space: Space) -> None:
    case = make_case(layers=2)
    first = case.right.map(lambda t: torch.stack([t[0], torch.zeros_like(t[1])]))
    loss = matching_loss(case.base, case.left, first, space=space)
    spec = replace(case.base.spec, layers=1)

    def top(factors: Mapping[str, Factors]) -> dict[str, Factors]:
        return {p: Factors(f.a[:1], f.b[:1]) for p, f in factors.items()}

    left, right = (Update(spec, top(u.factors), u.base) for u in (case.left, case.right))
    base = replace(case.base, spec=spec, factors=top(case.base.factors))
    torch.testing.assert_close(loss, matching_loss(base, left, right, space=space))
    nothing = matching_loss(case.base, case.left, case.base.zero_update(), space=space)
    assert float(nothing) == 0


@BOTH
def test_the_loss_and_its_gradient_are_finite_for_a_zero_prediction(space: Space) -> None:
    case = make_case()
    leaf = torch.zeros(case.base.spec.size, dtype=torch.float64).requires_grad_(True)
    zero = update_from_vector(case.base.spec, leaf, case.base.fingerprint)
    loss = matching_loss(case.base, zero, case.right, space=space)
    loss.backward()
    assert torch.isfinite(loss)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
