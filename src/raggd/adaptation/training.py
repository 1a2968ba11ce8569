"""Fitting a predictor: to stored targets by the matching loss, or through answers (HyperTuning).

Matching runs no backbone and takes minutes. HyperTuning learns from the answer loss of other
questions, with the support sets and encoder states of the same store of targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from raggd.adaptation.optimizer import DEFAULTS, Session, examples_id
from raggd.adaptation.predictors.base import HIDDEN, MLPPredictor
from raggd.adaptation.targets import Targets, denoised
from raggd.backbone.interface import mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    BaseAdapter,
    Space,
    Update,
    check_base,
    cosine_and_norms,
    update_from_vector,
)
from raggd.data.prompts import Prompt
from raggd.records import Question, RaggdError, content_id
from raggd.settings import HyperTuningSettings, PredictorSettings, TrainingSettings


def matching_loss(
    base: BaseAdapter,
    predicted: Update,
    target: Update,
    *,
    space: Space = Space.product,
    norm_weight: float = 0.1,  # lambda of equation 9
) -> Tensor:
    """Sum ``1 - cos + lambda |log(|pred| / |target|)|`` over layers and projections: (n,).

    Layers whose target is zero have no direction to match and are left out.
    """
    cosine, predicted_norm, target_norm = cosine_and_norms(base, predicted, target, space)
    present = target_norm > torch.finfo(target_norm.dtype).tiny ** 0.5
    ratio = (predicted_norm.clamp_min(1e-20) / target_norm.clamp_min(1e-20)).log().abs()
    losses: Tensor = (1 - cosine + norm_weight * ratio) * present
    return losses.sum((-2, -1))


def check_targets(base: BaseAdapter, targets: Targets) -> None:
    """Refuse targets of another base adapter, or fewer than two."""
    check_base(base, targets.base, "a store of targets", "make one with `raggd targets`")
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


def fresh_predictor(
    base: BaseAdapter, targets: Targets, latent: int, seed: int, mean: bool = False
) -> MLPPredictor:
    """Make an untrained predictor on the CPU: no update for all sets, or the mean target."""
    width = targets.states.shape[-1]
    predictor = MLPPredictor(base.spec, base.fingerprint, width, HIDDEN, latent)
    predictor.fit_units(targets.states, targets.vectors, seed)
    if not mean:  # the mean target would be RAG-GD's supervision
        torch.nn.init.zeros_(predictor.bias)
    return predictor


def train_predictor(
    base: BaseAdapter, targets: Targets, session: Session[PredictorSettings]
) -> tuple[MLPPredictor, list[float]]:
    """Train the MLP predictor on the matching loss (paper equation 9); with it every step's."""
    check_targets(base, targets)
    settings, seed = session.settings, session.common.seed
    goal = denoised(targets) if settings.denoise else targets
    predictor = fresh_predictor(base, goal, settings.latent, seed, mean=True).to(base.device)
    identity = content_id(targets.identity, *targets.support_ids)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        rows, states = (t[list(numbers)].to(base.device) for t in (goal.vectors, targets.states))
        wanted = update_from_vector(base.spec, rows.float(), base.fingerprint)
        losses = matching_loss(base, predictor(states), wanted, space=Space(settings.space))
        return losses.mean() / (3 * base.spec.layers)

    named, warmup = dict(predictor.named_parameters()), settings.steps // 20
    alike = [0] * len(targets)  # all examples are of one length
    history = session.train(named, alike, loss_of, identity, warmup=warmup)
    return predictor.eval().requires_grad_(False), history


def plan_lessons(
    targets: Targets,
    pools: Mapping[str, Sequence[Question]],
    settings: HyperTuningSettings,
    common: TrainingSettings = DEFAULTS,
) -> list[tuple[int, Question]]:
    """Choose ``steps * batch * accumulate`` sets, by number and in turn, each with a question."""
    lessons = []
    order: list[int] = []
    places = {task: {q.id: i for i, q in enumerate(pool)} for task, pool in pools.items()}
    for number in range(settings.steps * settings.batch * common.accumulate):
        lap, at = divmod(number, len(targets))
        if at == 0:
            order = np.random.default_rng([common.seed, lap]).permutation(len(targets)).tolist()
        support = order[at]
        task = targets.tasks[support]
        pool, place = pools.get(task, ()), places.get(task, {})
        own = sorted(place[i] for i in set(targets.demonstration_ids[support]) & place.keys())
        if len(own) == len(pool):
            raise RaggdError(
                f"task '{task}' of the target store has no further training question to learn "
                "from: give the data that the targets were made from."
            )
        choice = np.random.default_rng([common.seed, 1, number])
        chosen = int(choice.integers(len(pool) - len(own)))
        for taken in own:  # the chosen one among those that are not the support set's own
            chosen += taken <= chosen
        lessons.append((support, pool[chosen]))
    return lessons


def train_hyper(
    backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: Sequence[tuple[int, Prompt]],
    sizes: PredictorSettings,
    session: Session[HyperTuningSettings],
    start: MLPPredictor | None = None,
    constant: bool = False,
) -> tuple[MLPPredictor, list[float]]:
    """Train the MLP predictor through the answer loss, every row with its own predicted update.

    A lesson is the number of a support set, whose states the targets hold, and an answered prompt
    of its task. If it is `constant`, the head's bias alone is trained, from the mean target.
    `start` is a trained predictor to go on from, changed in place. With it comes every step's loss.
    """
    check_targets(base, targets)
    prompts = [prompt for _, prompt in lessons]
    seed = session.common.seed
    predictor = start or fresh_predictor(base, targets, sizes.latent, seed, mean=constant)
    predictor.train().requires_grad_(not constant)
    predictor.bias.requires_grad_(True)
    start_digest = sha256()
    for name, tensor in sorted(predictor.state_dict().items()):
        start_digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    identity = content_id(
        "hyper",
        start_digest.hexdigest(),
        base.fingerprint,
        targets.identity,
        *targets.support_ids,
        examples_id(prompts),
        str([support for support, _ in lessons]),
        str((sizes.latent, constant)),
    )
    predictor.to(backbone.device)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        states = targets.states[[lessons[i][0] for i in numbers]]
        update = predictor(states.to(backbone.device))
        return mean_answer_loss(backbone, [prompts[i] for i in numbers], base, update)

    trained = {n: p for n, p in predictor.named_parameters() if p.requires_grad}
    lengths = [len(p.tokens) for p in prompts]
    history = session.train(trained, lengths, loss_of, identity)
    return predictor.eval().requires_grad_(False), history
