"""Learning when to refuse: a line through three numbers (`backbone.refusal`), fitted over lessons.

Half of the lessons show evidence that is near but lacks the answer, as many passages as the others.
The bias lets a given share of the answerable questions be refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.adaptation.following import TOO_FEW, TRIES, drawn_pool, is_left, pools_of
from raggd.backbone.refusal import RefusalRule
from raggd.data.contracts.base import Lesson, draw_lesson
from raggd.data.contracts.families import check_held_out, draw_contract
from raggd.data.questions import Prepared
from raggd.data.reading import template_of
from raggd.records import RaggdError

LESSONS = 800  # that the rule for refusals is fitted on
WRONGLY = 0.1  # share of answerable questions that may be refused
PENALTY = 0.02  # of the squared weights of the logistic regression, on standardised features
FOLDS = 5


def refusal_lessons(rows: Sequence[Prepared]) -> Iterator[Lesson]:
    """Draw lessons that show a refusal, half to be refused, of questions that no training asks."""
    pools, draw = pools_of(rows), random.Random("refusals 0")
    if not any(is_left(row.id) for pool in pools.values() for row in pool):
        raise RaggdError(f"{TOO_FEW} A rule for refusals is fitted on one of every ten.")
    fruitless = 0
    while fruitless < TRIES:
        fruitless += 1
        contract = draw_contract(draw.randrange(10**9))
        if not contract.refusal:
            continue
        check_held_out(contract)
        pool = drawn_pool(pools, draw)
        refuse = draw.random() < 0.5
        lesson = draw_lesson(contract, pool, draw, refusals=1, refuse=refuse, may_ask=is_left)
        if lesson is not None:
            template = template_of(lesson.support.demonstrations)[0]
            if template is not None and template.refusals:
                fruitless = 0
                yield lesson
    raise RaggdError(TOO_FEW)


def logistic(features: Tensor, wanted: Tensor, penalty: float = PENALTY) -> tuple[Tensor, float]:
    """Fit log-odds of ``wanted`` (n,) 0 or 1, linear in features (n, d); return weights and bias.

    The squared weights are penalised on standardised features; what is returned takes them raw.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    unit, wanted = (features - mean) / scale, wanted.double()
    both = torch.zeros(unit.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [both],
        max_iter=200,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
    )

    def loss() -> Any:
        optimizer.zero_grad()
        odds = unit @ both[:-1] + both[-1]
        value = functional.binary_cross_entropy_with_logits(odds, wanted)
        value = value + penalty * both[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights = both.detach()[:-1] / scale
    return weights, float(both.detach()[-1] - weights @ mean)


def area_under(odds: Tensor, wanted: Tensor) -> float:
    """Return how often what is to be refused (``wanted``) has higher odds than what is not."""
    above = odds[wanted][:, None] - odds[~wanted][None]
    return float(((above > 0).double() + 0.5 * (above == 0).double()).mean())


def fit_rule(features: Tensor, wanted: Tensor, token: int) -> tuple[RefusalRule, dict[str, float]]:
    """Fit a rule to features (n, 3), float64; ``wanted`` (n,) is to be refused.

    With it comes what it told of lessons that it was not fitted to: ``area`` under the curve of
    recall over wrong refusals (0.5 tells nothing), ``recall`` of what is to be refused, and the
    share of the others that it refused ``wrongly``.
    """
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))
    odds = torch.zeros(len(wanted), dtype=torch.float64)  # of each by a fit to the other folds
    for fold in range(FOLDS):
        left = order[fold::FOLDS]
        kept = torch.ones(len(wanted), dtype=torch.bool).index_fill(0, left, False)
        weights, bias = logistic(features[kept], wanted[kept])
        odds[left] = features[left] @ weights + bias
    weights, bias = logistic(features, wanted)
    bar = float(odds[~wanted].quantile(1 - WRONGLY))
    above = (odds > bar).double()
    told = {
        "area": area_under(odds, wanted),
        "recall": float(above[wanted].mean()),
        "wrongly": float(above[~wanted].mean()),
    }
    own, sure, covered = weights.tolist()
    return RefusalRule(own, sure, covered, bias - bar, token), told
