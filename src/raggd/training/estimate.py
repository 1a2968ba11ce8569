"""What a training will take, from one measured step of the backbone and one of the predictor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raggd.adaptation.base_adapter import fresh_base
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.training import matching_loss
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.interface import attach
from raggd.core.low_rank import BaseAdapter, factors_of, tensors_of, update_from_vector
from raggd.training.run import Run


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage computes.

    Attributes:
        examples: answered prompts run forward and backward through the backbone.
        steps: steps of a predictor on stored targets.
    """

    examples: int = 0
    steps: int = 0


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()  # the first time touches memory
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_per_example(run: Run) -> float:
    """Return the time of a training example, forward and backward, in a batch of the base's."""
    wanted, backbone = run.settings.base_training, run.parts.backbone
    questions = run.questions(wanted.benchmarks[0])[: wanted.batch]
    prompts = run.prompts(questions, wanted.max_tokens)
    spec = backbone.adapter_spec(run.settings.adapter)
    fresh = fresh_base(spec, backbone.fingerprint, 0)
    leaves = {
        name: tensor.to(backbone.device).requires_grad_(True)
        for name, tensor in tensors_of(fresh.factors).items()
    }
    base = BaseAdapter(spec, factors_of(leaves), backbone.fingerprint)
    batch = make_batch(prompts, backbone.tokenizer.pad_token_id, backbone.device)

    def step() -> None:
        with attach(backbone, base):
            answer_losses(backbone, batch).mean().backward()  # type: ignore[no-untyped-call]

    return _seconds(step, backbone.device) / len(prompts)


def seconds_per_step(run: Run) -> float:
    """Return the time of one step of a predictor on stored targets (paper equation 9)."""
    wanted, backbone = run.settings.predictor, run.parts.backbone
    spec = backbone.adapter_spec(run.settings.adapter)
    base = fresh_base(spec, backbone.fingerprint, 0).to(backbone.device)
    width = backbone.model.config.hidden_size
    predictor = MLPPredictor(spec, base.fingerprint, width, wanted.hidden, wanted.latent)
    predictor.to(backbone.device)
    states = torch.randn(wanted.batch, run.settings.target.demonstrations, width)
    vectors = torch.randn(wanted.batch, spec.size, device=backbone.device)
    goal = update_from_vector(spec, vectors, base.fingerprint)

    def step() -> None:
        matching_loss(base, predictor(states.to(backbone.device)), goal).mean().backward()  # type: ignore[no-untyped-call]

    return _seconds(step, backbone.device)
