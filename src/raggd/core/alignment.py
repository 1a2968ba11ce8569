"""How alike two updates are: cosine and norm ratio, in factor or in product space (equation 9)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor

from raggd.core.low_rank import PROJECTIONS, BaseAdapter, Factors, Update, effective_change, inner


class Space(StrEnum):
    """Where updates are compared."""

    product = "product"
    """The change of the effective weight, ``(B+dB)(A+dA) - BA``."""
    factor = "factor"
    """The steps dA and dB themselves, taken together as one vector per layer."""


def _factor_inner(left: Factors, right: Factors) -> Tensor:
    return (left.a * right.a).sum((-2, -1)) + (left.b * right.b).sum((-2, -1))


def coordinates(base: BaseAdapter, update: Update, space: Space) -> Mapping[str, Factors]:
    """Express an update in a space, to be compared by `inner_by_layer` in the same one."""
    return effective_change(base, update) if space == Space.product else update.factors


def inner_by_layer(
    left: Mapping[str, Factors], right: Mapping[str, Factors], space: Space
) -> Tensor:
    """Return the inner products (..., 3, layers), q, k, v by layer, of what `coordinates` gave."""
    product = inner if space == Space.product else _factor_inner
    return torch.stack([product(left[p], right[p]) for p in PROJECTIONS], -2)


def cosine_and_norms(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare two updates from one base, per projection and layer; batch axes broadcast.

    Returns:
        Cosine, norm of left, norm of right, each (..., 3, layers). The cosine with a zero update
        is 0.
    """
    first, second = coordinates(base, left, space), coordinates(base, right, space)
    tiny = torch.finfo(first["q"].a.dtype).tiny
    left_norm = inner_by_layer(first, first, space).clamp_min(tiny).sqrt()
    right_norm = inner_by_layer(second, second, space).clamp_min(tiny).sqrt()
    cosine = inner_by_layer(first, second, space) / (left_norm * right_norm)
    return cosine, left_norm, right_norm


def total_cosine(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> Tensor:
    """Return the cosine (...) of two whole updates, all layers and projections as one vector."""
    first, second = coordinates(base, left, space), coordinates(base, right, space)
    dot = inner_by_layer(first, second, space).sum((-2, -1))
    left_square = inner_by_layer(first, first, space).sum((-2, -1))
    right_square = inner_by_layer(second, second, space).sum((-2, -1))
    tiny = torch.finfo(dot.dtype).tiny
    # a root of each: the product of two small squares would vanish in float32
    return dot / (left_square.clamp_min(tiny).sqrt() * right_square.clamp_min(tiny).sqrt())
