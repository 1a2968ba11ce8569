"""Targets against the gradient and the optimizer, and the support encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from raggd.adaptation.targets import (
    encode_supports,
    sgd_updates,
    support_batch,
    targets_of,
)
from raggd.backbone.batch import answer_losses
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import PROJECTIONS, BaseAdapter, factors_of, tensors_of
from raggd.records import RaggdError, SupportSet
from raggd.settings import TargetSettings

ONE = TargetSettings(steps=1, learning_rate=0.01, demonstrations=2, max_tokens=200)
FIVE = ONE.model_copy(update={"steps": 5})


def largest(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def tracked(base: BaseAdapter) -> tuple[BaseAdapter, dict[str, Tensor]]:
    leaves = {n: t.clone().requires_grad_(True) for n, t in tensors_of(base.factors).items()}
    return BaseAdapter(base.spec, factors_of(leaves), base.backbone), leaves


# ---- the update of K steps


def test_one_step_is_minus_the_rate_times_the_gradient(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    update, _ = targets_of(tiny_backbone, base, supports[:1], ONE)
    update = update[ONE.steps]
    moving, leaves = tracked(base)
    with attach(tiny_backbone, moving):
        loss = answer_losses(tiny_backbone, support_batch(tiny_backbone, supports[:1], 200)).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    for (name, step), gradient in zip(tensors_of(update.factors).items(), gradients, strict=True):
        wanted = -ONE.learning_rate * gradient
        size = float(wanted.abs().max())
        assert size > 1e-6
        assert largest(step[0], wanted) < 1e-4 * size, name
        assert largest(step[0], -wanted) > size


def test_the_gradient_is_that_of_the_merged_weights(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    """By the chain rule, dA = s B^T dW and dB = s dW A^T, with dW from an ordinary dense model."""
    update, _ = targets_of(tiny_backbone, base, supports[:1], ONE)
    update = update[ONE.steps]
    model = tiny.merged(tiny_backbone, base)
    weights = {
        p: [getattr(block.self_attn, f"{p}_proj").weight for block in model.model.layers]
        for p in PROJECTIONS
    }
    for stack in weights.values():
        for weight in stack:
            weight.requires_grad_(True)
    batch = support_batch(tiny_backbone, supports[:1], 200)
    plain = replace(tiny_backbone, model=model)
    answer_losses(plain, batch).mean().backward()
    for p, (a, b) in base.factors.items():
        dense = torch.stack([w.grad for w in weights[p] if w.grad is not None])
        scale = -ONE.learning_rate * base.spec.scaling
        for step, wanted in zip(
            update.factors[p], (scale * b.mT @ dense, scale * dense @ a.mT), strict=True
        ):
            assert largest(step[0], wanted) < 1e-3 * float(wanted.abs().max())


def test_steps_go_on_from_an_update(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    """One step and four more, from where it ended, are five; a set's start is its own."""
    batch = support_batch(tiny_backbone, supports[:2], 200)
    first = sgd_updates(tiny_backbone, base, batch, 2, ONE)[1]
    four = ONE.model_copy(update={"steps": 4})
    both = sgd_updates(tiny_backbone, base, batch, 2, four, first)[4]
    five = sgd_updates(tiny_backbone, base, batch, 2, FIVE)[5]
    from_base = sgd_updates(tiny_backbone, base, batch, 2, four)[4]
    swapped = first.map(lambda tensor: tensor.flip(0))
    crossed = sgd_updates(tiny_backbone, base, batch, 2, four, swapped)[4]
    size = float(five.vector().abs().max())
    for other in (from_base, crossed):
        assert largest(other.vector(), five.vector()) > 1e-2 * size
    assert largest(both.vector(), five.vector()) < 1e-6 * size


def test_k_steps_are_those_of_the_optimizer(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    update, _ = targets_of(tiny_backbone, base, supports[1:2], FIVE)
    update = update[FIVE.steps]
    moving, leaves = tracked(base)
    optimizer = torch.optim.SGD(list(leaves.values()), lr=FIVE.learning_rate)
    batch = support_batch(tiny_backbone, supports[1:2], 200)
    history = []
    for _ in range(5):
        optimizer.zero_grad()
        with attach(tiny_backbone, moving):
            loss = answer_losses(tiny_backbone, batch).mean()
        loss.backward()
        history.append(float(loss.detach()))
        optimizer.step()
    for name, step in tensors_of(update.factors).items():
        moved = leaves[name].detach() - tensors_of(base.factors)[name]
        assert largest(step[0], moved) < 2e-3 * float(moved.abs().max()), name
    assert history[-1] < history[0]


def test_sets_of_a_batch_are_each_alone(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    together, states = targets_of(tiny_backbone, base, supports, FIVE)
    together = together[FIVE.steps]
    assert (together.rows, states.shape) == (3, (3, 2, 32))
    assert together.base == base.fingerprint
    assert not together.vector().requires_grad
    for i, support in enumerate(supports):
        alone, own = targets_of(tiny_backbone, base, [support], FIVE)
        alone = alone[FIVE.steps]
        size = float(alone.vector().abs().max())
        other = together.row((i + 1) % 3).vector()
        assert largest(other, alone.vector()[0]) > 0.1 * size
        assert largest(together.row(i).vector(), alone.vector()[0]) < 1e-3 * size
        torch.testing.assert_close(states[i], own[0], atol=1e-5, rtol=1e-5)


def test_the_base_and_the_backbone_are_left_alone(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    before = {n: t.clone() for n, t in tensors_of(base.factors).items()}
    targets_of(tiny_backbone, base, supports[:1], FIVE)
    assert all(torch.equal(t, before[n]) for n, t in tensors_of(base.factors).items())
    assert all(p.grad is None for p in tiny_backbone.model.parameters())


def test_sets_of_different_sizes_are_refused(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    # one and three demonstrations: as many in all as two and two
    shown = [d for s in supports for d in s.demonstrations]
    uneven = [SupportSet("nq", tuple(shown[:1])), SupportSet("nq", tuple(shown[1:4]))]
    with pytest.raises(RaggdError, match=r"one size, found \[1, 3\]"):
        targets_of(tiny_backbone, base, uneven, ONE)
    with pytest.raises(RaggdError, match=r"one size, found \[1, 3\]"):
        encode_supports(tiny_backbone, base, uneven, 200)
    with pytest.raises(RaggdError, match="one size"):
        support_batch(tiny_backbone, [], 200)


def test_a_layer_without_gradient_is_named(supports: list[SupportSet]) -> None:
    backbone = tiny.make_backbone()
    base = tiny.random_base(backbone)
    attention = backbone.model.model.layers[2].self_attn
    attention.register_forward_hook(lambda _, __, out: (out[0].detach(), *out[1:]))
    with pytest.raises(RaggdError, match=r"no gradient reaches the adapter in layers \[2\]"):
        targets_of(backbone, base, supports[:1], ONE)


# ---- the encoder


def test_states_of_a_batch_are_each_alone_and_seen_through_the_base(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    states = encode_supports(tiny_backbone, base, supports, 200)
    assert (states.shape, states.dtype) == ((3, 2, 32), torch.float32)
    assert largest(states[0, 0], states[0, 1]) > 0.1
    for i, support in enumerate(supports):
        for j, shown in enumerate(support.demonstrations):
            alone = encode_supports(tiny_backbone, base, [SupportSet("x", (shown,))], 200)
            torch.testing.assert_close(states[i, j], alone[0, 0], atol=1e-5, rtol=1e-5)
    other = encode_supports(tiny_backbone, tiny.random_base(tiny_backbone, seed=9), supports, 200)
    assert largest(states, other) > 0.1


def test_demonstrations_are_cut_to_the_limit(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    whole = support_batch(tiny_backbone, supports, 200)
    limit = int(whole.mask.sum(1).max()) - 3
    assert int(support_batch(tiny_backbone, supports, limit).mask.sum(1).max()) <= limit


def test_one_run_keeps_the_targets_of_several_k(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    kept, _ = targets_of(tiny_backbone, base, supports, FIVE.model_copy(update={"keep": [1, 7]}))
    assert sorted(kept) == [1, 5, 7]
    for steps, update in kept.items():
        alone, _ = targets_of(
            tiny_backbone, base, supports, ONE.model_copy(update={"steps": steps})
        )
        assert torch.equal(update.vector(), alone[steps].vector())
    assert largest(kept[1].vector(), kept[5].vector()) > 1e-5
    assert largest(kept[5].vector(), kept[7].vector()) > 1e-5
