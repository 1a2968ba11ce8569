"""How well predictors match true updates: cosine and norm ratio by task, projection, depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.predictors.base import Predictor
from raggd.adaptation.target_store import Targets
from raggd.core.alignment import cosine_and_norms, total_cosine
from raggd.core.low_rank import PROJECTIONS, BaseAdapter, update_from_vector
from raggd.evaluation.statistics import bootstrap_interval

THIRDS = ("lower", "middle", "upper")
BLOCK = 16
"""Targets compared at once; bounds memory."""


def _compare(
    base: BaseAdapter, targets: Targets, predictor: Predictor
) -> tuple[Tensor, Tensor, Tensor]:
    cosines, ratios, totals = [], [], []
    for start in range(0, len(targets), BLOCK):
        part = targets.take(range(start, min(start + BLOCK, len(targets))))
        true = update_from_vector(base.spec, part.vectors.float(), base.fingerprint)
        predicted = predictor.predict(part.states)
        cosine, own, wanted = cosine_and_norms(base, predicted, true)
        cosines.append(cosine)
        ratios.append((own / wanted).log())
        totals.append(total_cosine(base, predicted, true))
    return torch.cat(cosines), torch.cat(ratios), torch.cat(totals)


def _summary(cosine: Tensor, log_ratio: Tensor, total: Tensor, targets: Targets) -> dict[str, Any]:
    # cosine, log_ratio: (n, 3, layers)
    per_set = cosine.mean((1, 2))
    interval = bootstrap_interval(per_set.tolist(), groups=targets.tasks)
    by_third = [part.mean().item() for part in cosine.tensor_split(3, dim=2)]
    return {
        "cosine": interval.mean,
        # one set alone has no interval, and infinity is no JSON
        "interval": [x if math.isfinite(x) else None for x in (interval.low, interval.high)],
        "total_cosine": total.mean().item(),
        "log_norm_ratio": log_ratio.mean().item(),
        "by_task": {
            task: per_set[[i for i, t in enumerate(targets.tasks) if t == task]].mean().item()
            for task in sorted(set(targets.tasks))
        },
        "by_projection": {name: cosine[:, i].mean().item() for i, name in enumerate(PROJECTIONS)},
        "by_third": dict(zip(THIRDS, by_third, strict=True)),
        "by_place": [[round(x, 4) for x in row] for row in cosine.mean(0).tolist()],
        "by_set": [
            {"task": task, "cosine": round(x, 4)}
            for task, x in zip(targets.tasks, per_set.tolist(), strict=True)
        ],
    }


@torch.no_grad()
def alignment_summary(
    base: BaseAdapter, targets: Targets, predictors: Mapping[str, Predictor]
) -> dict[str, dict[str, Any]]:
    """Compare predictors, by name, with true updates, in product space.

    By name: ``cosine`` (mean over sets of the mean over 3 x layers) with its bootstrap interval
    over sets (None, None for one set alone), ``total_cosine`` (all layers as one vector),
    ``log_norm_ratio``, the mean cosine by task, by projection, by third of the layers and by place
    (3 x layers), and the cosine of every set.
    """
    return {name: _summary(*_compare(base, targets, p), targets) for name, p in predictors.items()}
