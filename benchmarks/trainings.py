"""How fast this machine trains: a few real steps of each stage, on random tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raggd.adaptation.base_adapter import train_base
from raggd.adaptation.optimizer import Session
from raggd.adaptation.targets import Targets, encode_batch, sgd_updates
from raggd.adaptation.training import train_hyper, train_predictor
from raggd.backbone.batch import make_batch
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.evaluation.price import random_prompts
from raggd.evaluation.timing import in_turn
from raggd.settings import (
    AdapterSettings,
    BaseTrainingSettings,
    HyperTuningSettings,
    PredictorSettings,
    TargetSettings,
)

SETS, SHOWN = 4, 3
"""Support sets that targets are made of, and demonstrations in each."""
LONG = 3000
"""Steps of the paper's schedule."""


def _targets(backbone: Backbone, base: BaseAdapter, tokens: int) -> Targets:
    prompts = random_prompts(backbone, SETS * SHOWN, tokens, 4)
    batch = make_batch(prompts, backbone)
    settings = TargetSettings()
    updates = sgd_updates(backbone, base, batch, SETS, settings)
    states = encode_batch(backbone, base, batch, SETS)
    names = tuple(f"set-{i}" for i in range(SETS))
    ids = tuple((name,) for name in names)
    vectors = updates[settings.steps].vector().to("cpu", torch.bfloat16)
    tasks = ("random",) * SETS
    return Targets(vectors, states.cpu(), tasks, names, ids, base.fingerprint, "random")


def train_briefly(backbone: Backbone, folder: Path, steps: int, tokens: int) -> dict[str, Any]:
    """Train base adapter, targets, predictor and its tuning for a few steps each.

    Examples have so many `tokens`; the tokenizer gives the padding token only.

    Returns:
        ``ms`` of a step by stage (of a support set, for targets), the first and last ``loss`` of
        each training, and ``hours`` that `LONG` steps of each would take.
    """
    prompts = random_prompts(backbone, 8 * steps, tokens, 4)
    spec = backbone.adapter_spec(AdapterSettings())
    made: dict[str, Any] = {}

    def base_training() -> None:
        session = Session(BaseTrainingSettings(steps=steps), folder / "base")
        made["base adapter"] = train_base(backbone, spec, prompts, session)

    def target_making() -> None:
        made["targets"] = _targets(backbone, made["base adapter"][0], tokens)

    def predictor_training() -> None:
        session = Session(PredictorSettings(steps=steps, batch=SETS), folder / "predictor")
        made["predictor"] = train_predictor(made["base adapter"][0], made["targets"], session)

    def tuning() -> None:
        session = Session(HyperTuningSettings(steps=steps), folder / "tuning")
        lessons = [(number % SETS, prompt) for number, prompt in enumerate(prompts)]
        made["tuning"] = train_hyper(
            backbone,
            made["base adapter"][0],
            made["targets"],
            lessons,
            PredictorSettings(),
            session,
            start=made["predictor"][0],
        )

    stages = {
        "base adapter": (base_training, steps),
        "targets": (target_making, SETS),
        "predictor": (predictor_training, steps),
        "tuning": (tuning, steps),
    }
    ms = {}
    for name, (work, count) in stages.items():
        ms[name] = in_turn({name: work}, 1, warm=False)[name][0] / count
    losses = {name: made[name][1] for name in ("base adapter", "predictor", "tuning")}
    return {
        "ms": {f"one step of {name}": round(value, 2) for name, value in ms.items()},
        "hours": {name: round(ms[name] * LONG / 3.6e6, 3) for name in ms if name != "targets"},
        "loss": {name: [round(h[0], 4), round(h[-1], 4)] for name, h in losses.items()},
        "tokens": tokens,
    }
