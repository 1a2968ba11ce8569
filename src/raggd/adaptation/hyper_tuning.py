"""HyperTuning: the predictor trained through the answer loss of other questions, without targets.

The supports and their encoder states come from the store of targets, so that it learns from the
same support sets as RAG-GD's predictor, and only the other question is run forward and backward.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raggd.adaptation.optimizer import Progress, examples_id, train
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.target_store import Targets
from raggd.adaptation.training import check_targets
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt
from raggd.records import Question, RaggdError, content_id
from raggd.settings import HyperTuningSettings, PredictorSettings


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the predictor learns from at once: a support set's number and another question."""

    support: int
    question: Question


def plan_lessons(
    targets: Targets, pools: Mapping[str, Sequence[Question]], settings: HyperTuningSettings
) -> list[Lesson]:
    """Choose all ``steps * batch * accumulate`` lessons: a pure function of its arguments.

    All support sets have a turn before one has another; `pools` are training questions by task.

    Raises:
        RaggdError: a task has no question besides those of a support set.
    """
    lessons = []
    order: list[int] = []
    places = {task: {q.id: i for i, q in enumerate(pool)} for task, pool in pools.items()}
    for number in range(settings.steps * settings.batch * settings.accumulate):
        lap, at = divmod(number, len(targets))
        if at == 0:
            shuffle = np.random.default_rng([settings.seed, lap])
            order = [int(i) for i in shuffle.permutation(len(targets))]
        support = order[at]
        task = targets.tasks[support]
        pool, place = pools.get(task, ()), places.get(task, {})
        own = sorted(place[i] for i in set(targets.demonstration_ids[support]) & place.keys())
        if len(own) == len(pool):
            raise RaggdError(
                f"task '{task}' of the target store has no further training "
                "question to learn from: give the data that the targets were made from."
            )
        choice = np.random.default_rng([settings.seed, 1, number])
        chosen = int(choice.integers(len(pool) - len(own)))
        for taken in own:  # the chosen one among those that are not the support set's own
            chosen += taken <= chosen
        lessons.append(Lesson(support, pool[chosen]))
    return lessons


def fresh_predictor(
    base: BaseAdapter, targets: Targets, sizes: PredictorSettings, seed: int, mean: bool = False
) -> MLPPredictor:
    """Make an untrained predictor in the units of the targets: one update for all support sets.

    That update is the mean target if `mean` is set; otherwise it is zero. It is on the CPU.
    """
    width = targets.states.shape[-1]
    predictor = MLPPredictor(base.spec, base.fingerprint, width, sizes.hidden, sizes.latent)
    predictor.fit_units(targets.states, targets.vectors, seed)
    if not mean:  # the mean target would be RAG-GD's supervision
        torch.nn.init.zeros_(predictor.bias)
    return predictor


def _content(predictor: MLPPredictor) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(predictor.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def train_hyper(
    backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: Sequence[tuple[int, Prompt]],
    sizes: PredictorSettings,
    settings: HyperTuningSettings,
    *,
    checkpoint: Path,
    progress: Progress = lambda *_: None,
    start: MLPPredictor | None = None,
) -> tuple[MLPPredictor, list[float]]:
    """Train the MLP predictor through the answer loss, every row with its own predicted update.

    Stopped at any moment and called again with the same arguments, it continues from
    `checkpoint` to the same result.

    Args:
        backbone: the frozen model.
        base: W0, frozen.
        targets: support sets with their encoder states.
        lessons: number of a support set and an answered prompt of its task.
        sizes: of the predictor.
        settings: steps, batch, rates; with ``start = "mean"`` the bias of the head alone is
            trained, which stays one update for all support sets.
        checkpoint: file to continue from and to write.
        progress: told every step.
        start: a trained predictor to go on from, changed in place; None for an untrained one.

    Returns:
        The predictor and the loss of every step.
    """
    check_targets(base, targets)
    prompts = [prompt for _, prompt in lessons]
    constant = settings.start == "mean"
    predictor = start or fresh_predictor(base, targets, sizes, settings.seed, mean=constant)
    predictor.train().requires_grad_(not constant)
    predictor.bias.requires_grad_(True)
    identity = content_id(
        "hyper",
        _content(predictor),
        base.fingerprint,
        targets.identity,
        *targets.support_ids,
        examples_id(prompts),
        str([support for support, _ in lessons]),
        str((sizes.hidden, sizes.latent)),
        settings.model_dump_json(),
    )
    predictor.to(backbone.device)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        states = targets.states[[lessons[i][0] for i in numbers]]
        update = predictor(states.to(backbone.device))
        shown = [prompts[i] for i in numbers]
        batch = make_batch(shown, backbone.tokenizer.pad_token_id, backbone.device)
        with attach(backbone, base, update):
            return answer_losses(backbone, batch).mean()

    history = train(
        {n: p for n, p in predictor.named_parameters() if p.requires_grad},
        [len(p.tokens) for p in prompts],
        loss_of,
        settings,
        identity=identity,
        checkpoint=checkpoint,
        progress=progress,
    )
    return predictor.eval().requires_grad_(False), history
