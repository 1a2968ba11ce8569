"""Low-rank adapters and their updates: shapes, algebra, likeness (equation 9), storage.

The evidence-use interface is a LoRA on the q, k and v projections of every layer (paper
section 5). A base adapter holds its factors A and B; an update is a step (dA, dB) in those factor
coordinates. Layers are stacked, so an adapter or an update is six tensors, and a batch of updates
the same six with a leading axis.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

PROJECTIONS = ("q", "k", "v")
UPDATE_KIND = "raggd update"  # what the header of an update's file says that it is


class Factors(NamedTuple):
    """A stack of products ``b @ a``: a is (..., layers, r, d_in), b (..., layers, d_out, r)."""

    a: Tensor
    b: Tensor


def dense(factors: Factors) -> Tensor:
    """Return the products, (..., layers, d_out, d_in). For tests and merging only."""
    return factors.b @ factors.a


def inner(left: Factors, right: Factors) -> Tensor:
    """Frobenius inner products of two stacks of products, (..., layers); their ranks may differ."""
    # from Gram matrices of the factors, never from the dense d_out x d_in
    return ((left.b.mT @ right.b) * (left.a @ right.a.mT)).sum((-2, -1))


def norm(factors: Factors) -> Tensor:
    """Return the Frobenius norms of the products, (..., layers)."""
    return inner(factors, factors).clamp_min(0).sqrt()


def concat(parts: Sequence[Factors]) -> Factors:
    """Return the sum of products by rank concatenation, ``[b1, b2] [a1; a2] = b1 a1 + b2 a2``."""
    return Factors(torch.cat([p.a for p in parts], -2), torch.cat([p.b for p in parts], -1))


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Shape of an interface: how many layers, which widths, rank and scale."""

    layers: int
    d_in: int  # of q, k and v: the hidden size
    d_out: tuple[int, int, int]  # of q, k and v
    rank: int
    alpha: float  # LoRA's: products are scaled by alpha / rank

    @property
    def scaling(self) -> float:
        """The factor alpha / rank before every product."""
        return self.alpha / self.rank

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of the six tensors, by name (``q.a``, ``q.b``, ...), in storage order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for projection, width in zip(PROJECTIONS, self.d_out, strict=True):
            shapes[f"{projection}.a"] = (self.layers, self.rank, self.d_in)
            shapes[f"{projection}.b"] = (self.layers, width, self.rank)
        return shapes

    def to_json(self) -> str:
        """Return the spec as JSON, for the header of a weight file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AdapterSpec:
        """Return the spec that `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "d_out": tuple(raw["d_out"])})

    @property
    def size(self) -> int:
        """Number of parameters of one adapter or one update."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def tensors_of(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return the six tensors by name (``q.a``, ``q.b``, ``k.a``, ...), in storage order."""
    return {
        f"{p}.{part}": getattr(factors[p], part) for p in PROJECTIONS for part in Factors._fields
    }


def factors_of(tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Return the factors that `tensors_of` named."""
    return {p: Factors(tensors[f"{p}.a"], tensors[f"{p}.b"]) for p in PROJECTIONS}


def check_shapes(spec: AdapterSpec, tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors (batch axes may lead) that a spec does not describe; `what` names them."""
    for name, shape in spec.shapes.items():
        if name not in tensors:
            raise RaggdError(f"{what}: tensor '{name}' is missing; expected shape {shape}.")
        if tuple(tensors[name].shape[-3:]) != shape:
            raise RaggdError(
                f"{what}: tensor '{name}' has shape {tuple(tensors[name].shape)}, expected "
                f"{shape}. It was made for another backbone or rank."
            )


@dataclass(frozen=True)
class BaseAdapter:
    """The shared interface W0: factors per projection, layers stacked."""

    spec: AdapterSpec
    factors: Mapping[str, Factors]
    backbone: str  # fingerprint of the one that it was trained with

    def __post_init__(self) -> None:
        check_shapes(self.spec, tensors_of(self.factors), "base adapter")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the spec, the backbone's weights and every weight (in float32), taken once."""
        weights = self.backbone.partition("-")[0]  # the tokenizer is compared where it is used
        digest = hashlib.sha256(f"{self.spec}|{weights}".encode())
        for tensor in tensors_of(self.factors).values():
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def untrained(self) -> bool:
        """Whether it changes nothing yet: B is zero."""
        return not any(bool(factors.b.any()) for factors in self.factors.values())

    @property
    def device(self) -> torch.device:
        """Where its tensors are: with the backbone that it is used with."""
        return self.factors["q"].a.device

    def to(self, device: torch.device) -> BaseAdapter:
        """Return it on a device; itself where it is there already."""
        if device == self.device:
            return self
        factors = {p: Factors(f.a.to(device), f.b.to(device)) for p, f in self.factors.items()}
        moved = replace(self, factors=factors)
        moved.__dict__["fingerprint"] = self.fingerprint  # the values are the same
        return moved

    def zero_update(self) -> Update:
        """Return the update that changes nothing."""
        return Update(self.spec, self.factors, self.fingerprint).map(torch.zeros_like)


@dataclass(frozen=True, slots=True)
class Update:
    """A step (dA, dB) in factor coordinates from one named base; may carry a leading batch axis."""

    spec: AdapterSpec
    factors: Mapping[str, Factors]  # dA as ``a``, dB as ``b``, per projection
    base: str  # fingerprint of the base adapter that it starts from

    @property
    def rows(self) -> int | None:
        """Length of the leading batch axis; None for a single update."""
        leading = self.factors["q"].a.shape[:-3]
        return int(leading[0]) if leading else None

    def map(self, function: Callable[[Tensor], Tensor]) -> Update:
        """Return the update with a function applied to each of the six tensors."""
        new = {p: Factors(function(f.a), function(f.b)) for p, f in self.factors.items()}
        return replace(self, factors=new)

    def __add__(self, other: Update) -> Update:
        """Add two steps from the same base, factor by factor; others are refused."""
        return _joined([self, other], lambda both: both[0] + both[1])

    def __mul__(self, scale: float) -> Update:
        """Return the step scaled in factor coordinates."""
        return self.map(lambda tensor: tensor * scale)

    __rmul__ = __mul__

    def __sub__(self, other: Update) -> Update:
        """Return the difference to another step from the same base."""
        return self + (-1.0) * other

    def to(self, device: torch.device) -> Update:
        """Return the step on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def row(self, index: int) -> Update:
        """Return one update of a batch."""
        return self.map(lambda tensor: tensor[index])

    def vector(self) -> Tensor:
        """Return all entries as (..., spec.size), in storage order."""
        parts = tensors_of(self.factors).values()
        return torch.cat([t.flatten(-3) for t in parts], -1)

    def save(self, path: Path | str) -> None:
        """Write a single update or a batch to a file that `load_update` reads."""
        metadata = {"kind": UPDATE_KIND, "spec": self.spec.to_json(), "base": self.base}
        save_tensors(Path(path), tensors_of(self.factors), metadata)


def update_from_vector(spec: AdapterSpec, vector: Tensor, base: str) -> Update:
    """Undo `Update.vector`: from (..., spec.size) to an update with the same leading axes."""
    sizes = [torch.Size(shape).numel() for shape in spec.shapes.values()]
    named = zip(spec.shapes.items(), torch.split(vector, sizes, -1), strict=True)
    lead = vector.shape[:-1]
    tensors = {name: part.reshape(*lead, *shape) for (name, shape), part in named}
    return Update(spec, factors_of(tensors), base)


def _joined(updates: Sequence[Update], join: Callable[[list[Tensor]], Tensor]) -> Update:
    if len(bases := {update.base for update in updates}) > 1:
        raise RaggdError(
            f"cannot join updates of different bases, {', '.join(sorted(bases))}: factor steps are "
            "only comparable from one base adapter."
        )
    named = [tensors_of(update.factors) for update in updates]
    joined = {name: join([tensors[name] for tensors in named]) for name in named[0]}
    return replace(updates[0], factors=factors_of(joined))


def stack_updates(updates: Sequence[Update]) -> Update:
    """Batch single updates along a new leading axis; updates of different bases are refused."""
    return _joined(updates, torch.stack)


def check_base(
    base: BaseAdapter,
    recorded: str,
    what: str = "the update",
    advice: str = "predict it again with a predictor of this base",
) -> None:
    """Refuse what starts from another base, whose fingerprint it recorded; both are named."""
    if recorded != base.fingerprint:
        raise RaggdError(
            f"{what} starts from base adapter {recorded}, but the one in use is "
            f"{base.fingerprint}: {advice}."
        )


def effective_change(base: BaseAdapter, update: Update) -> dict[str, Factors]:
    """Return the change of the effective weights, ``alpha/r ((B+dB)(A+dA) - BA)``, in rank 2r.

    Its factors are, per projection, ``[A; dA]`` and ``alpha/r [dB, B + dB]``.
    """
    change = {}
    for projection in PROJECTIONS:
        (a, b), (da, db) = base.factors[projection], update.factors[projection]
        right, left = torch.cat([a.expand_as(da), da], -2), torch.cat([db, b + db], -1)
        change[projection] = Factors(right, base.spec.scaling * left)
    return change


def effective_weight(base: BaseAdapter, update: Update | None = None) -> dict[str, Factors]:
    """Return base and update as one low-rank product per projection, scale included (rank r)."""
    result = {}
    for projection in PROJECTIONS:
        a, b = base.factors[projection]
        if update is not None:
            a, b = a + update.factors[projection].a, b + update.factors[projection].b
        result[projection] = Factors(a, base.spec.scaling * b)
    return result


def load_update(path: Path | str) -> Update:
    """Read what `Update.save` wrote, to the CPU; anything else, or a damaged file, is refused."""
    tensors, metadata = load_tensors(Path(path), UPDATE_KIND, "`update.save(file)` writes one")
    spec = AdapterSpec.from_json(metadata["spec"])
    check_shapes(spec, tensors, str(path))
    return Update(spec, factors_of(tensors), metadata["base"])


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


def _cosine(dot: Tensor, *squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # a root of each: the product of two small squares would vanish in float32
    left, right = (s.clamp_min(torch.finfo(s.dtype).tiny).sqrt() for s in squares)
    return dot / (left * right), left, right


def cosine_and_norms(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare two updates from one base, per projection and layer; batch axes broadcast.

    Cosine, norm of left, norm of right, each (..., 3, layers). The cosine with a zero update is 0.
    """
    return _cosine(*_products(base, left, right, space))


def total_cosine(
    base: BaseAdapter, left: Update, right: Update, space: Space = Space.product
) -> Tensor:
    """Return the cosine (...) of two whole updates, all layers and projections as one vector."""
    return _cosine(*(p.sum((-2, -1)) for p in _products(base, left, right, space)))[0]
