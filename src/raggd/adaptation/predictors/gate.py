"""A gate: from the support's states, how large the update should be, and whether to apply it.

The paper leaves open when an update should be withheld. Here the gain in answer loss at a few
scales was measured on training tasks, with clean and with noisy evidence; a ridge regression on the
pooled state, the agreement of the demonstrations and their distance from the training data predicts
that gain. Scale 0 gains 0, so an update that would hurt, or whose gain is uncertain, is withheld.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from raggd.adaptation.predictors.base import Predictor, check_predictor
from raggd.adaptation.targets import encode_supports, support_batch
from raggd.backbone.batch import answer_losses
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update
from raggd.files import load_tensors, save_tensors
from raggd.progress import Progress, silent
from raggd.records import RaggdError, SupportSet, content_id

COMPONENTS = 16  # principal components of the pooled state that the regression reads
KIND = "raggd gate"
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def agreement(states: Tensor, center: Tensor) -> Tensor:
    """How far demonstrations agree: mean cosine over pairs of centred states, (sets,)."""
    count = states.shape[1]
    if count == 1:
        return states.new_ones(states.shape[0])
    unit = functional.normalize(states - center, dim=-1)
    total = (unit @ unit.mT).sum((-2, -1))
    return (total - count) / (count * (count - 1))


@dataclass(frozen=True, slots=True)
class Gate:
    """Chooses a scale for each support set."""

    center: Tensor  # (width,) mean pooled state of the training sets
    axes: Tensor  # (width, components) principal directions, scaled to unit variance
    extremes: Tensor  # (2, 2) mean and standard deviation of agreement and distance
    scales: Tensor  # (s,) positive scales
    weights: Tensor  # (features, s) of the ridge regression of the gain
    covariance: Tensor  # (features, features); times ``noise[j]`` that of the weights of scale j
    noise: Tensor  # (s,) residual variances
    caution: float = 1.0  # standard deviations taken off a gain before it is compared with 0

    def choose(self, states: Tensor) -> Tensor:
        """Choose the scale (sets,) of states (sets, N, width); 0 withholds the update."""
        rows = _features(states.to(self.center), self.center, self.axes, self.extremes)
        spread = ((rows @ self.covariance) * rows).sum(-1).clamp_min(0)
        deviation = (spread[:, None] * self.noise).sqrt()
        safe, place = (rows @ self.weights - self.caution * deviation).max(-1)
        return torch.where(safe > 0, self.scales[place], torch.zeros_like(safe))

    @torch.no_grad()
    def scaled(self, update: Update, states: Tensor) -> Update:
        """Scale updates, sets leading, by what is chosen from their states; withheld ones are 0."""
        chosen = self.choose(states).float().reshape(-1, 1, 1, 1)
        return update.map(lambda tensor: tensor * chosen.to(tensor))


_TENSORS = tuple(field.name for field in fields(Gate) if field.name != "caution")


def _features(states: Tensor, center: Tensor, axes: Tensor, extremes: Tensor) -> Tensor:
    # what the regression reads: (sets, 1 + components + 2)
    rows = (states.mean(1) - center) @ axes
    distance = rows.square().mean(-1).log1p()
    extra = torch.stack([agreement(states, center), distance], -1)
    standard = (extra - extremes[0]) / extremes[1]
    return torch.cat([torch.ones_like(rows[:, :1]), rows, standard], -1)


def _ridge(rows: Tensor, wanted: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    # the constant (first column) is not shrunk
    shrink = torch.full((rows.shape[1],), penalty, dtype=rows.dtype)
    shrink[0] = 1e-9
    inverse = torch.linalg.inv(rows.T @ rows + torch.diag(shrink))
    weights = inverse @ rows.T @ wanted
    leverage = ((rows @ inverse) * rows).sum(-1, keepdim=True)
    left_out = (wanted - rows @ weights) / (1 - leverage).clamp_min(1e-6)
    return weights, inverse, left_out


def fit_gate(states: Tensor, gains: Tensor, scales: Tensor, caution: float = 1.0) -> Gate:
    """Fit the regression; the penalty is chosen by leave-one-out error, in closed form.

    Of states (sets, N, width) and measured drops (sets, s) of the loss at positive scales (s,).
    """
    states, gains, scales = states.double(), gains.double(), scales.double()
    pooled = states.mean(1)
    center = pooled.mean(0)
    _, spread, axes = torch.linalg.svd(pooled - center, full_matrices=False)
    kept = min(COMPONENTS, int((spread > 1e-6 * spread[0]).sum()), max(1, len(states) // 4))
    axes = axes[:kept].T * (len(states) ** 0.5 / spread[:kept])
    plain = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    extra = _features(states, center, axes, plain)[:, -2:]
    extremes = torch.stack([extra.mean(0), extra.std(0, correction=0).clamp_min(1e-9)])
    rows = _features(states, center, axes, extremes)
    fits = [_ridge(rows, gains, penalty) for penalty in PENALTIES]
    weights, inverse, left_out = min(fits, key=lambda fit: float(fit[2].square().mean()))
    noise = left_out.square().mean(0)
    return Gate(center, axes, extremes, scales, weights, inverse, noise, caution)


def save_gate(path: Path, gate: Gate, predictor: str) -> None:
    """Write a gate, in float32, with the hash of the predictor whose gains it was fitted to."""
    tensors = {name: getattr(gate, name).float() for name in _TENSORS}
    metadata = {"kind": KIND, "caution": repr(gate.caution), "predictor": predictor}
    save_tensors(path, tensors, metadata)


def load_gate(path: Path, predictor: str, device: torch.device | None = None) -> Gate:
    """Read the gate of the predictor with a hash, in float64 if possible; another is refused."""
    tensors, metadata = load_tensors(path, KIND, "make one with `raggd train gate`")
    if set(tensors) != set(_TENSORS):
        raise RaggdError(f"{path} is not a raggd gate file that is whole: make it again.")
    if metadata["predictor"] != predictor:
        raise RaggdError(
            f"{path} was fitted to predictor {metadata['predictor']}, the predictor in use is "
            f"{predictor}: fit it again with `raggd train gate`."
        )
    wide = torch.float32 if device and device.type == "mps" else torch.float64
    read = {name: tensor.to(device, wide) for name, tensor in tensors.items()}
    return Gate(**read, caution=float(metadata["caution"]))


Trial = tuple[SupportSet, SupportSet]
"""A support set, and other answered questions of its task to try its update on."""


@torch.no_grad()
def trial_losses(
    backbone: Backbone,
    base: BaseAdapter,
    predictor: Predictor,
    trial: Trial,
    scales: Sequence[float],
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Return states (N, width) and losses (1 + scales, probes): under the base, then each scale."""
    states = encode_supports(backbone, base, trial[:1], limit)
    update = predictor.predict(states).row(0)
    batch = support_batch(backbone, trial[1:], limit)
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
    identity: str,  # hash of base and predictor; files of another are refused
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """Measure trials, in a file each: states (trials, N, width), losses (trials, 1 + s, probes)."""
    check_predictor(predictor, base)
    found = []
    for number, (support, probes) in enumerate(trials):
        path = folder / f"trial-{number:05d}.safetensors"
        asked = content_id(support.id, *(SupportSet("", (p,)).id for p in probes.demonstrations))
        own = content_id(identity, asked, *map(str, scales))
        if not path.exists():
            states, losses = trial_losses(backbone, base, predictor, trials[number], scales, limit)
            save_tensors(path, {"states": states, "losses": losses}, {"identity": own})
        tensors, metadata = load_tensors(path)
        if metadata.get("identity") != own:
            raise RaggdError(
                f"{path} belongs to another run (base, predictor, scales or questions changed): "
                "choose another folder, or remove this one."
            )
        found.append(tensors)
        progress("trials of the gate", number + 1, len(trials))
    states = torch.stack([tensors["states"] for tensors in found])
    return states, torch.stack([tensors["losses"] for tensors in found])
