"""The one low-rank forward path: base adapter and update on every layer's q, k and v.

A projection with weight W and input h computes, for row i of a batch,
``W h + alpha/r (B + dB_i)(A + dA_i) h``. The terms of the base and of the update are kept apart, so
that a small update is not rounded away against the base, and a zero update gives the base bitwise.
Per-row updates are two batched products, of rank r and 2r: nothing is repeated per token. An update
for all rows may be added with the base, as one adapter of rank 3r, at the price of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    BaseAdapter,
    Factors,
    Update,
    check_base,
    check_shapes,
    tensors_of,
)
from raggd.data.prompts import Prompt
from raggd.records import RaggdError

_IN_USE: WeakSet[nn.Module] = WeakSet()  # models inside of `attach`: no second adapter


class Up(NamedTuple):
    """An update of one layer and projection, as its hook uses it."""

    down: Tensor  # dA, (updates, r, d_in)
    up: Tensor  # [B, dB], (updates, d_out, 2r)


def add_base(output: Tensor, code: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add ``scale B A h`` to a projection's output, which is overwritten without gradients.

    The code ``A h`` is (rows, tokens, r) or (rows * tokens, r), in the dtype of the output.
    """
    total, flat = output.flatten(0, -2), code.flatten(0, -2)
    if torch.is_grad_enabled():
        total = torch.addmm(total, flat, b.T, alpha=scale)
    else:  # the output is ours alone: adding in place saves a pass over memory
        total = total.addmm_(flat, b.T, alpha=scale)
    return total.view_as(output)


def add_update(output: Tensor, h: Tensor, code: Tensor, update: Up, scale: float) -> Tensor:
    """Add what an update changes beyond the base, ``scale (B dA + dB (A + dA)) h``.

    Added after the base: a zero update leaves the output bitwise. Updates are for all rows, or each
    for equally many consecutive ones.
    """
    count = len(update.down)
    grouped = [t.reshape(count, -1, t.shape[-1]) for t in (output, h, code)]
    step = torch.bmm(grouped[1], update.down.mT)
    # one product for B dA h and dB (A + dA) h: its sum is kept in full precision
    both = torch.cat([step, grouped[2] + step], -1)
    if torch.is_grad_enabled():
        total = torch.baddbmm(grouped[0], both, update.up.mT, alpha=scale)
    else:
        total = grouped[0].baddbmm_(both, update.up.mT, alpha=scale)
    return total.view_as(output)


class Codes:
    """The codes ``A h`` of a layer's three projections in one product, made for the first of them.

    On a card, where launching three small products takes longer than computing them.
    """

    def __init__(self, downs: Tensor) -> None:
        self.downs = downs  # the three A of a layer below each other, (3 r, d_in)
        self._seen: Tensor | None = None
        self._made: tuple[Tensor, ...] = ()

    def of(self, h: Tensor, place: int) -> Tensor:
        """Return the code (rows * tokens, r) of the projection at a place."""
        if h is not self._seen:
            made = functional.linear(h.flatten(0, -2), self.downs)
            self._seen, self._made = h, made.chunk(len(PROJECTIONS), -1)
        code = self._made[place]
        if place == len(PROJECTIONS) - 1:
            self._seen, self._made = None, ()
        return code


@dataclass(slots=True)
class Attached:
    """What is added to one projection of one layer; a forward hook."""

    base: Factors
    update: Up | None  # as the base, exchanged between passes
    scale: float
    group: int  # consecutive rows that share each of several updates
    place: int = 0  # of the projection among the layer's
    codes: Codes | None = None  # that the layer's projections share, where they do

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the projection's output (rows, tokens, d_out) with what is added to it."""
        h = inputs[0]
        if self.codes is None or torch.is_grad_enabled():
            code = functional.linear(h, self.base.a)
        else:
            code = self.codes.of(h, self.place)
        total = add_base(output, code, self.base.b, self.scale)
        if self.update is None:
            return total
        count, rows, group = len(self.update.down), h.shape[0], self.group
        if count != 1 and count * group != rows:  # otherwise rows would meet others' updates
            raise RaggdError(
                f"{count} updates for a batch of {rows} rows: give one per "
                f"{'row' if group == 1 else f'{group} rows'}, or a single one."
            )
        return add_update(total, h, code, self.update, self.scale)


def attached_to(backbone: Backbone) -> list[Attached]:
    """Return what an `attach` block has put on the projections now; empty outside of one."""
    modules = [m for p in PROJECTIONS for m in backbone.projections[p]]
    return [h for m in modules for h in m._forward_hooks.values() if isinstance(h, Attached)]


def _hooks(
    backbone: Backbone, base: BaseAdapter, update: Update | None, group: int, as_one: bool
) -> Iterator[tuple[nn.Module, Attached]]:
    # with every module what is attached to it, factors where the backbone is and in its type
    target, card = (backbone.device, backbone.dtype), backbone.device.type == "cuda"
    owns: dict[str, Factors] = {}
    ups: dict[str, list[Up]] = {}
    for projection in PROJECTIONS:
        own = Factors(*(t.to(*target) for t in base.factors[projection]))
        if update is not None:
            step = Factors(*(t.to(*target) for t in update.factors[projection]))
            if card and update.rows == 1:
                step = Factors(*(t[0] for t in step))
            if step.a.dim() == 3 and (as_one or card):  # launches are what time is spent on there
                own = _as_one(own, step)
            else:
                ups[projection] = _ups(own, step)
        owns[projection] = own
    downs = torch.cat([own.a for own in owns.values()], -2) if card else ()
    codes = [Codes(layer) for layer in downs]
    for place, (projection, own) in enumerate(owns.items()):
        for layer, module in enumerate(backbone.projections[projection]):
            factors = Factors(own.a[layer], own.b[layer])
            up, shared = ups.get(projection), codes[layer] if codes else None
            hook = Attached(
                factors, up[layer] if up else None, base.spec.scaling, group, place, shared
            )
            yield module, hook


def _as_one(base: Factors, step: Factors) -> Factors:
    # B A + B dA + dB (A + dA): its terms are still apart, and summed in full precision
    a = torch.cat([base.a, step.a, base.a + step.a], -2)
    return Factors(a, torch.cat([base.b, base.b, step.b], -1))


def _ups(base: Factors, step: Factors) -> list[Up]:
    # by layer; the products with B and with dB are one, so their factors are joined once, here
    downs, ups = step.a, torch.cat([base.b.expand_as(step.b), step.b], -1)
    if downs.dim() == 3:
        downs, ups = downs[None], ups[None]
    # batched products of matrices that lie apart, a model's layers between them, take twice as long
    downs, ups = (t.transpose(0, 1).contiguous() for t in (downs, ups))
    return [Up(down, up) for down, up in zip(downs, ups, strict=True)]


def check_fits(backbone: Backbone, base: BaseAdapter, update: Update | None = None) -> None:
    """Refuse a base adapter of another backbone, and an update of another base."""
    advice = "train a base adapter for it with `raggd train base`"
    backbone.check_made_for(base.backbone, "the base adapter", advice)
    if update is not None:
        check_base(base, update.base)
        check_shapes(base.spec, tensors_of(update.factors), "update")


def _check(backbone: Backbone, base: BaseAdapter | None, update: Update | None) -> None:
    if backbone.model in _IN_USE:
        raise RaggdError(
            f"backbone '{backbone.name}' already runs inside an attach block: leave that block "
            "first. Several updates go into one block, as rows of a batch."
        )
    if base is not None:
        check_fits(backbone, base, update)
    elif update is not None:
        raise RaggdError("an update needs the base adapter that it starts from: none was given.")


@contextmanager
def attach(
    backbone: Backbone,
    base: BaseAdapter | None,
    update: Update | None = None,
    group: int = 1,
    *,
    as_one: bool = False,
) -> Iterator[None]:
    """Run the backbone with a base adapter and an update inside a ``with`` block, one at a time.

    Gradients flow to the factors of both. Without a base the model stays as it is. An update with a
    leading axis is one per row of the batch, or per `group` consecutive rows. `as_one` adds one for
    all rows with the base in one product: faster, rounded otherwise; zeros give the base nearly.
    """
    _check(backbone, base, update)
    handles: list[RemovableHandle] = []
    _IN_USE.add(backbone.model)
    try:
        hooks = () if base is None else _hooks(backbone, base, update, group, as_one)
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _IN_USE.discard(backbone.model)


def mean_answer_loss(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    base: BaseAdapter | None = None,
    update: Update | None = None,
    soft: Tensor | None = None,
    opening: Tensor | None = None,
) -> Tensor:
    """Return the mean of `answer_losses`, row i with row i of the update, with gradients."""
    batch = make_batch(prompts, backbone, soft)
    with attach(backbone, base, update):
        return answer_losses(backbone, batch, opening).mean()


def check_gradients(gradients: list[Tensor]) -> None:
    """Refuse gradients (layers on axis -3) that are zero in a whole layer: a broken backward."""
    by_layer = [g.detach().abs().amax((-2, -1)) for g in gradients]
    reach = torch.stack([layers.reshape(-1, layers.shape[-1]).amax(0) for layers in by_layer])
    dead = (reach.amax(0) == 0).nonzero().flatten().tolist()
    if dead:
        raise RaggdError(
            f"no gradient reaches the adapter in layers {dead}: this backbone's backward pass is "
            "broken here (known for 4-bit weights on a processor). Load it in another dtype."
        )
