"""The one low-rank forward path: base adapter and update on every layer's q, k and v.

A projection with weight W and input h computes, for row i of a batch,
``W h + alpha/r (B + dB_i)(A + dA_i) h``. The terms of the base and of the update are kept apart, so
that a small update is not rounded away against the base, and a zero update gives the base bitwise.
Per-row updates are two batched products of rank r: nothing is repeated per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

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
from raggd.records import RaggdError

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]
_IN_USE: WeakSet[nn.Module] = WeakSet()
"""Models inside an `attach` block: a second block would silently add a second adapter."""


def base_change(h: Tensor, base: Factors, scale: float) -> Tensor:
    """Change of a projection's output by the base adapter alone.

    Args:
        h: inputs (rows, tokens, d_in).
        base: factors of one layer, a (r, d_in) and b (d_out, r), in the dtype of h.
        scale: alpha / r.

    Returns:
        (rows, tokens, d_out).
    """
    return functional.linear(functional.linear(h, base.a), base.b) * scale


def adapted_change(h: Tensor, base: Factors, update: Factors, scale: float) -> Tensor:
    """Change of a projection's output by base and update, ``scale (B + dB)(A + dA) h``.

    Args:
        h: inputs (rows, tokens, d_in).
        base: factors of one layer, a (r, d_in) and b (d_out, r).
        update: steps of the same shape for all rows, or with a leading axis of `rows`.
        scale: alpha / r.

    Returns:
        (rows, tokens, d_out).
    """
    code = functional.linear(h, base.a)
    step = h @ update.a.mT
    # b acts on code and step apart: their sum would lose a small step to rounding
    from_base = functional.linear(code, base.b)
    from_update = functional.linear(step, base.b) + (code + step) @ update.b.mT
    return (from_base + from_update) * scale


def _hook(base: Factors, update: Factors | None, scale: float) -> Hook:
    def add_change(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        h = inputs[0]
        if update is None:
            return output + base_change(h, base, scale)
        _check_rows(h, update)
        return output + adapted_change(h, base, update, scale)

    return add_change


def _check_rows(h: Tensor, update: Factors) -> None:
    rows = update.a.shape[0] if update.a.dim() > 2 else 1
    if rows != 1 and rows != h.shape[0]:  # otherwise one row would be repeated for every update
        raise RaggdError(
            f"{rows} updates for a batch of {h.shape[0]} rows: give one per row, or a single one."
        )


def _prepared(owner: BaseAdapter | Update, projection: str, backbone: Backbone) -> Factors:
    a, b = owner.factors[projection]
    target = (backbone.device, backbone.dtype)
    return Factors(a.to(*target), b.to(*target))


def _layer(factors: Factors, layer: int) -> Factors:
    return Factors(factors.a[..., layer, :, :], factors.b[..., layer, :, :])


def check_fits(backbone: Backbone, base: BaseAdapter, update: Update | None = None) -> None:
    """Refuse a base adapter of another backbone, and an update of another base.

    Args:
        backbone: the frozen model.
        base: the shared interface.
        update: a step from it.

    Raises:
        RaggdError: they do not belong together; the fingerprints are named.
    """
    if base.backbone != backbone.fingerprint:
        raise RaggdError(
            f"the base adapter was made for backbone {base.backbone}, but '{backbone.name}' is "
            f"{backbone.fingerprint}: train a base adapter for it with `raggd train base`."
        )
    if update is not None:
        check_base(base, update)
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
    backbone: Backbone, base: BaseAdapter | None, update: Update | None = None
) -> Iterator[None]:
    """Run the backbone with a base adapter and an update inside a ``with`` block.

    Gradients flow to the factors of both. The backbone is restored when the block ends, by an
    exception too.

    Args:
        backbone: the frozen model.
        base: the shared interface; None leaves the model as it is.
        update: a step from that base; with a leading axis, one per row of the batch.

    Yields:
        Nothing.

    Raises:
        RaggdError: base and backbone, or update and base, do not belong together; an update was
            given without a base; or the backbone already runs inside another such block.
    """
    _check(backbone, base, update)
    handles: list[RemovableHandle] = []
    _IN_USE.add(backbone.model)
    try:
        if base is not None:
            _register(backbone, base, update, handles)
        yield
    finally:
        for handle in handles:
            handle.remove()
        _IN_USE.discard(backbone.model)


def _register(
    backbone: Backbone, base: BaseAdapter, update: Update | None, handles: list[RemovableHandle]
) -> None:
    for projection in PROJECTIONS:
        stacked = _prepared(base, projection, backbone)
        steps = _prepared(update, projection, backbone) if update else None
        for layer, module in enumerate(backbone.projections[projection]):
            step = _layer(steps, layer) if steps else None
            hook = _hook(_layer(stacked, layer), step, base.spec.scaling)
            handles.append(module.register_forward_hook(hook))


def rows_of(update: Update, rows: Tensor) -> Update:
    """Give every row of a batch its update: differentiable gather along the batch axis.

    Args:
        update: a batch of updates (sets first).
        rows: for each row of the batch, the index of its update.

    Returns:
        An update whose leading axis is the batch of rows.
    """
    return update.map(lambda tensor: tensor.index_select(0, rows))


def check_gradients(gradients: list[Tensor]) -> None:
    """Refuse gradients that are zero in a whole layer (a silently broken quantised backward).

    Args:
        gradients: gradients with the layers on axis -3.

    Raises:
        RaggdError: some layer received no gradient in any tensor.
    """
    by_layer = [g.detach().abs().amax((-2, -1)) for g in gradients]
    reach = torch.stack([layers.reshape(-1, layers.shape[-1]).amax(0) for layers in by_layer])
    dead = (reach.amax(0) == 0).nonzero().flatten().tolist()
    if dead:
        raise RaggdError(
            f"no gradient reaches the adapter in layers {dead}: this backbone's backward pass is "
            "broken here (known for 4-bit weights on a processor). Load it in another dtype."
        )
