"""What a predicted update gains at several scales, measured on other questions: a gate's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.encoder import encode_supports
from raggd.adaptation.examples import answered_prompt
from raggd.adaptation.predictors.base import Predictor, check_predictor
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.files import load_tensors, save_tensors
from raggd.records import Demonstration, RaggdError, SupportSet, content_id


@dataclass(frozen=True, slots=True)
class Trial:
    """A support set and the questions that its update is tried on.

    Attributes:
        support: the demonstrations.
        probes: other answered questions of the task, at least one.
    """

    support: SupportSet
    probes: tuple[Demonstration, ...]

    @property
    def id(self) -> str:
        """Hash of all that is read."""
        return content_id(self.support.id, *(SupportSet("", (p,)).id for p in self.probes))


@torch.no_grad()
def trial_losses(
    backbone: Backbone,
    base: BaseAdapter,
    predictor: Predictor,
    trial: Trial,
    scales: Sequence[float],
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Answer losses of the probes under the base and under the update at each scale.

    Args:
        backbone: the frozen model.
        base: W0.
        predictor: made for this base.
        trial: support set and probes.
        scales: factors for the update.
        limit: most tokens per demonstration.

    Returns:
        States (N, hidden size) and losses (1 + scales, probes), the base first.
    """
    states = encode_supports(backbone, base, [trial.support], limit)
    update = predictor.predict(states).row(0)
    prompts = [answered_prompt(backbone.tokenizer, probe, limit) for probe in trial.probes]
    batch = make_batch(prompts, backbone.tokenizer.pad_token_id, backbone.device)
    losses = []
    for step in [None, *(update * scale for scale in scales)]:
        with attach(backbone, base, step):
            losses.append(answer_losses(backbone, batch))
    return states[0], torch.stack(losses)


def measure_gains(
    backbone: Backbone,
    base: BaseAdapter,
    predictor: Predictor,
    trials: Sequence[Trial],
    scales: Sequence[float],
    limit: int,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Tensor, Tensor]:
    """Measure all trials; those in `folder` are read. Interrupted and called again, it continues.

    Args:
        backbone: the frozen model.
        base: W0.
        predictor: made for this base.
        trials: support sets of equal size with equally many probes.
        scales: factors for the update.
        limit: most tokens per demonstration.
        folder: one file per trial.
        identity: hash of base and predictor; files of another are refused.
        progress: told trials done and in all.

    Returns:
        States (trials, N, hidden size) and losses (trials, 1 + scales, probes).

    Raises:
        RaggdError: a file in `folder` belongs to another run.
    """
    check_predictor(predictor, base)
    found = []
    for number, trial in enumerate(trials):
        path = folder / f"trial-{number:05d}.safetensors"
        own = content_id(identity, trial.id, *map(str, scales))
        if path.exists():
            tensors, metadata = load_tensors(path)
            if metadata.get("identity") != own:
                raise RaggdError(
                    f"{path} belongs to another run (base, predictor, scales or questions "
                    "changed): choose another folder, or remove this one."
                )
        else:
            states, losses = trial_losses(backbone, base, predictor, trial, scales, limit)
            tensors = {"states": states.cpu(), "losses": losses.cpu()}
            save_tensors(path, tensors, {"identity": own})
        found.append(tensors)
        progress(number + 1, len(trials))
    states = torch.stack([tensors["states"] for tensors in found])
    return states, torch.stack([tensors["losses"] for tensors in found])
