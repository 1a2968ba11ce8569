"""The gate learns which supports gain, at which scale, and withholds where it would hurt."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raggd.adaptation.predictors.gate import agreement, fit_gate

SCALES = torch.tensor([0.5, 1.0, 2.0])


def _world(sets: int, seed: int, noise: float = 0.02) -> tuple[Tensor, Tensor]:
    """States with a hidden direction u; an update of scale s gains s u - s^2 / 2."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(sets, generator=generator, dtype=torch.float64) * 5 - 2.5
    states = 0.1 * torch.randn(sets, 3, 24, generator=generator, dtype=torch.float64)
    states[:, :, 0] += hidden[:, None]
    gains = SCALES * hidden[:, None] - SCALES.square() / 2
    return states, gains + noise * torch.randn(gains.shape, generator=generator)


def test_the_best_scale_is_found_on_new_sets_and_harm_is_withheld() -> None:
    gate = fit_gate(*_world(120, 0), SCALES, caution=0.0)
    states, gains = _world(200, 1, noise=0.0)
    chosen = gate.choose(states)
    assert set(chosen.tolist()) == {0.0, 0.5, 1.0, 2.0}
    table = torch.cat([torch.zeros(200, 1), gains], 1)
    place = torch.searchsorted(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64), chosen)
    got = table.gather(1, place[:, None]).squeeze(1)
    assert got.mean() > 0.97 * table.max(1).values.mean()
    assert got.mean() > 1.3 * gains.mean(0).max()  # better than any one scale for all
    assert got.min() > -0.1
    assert gains.min() < -2


def test_the_same_gate_fitted_to_flipped_gains_chooses_otherwise() -> None:
    states, gains = _world(120, 0)
    right, wrong = fit_gate(states, gains, SCALES), fit_gate(states, -gains, SCALES)
    new, truth = _world(200, 1, noise=0.0)
    helped = truth[:, 0] > 0.2
    assert (right.choose(new)[helped] > 0).float().mean() > 0.95
    assert (wrong.choose(new)[helped] > 0).float().mean() < 0.5


def test_caution_withholds_more_and_pure_noise_is_mostly_withheld() -> None:
    states, gains = _world(120, 0, noise=0.5)
    new, _ = _world(200, 1)
    applied = [
        int((fit_gate(states, gains, SCALES, caution=c).choose(new) > 0).sum()) for c in (0, 2, 8)
    ]
    assert applied[0] > applied[1] > applied[2]
    generator = torch.Generator().manual_seed(5)
    blind = torch.randn(120, 3, generator=generator) - 0.05
    chosen = fit_gate(states, blind, SCALES, caution=2.0).choose(new)
    assert (chosen > 0).float().mean() < 0.2


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_agreement_lies_between_its_bounds(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(4, count, 8, generator=generator, dtype=torch.float64)
    center = torch.zeros(8, dtype=torch.float64)
    found = agreement(states, center)
    lowest = -1 / (count - 1) if count > 1 else 1.0
    assert ((found >= lowest - 1e-9) & (found <= 1 + 1e-9)).all()
    same = states[:, :1].expand(-1, count, -1)
    assert torch.allclose(agreement(same, center), torch.ones(4, dtype=torch.float64))
    if count > 1:
        assert (found < 1 - 1e-6).any()


def test_one_row_is_the_row_of_a_batch() -> None:
    gate = fit_gate(*_world(60, 0), SCALES)
    new, _ = _world(8, 3)
    together = gate.choose(new)
    assert together.tolist() == [float(gate.choose(new[i : i + 1])) for i in range(8)]
