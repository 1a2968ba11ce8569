"""The predictor in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from raggd.adaptation.predictors.base import (
    MLPPredictor,
    load_predictor,
    mean_predictor,
    save_predictor,
)
from raggd.adaptation.predictors.ridge import ridge_predictor
from raggd.core.low_rank import AdapterSpec

SPEC = AdapterSpec(layers=2, d_in=4, d_out=(4, 2, 2), rank=2, alpha=4.0)
WIDTH, COUNT = 5, 9


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATES = normal(COUNT, 3, WIDTH, seed=1)
GOALS = 1e-3 * normal(COUNT, SPEC.size, seed=2)


def ridge(goals: Tensor = GOALS, **changes: float) -> MLPPredictor:
    scale, rank = changes.get("scale", 1.0), int(changes.get("rank", WIDTH))
    penalty = changes.get("penalty", 0.5)
    return ridge_predictor(SPEC, "base", STATES, goals, scale=scale, rank=rank, penalty=penalty)


def emitted(predictor: MLPPredictor, states: Tensor) -> Tensor:
    return predictor.predict(states).vector().double()


def textbook(states: Tensor, penalty: float) -> Tensor:
    """Ridge regression by its normal equations, on standardised pooled states."""
    pooled = STATES.mean(1).double()
    center, unit = pooled.mean(0), pooled.std(0, correction=0)
    x, goals = (pooled - center) / unit, GOALS.double()
    weight = penalty * x.square().sum(1).mean() * torch.eye(WIDTH).double()
    solved = torch.linalg.solve(x.T @ x + weight, x.T @ (goals - goals.mean(0)))
    return goals.mean(0) + (states.mean(1).double() - center) / unit @ solved


@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_it_is_the_ridge_regression(penalty: float) -> None:
    new = normal(4, 3, WIDTH, seed=5)
    wanted = textbook(new, penalty)
    assert (wanted - GOALS.double().mean(0)).abs().max() > 1e-5
    assert not torch.allclose(wanted, textbook(new, 2 * penalty), atol=1e-6)
    torch.testing.assert_close(emitted(ridge(penalty=penalty), new), wanted, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("broken", ["partner", "sign", "unread"])
def test_a_wrong_construction_is_noticed(broken: str) -> None:
    predictor = ridge()
    if broken == "partner":  # gelu(z) alone is not z
        predictor.leave.weight[0, 1] = 0.0
    elif broken == "sign":
        predictor.leave.weight[0] *= -1
    else:
        predictor.leave.weight[0, 15] = 1.0
    new = normal(4, 3, WIDTH, seed=5)
    assert not torch.allclose(emitted(predictor, new), textbook(new, 0.5), atol=1e-6)


def test_a_low_rank_keeps_what_the_goals_share() -> None:
    mean, direction = 1e-3 * normal(SPEC.size, seed=3), 1e-3 * normal(SPEC.size, seed=4)
    goals = mean + STATES.mean(1)[:, :1] * direction
    one, whole = ridge(goals, rank=1), ridge(goals)
    assert one.head.shape == (SPEC.size, 1)
    got = emitted(one, STATES)
    torch.testing.assert_close(got, emitted(whole, STATES), atol=1e-8, rtol=1e-4)
    along = (got - got.mean(0)) @ direction.double()
    assert torch.corrcoef(torch.stack([along, STATES.mean(1)[:, 0].double()]))[0, 1] > 0.8
    assert (emitted(ridge(rank=1), STATES) - emitted(ridge(), STATES)).abs().max() > 1e-5


def test_without_trust_in_states_it_is_the_scaled_mean() -> None:
    mean = mean_predictor(SPEC, "base", GOALS).predict(STATES).vector().double()
    assert not torch.allclose(emitted(ridge(scale=7.0), STATES), 7 * mean, atol=1e-5)
    got = emitted(ridge(penalty=1e9, scale=7.0), STATES)
    torch.testing.assert_close(got, 7 * mean, atol=1e-8, rtol=1e-4)
    twice = emitted(ridge(scale=2.0), STATES)
    torch.testing.assert_close(twice, 2 * emitted(ridge(), STATES), atol=1e-8, rtol=1e-4)


def test_it_is_stored_and_trained_on_like_every_mlp_predictor(tmp_path: Path) -> None:
    predictor = ridge()
    save_predictor(tmp_path / "ridge.safetensors", predictor)
    loaded = load_predictor(tmp_path / "ridge.safetensors")
    assert isinstance(loaded, MLPPredictor)
    difference = emitted(loaded, STATES) - emitted(predictor, STATES)
    assert difference.norm() < 1e-3 * emitted(predictor, STATES).norm()  # float16
    loaded.requires_grad_(True)
    loaded(STATES).vector().square().sum().backward()
    spare = loaded.leave.weight.grad
    assert spare is not None
    assert (spare[:, 2 * WIDTH :].abs().amax(0) > 0).all()
