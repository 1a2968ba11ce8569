"""Fit a predictor to stored targets: minutes, since neither backbone nor encoder is run."""

from __future__ import annotations

from pathlib import Path

from raggd.adaptation.batching import BatchOrder
from raggd.adaptation.matching import matching_loss
from raggd.adaptation.optimizer import Progress, Trainer
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.target_store import Targets, denoised
from raggd.core.alignment import Space
from raggd.core.low_rank import BaseAdapter, update_from_vector
from raggd.records import RaggdError, content_id
from raggd.settings import PredictorSettings


def check_targets(base: BaseAdapter, targets: Targets) -> None:
    """Refuse targets of another base adapter, or none at all.

    Args:
        base: the adapter to predict for.
        targets: stored targets.

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


def train_predictor(
    base: BaseAdapter,
    targets: Targets,
    settings: PredictorSettings,
    *,
    checkpoint: Path,
    progress: Progress = lambda *_: None,
) -> tuple[MLPPredictor, list[float]]:
    """Train the MLP predictor on the matching loss (paper equation 9).

    Stopped at any moment and called again with the same arguments, it continues from
    `checkpoint` to the same result.

    Args:
        base: W0.
        targets: training targets with their encoder states; averaged over the task's other sets
            when ``settings.denoise`` is set.
        settings: sizes, space, rates.
        checkpoint: file to continue from and to write.
        progress: told step, steps, and the loss per layer and projection.

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
    parameters = dict(predictor.named_parameters())
    trainer = Trainer(parameters, settings, identity=identity, warmup=settings.steps // 20)
    places = 3 * base.spec.layers
    order = BatchOrder([0] * len(targets), min(settings.batch, len(targets)), settings.seed)

    def differentiate(step: int) -> float:
        numbers = order(step)
        rows, states = (t[numbers].to(base.device) for t in (goal.vectors, targets.states))
        wanted = update_from_vector(base.spec, rows.float(), base.fingerprint)
        losses = matching_loss(
            base,
            predictor(states),
            wanted,
            space=Space(settings.space),
            norm_weight=settings.norm_weight,
        )
        loss = losses.mean() / places
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    trainer.run(differentiate, checkpoint, progress)
    return predictor.eval().requires_grad_(False), trainer.history
