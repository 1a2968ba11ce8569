"""Fit a predictor to stored targets by the matching loss: minutes, no backbone is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.optimizer import Progress, train
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.target_store import Targets, denoised
from raggd.core.alignment import Space, cosine_and_norms
from raggd.core.low_rank import BaseAdapter, Update, update_from_vector
from raggd.records import RaggdError, content_id
from raggd.settings import PredictorSettings


def matching_loss(
    base: BaseAdapter,
    predicted: Update,
    target: Update,
    *,
    space: Space = Space.product,
    norm_weight: float = 0.1,
) -> Tensor:
    """Sum over layers and projections of ``1 - cos + lambda |log(|pred| / |target|)|``: (n,).

    `predicted` and `target` have a leading axis of n. Layers whose target is zero have no direction
    to match and are left out.
    """
    cosine, predicted_norm, target_norm = cosine_and_norms(base, predicted, target, space)
    present = target_norm > torch.finfo(target_norm.dtype).tiny ** 0.5
    ratio = (predicted_norm.clamp_min(1e-20) / target_norm.clamp_min(1e-20)).log().abs()
    losses: Tensor = (1 - cosine + norm_weight * ratio) * present
    return losses.sum((-2, -1))


def check_targets(base: BaseAdapter, targets: Targets) -> None:
    """Refuse targets of another base adapter, or none at all.

    Raises:
        RaggdError: the fingerprints differ, or there are fewer than two targets.
    """
    if targets.base != base.fingerprint:
        raise RaggdError(
            f"the targets start from base adapter {targets.base}, the base adapter given is "
            f"{base.fingerprint}: make targets for it with `raggd targets`."
        )
    if len(targets) < 2:
        raise RaggdError("a predictor needs at least two targets: raise target.per_benchmark.")


def task_means(base: BaseAdapter, stores: Sequence[Targets]) -> dict[str, Tensor]:
    """Average the targets of each task over all stores: (spec.size,) float32, by name of task."""
    rows: dict[str, list[Tensor]] = {}
    for store in stores:
        check_targets(base, store)
        for task, vector in zip(store.tasks, store.vectors, strict=True):
            rows.setdefault(task, []).append(vector)
    return {task: torch.stack(rows[task]).float().mean(0) for task in sorted(rows)}


def train_predictor(
    base: BaseAdapter,
    targets: Targets,
    settings: PredictorSettings,
    *,
    checkpoint: Path,
    progress: Progress = lambda *_: None,
) -> tuple[MLPPredictor, list[float]]:
    """Train the MLP predictor on the matching loss (paper equation 9), on training targets.

    They are averaged over the task's other sets when ``settings.denoise`` is set. Stopped at any
    moment and called again with the same arguments, it continues from `checkpoint` to the same
    result.

    Returns:
        The predictor and the loss of every step (mean over layers and projections).
    """
    check_targets(base, targets)
    goal = denoised(targets) if settings.denoise else targets
    width = targets.states.shape[-1]
    predictor = MLPPredictor(base.spec, base.fingerprint, width, settings.hidden, settings.latent)
    predictor.fit_units(targets.states, goal.vectors, settings.seed)
    predictor.to(base.device)
    identity = content_id(targets.identity, *targets.support_ids, settings.model_dump_json())

    def loss_of(numbers: Sequence[int]) -> Tensor:
        rows, states = (t[list(numbers)].to(base.device) for t in (goal.vectors, targets.states))
        wanted = update_from_vector(base.spec, rows.float(), base.fingerprint)
        losses = matching_loss(
            base,
            predictor(states),
            wanted,
            space=Space(settings.space),
            norm_weight=settings.norm_weight,
        )
        return losses.mean() / (3 * base.spec.layers)

    history = train(
        dict(predictor.named_parameters()),
        [0] * len(targets),
        loss_of,
        settings,
        identity=identity,
        checkpoint=checkpoint,
        progress=progress,
        warmup=settings.steps // 20,
    )
    return predictor.eval().requires_grad_(False), history
