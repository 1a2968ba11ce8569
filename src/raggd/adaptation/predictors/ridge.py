"""A predictor in closed form: reduced-rank ridge regression from the pooled state to the targets.

The best linear map of rank r is written into the MLP predictor, exactly: a pair of hidden units
passes a linear reading through, since ``gelu(z) - gelu(-z) = z``. Storing, tuning, gating and
serving it are those of every MLP predictor, and a training through answers may start from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raggd.adaptation.predictors.base import HIDDEN, MLPPredictor, spread
from raggd.core.low_rank import AdapterSpec

SEED, RANK, PENALTY = 0, 8, 3.0  # of the closed form
SCALE = 14.0
"""Factor of its update: a denoised target is about a quarter as long as a set's own; 7 drops the
answer loss less, and harms HotpotQA less."""
BLOCK = 1 << 16  # entries of the targets that are taken to float64 at once; bounds memory


def _blocks(goals: Tensor) -> Iterator[Tensor]:
    # centred: the mean goal is the head's bias
    for part in torch.split(goals, BLOCK, 1):
        wide = part.double()
        yield wide - wide.mean(0)


def _reading(pooled: Tensor, goals: Tensor, penalty: float, rank: int) -> tuple[Tensor, Tensor]:
    """Solve the regression with as many dimensions as there are support sets.

    From standardised states (n, width), float64, and goals (n, size): the reading (width, r) whose
    codes have mean square 1 over the n sets, and the combination (r, n) of centred goals that each
    code stands for; r is `rank` at most.
    """
    count = len(pooled)
    kernel = pooled @ pooled.T
    unit = kernel.diagonal().mean().clamp_min(1e-12)
    dual = torch.linalg.inv(kernel / unit + penalty * torch.eye(count).double())
    smoother = kernel / unit @ dual
    gram = torch.zeros(count, count).double()
    for part in _blocks(goals):
        gram += part @ part.T
    # principal directions of the fitted goals; their coordinates are the codes
    strength, directions = torch.linalg.eigh(smoother @ gram @ smoother.T)
    kept = torch.arange(count).flip(0)[:rank]
    kept = kept[strength[kept] > 1e-12 * strength[-1].clamp_min(1e-30)]
    directions, strength = directions[:, kept], strength[kept]
    reading = pooled.T @ dual @ gram @ smoother.T @ directions / strength * count**0.5 / unit
    return reading, directions.T @ smoother / count**0.5


@torch.no_grad()
def ridge_predictor(
    spec: AdapterSpec,
    base: str,
    states: Tensor,
    goals: Tensor,
    *,
    scale: float = SCALE,
    rank: int = RANK,
    penalty: float = PENALTY,
) -> MLPPredictor:
    """Solve for a predictor, with room in its hidden layer for a training that goes on.

    Shapes: states (n, N, width), targets (n, spec.size), denoised or not. `rank` is the width of
    the code, from which the update, times `scale`, is linear; a penalty of 1 halves what an average
    direction says.
    """
    width, hidden = states.shape[-1], max(HIDDEN, 2 * rank)
    predictor = MLPPredictor(spec, base, width, hidden, rank)
    predictor.fit_units(states, goals, SEED)
    reading, mixture = _reading(predictor.pooled(states).double(), goals, penalty, rank)
    pairs = 2 * reading.shape[1]
    predictor.enter.weight[:pairs:2] = reading.T.float()
    predictor.enter.weight[1:pairs:2] = -reading.T.float()
    predictor.leave.weight.zero_()
    for code in range(reading.shape[1]):
        predictor.leave.weight[code, 2 * code] = 1.0
        predictor.leave.weight[code, 2 * code + 1] = -1.0
    columns = torch.cat([(mixture @ part).T for part in _blocks(goals)]).float()
    units = spread(spec, predictor.scales)
    predictor.head[:, : reading.shape[1]] = scale * columns / units[:, None]
    predictor.bias.mul_(scale)
    return predictor.eval().requires_grad_(False)
