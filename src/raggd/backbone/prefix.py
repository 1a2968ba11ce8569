"""What a prompt begins with, read once and kept as keys and values.

The examples of a support set, read once per task, cost every later question no reading: it attends
to some 60 to 90 more positions. Rows of one batch may have different prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Prefix:
    """First tokens of prompts, read before in the state in which they are continued."""

    tokens: tuple[int, ...]  # what was read
    # keys and values (1, heads, tokens, head size) of each layer
    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


def known_tokens(prompt: Prompt, prefix: Prefix | None) -> int:
    """Return how many tokens of a prompt its prefix holds: all of them, or 0 if it does not fit."""
    size = len(prefix.tokens) if prefix else 0
    fits = prefix and len(prompt.tokens) > size and prompt.tokens[:size] == prefix.tokens
    return size if fits else 0


def new_cache(layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Any:
    """Make a cache that keeps all positions in every layer, those with a sliding window too.

    It begins with keys and values (rows, heads, tokens, head size) of each layer, or empty.
    """
    # without the model's configuration, which would drop what lies behind a sliding window
    from transformers import DynamicCache

    return DynamicCache(ddp_cache_data=list(layers)) if layers else DynamicCache()


@torch.no_grad()
def read_prefix(backbone: Backbone, tokens: Sequence[int]) -> Prefix:
    """Read what prompts begin with, for `read_prompts`; inside or outside `attach`."""
    cache = new_cache()
    inputs = torch.tensor([list(tokens)], device=backbone.device)
    backbone.model.base_model(input_ids=inputs, **backbone.with_cache(cache))
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return Prefix(tuple(tokens), layers)
