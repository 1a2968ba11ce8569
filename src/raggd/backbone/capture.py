"""Decoding at the limit of memory, not of launches: static caches and captured CUDA graphs.

A decoding step of one row is some thousand small products; launching them one by one takes longer
than reading the weights. On a GPU a step is therefore captured once for a size of batch (rows,
length of the cache, kind of adapters) and replayed from then on: base adapter, updates, keys and
values are copied into the tensors that the graph knows. On a processor nothing is captured.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.batch import Reading, new_cache
from raggd.backbone.fused import fused, plain_norms
from raggd.backbone.interface import Attached, Codes, Up, attached_to
from raggd.backbone.load import Backbone
from raggd.core.low_rank import PROJECTIONS, Factors
from raggd.files import first_line

ROWS = (1, 2, 4, 8, 16, 32)  # sizes of captured batches, to which others are padded
ROOM = 64  # tokens that a growing cache has room for, before it is copied into a larger one
LENGTH = 512  # caches are captured at multiples of this many tokens
KEPT = 4  # sizes that stay captured for a backbone; the longest unused goes first
_CAPTURED: WeakKeyDictionary[Any, OrderedDict[tuple[Any, ...], Captured]] = WeakKeyDictionary()
_REFUSED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # models, and why


def branch(cache: Any) -> Any:
    """Return a cache that grows from another one and leaves that as it is."""
    # a layer grows by making new tensors, so copies of the layers may share the old ones
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


class Room:
    """Keys and values of a cache that grows, with room behind them, in which each step writes."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers  # of a cache, whose tensors stay as they are
        self._own: dict[int, list[Tensor]] = {}  # keys and values, by layer

    def write(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the place of the cache's `update`, which copies all columns to add one."""
        seen, own = self._layers[layer], self._own.get(layer)
        filled = seen.keys.shape[2]
        if own is None or filled == own[0].shape[2]:
            own = [functional.pad(old, (0, 0, 0, ROOM)) for old in (seen.keys, seen.values)]
            self._own[layer] = own
        for all_columns, new in zip(own, (keys, values), strict=True):
            all_columns[:, :, filled : filled + 1] = new
        seen.keys, seen.values = (all_columns[:, :, : filled + 1] for all_columns in own)
        return seen.keys, seen.values


class GrowingSteps:
    """Steps on a cache that grows by a token at a time; what was read stays as it is."""

    def __init__(self, backbone: Backbone, reading: Reading) -> None:
        self._backbone, self._cache = backbone, branch(reading.cache)
        self._cache.update = Room(self._cache.layers).write
        self._mask, self._position = reading.mask, reading.following

    def __call__(self, tokens: Tensor) -> Tensor:
        """Add a token (rows,) to every row; return the next one's logits (rows, vocabulary)."""
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        logits: Tensor = self._backbone.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._position,
            **self._backbone.with_cache(self._cache),
        ).logits[:, -1]
        self._position = self._position + 1
        return logits

    def state(self) -> tuple[Any, Tensor]:
        """Return cache and mask (rows, length) with what was added, to be continued by another."""
        cache = branch(self._cache)
        del cache.update  # it writes into room of ours
        return cache, self._mask


@dataclass(frozen=True, slots=True)
class CapturedSteps:
    """Steps of a captured graph, valid until another batch of this backbone is continued."""

    backbone: Backbone
    captured: Captured

    def __call__(self, tokens: Tensor) -> Tensor:
        """Add a token to every row."""
        return self.captured.step(self.backbone, tokens)

    def state(self) -> tuple[Any, Tensor]:
        """Return cache and mask, copied out of the graph's."""
        return self.captured.state()


Steps = GrowingSteps | CapturedSteps  # prompts that were read, being continued


def steps_from(backbone: Backbone, reading: Reading, most: int) -> Steps:
    """Continue what was read, for `most` steps, and leave it as it is; captured where possible."""
    model, rows = backbone.model, len(reading.mask)
    if backbone.device.type != "cuda" or rows > ROWS[-1] or not can_capture(model):
        return GrowingSteps(backbone, reading)
    try:
        captured = capture_for(backbone, reading, most)
    except RuntimeError as error:  # a library whose kernels cannot be captured
        _REFUSED[model] = first_line(error)
        warnings.warn(f"decoding without CUDA graphs: {_REFUSED[model]}", stacklevel=2)
        return GrowingSteps(backbone, reading)
    return CapturedSteps(backbone, captured)


def can_capture(model: Any) -> bool:
    """Return whether a model's steps can run on a static cache: no layer sees a sliding window."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    plain = config._attn_implementation in {"sdpa", "eager"}
    return model not in _REFUSED and plain and kinds == {"full_attention"} and not window


def capture_for(backbone: Backbone, reading: Reading, most: int) -> Captured:
    """Return a captured step that holds what was read; a new size is captured."""
    hooks = attached_to(backbone)
    rows = next(size for size in ROWS if size >= len(reading.mask))
    length = reading.mask.shape[1] + most
    length += -length % LENGTH
    key = (rows, length, backbone.dtype, *dict.fromkeys(map(_signature, hooks)))
    known = _CAPTURED.setdefault(backbone.model, OrderedDict())
    if key not in known:
        while len(known) >= KEPT:
            known.popitem(last=False)
        known[key] = Captured(backbone, reading, rows, length, hooks)
    known.move_to_end(key)
    known[key].load(reading, hooks)
    return known[key]


def _signature(hook: Attached) -> tuple[Any, ...]:
    up = hook.update
    kind = None if up is None else (len(up.down) > 1, up.down.shape[1:], up.up.shape[1:])
    return (hook.base.a.shape, hook.base.b.shape, hook.scale, kind)


class Captured:
    """A decoding step of `rows` rows over a cache of `length`, with all tensors that it touches."""

    def __init__(
        self,
        backbone: Backbone,
        reading: Reading,
        rows: int,
        length: int,
        hooks: Sequence[Attached],
    ) -> None:
        self.rows, self.length = rows, length
        self._count, self._filled = rows, 0  # and no reference to the model, the key to this
        device = backbone.device
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._closed = torch.finfo(backbone.dtype).min
        shape = (rows, 1, 1, length)
        self._mask = torch.full(shape, self._closed, dtype=backbone.dtype, device=device)
        self._cache = [
            tuple(t.new_zeros(rows, t.shape[1], length, t.shape[3]) for t in (own.keys, own.values))
            for own in reading.cache.layers
        ]
        self._view = new_cache()
        self._view.update = self._write
        self._own = _own(hooks, rows)
        self._norms = plain_norms(backbone.model)
        self._logits = torch.empty(0)
        self._graph: Any = None
        if device.type == "cuda":
            self._capture(backbone, hooks)

    def _write(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        # takes the place of a cache's `update`: the new column is written, all columns are seen
        own_keys, own_values = self._cache[layer]
        own_keys.index_copy_(2, self._at, keys)
        own_values.index_copy_(2, self._at, values)
        return own_keys, own_values

    @torch.no_grad()
    def _forward(self, backbone: Backbone) -> None:
        self._mask.index_fill_(3, self._at, 0.0)
        with fused(backbone.model, self._norms):
            logits = backbone.model(
                input_ids=self._tokens,
                attention_mask=self._mask,
                position_ids=self._positions,
                **backbone.with_cache(self._view),
            ).logits[:, -1]
        if self._logits.shape != logits.shape:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self._positions.add_(1)
        self._at.add_(1)

    @contextmanager
    def _swapped(self, hooks: Sequence[Attached]) -> Iterator[None]:
        # the forward pass reads our own tensors in the place of what is attached
        saved = [(hook.base, hook.update, hook.codes) for hook in hooks]
        try:
            for hook, own in zip(hooks, self._own, strict=True):
                hook.base, hook.update, hook.codes = own
            yield
        finally:
            for hook, own in zip(hooks, saved, strict=True):
                hook.base, hook.update, hook.codes = own

    def _capture(self, backbone: Backbone, hooks: Sequence[Attached]) -> None:
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(current)
        with self._swapped(hooks):
            with torch.cuda.stream(beside):  # libraries set themselves up in the first runs
                for _ in range(2):
                    self._forward(backbone)
            current.wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._forward(backbone)

    @torch.no_grad()
    def load(self, reading: Reading, hooks: Sequence[Attached]) -> None:
        """Take over at most as many prompts as were captured, and what is attached."""
        count, length = reading.mask.shape
        self._count, self._filled = count, length
        self._mask.fill_(self._closed)
        self._mask[:count, 0, 0, :length].masked_fill_(reading.mask.bool(), 0.0)
        self._positions.zero_()
        self._positions[:count] = reading.following
        self._at.fill_(length)
        for own, layer in zip(self._cache, reading.cache.layers, strict=True):
            for columns, read in zip(own, (layer.keys, layer.values), strict=True):
                # what another batch left, if it overflowed, is not a number behind any mask
                columns.zero_()[:count, :, :length] = read
        for hook, (base, update, _) in zip(hooks, self._own, strict=True):
            base.a.copy_(hook.base.a)
            base.b.copy_(hook.base.b)
            if update is not None and hook.update is not None:
                update.down[: len(hook.update.down)] = hook.update.down
                update.up[: len(hook.update.up)] = hook.update.up

    @torch.no_grad()
    def step(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        """Add a token to every row; the next step overwrites the logits."""
        self._filled += 1
        self._tokens[: self._count, 0] = tokens
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._swapped(attached_to(backbone)):
                self._forward(backbone)
        return self._logits[: self._count]

    def state(self) -> tuple[Any, Tensor]:
        """Return cache and mask (rows, length) of the rows that were loaded, copied."""
        rows, length = self._count, self._filled
        own = [tuple(t[:rows, :, :length].clone() for t in layer) for layer in self._cache]
        return new_cache(own), (self._mask[:rows, 0, 0, :length] == 0).long()


def _own(hooks: Sequence[Attached], rows: int) -> list[tuple[Factors, Up | None, Codes | None]]:
    # no memory as it is found: what is not a number stays one behind any mask
    codes: dict[int, Codes] = {}  # by what a layer's projections share
    made: list[tuple[Factors, Up | None, Codes | None]] = []
    for hook in hooks:
        shared, down = None, torch.zeros_like(hook.base.a)
        if hook.codes is not None:
            shared = codes.setdefault(id(hook.codes), Codes(torch.zeros_like(hook.codes.downs)))
            down = shared.downs.chunk(len(PROJECTIONS))[hook.place]  # a view: filled with it
        base, update = Factors(down, torch.zeros_like(hook.base.b)), None
        if hook.update is not None:
            # of what each row has for itself, enough for all rows of the captured size
            count = rows if len(hook.update.down) > 1 else 1
            update = Up(*(t.new_zeros(count, *t.shape[1:]) for t in hook.update))
        made.append((base, update, shared))
    return made
