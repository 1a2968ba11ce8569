"""Static caches: the same tokens as with growing ones, whatever the size that was captured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from weakref import ref

import pytest
import torch
from torch import Tensor

from raggd.backbone import capture
from raggd.backbone.batch import Reading
from raggd.backbone.capture import (
    Captured,
    CapturedSteps,
    GrowingSteps,
    Steps,
    can_capture,
    capture_for,
)
from raggd.backbone.generate import read_prompts
from raggd.backbone.interface import Codes, attach, attached_to
from raggd.backbone.load import Backbone
from raggd.core.low_rank import PROJECTIONS, BaseAdapter, Update, stack_updates
from raggd.data.prompts import Prompt
from tiny import make_backbone, make_sliding_backbone, random_base, random_update


@pytest.fixture
def own() -> Backbone:
    return make_backbone()


@pytest.fixture
def own_base(own: Backbone) -> BaseAdapter:
    return random_base(own)


def prompts(rows: int, start: int = 8) -> list[Prompt]:
    """Rows of different lengths, so that all but one are padded."""
    return [Prompt(tuple(range(start, start + 5 + 3 * row)), 0, 0) for row in range(rows)]


def updates(base: BaseAdapter, rows: int) -> Update:
    return stack_updates([random_update(base, seed=30 + i, size=0.4) for i in range(rows)])


def decoded(step: Steps, reading: Reading, tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens (rows, tokens) and the logits behind them."""
    logits, chosen, seen = reading.logits, [], []
    for _ in range(tokens):
        chosen.append(logits.argmax(-1))
        logits = step(chosen[-1]).clone()
        seen.append(logits)
    return torch.stack(chosen, 1), torch.stack(seen, 1)


def compare(backbone: Backbone, shown: Sequence[Prompt], tokens: int = 6) -> Tensor:
    reading = read_prompts(backbone, shown)
    with torch.no_grad():
        expected, logits = decoded(GrowingSteps(backbone, reading), reading, tokens)
        steps = CapturedSteps(backbone, capture_for(backbone, reading, tokens))
        found, own_logits = decoded(steps, reading, tokens)
    assert torch.equal(found, expected)
    assert torch.allclose(own_logits, logits, atol=1e-4)
    return found


def copying(backbone: Backbone, reading: Reading) -> GrowingSteps:
    """Steps on a cache that the library grows, by copying."""
    steps = GrowingSteps(backbone, reading)
    del steps._cache.update
    return steps


@pytest.mark.parametrize("make", [make_backbone, lambda: make_sliding_backbone(6)])
def test_steps_write_into_room_what_copies_would_hold(
    make: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make()
    monkeypatch.setattr(capture, "ROOM", 4)  # twice too small for ten tokens
    reading = read_prompts(backbone, prompts(3))
    before = [layer.keys.clone() for layer in reading.cache.layers]
    with torch.no_grad():
        steps, plain = GrowingSteps(backbone, reading), copying(backbone, reading)
        found, wanted = decoded(steps, reading, 10), decoded(plain, reading, 10)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs)
        (cache, mask), (other, other_mask) = steps.state(), (plain._cache, plain._mask)
        assert torch.equal(mask, other_mask)
        for one, two in zip(cache.layers, other.layers, strict=True):
            assert torch.equal(one.keys, two.keys)
            assert torch.equal(one.values, two.values)
        again, _ = decoded(GrowingSteps(backbone, reading), reading, 10)
    assert torch.equal(again, found[0])
    for layer, keys in zip(reading.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_a_cache_goes_with_its_steps(own: Backbone) -> None:
    steps = GrowingSteps(own, read_prompts(own, prompts(2)))
    with torch.no_grad():
        steps(torch.tensor([5, 6]))
    cache = ref(steps._cache)
    gc.disable()  # at once, not when cycles are looked for
    try:
        del steps
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_static_caches_give_the_same_tokens(
    own: Backbone, own_base: BaseAdapter, rows: int
) -> None:
    answers = []
    for base, update in (
        (None, None),
        (own_base, None),
        (own_base, random_update(own_base, size=0.4)),
        (own_base, updates(own_base, rows)),
    ):
        with attach(own, base, update):
            answers.append(compare(own, prompts(rows)))
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[3])


def test_codes_that_a_layer_shares_are_filled_with_its_factors(
    own: Backbone, own_base: BaseAdapter
) -> None:
    with attach(own, own_base):
        wanted = compare(own, prompts(2))
        capture._CAPTURED.clear()
        hooks = attached_to(own)  # by projection
        layers = len(hooks) // len(PROJECTIONS)
        for layer in range(layers):
            downs = torch.cat([hook.base.a for hook in hooks[layer::layers]])
            for hook in hooks[layer::layers]:
                hook.codes = Codes(downs) if hook.place == 0 else hooks[layer].codes
        assert torch.equal(compare(own, prompts(2)), wanted)
        captured = capture_for(own, read_prompts(own, prompts(2)), 6)
        for hook, (base, _, codes) in zip(hooks, captured._own, strict=True):
            assert codes is not None
            assert torch.equal(codes.downs.chunk(len(PROJECTIONS))[hook.place], hook.base.a)
            assert torch.equal(base.a, hook.base.a)


def test_what_a_size_is_captured_with_is_finite(
    own: Backbone, own_base: BaseAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what is not a number would stay in the cache, where no mask shuts it out
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, torch.nan))
    with attach(own, own_base, updates(own_base, 3)):
        reading, hooks = read_prompts(own, prompts(3)), attached_to(own)
        captured = Captured(own, reading, 4, 64, hooks)
        with captured._swapped(hooks):
            captured._forward(own)  # as a GPU does before it captures
        assert all(t.isfinite().all() for layer in captured._cache for t in layer)
        assert captured._logits.isfinite().all()


def test_an_overflow_ends_with_its_batch(own: Backbone, own_base: BaseAdapter) -> None:
    with attach(own, own_base, updates(own_base, 3)):
        first = compare(own, prompts(3))
        (captured,) = capture._CAPTURED[own.model].values()
        for tensor in (t for layer in captured._cache for t in layer):
            tensor.fill_(torch.nan)
        assert torch.equal(compare(own, prompts(3)), first)


def test_a_known_size_takes_new_values(own: Backbone, own_base: BaseAdapter) -> None:
    other = random_base(own, seed=9, size=0.5)
    with attach(own, own_base, updates(own_base, 3)):
        first = compare(own, prompts(3))
        compare(own, prompts(3, start=20))
    with attach(own, other, updates(other, 4)):  # another base, other updates, one row more
        assert not torch.equal(compare(own, prompts(4))[:3], first)
    with attach(own, own_base, updates(own_base, 3)):
        assert torch.equal(compare(own, prompts(3)), first)
    assert len(capture._CAPTURED[own.model]) == 1  # 3 and 4 rows share a size


def test_other_shapes_are_captured_anew(own: Backbone, own_base: BaseAdapter) -> None:
    sizes = capture._CAPTURED.setdefault(own.model, capture.OrderedDict())
    with attach(own, own_base):
        compare(own, prompts(1))
        compare(own, prompts(2))
        assert [c.rows for c in sizes.values()] == [1, 2]
        reading = read_prompts(own, prompts(2))
        assert capture_for(own, reading, capture.LENGTH).length == 2 * capture.LENGTH
    with attach(own, own_base, updates(own_base, 2)):
        compare(own, prompts(2))
    assert len(sizes) == 4
    with attach(own, random_base(own, rank=3)):
        compare(own, prompts(1))
    assert len(sizes) == capture.KEPT
    assert next(c.rows for c in sizes.values()) == 2  # the longest unused went


def test_what_is_attached_comes_back(own: Backbone, own_base: BaseAdapter) -> None:
    with attach(own, own_base, updates(own_base, 2)):
        before = [(hook.base, hook.update) for hook in attached_to(own)]
        assert len(before) == 9
        compare(own, prompts(2))
        after = [(hook.base, hook.update) for hook in attached_to(own)]
        assert all(a is c and b is d for (a, b), (c, d) in zip(before, after, strict=True))
    assert not attached_to(own)


def test_which_models_can_be_captured(own: Backbone) -> None:
    assert can_capture(own.model)
    assert not can_capture(make_sliding_backbone(8).model)
    capture._REFUSED[own.model] = "an operation is not permitted when a stream is capturing"
    assert not can_capture(own.model)


def test_captures_go_with_their_model() -> None:
    backbone = make_backbone()
    compare(backbone, prompts(1))
    model = ref(backbone.model)
    del backbone
    gc.collect()
    assert model() is None
