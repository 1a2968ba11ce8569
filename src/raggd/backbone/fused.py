"""A decoding step in fewer kernels than the library's own model takes.

In a step of few rows every kernel costs its launch. A norm is one kernel instead of seven, and one
query attends by two batched products over the keys' own heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTION = "raggd_step"
_CLOSE = 0.05  # largest difference of a norm that is the plain one, of numbers around one


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend from one query (rows, heads, 1, width) to keys and values (rows, kv heads, L, width).

    The mask (rows, 1, 1, L) is added. Returned is (rows, 1, heads, width).
    """
    (rows, heads, asked, width), (_, kept, length, _) = query.shape, key.shape
    if asked != 1 or any(options.get(name) is not None for name in ("position_bias", "softcap")):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    grouped = query.reshape(rows * kept, heads // kept, width)
    scores = _precisely(grouped, key.reshape(rows * kept, length, width).mT)
    scores = torch.add(attention_mask, scores.view(rows, 1, heads, length), alpha=scaling)
    weights = scores.softmax(-1).to(value.dtype).view(rows * kept, heads // kept, length)
    mixed = torch.bmm(weights, value.reshape(rows * kept, length, width))
    return mixed.view(rows, 1, heads, width), None


def _precisely(a: Tensor, b: Tensor) -> Tensor:
    # a batched product in float32, of factors in half precision
    if a.device.type == "cuda" and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())


Norms = Mapping[Any, Callable[[Tensor], Tensor]]
"""Modules of a model, each with the one kernel that does the same."""


def plain_norms(model: nn.Module) -> Norms:
    """Return the norms of a model that are RMS norms times their weight."""
    found = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
            continue
        shown = torch.linspace(-2, 2, len(weight), device=weight.device, dtype=weight.dtype)[None]
        size = weight.shape
        kernel = partial(functional.rms_norm, normalized_shape=size, weight=weight, eps=eps)
        if type(module).__name__.endswith("RMSNorm") and torch.allclose(
            module(shown), kernel(shown), _CLOSE, _CLOSE
        ):
            found[module] = kernel
    return found


@contextmanager
def fused(model: Any, norms: Norms) -> Iterator[None]:
    """Run a model's steps of one query in few kernels inside a ``with`` block."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    config = model.config
    before = config._attn_implementation
    try:
        if before == "sdpa":
            config._attn_implementation = ATTENTION
        for norm, kernel in norms.items():
            norm.forward = kernel
        yield
    finally:
        config._attn_implementation = before
        for norm in norms:
            del norm.forward
