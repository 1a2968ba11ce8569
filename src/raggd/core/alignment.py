"""How alike two updates are: cosine and norm ratio, in factor or in product space (equation 9)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor

from raggd.core.low_rank import PROJECTIONS, BaseAdapter, Factors, Update, effective_change, inner


class Space(StrEnum):
    """Where updates are compared."""

    product = "product"  # the change of the effective weight, ``(B+dB)(A+dA) - BA``
    factor = "factor"  # the steps dA and dB themselves, taken together as one vector per layer


def _products(
    base: BaseAdapter, left: Update, right: Update, space: Space
) -> tuple[Tensor, Tensor, Tensor]:
    # inner products (..., 3, layers), q, k, v by layer: of both, and of each with itself
    def product(one: Factors, other: Factors) -> Tensor:
        if space == Space.product:
            return inner(one, other)
        return (one.a * other.a).sum((-2, -1)) + (one.b * other.b).sum((-2, -1))

    def by_layer(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> Tensor:
        return torch.stack([product(one[p], other[p]) for p in PROJECTIONS], -2)

    whole = space == Space.product
    first, second = (effective_change(base, u) if whole else u.factors for u in (left, right))
    return by_layer(first, second), by_layer(first, first), by_layer(second, second)


def cosine_and_norms(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare two updates from one base, per projection and layer; batch axes broadcast.

    Cosine, norm of left, norm of right, each (..., 3, layers). The cosine with a zero update is 0.
    """
    dot, *squares = _products(base, left, right, space)
    left_norm, right_norm = (s.clamp_min(torch.finfo(s.dtype).tiny).sqrt() for s in squares)
    return dot / (left_norm * right_norm), left_norm, right_norm


def total_cosine(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> Tensor:
    """Return the cosine (...) of two whole updates, all layers and projections as one vector."""
    dot, *squares = (p.sum((-2, -1)) for p in _products(base, left, right, space))
    # a root of each: the product of two small squares would vanish in float32
    left_norm, right_norm = (s.clamp_min(torch.finfo(s.dtype).tiny).sqrt() for s in squares)
    return dot / (left_norm * right_norm)
