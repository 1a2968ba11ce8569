"""Batches of a step, the optimizer with its checkpoints, and support draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raggd.adaptation import optimizer
from raggd.adaptation.optimizer import (
    WINDOW,
    Trainer,
    batch_order,
    epoch_batches,
    learning_rate_at,
    seconds_spent,
)
from raggd.adaptation.targets import draw_supports
from raggd.data.benchmarks import scored_questions, support_pool
from raggd.records import Question, RaggdError
from raggd.settings import BaseTrainingSettings

TRAINING = BaseTrainingSettings(steps=6, batch=2, learning_rate=0.02)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80), st.integers(1, 7), st.integers(0, 9))
def test_an_epoch_shows_every_example_at_most_once(
    lengths: list[int], batch: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch, 0, epoch)
    shown = [i for b in batches for i in b]
    assert len(set(shown)) == len(shown)
    assert len(shown) == (len(lengths) // batch * batch or len(lengths))
    assert all(len(b) == min(batch, len(lengths)) for b in batches)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 3))
def test_steps_run_through_the_epochs(count: int, batch: int, seed: int) -> None:
    lengths = [7 * i % 31 for i in range(count)]
    per_epoch = len(epoch_batches(lengths, batch, seed, 0))
    order = batch_order(lengths, batch, seed)
    steps = [order(s) for s in range(2 * per_epoch)]
    assert steps[:per_epoch] == epoch_batches(lengths, batch, seed, 0)
    assert steps[per_epoch:] == epoch_batches(lengths, batch, seed, 1)
    assert batch_order(lengths, batch, seed)(per_epoch) == steps[per_epoch]  # a resumed run


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled: list[int] = []

    def counting(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
        shuffled.append(epoch)
        return epoch_batches(lengths, batch, seed, epoch)

    monkeypatch.setattr(optimizer, "epoch_batches", counting)
    order = batch_order([1] * 40, 4, 0)
    for step in range(25):
        order(step)
    assert shuffled == [0, 1, 2]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = list(range(100))
    first = epoch_batches(lengths, 4, 0, 0)
    assert epoch_batches(lengths, 4, 0, 0) == first
    assert epoch_batches(lengths, 4, 0, 1) != first
    assert epoch_batches(lengths, 4, 1, 0) != first


def test_batches_hold_examples_of_similar_length() -> None:
    lengths = [(i * 37) % 997 for i in range(8 * WINDOW * 2)]
    spreads = [
        max(lengths[i] for i in b) - min(lengths[i] for i in b)
        for b in epoch_batches(lengths, 8, 0, 0)
    ]
    assert sum(spreads) / len(spreads) < 997 / 4
    starts = [min(lengths[i] for i in b) for b in epoch_batches(lengths, 8, 0, 0)]
    assert starts != sorted(starts)  # the order of batches stays random


# ---- the optimizer


def _run_reference(start: dict[str, Tensor], steps: int, grads: Callable[[int], Tensor]) -> Tensor:
    """AdamW, clipping and schedule written out with torch alone."""
    weight = start["w"].clone().requires_grad_(True)
    adam = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.01)
    for step in range(steps):
        gradient = grads(step)
        size = float(gradient.norm())
        weight.grad = gradient * min(1.0, 1.0 / (size + 1e-6))
        rate = TRAINING.learning_rate
        if step < 2:
            rate *= (step + 1) / 2
        else:
            rate *= 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / (TRAINING.steps - 2))) / 2
        adam.param_groups[0]["lr"] = rate
        adam.step()
    return weight.detach()


def _gradient(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (step + 0.1) * torch.randn(3, 4, generator=generator)


def _trainer(start: dict[str, Tensor], identity: str = "run") -> Trainer:
    parameters = {n: t.clone().requires_grad_(True) for n, t in start.items()}
    return Trainer(parameters, TRAINING, identity=identity, warmup=2)


def _go(trainer: Trainer, until: int) -> Tensor:
    while trainer.step < until:
        trainer.parameters["w"].grad = _gradient(trainer.step)
        trainer.apply(float(trainer.step))
    return trainer.parameters["w"].detach().clone()


START = {"w": torch.linspace(-1, 1, 12).reshape(3, 4)}


def test_the_trainer_is_clipped_adamw_with_warmup_and_cosine() -> None:
    assert _gradient(0).norm() < 1 < _gradient(5).norm()  # clipped and not
    trainer = _trainer(START)
    got = _go(trainer, 6)
    assert not torch.equal(got, START["w"])
    torch.testing.assert_close(got, _run_reference(START, 6, _gradient), atol=1e-6, rtol=1e-6)
    assert trainer.history == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert trainer.parameters["w"].grad is None


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate_at(step, TRAINING, 2) for step in range(TRAINING.steps + 1)]
    assert rates[:3] == pytest.approx([0.01, 0.02, 0.02])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.002)
    assert learning_rate_at(0, TRAINING, 0) == pytest.approx(0.02)


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_checkpoint_continues_bitwise(tmp_path: Path, stop: int) -> None:
    whole = _go(_trainer(START), 6)
    first = _trainer(START)
    _go(first, stop)
    first.save(tmp_path / "c")
    second = _trainer(START)
    assert second.resume(tmp_path / "c")
    assert second.step == stop
    assert second.history == first.history
    assert torch.equal(_go(second, 6), whole)
    lost = _trainer(START)  # without Adam's moments the result would be another one
    lost.step = stop
    with torch.no_grad():
        lost.parameters["w"].copy_(first.parameters["w"])
    if stop < 6:
        assert not torch.equal(_go(lost, 6), whole)


def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    first = _trainer(START, "one")
    _go(first, 2)
    first.save(tmp_path / "c")
    second = _trainer(START, "two")
    with pytest.raises(RaggdError, match=r"identity one, this run is two"):
        second.resume(tmp_path / "c")
    assert second.step == 0
    assert torch.equal(second.parameters["w"], START["w"])
    assert not second.resume(tmp_path / "absent")
    (tmp_path / "c").write_bytes(b"damaged")
    with pytest.raises(RaggdError, match="truncated or damaged"):
        second.resume(tmp_path / "c")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(loss: float) -> None:
    trainer = _trainer(START)
    trainer.parameters["w"].grad = torch.ones(3, 4)
    with pytest.raises(RaggdError, match=r"became (nan|inf) at step 0.*lower learning_rate"):
        trainer.apply(loss)
    assert torch.equal(trainer.parameters["w"], START["w"])


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(slope: float) -> None:
    # the loss is finite once more, but a step would leave nothing that a checkpoint could keep
    trainer = _trainer(START)
    trainer.parameters["w"].grad = torch.full((3, 4), slope)
    with pytest.raises(RaggdError, match=r"gradient became (nan|inf) at step 0"):
        trainer.apply(1.0)
    assert torch.equal(trainer.parameters["w"], START["w"])


def test_time_is_counted_over_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(optimizer.time, "monotonic", lambda: now[0])
    first = _trainer(START)
    now[0] += 7
    first.save(tmp_path / "c")
    now[0] += 1000  # nobody was running
    second = _trainer(START)
    second.resume(tmp_path / "c")
    now[0] += 5
    second.save(tmp_path / "c")
    now[0] += 2
    second.save(tmp_path / "c")
    assert seconds_spent(tmp_path / "c") == pytest.approx(14.0)


# ---- support draws


def _pool(count: int) -> list[Question]:
    return [Question(f"nq:{i}", f"q{i}", ("a",), "nq") for i in range(count)]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 12), st.integers(5, 30), st.integers(0, 3))
def test_support_draws_are_disjoint_while_the_pool_lasts(
    size: int, draws: int, count: int, seed: int
) -> None:
    pool = _pool(count)
    sets = draw_supports(pool, size, draws, seed)
    assert [len(s) for s in sets] == [size] * draws
    assert all(len({q.id for q in s}) == size for s in sets)
    fresh = [q.id for s in sets[: count // size] for q in s]
    assert len(set(fresh)) == len(fresh)
    used = Counter(q.id for s in sets for q in s)
    assert not used or max(used.values()) <= -(-draws // (count // size))
    assert draw_supports(pool[::-1], size, draws, seed) == sets  # the order does not matter
    assert draw_supports(pool, size, max(0, draws - 1), seed) == sets[: max(0, draws - 1)]


def test_another_seed_draws_others_and_a_small_pool_is_refused() -> None:
    pool = _pool(30)
    assert draw_supports(pool, 3, 5, 0) != draw_supports(pool, 3, 5, 1)
    learned = {frozenset(q.id for q in s) for s in draw_supports(pool, 3, 10, 0)}
    shown = {frozenset(q.id for q in s) for s in draw_supports(pool, 3, 10, 0, "evaluation")}
    assert not learned & shown, "an evaluation must not show the sets that a predictor learned"
    with pytest.raises(RaggdError, match=r"pool of 'nq' holds 2 questions, a support set needs 3"):
        draw_supports(pool[:2], 3, 1, 0)
    with pytest.raises(RaggdError, match=r"holds 0 questions"):
        draw_supports([], 1, 1, 0)


def test_real_pools_are_large_enough_and_never_scored(shared_data: Path) -> None:
    for name in ("nq", "popqa", "bamboogle"):
        scored = {q.id for q in scored_questions(shared_data, name)}
        drawn = draw_supports(support_pool(shared_data, name), 3, 4, 0)
        shown = [q.id for questions in drawn for q in questions]
        assert len(set(shown)) == 12
        assert not scored & set(shown)
