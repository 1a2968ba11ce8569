"""The algebra of updates against dense matrices in float64, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raggd.core import low_rank
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    Update,
    dense,
    effective_change,
    effective_weight,
    factors_of,
    stack_updates,
    tensors_of,
    update_from_vector,
)
from raggd.records import RaggdError

CLOSE = 1e-12


@dataclass(frozen=True)
class Case:
    """A base adapter with two updates, in float64."""

    base: BaseAdapter
    left: Update
    right: Update


def _tensors(spec: AdapterSpec, seed: int, batch: tuple[int, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for n, shape in spec.shapes.items()
    }


def make_case(
    layers: int = 2,
    rank: int = 2,
    d_in: int = 5,
    d_out: tuple[int, int, int] = (4, 3, 6),
    alpha: float = 3.0,
    rows: int = 0,
    seed: int = 0,
) -> Case:
    spec = AdapterSpec(layers, d_in, d_out, rank, alpha)
    base = BaseAdapter(spec, factors_of(_tensors(spec, seed)), "backbone")
    batch = (rows,) if rows else ()
    left, right = (
        Update(spec, factors_of(_tensors(spec, seed + i, batch)), base.fingerprint) for i in (1, 2)
    )
    return Case(base, left, right)


cases = st.builds(
    make_case,
    layers=st.integers(1, 3),
    rank=st.integers(1, 4),
    d_in=st.integers(1, 6),
    d_out=st.tuples(*[st.integers(1, 6)] * 3),
    alpha=st.floats(0.1, 32.0),
    rows=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
quick = settings(max_examples=30, deadline=None)


def dense_change(base: BaseAdapter, update: Update) -> dict[str, Tensor]:
    """The definition: ``alpha/r ((B + dB)(A + dA) - B A)``."""
    result = {}
    for p in PROJECTIONS:
        (a, b), (da, db) = base.factors[p], update.factors[p]
        result[p] = base.spec.alpha / base.spec.rank * ((b + db) @ (a + da) - b @ a)
    return result


def distance_to_dense(
    change: Callable[[BaseAdapter, Update], dict[str, Factors]], c: Case
) -> float:
    """Largest difference between a construction of the change and its definition."""
    wanted, got = dense_change(c.base, c.left), change(c.base, c.left)
    size = max(float(w.abs().max()) for w in wanted.values())
    return max(float((dense(got[p]) - wanted[p]).abs().max()) for p in PROJECTIONS) / size


@quick
@given(cases)
def test_effective_change_is_the_dense_change(case: Case) -> None:
    assert distance_to_dense(effective_change, case) < CLOSE
    change = effective_change(case.base, case.left)
    assert change["q"].a.shape[-2] == 2 * case.base.spec.rank


def _without_scale(base: BaseAdapter, update: Update) -> dict[str, Factors]:
    return effective_change(replace(base, spec=replace(base.spec, alpha=base.spec.rank)), update)


def _flipped(base: BaseAdapter, update: Update) -> dict[str, Factors]:
    return {p: Factors(-f.a, f.b) for p, f in effective_change(base, update).items()}


def _first_order(base: BaseAdapter, update: Update) -> dict[str, Factors]:
    change = {}
    for p, f in update.factors.items():
        a, b = (t.expand_as(o) for t, o in zip(base.factors[p], f, strict=True))
        change[p] = Factors(torch.cat([a, f.a], -2), base.spec.scaling * torch.cat([f.b, b], -1))
    return change


def _wrong_projection(base: BaseAdapter, update: Update) -> dict[str, Factors]:
    change = effective_change(base, update)
    return {**change, "q": change["k"]}


@pytest.mark.parametrize("wrong", [_without_scale, _flipped, _first_order, _wrong_projection])
def test_the_comparison_catches_wrong_constructions(
    wrong: Callable[[BaseAdapter, Update], dict[str, Factors]],
) -> None:
    case = make_case(d_out=(4, 4, 4))
    assert distance_to_dense(effective_change, case) < CLOSE
    assert distance_to_dense(wrong, case) > 0.1


@quick
@given(cases)
def test_effective_weights_differ_by_the_effective_change(case: Case) -> None:
    before = effective_weight(case.base)
    after = effective_weight(case.base, case.left)
    wanted = dense_change(case.base, case.left)
    for p in PROJECTIONS:
        torch.testing.assert_close(
            dense(after[p]) - dense(before[p]), wanted[p], atol=1e-11, rtol=0
        )
        a, b = case.base.factors[p]
        torch.testing.assert_close(dense(before[p]), case.base.spec.scaling * b @ a)


@quick
@given(cases)
def test_inner_products_and_norms_are_those_of_the_dense_products(case: Case) -> None:
    left, right = effective_change(case.base, case.left), case.right.factors  # ranks 2r and r
    for p in PROJECTIONS:
        wanted = (dense(left[p]) * dense(right[p])).sum((-2, -1))
        torch.testing.assert_close(low_rank.inner(left[p], right[p]), wanted, atol=1e-9, rtol=1e-11)
        norm = torch.linalg.matrix_norm(dense(left[p]))
        torch.testing.assert_close(low_rank.norm(left[p]), norm, atol=1e-9, rtol=1e-9)
        assert low_rank.norm(left[p]).shape == wanted.shape
        opposite = Factors(-right[p].a, right[p].b)
        torch.testing.assert_close(low_rank.inner(left[p], opposite), -wanted, atol=1e-9, rtol=1e-9)


@quick
@given(cases)
def test_concatenation_adds_products(case: Case) -> None:
    parts = [case.left.factors["k"], case.right.factors["k"], case.left.factors["k"]]
    joined = low_rank.concat(parts)
    torch.testing.assert_close(dense(joined), sum(dense(p) for p in parts))
    assert joined.a.shape[-2] == 3 * case.base.spec.rank


@quick
@given(cases, st.floats(-3, 3))
def test_updates_are_a_vector_space_of_factor_steps(case: Case, scale: float) -> None:
    left, right = case.left, case.right
    torch.testing.assert_close((left + right).vector(), left.vector() + right.vector())
    torch.testing.assert_close((left - right).vector(), left.vector() - right.vector())
    torch.testing.assert_close((scale * left).vector(), scale * left.vector())
    assert torch.equal((left * scale).vector(), (scale * left).vector())
    assert torch.equal((left + right).vector(), (right + left).vector())
    assert not torch.equal((left - right).vector(), (right - left).vector())
    assert (left + right).base == left.base


@quick
@given(cases)
def test_vectors_hold_all_entries_and_come_back(case: Case) -> None:
    vector = case.left.vector()
    assert vector.shape[-1] == case.base.spec.size
    back = update_from_vector(case.base.spec, vector, case.left.base)
    assert back.rows == case.left.rows
    for name, tensor in tensors_of(back.factors).items():
        assert torch.equal(tensor, tensors_of(case.left.factors)[name])
    torch.testing.assert_close(vector.square().sum(), _square(case.left))


def _square(update: Update) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors_of(update.factors).values()]).sum()


def test_storage_order_is_fixed() -> None:
    spec = AdapterSpec(1, 2, (3, 1, 1), 1, 1.0)
    assert list(spec.shapes) == ["q.a", "q.b", "k.a", "k.b", "v.a", "v.b"]
    update = update_from_vector(spec, torch.arange(float(spec.size)), "base")
    assert update.factors["q"].a.tolist() == [[[0.0, 1.0]]]
    assert update.factors["q"].b.tolist() == [[[2.0], [3.0], [4.0]]]
    assert update.factors["v"].b.tolist() == [[[10.0]]]
    assert spec.size == 11


def test_rows_of_a_stack_are_the_updates() -> None:
    case = make_case()
    stacked = stack_updates([case.left, case.right])
    assert (case.left.rows, stacked.rows) == (None, 2)
    assert not torch.equal(case.left.vector(), case.right.vector())
    assert torch.equal(stacked.row(0).vector(), case.left.vector())
    assert torch.equal(stacked.row(1).vector(), case.right.vector())


def test_a_batch_of_updates_behaves_as_each_alone() -> None:
    case = make_case(rows=3)
    batch = effective_change(case.base, case.left)
    for row in range(3):
        alone = effective_change(case.base, case.left.row(row))
        for p in PROJECTIONS:
            assert torch.equal(batch[p].a[row], alone[p].a)
            assert torch.equal(batch[p].b[row], alone[p].b)


def test_the_zero_update_changes_nothing() -> None:
    case = make_case()
    zero = case.base.zero_update()
    assert zero.base == case.base.fingerprint
    assert all(not dense(f).any() for f in effective_change(case.base, zero).values())
    assert torch.equal((case.left + zero).vector(), case.left.vector())


def test_updates_of_different_bases_refuse_to_mix() -> None:
    one, other = make_case(seed=0), make_case(seed=50)
    assert one.left.base != other.left.base
    names = f"different bases.*{'.*'.join(sorted((one.left.base, other.left.base)))}"
    with pytest.raises(RaggdError, match=names):  # both are named
        one.left + other.left
    with pytest.raises(RaggdError, match="different bases"):
        one.left - other.left
    with pytest.raises(RaggdError, match=names):
        stack_updates([one.left, other.left])
    low_rank.check_base(one.base, one.left.base)
    with pytest.raises(RaggdError, match=f"{other.left.base}.*{one.left.base}"):
        low_rank.check_base(one.base, other.left.base)


def test_fingerprints_name_weights_shape_and_backbone() -> None:
    base = make_case().base
    again = BaseAdapter(base.spec, base.factors, base.backbone)
    assert again.fingerprint == base.fingerprint
    changed = {n: t.clone() for n, t in tensors_of(base.factors).items()}
    changed["v.b"][-1, -1, -1] += 1e-3
    prints = {
        base.fingerprint,
        BaseAdapter(base.spec, base.factors, "other").fingerprint,
        BaseAdapter(replace(base.spec, alpha=9.0), base.factors, base.backbone).fingerprint,
        BaseAdapter(base.spec, factors_of(changed), base.backbone).fingerprint,
    }
    assert len(prints) == 4


def test_wrong_shapes_are_named() -> None:
    case = make_case(layers=2, rank=2, d_in=5)
    tensors = tensors_of(case.base.factors)
    for wrong in [{**tensors, "k.b": tensors["k.b"][:1]}, {**tensors, "k.b": tensors["k.b"].mT}]:
        with pytest.raises(RaggdError, match=r"base adapter: tensor 'k\.b' has shape"):
            BaseAdapter(case.base.spec, factors_of(wrong), "backbone")
    missing = {n: t for n, t in tensors.items() if n != "v.a"}
    with pytest.raises(RaggdError, match=r"tensor 'v\.a' is missing"):
        low_rank.check_shapes(case.base.spec, missing, "x")
    low_rank.check_shapes(case.base.spec, tensors_of(make_case(rows=3).left.factors), "batch")


def test_specs_survive_json() -> None:
    spec = make_case().base.spec
    assert AdapterSpec.from_json(spec.to_json()) == spec
    assert AdapterSpec.from_json(replace(spec, rank=3).to_json()) != spec
    assert spec.scaling == spec.alpha / spec.rank == 1.5
