"""Lessons: a support set under a contract, and another question of the same source under it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raggd.data.contracts.base import Asked, Contract
from raggd.data.questions import Prepared
from raggd.records import Demonstration, Passage, SupportSet

TRIES = 400
SIZES = (3, 3, 3, 3, 3, 3, 1, 2, 4, 5, 6, 8)
"""Numbers of examples that training draws from: three is the usual one."""

REFUSED = 0.5
"""Share of questions that are to be refused where a refusal is shown."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model learns from, or is judged by: examples and a question under one contract."""

    contract: Contract
    support: SupportSet
    asked: Asked


def demonstration(asked: Asked) -> Demonstration:
    """Return an answered question as an example."""
    return Demonstration(asked.id, asked.question, asked.passages, asked.answer)


def _draw(
    contract: Contract,
    pool: Sequence[Prepared],
    draw: random.Random,
    taken: set[str],
    refuse: bool,
    extra: Sequence[Passage] = (),
    may_ask: Callable[[str], bool] = lambda _: True,
) -> Asked | None:
    for _ in range(TRIES):
        row = pool[draw.randrange(len(pool))]
        if row.id in taken or not may_ask(row.id):
            continue
        asked = contract.ask(row, pool, draw, refuse, extra)
        if asked is not None:
            taken.add(row.id)
            return asked
    return None


def _refusals(contract: Contract, size: int, draw: random.Random, shown: int | None) -> list[bool]:
    if not contract.refusal:
        return [False] * size
    # a set without a refusal cannot teach its words; one of refusals alone teaches nothing else
    most = max(1, size - 1)
    count = shown if shown is not None else draw.choice([1, 1, 1, 1, 2, 0])
    flags = [i < min(count, most if count < size else size) for i in range(size)]
    draw.shuffle(flags)
    return flags


def draw_lesson(
    contract: Contract,
    pool: Sequence[Prepared],
    draw: random.Random,
    *,
    size: int = 3,  # number of examples
    refusals: int | None = None,  # examples that are, for a contract with a refusal; None: drawn
    refuse: bool | None = None,  # the question; None: drawn, never without an example of it
    # how often a passage of the examples stands beside the question's own, so that an answer that
    # was shown is near and wrong
    neighbours: float = 0.0,
    # whether the question may be that of an id; examples may be any
    may_ask: Callable[[str], bool] = lambda _: True,
) -> Lesson | None:
    """Draw examples and a question from answered questions of one source.

    None where too few of them are such that the contract applies to them.
    """
    flags = _refusals(contract, size, draw, refusals)
    for _ in range(8):
        taken: set[str] = set()
        shown = [_draw(contract, pool, draw, taken, flag) for flag in flags]
        if any(asked is None for asked in shown):
            return None
        answers = {asked.answer for asked in shown if asked}
        if not contract.labels or size < 2 or len(answers) > 1:
            break  # labels that are all alike would not show the other one
    wanted = refuse if refuse is not None else any(flags) and draw.random() < REFUSED
    beside = draw.random() < neighbours
    extra = [p for example in shown if example for p in example.passages] if beside else []
    asked = _draw(contract, pool, draw, taken, wanted, extra, may_ask)
    if asked is None:
        return None
    support = tuple(demonstration(example) for example in shown if example)
    return Lesson(contract, SupportSet(contract.name, support), asked)
