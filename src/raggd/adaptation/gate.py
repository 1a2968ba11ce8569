"""A gate: from the support's states, how large the update should be, and whether to apply it.

The paper leaves open when an update should be withheld. Here the gain in answer loss at a few
scales was measured on training tasks, with clean and with noisy evidence; a ridge regression on the
pooled state, the agreement of the demonstrations and their distance from the training data predicts
that gain. Scale 0 gains 0, so an update that would hurt, or whose gain is uncertain, is withheld.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

COMPONENTS = 16
"""Principal components of the pooled state that the regression reads."""
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def agreement(states: Tensor, center: Tensor) -> Tensor:
    """How far the demonstrations of each set agree.

    Args:
        states: (sets, N, width).
        center: (width,), subtracted first: raw states are all alike.

    Returns:
        (sets,) mean cosine over pairs; 1 for a single demonstration.
    """
    count = states.shape[1]
    if count == 1:
        return states.new_ones(states.shape[0])
    unit = functional.normalize(states - center, dim=-1)
    total = (unit @ unit.mT).sum((-2, -1))
    return (total - count) / (count * (count - 1))


@dataclass(frozen=True, slots=True)
class Gate:
    """Chooses a scale for each support set.

    Attributes:
        center: (width,) mean pooled state of the training sets.
        axes: (width, components) principal directions, scaled to unit variance.
        extremes: (2, 2) mean and standard deviation of agreement and distance.
        scales: (s,) positive scales.
        weights: (features, s) of the ridge regression of the gain.
        covariance: (features, features), with the noise variance of scale j
            in ``noise[j]`` the posterior covariance of its weights.
        noise: (s,) residual variances.
        caution: standard deviations taken off a predicted gain before it is compared with 0.
    """

    center: Tensor
    axes: Tensor
    extremes: Tensor
    scales: Tensor
    weights: Tensor
    covariance: Tensor
    noise: Tensor
    caution: float = 1.0

    def features(self, states: Tensor) -> Tensor:
        """Return what the regression reads: (sets, 1 + components + 2)."""
        states = states.to(self.center.dtype)
        return _features(states, self.center, self.axes, self.extremes)

    def gains(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the gain in answer loss at every scale.

        Args:
            states: (sets, N, width) encoder states.

        Returns:
            Mean and standard deviation, (sets, s) each, in nats per answer token.
        """
        rows = self.features(states)
        spread = ((rows @ self.covariance) * rows).sum(-1).clamp_min(0)
        return rows @ self.weights, (spread[:, None] * self.noise).sqrt()

    def choose(self, states: Tensor) -> Tensor:
        """Choose the scale of each set.

        Args:
            states: (sets, N, width).

        Returns:
            (sets,) scales; 0 withholds the update.
        """
        mean, deviation = self.gains(states)
        safe, place = (mean - self.caution * deviation).max(-1)
        return torch.where(safe > 0, self.scales[place], torch.zeros_like(safe))


def _features(states: Tensor, center: Tensor, axes: Tensor, extremes: Tensor) -> Tensor:
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

    Args:
        states: (sets, N, width) encoder states of training sets.
        gains: (sets, s) measured drop of the answer loss at each scale.
        scales: (s,) the scales, positive.
        caution: standard deviations taken off a predicted gain.

    Returns:
        The gate, in float64.
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
