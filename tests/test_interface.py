"""The one low-rank forward path: exact at zero, right by row, differentiable, and taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from raggd.backbone import interface
from raggd.backbone.batch import Batch, answer_losses, make_batch
from raggd.backbone.interface import attach, check_gradients
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Factors, Update, factors_of, tensors_of
from raggd.data.prompts import Prompt, build_prompt
from raggd.records import RaggdError, SupportSet


def rows_of(update: Update, rows: Tensor) -> Update:
    """Give every row of a batch its update, by its number."""
    return update.map(lambda tensor: tensor.index_select(0, rows))


def prompts_of(backbone: Backbone, supports: Sequence[SupportSet]) -> list[Prompt]:
    """Answered prompts of different lengths, one per demonstration."""
    return [
        build_prompt(backbone.tokenizer, d.question, d.passages, answer=d.answer, limit=200)
        for s in supports
        for d in s.demonstrations
    ]


def batch_of(backbone: Backbone, prompts: Sequence[Prompt]) -> Batch:
    return make_batch(prompts, backbone)


@torch.no_grad()
def logits(backbone: Backbone, batch: Batch, model: Any = None) -> Tensor:
    """Logits at the last position of every row."""
    output = (model or backbone.model)(
        input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions
    )
    return output.logits[:, -1].float()


@pytest.fixture
def prompts(tiny_backbone: Backbone, supports: list[SupportSet]) -> list[Prompt]:
    return prompts_of(tiny_backbone, supports)


@pytest.fixture
def batch(tiny_backbone: Backbone, prompts: list[Prompt]) -> Batch:
    return batch_of(tiny_backbone, prompts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 6])
def test_the_zero_update_is_the_base_bitwise(
    dtype: torch.dtype, rows: int, supports: list[SupportSet]
) -> None:
    backbone = tiny.make_backbone(dtype=dtype)
    base = tiny.random_base(backbone)
    batch = batch_of(backbone, prompts_of(backbone, supports))
    zero = base.zero_update()
    if rows:
        zero = zero.map(lambda t: t.expand(rows, *t.shape))
    bare = logits(backbone, batch)
    with attach(backbone, base):
        alone = logits(backbone, batch)
    with attach(backbone, base, zero):
        with_zero = logits(backbone, batch)
    nearly = zero.map(lambda t: t + 0.05)
    with attach(backbone, base, nearly):
        with_some = logits(backbone, batch)
    assert not torch.equal(bare, alone)
    assert not torch.equal(with_some, alone)
    assert torch.equal(with_zero, alone)


def test_the_forward_path_is_that_of_the_merged_weights(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch
) -> None:
    update = tiny.random_update(base)
    for step in (None, update):
        with attach(tiny_backbone, base, step):
            got = logits(tiny_backbone, batch)
        wanted = logits(tiny_backbone, batch, tiny.merged(tiny_backbone, base, step))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        unscaled = replace(base, spec=replace(base.spec, alpha=1.0))
        wrong = logits(tiny_backbone, batch, tiny.merged(tiny_backbone, unscaled, step))
        assert not torch.allclose(got, wrong, atol=1e-2)


def test_every_projection_of_every_layer_takes_part(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch
) -> None:
    zero = base.zero_update()
    with attach(tiny_backbone, base):
        before = logits(tiny_backbone, batch)
    for name, tensor in tensors_of(zero.factors).items():
        for layer in range(base.spec.layers):
            changed = tensor.clone()
            changed[layer] = 0.2
            factors = factors_of({**tensors_of(zero.factors), name: changed})
            with attach(tiny_backbone, base, replace(zero, factors=factors)):
                after = logits(tiny_backbone, batch)
            assert not torch.equal(before, after), f"{name} of layer {layer} does nothing"


def test_a_row_of_a_batch_is_that_row_alone(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt], batch: Batch
) -> None:
    updates = tiny.random_updates(base, len(prompts))
    with attach(tiny_backbone, base, updates):
        together = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, updates.row(0)):
        all_first = logits(tiny_backbone, batch)
    for row, prompt in enumerate(prompts):
        with attach(tiny_backbone, base, updates.row(row)):
            alone = logits(tiny_backbone, batch_of(tiny_backbone, [prompt]))[0]
        if row:
            assert not torch.allclose(together[row], all_first[row], atol=1e-2)
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_an_update_added_with_the_base_is_the_same_update(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch
) -> None:
    update = tiny.random_update(base)
    with attach(tiny_backbone, base):
        alone = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, update):
        apart = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, update, as_one=True):
        as_one = logits(tiny_backbone, batch)
    assert (alone - apart).abs().max() > 1e-2
    assert not torch.equal(as_one, apart)
    torch.testing.assert_close(as_one, apart, atol=1e-4, rtol=1e-4)


def test_updates_of_rows_are_added_apart_whatever_was_wished(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt], batch: Batch
) -> None:
    updates = tiny.random_updates(base, len(prompts))
    with attach(tiny_backbone, base, updates):
        apart = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, updates, as_one=True):
        assert torch.equal(logits(tiny_backbone, batch), apart)


def test_one_prompt_under_different_updates(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt]
) -> None:
    updates = tiny.random_updates(base, 3)
    order = torch.tensor([2, 0, 0, 1])
    with attach(tiny_backbone, base, rows_of(updates, order)):
        got = logits(tiny_backbone, batch_of(tiny_backbone, [prompts[0]] * 4))
    torch.testing.assert_close(got[1], got[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[0], got[1], atol=1e-2)
    assert not torch.allclose(got[1], got[3], atol=1e-2)
    with attach(tiny_backbone, base, updates.row(2)):
        alone = logits(tiny_backbone, batch_of(tiny_backbone, prompts[:1]))
    torch.testing.assert_close(got[0], alone[0], atol=1e-5, rtol=1e-5)


def test_updates_that_do_not_match_the_rows_are_refused(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt]
) -> None:
    three = tiny.random_updates(base, 3)
    for rows in (1, 2, 6):
        batch = batch_of(tiny_backbone, prompts[:rows])
        refused = pytest.raises(RaggdError, match=f"3 updates for a batch of {rows} rows")
        with attach(tiny_backbone, base, three), refused:
            logits(tiny_backbone, batch)
        with attach(tiny_backbone, base, rows_of(three, torch.tensor([0]))):
            assert logits(tiny_backbone, batch).shape[0] == rows  # a single one serves all rows


def test_left_padding_does_not_change_a_rows_loss(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt]
) -> None:
    assert len({len(p.tokens) for p in prompts}) > 3
    with attach(tiny_backbone, base), torch.no_grad():
        together = answer_losses(tiny_backbone, batch_of(tiny_backbone, prompts))
        alone = [answer_losses(tiny_backbone, batch_of(tiny_backbone, [p])) for p in prompts]
    assert float(together.std()) > 0.1
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt])
def test_leaving_by_an_exception_restores_the_model(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch, error: type[BaseException]
) -> None:
    before = logits(tiny_backbone, batch)

    def stop() -> None:
        with attach(tiny_backbone, base, tiny.random_update(base)):
            assert tiny.hooks_of(tiny_backbone) == 3 * base.spec.layers
            assert not torch.equal(logits(tiny_backbone, batch), before)
            raise error

    with pytest.raises(error):
        stop()
    assert tiny.hooks_of(tiny_backbone) == 0
    assert torch.equal(logits(tiny_backbone, batch), before)


def test_a_failure_while_attaching_restores_the_model(
    tiny_backbone: Backbone, base: BaseAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Factors] = []
    original = interface.Attached

    def failing(own: Factors, *rest: Any) -> Any:
        made.append(own)
        if len(made) == 5:
            raise _StopError
        return original(own, *rest)

    monkeypatch.setattr(interface, "Attached", failing)
    with pytest.raises(_StopError), attach(tiny_backbone, base):
        pass
    assert tiny.hooks_of(tiny_backbone) == 0
    monkeypatch.undo()
    with attach(tiny_backbone, base):  # and it can be attached again
        assert tiny.hooks_of(tiny_backbone) == 9


def test_attaching_twice_is_refused_and_leaves_the_first(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch
) -> None:
    bare = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base):
        wanted = logits(tiny_backbone, batch)
        for inner in (base, None):
            with pytest.raises(RaggdError, match="already runs inside an attach block"):
                attach(tiny_backbone, inner).__enter__()
        assert torch.equal(logits(tiny_backbone, batch), wanted)
        other = tiny.make_backbone(seed=5)
        with attach(other, tiny.random_base(other)):  # another model is another matter
            assert tiny.hooks_of(other) == 9
    assert torch.equal(logits(tiny_backbone, batch), bare)
    with attach(tiny_backbone, None):
        assert torch.equal(logits(tiny_backbone, batch), bare)
    with attach(tiny_backbone, base):
        assert torch.equal(logits(tiny_backbone, batch), wanted)


def test_what_does_not_belong_together_is_refused(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    def refused(message: str, own: BaseAdapter | None, update: Update | None = None) -> None:
        with pytest.raises(RaggdError, match=message):
            attach(tiny_backbone, own, update).__enter__()

    foreign = replace(base, backbone="0123456789abcdef")
    refused(f"0123456789abcdef.*{tiny_backbone.fingerprint}", foreign)
    other = tiny.random_base(tiny_backbone, seed=99)
    refused(f"{other.fingerprint}.*{base.fingerprint}", base, other.zero_update())
    refused("needs the base adapter", None, base.zero_update())
    cut = base.zero_update().map(lambda t: t[..., :1, :])
    refused("update: tensor", base, cut)
    assert tiny.hooks_of(tiny_backbone) == 0


def _losses(
    backbone: Backbone, base: BaseAdapter, batch: Batch
) -> Callable[[Update | None], Tensor]:
    def loss(update: Update | None) -> Tensor:
        with attach(backbone, base, update):
            return answer_losses(backbone, batch)

    return loss


def test_gradients_reach_every_tensor_of_every_layer(
    tiny_backbone: Backbone, base: BaseAdapter, batch: Batch
) -> None:
    leaves = {n: t.clone().requires_grad_(True) for n, t in tensors_of(base.factors).items()}
    tracked = BaseAdapter(base.spec, factors_of(leaves), base.backbone)
    steps = {n: torch.zeros_like(t).requires_grad_(True) for n, t in leaves.items()}
    update = Update(base.spec, factors_of(steps), tracked.fingerprint)
    _losses(tiny_backbone, tracked, batch)(update).mean().backward()
    for name in leaves:
        of_base, of_update = leaves[name].grad, steps[name].grad
        assert of_base is not None
        assert of_update is not None
        assert of_base.abs().amax((-2, -1)).min() > 1e-8, name
        # at a zero update both gradients are the same by the sum rule
        torch.testing.assert_close(of_base, of_update, atol=1e-5, rtol=1e-4)
    check_gradients([t.grad for t in leaves.values() if t.grad is not None])
    assert all(p.grad is None for p in tiny_backbone.model.parameters())


def test_each_rows_gradient_is_its_own(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt]
) -> None:
    updates = tiny.random_updates(base, 3)
    leaves = {n: t.clone().requires_grad_(True) for n, t in tensors_of(updates.factors).items()}
    tracked = replace(updates, factors=factors_of(leaves))
    batch = batch_of(tiny_backbone, prompts[:3])
    losses = _losses(tiny_backbone, base, batch)(tracked)
    gradients = torch.autograd.grad(losses[1], list(leaves.values()))
    for gradient in gradients:
        assert gradient[1].abs().max() > 0
        assert not gradient[[0, 2]].any()


def test_a_dead_layer_is_named() -> None:
    alive = [torch.ones(3, 4, 2), torch.ones(2, 3, 2, 5)]
    check_gradients(alive)
    one_tensor = [alive[0].clone(), alive[1].clone()]
    one_tensor[0][1] = 0
    check_gradients(one_tensor)  # the layer is reached through its other tensor
    one_tensor[1][:, 1] = 0
    with pytest.raises(RaggdError, match=r"no gradient reaches the adapter in layers \[1\]"):
        check_gradients(one_tensor)
    one_row = [torch.ones(2, 3, 2, 5)]
    one_row[0][0, 2] = 0
    check_gradients(one_row)  # one row of a batch may be flat
    one_row[0][:, [0, 2]] = 0
    with pytest.raises(RaggdError, match=r"layers \[0, 2\]"):
        check_gradients(one_row)


def test_small_updates_are_not_rounded_away() -> None:
    """Added to the base's weights, a small step would be lost in bfloat16; kept apart it is not."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def narrow(factors: Factors) -> Factors:
        return Factors(*(t.bfloat16() for t in factors))

    def likeness(change: Tensor) -> float:
        return float(torch.cosine_similarity(change.double().flatten(), exact.flatten(), dim=0))

    h, own = normal(8, 64, 64), Factors(normal(4, 64) / 8, normal(48, 4))
    step = Factors(1e-3 * normal(4, 64) / 8, 1e-3 * normal(48, 4))

    def base_change(of: Tensor, factors: Factors) -> Tensor:
        nothing = torch.zeros(8, 64, 48, dtype=of.dtype)
        return interface.add_base(nothing, of @ factors.a.mT, factors.b, 2.0)

    def update_change(of: Tensor, factors: Factors, change: Factors) -> Tensor:
        total, code = base_change(of, factors), of @ factors.a.mT
        (up,) = interface._ups(Factors(*(t[None] for t in factors)), _stacked(change))
        return interface.add_update(total, of, code, up, 2.0)

    exact = update_change(h, own, step) - base_change(h, own)
    short, base, small = h.bfloat16(), narrow(own), narrow(step)
    before = base_change(short, base)
    summed = Factors(base.a + small.a, base.b + small.b)
    assert likeness(base_change(short, summed) - before) < 0.4
    assert likeness(update_change(short, base, small) - before) > 0.65
    assert likeness(base_change(short, interface._as_one(base, small)) - before) > 0.5


def _stacked(factors: Factors) -> Factors:
    return Factors(*(t[None, None] for t in factors))


def test_groups_of_rows_share_updates(
    tiny_backbone: Backbone, base: BaseAdapter, prompts: list[Prompt], batch: Batch
) -> None:
    three, rows = tiny.random_updates(base, 3), len(prompts)
    assert rows == 6
    with attach(tiny_backbone, base, three, group=2):
        together = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, rows_of(three, torch.tensor([0, 0, 1, 1, 2, 2]))):
        repeated = logits(tiny_backbone, batch)
    with attach(tiny_backbone, base, rows_of(three, torch.tensor([0, 1, 2, 0, 1, 2]))):
        dealt = logits(tiny_backbone, batch)
    assert not torch.allclose(together[1], dealt[1], atol=1e-2)
    torch.testing.assert_close(together, repeated, atol=1e-5, rtol=1e-5)
    refused = pytest.raises(RaggdError, match="3 updates for a batch of 6 rows: give one per 3")
    with attach(tiny_backbone, base, three, group=3), refused:
        logits(tiny_backbone, batch)
