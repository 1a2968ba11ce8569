"""Targets: the update that K steps of SGD on a support set would make (paper equation 8)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from raggd.adaptation.encoder import encode_batch, equal_size, support_batch
from raggd.backbone.batch import Batch, answer_losses
from raggd.backbone.interface import attach, check_fits, check_gradients
from raggd.backbone.load import Backbone
from raggd.core.inner_sgd import inner_sgd
from raggd.core.low_rank import BaseAdapter, Update, factors_of, tensors_of
from raggd.records import SupportSet
from raggd.settings import TargetSettings


def sgd_updates(
    backbone: Backbone,
    base: BaseAdapter,
    batch: Batch,
    sets: int,
    settings: TargetSettings,
    start: Update | None = None,
) -> tuple[Update, Tensor]:
    """Run the inner loop of several support sets at once, each with its own update.

    Arguments as of `sgd_trajectory`; K is ``settings.steps``.

    Returns:
        The updates ``W^(K) - W0`` with a leading axis of `sets`, detached, and the loss of the
        sets' sum before each step, shape (K,).
    """
    wanted = {settings.steps}
    updates, losses = sgd_trajectory(backbone, base, batch, sets, settings, wanted, start)
    return updates[settings.steps], losses


def sgd_trajectory(
    backbone: Backbone,
    base: BaseAdapter,
    batch: Batch,
    sets: int,
    settings: TargetSettings,
    at: Collection[int],
    start: Update | None = None,
) -> tuple[dict[int, Update], Tensor]:
    """Run the inner loop once and keep the updates after several numbers of steps.

    The loss of a set is the mean over its demonstrations of the mean answer-token cross-entropy.
    The sum over sets is differentiated with respect to the per-set updates, so no set sees
    another's gradient.

    Args:
        backbone: the frozen model.
        base: W0, the point that all start from.
        batch: demonstrations of all sets, set after set, equally many each.
        sets: number of sets.
        settings: eta.
        at: the numbers of steps K; the largest is run.
        start: an update per set to start from instead (sets leading).

    Returns:
        By K, the updates ``W^(K) - W0`` with a leading axis of `sets`, detached; and the loss of
        the sets' sum before each step, shape (largest K,).
    """
    per_set = batch.tokens.shape[0] // sets
    fingerprint = base.fingerprint
    names = list(base.spec.shapes)

    def loss(steps: list[Tensor]) -> Tensor:
        update = Update(base.spec, factors_of(dict(zip(names, steps, strict=True))), fingerprint)
        with attach(backbone, base, update, group=per_set):
            return answer_losses(backbone, batch).sum() / per_set

    if start is None:
        shapes = base.spec.shapes.values()
        first = [torch.zeros(sets, *shape, device=backbone.device) for shape in shapes]
    else:
        check_fits(backbone, base, start)
        first = [t.float().to(backbone.device) for t in tensors_of(start.factors).values()]
    reached = {0: first}

    def watch(taken: int, current: list[Tensor]) -> None:
        if taken in at:
            check_gradients(current)
            reached[taken] = [p.detach() for p in current]

    _, history = inner_sgd(loss, first, settings.learning_rate, max(at), watch)
    updates = {
        k: Update(base.spec, factors_of(dict(zip(names, reached[k], strict=True))), fingerprint)
        for k in at
    }
    return updates, torch.tensor(history)


def targets_of(
    backbone: Backbone,
    base: BaseAdapter,
    supports: Sequence[SupportSet],
    settings: TargetSettings,
) -> tuple[dict[int, Update], Tensor]:
    """Compute the targets and encoder states of support sets of equal size in one batch.

    Returns:
        By K, the updates (sets leading); and the states (sets, N, hidden size).
    """
    size = equal_size(supports)
    batch = support_batch(backbone, supports, settings.max_tokens)
    wanted = {settings.steps, *settings.keep}
    updates, _ = sgd_trajectory(backbone, base, batch, len(supports), settings, wanted)
    states = encode_batch(backbone, base, batch)
    return updates, states.reshape(len(supports), size, -1)
