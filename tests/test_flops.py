"""Counted operations against PyTorch's own counter, on the tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from raggd.adaptation.targets import answered_prompt, encode_batch, sgd_updates, support_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.evaluation.flops import (
    ModelShape,
    adapting_flops,
    answering_flops,
    model_shape,
    reading_flops,
    sgd_flops,
)
from raggd.methods.predicted import TestTimeSGD
from raggd.records import SupportSet
from raggd.settings import TargetSettings


@pytest.fixture(autouse=True)
def countable(tiny_backbone: Backbone) -> Iterator[None]:
    """Attention as plain products: PyTorch does not count its fused form on a processor."""
    tiny_backbone.model.set_attn_implementation("eager")
    yield
    tiny_backbone.model.set_attn_implementation("sdpa")


@pytest.fixture
def shape(tiny_backbone: Backbone) -> ModelShape:
    return model_shape(tiny_backbone.model)


def square(shape: ModelShape, tokens: int, new: int | None = None) -> int:
    """What PyTorch counts beyond ours: it multiplies all pairs of tokens, the masked ones too."""
    new = tokens if new is None else new
    seen = sum(tokens - new + i + 1 for i in range(new))
    return 4 * shape.layers * shape.width * (new * tokens - seen)


def test_the_shape_is_read_off_the_model(tiny_backbone: Backbone, shape: ModelShape) -> None:
    model = tiny_backbone.model
    assert (shape.layers, shape.width, shape.hidden) == (3, 32, 32)
    assert shape.vocabulary == model.config.vocab_size
    linear = sum(p.numel() for n, p in model.named_parameters() if n.endswith("proj.weight"))
    assert shape.parameters == linear


def test_a_model_without_weights_has_the_same_shape(
    tiny_backbone: Backbone, shape: ModelShape
) -> None:
    with torch.device("meta"):
        empty = type(tiny_backbone.model)(tiny_backbone.model.config)
    assert next(iter(empty.parameters())).is_meta
    assert model_shape(empty) == shape


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_reading_and_decoding(
    tiny_backbone: Backbone, base: BaseAdapter, shape: ModelShape, adapted: bool
) -> None:
    tokens, extra = torch.arange(8, 20)[None], base.spec.size if adapted else 0
    model = tiny_backbone.model
    with attach(tiny_backbone, base if adapted else None):
        with FlopCounterMode(display=False) as counter:
            read = model(tokens, use_cache=True, logits_to_keep=1)
        first = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, :1], past_key_values=read.past_key_values)
    # PyTorch does not count products that add to their target in place, as the adapter's do
    close = 0.02 if adapted else 0
    read_flops = shape.forward(12, logits=1, extra=extra)
    assert first == pytest.approx(read_flops + square(shape, 12), rel=close)
    step = shape.forward(1, past=12, logits=1, extra=extra)
    assert counter.get_total_flops() == pytest.approx(step + square(shape, 13, 1), rel=close)
    assert answering_flops(shape, 12, 2, extra=extra) == read_flops + step
    assert answering_flops(shape, 12, 1, extra=extra, cached=5) == (
        shape.forward(7, past=5, logits=1, extra=extra)
    )


def test_adapting(
    tiny_backbone: Backbone, base: BaseAdapter, shape: ModelShape, supports: list[SupportSet]
) -> None:
    support = SupportSet("nq", supports[0].demonstrations[:1])
    prompt = answered_prompt(tiny_backbone.tokenizer, support.demonstrations[0], 160)
    batch = support_batch(tiny_backbone, [support], 160)
    shown = [replace(prompt, tokens=tuple(batch.tokens[0].tolist()))]  # padding works as hard
    masked = square(shape, len(shown[0].tokens))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_batch(tiny_backbone, base, batch, 1)
    counted = reading_flops(shape, shown, base.spec.size)
    assert counted + masked == pytest.approx(counter.get_total_flops(), rel=0.02)
    settings = TargetSettings(steps=2, max_tokens=160)
    with FlopCounterMode(display=False) as counter:
        sgd_updates(tiny_backbone, base, batch, 1, settings)
    twice = sgd_flops(shape, shown, base.spec.size, 2)
    # within 5 %: the lowest layer's inputs need no gradient, the end token adds a row of logits
    assert twice + 2 * 3 * masked == pytest.approx(counter.get_total_flops(), rel=0.05)
    method = TestTimeSGD(tiny_backbone, base, settings)
    assert adapting_flops(method, shape, shown, base.spec.size) == twice
    assert adapting_flops(tiny.base_only(base), shape, shown, base.spec.size) == 0
    assert twice > 4 * counted
