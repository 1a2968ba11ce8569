"""Cosines and norms of updates against dense vectors, in both spaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from torch import Tensor

from raggd.core.low_rank import (
    PROJECTIONS,
    Factors,
    Space,
    Update,
    cosine_and_norms,
    total_cosine,
    update_from_vector,
)
from test_low_rank import Case, cases, dense_change, make_case, quick

BOTH = pytest.mark.parametrize("space", list(Space))


def flat(case: Case, update: Update, space: Space) -> Tensor:
    """Every layer's coordinates as one dense vector: (..., 3, layers, entries), padded by zeros."""
    rows = []
    for p in PROJECTIONS:
        if space == Space.product:
            rows.append(dense_change(case.base, update)[p].flatten(-2))
        else:
            f = update.factors[p]
            rows.append(torch.cat([f.a.flatten(-2), f.b.flatten(-2)], -1))
    width = max(r.shape[-1] for r in rows)
    padded = [torch.nn.functional.pad(r, (0, width - r.shape[-1])) for r in rows]
    return torch.stack(padded, -3)


@BOTH
@quick
@given(case=cases)
def test_cosines_and_norms_are_those_of_dense_vectors(space: Space, case: Case) -> None:
    left, right = flat(case, case.left, space), flat(case, case.right, space)
    cosine, left_norm, right_norm = cosine_and_norms(case.base, case.left, case.right, space)
    torch.testing.assert_close(left_norm, left.norm(dim=-1), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(right_norm, right.norm(dim=-1), atol=1e-8, rtol=1e-8)
    wanted = torch.nn.functional.cosine_similarity(left, right, dim=-1, eps=1e-300)
    torch.testing.assert_close(cosine, wanted, atol=1e-7, rtol=0)
    lead = left.shape[:-3]
    whole = torch.nn.functional.cosine_similarity(
        left.reshape(*lead, -1), right.reshape(*lead, -1), dim=-1
    )
    torch.testing.assert_close(
        total_cosine(case.base, case.left, case.right, space), whole, atol=1e-8, rtol=0
    )


def test_the_two_spaces_are_not_the_same() -> None:
    case = make_case()
    product, factor = (
        cosine_and_norms(case.base, case.left, case.right, space)[0] for space in Space
    )
    assert not torch.allclose(product, factor, atol=1e-3)


@BOTH
def test_the_shape_is_projections_by_layers(space: Space) -> None:
    case = make_case(layers=2, rows=4)
    cosine, left_norm, right_norm = cosine_and_norms(case.base, case.left, case.right, space)
    assert cosine.shape == left_norm.shape == right_norm.shape == (4, 3, 2)
    assert total_cosine(case.base, case.left, case.right, space).shape == (4,)
    alone = cosine_and_norms(case.base, case.left.row(2), case.right.row(2), space)[0]
    torch.testing.assert_close(cosine[2], alone)


@BOTH
def test_an_update_is_aligned_with_itself_and_not_with_zero(space: Space) -> None:
    case = make_case()
    one = cosine_and_norms(case.base, case.left, case.left, space)[0]
    torch.testing.assert_close(one, torch.ones_like(one))
    other = cosine_and_norms(case.base, case.left, case.right, space)[0]
    assert float(other.max()) < 0.99
    for pair in [(case.left, case.base.zero_update()), (case.base.zero_update(), case.left)]:
        cosine, _, _ = cosine_and_norms(case.base, *pair, space)
        assert not cosine.any()
        assert float(total_cosine(case.base, *pair, space)) == 0


def test_opposite_factor_steps_are_opposite_in_factor_space() -> None:
    case = make_case()
    cosine = cosine_and_norms(case.base, case.left, -1.0 * case.left, Space.factor)[0]
    torch.testing.assert_close(cosine, -torch.ones_like(cosine))


@BOTH
@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-12])
def test_tiny_updates_in_float32_keep_their_direction(space: Space, size: float) -> None:
    """Real updates are small: squares of their norms must not vanish."""
    case = make_case()
    case = replace(case, right=case.right + case.left)
    base = replace(
        case.base,
        factors={p: Factors(f.a.float(), f.b.float()) for p, f in case.base.factors.items()},
    )
    exact = [size * update for update in (case.left, case.right)]
    narrow = [update.map(lambda tensor: tensor.float()) for update in exact]
    wanted = float(total_cosine(case.base, *exact, space))
    assert wanted > 0.3
    assert float(total_cosine(base, *narrow, space)) == pytest.approx(wanted, abs=1e-4)
    by_layer = cosine_and_norms(base, *narrow, space)[0]
    exact_by_layer = cosine_and_norms(case.base, *exact, space)[0]
    torch.testing.assert_close(by_layer.double(), exact_by_layer, atol=1e-4, rtol=0)


@BOTH
def test_gradients_reach_the_prediction(space: Space) -> None:
    case = make_case()
    leaf = case.left.vector().requires_grad_(True)
    update = update_from_vector(case.base.spec, leaf, case.base.fingerprint)
    total_cosine(case.base, update, case.right, space).backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad.any()
