"""Prompts that are read in groups of similar length and answered together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.prefix import new_cache

WASTE = 1.25
"""A prompt joins a shorter one's forward pass only up to this ratio of their lengths."""
READ_TOKENS = 2048
"""Most tokens of one forward pass over prompts: a larger one is no faster and holds more memory."""


def alike(lengths: Sequence[int], waste: float = WASTE, most: int = READ_TOKENS) -> list[list[int]]:
    """Group prompts of similar length, so that little of a forward pass is padding.

    Args:
        lengths: tokens of each prompt.
        waste: largest ratio of two lengths in one group.
        most: largest number of tokens in one group, padding included; a longer prompt is alone.

    Returns:
        Positions in `lengths`, group by group.

    >>> alike([100, 400, 110, 420])
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = groups[-1] if groups else []
        similar = bool(last) and lengths[at] <= waste * lengths[last[0]]
        if similar and lengths[at] * (len(last) + 1) <= most:
            last.append(at)
        else:
            groups.append([at])
    return groups


def _padded(part: Tensor, length: int) -> Tensor:
    # keys and values are (rows, heads, tokens, width), a mask is (rows, tokens)
    missing = length - part.shape[-2 if part.dim() > 2 else -1]
    return functional.pad(part, (0, 0, missing, 0) if part.dim() > 2 else (missing, 0))


def join_caches(parts: Sequence[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Put batches below each other: shorter ones are padded further on the left.

    Args:
        parts: cache and mask (rows, length) of each.

    Returns:
        Cache and mask of all rows.
    """
    if len(parts) == 1:
        return parts[0]
    length = max(mask.shape[1] for _, mask in parts)
    joined = []
    for layers in zip(*(cache.layers for cache, _ in parts), strict=True):
        keys = torch.cat([_padded(layer.keys, length) for layer in layers])
        joined.append((keys, torch.cat([_padded(layer.values, length) for layer in layers])))
    return new_cache(joined), torch.cat([_padded(mask, length) for _, mask in parts])
