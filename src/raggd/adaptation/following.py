"""Learning to follow examples: an interface trained over contracts, the examples in the prompt.

The questions and answers of the examples stand before the question, without their passages. Half
of the lessons are the benchmarks as they are; the others stand under a contract drawn by seed, so
that the same question has different right answers and only the examples tell which.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raggd.data.contracts.families import NATURAL, check_held_out, draw_contract
from raggd.data.contracts.lessons import SIZES, Lesson, draw_lesson
from raggd.data.prepared import Prepared
from raggd.data.prompts import FOLLOW, Prompt, build_prompt
from raggd.records import RaggdError

HELD_TASKS = frozenset({"popqa", "bamboogle"})
"""Sources that no training may see."""


def without_passages(lesson: Lesson) -> Lesson:
    """Return the lesson with examples as a prompt shows them: question and answer alone."""
    shown = tuple(replace(d, passages=()) for d in lesson.support.demonstrations)
    return replace(lesson, support=replace(lesson.support, demonstrations=shown))


def lesson_prompt(
    tokenizer: Any, lesson: Lesson, limit: int, *, show: bool = True, answered: bool = True
) -> Prompt:
    """Render a lesson.

    Args:
        tokenizer: of the backbone.
        lesson: examples and question.
        limit: most tokens, answer included.
        show: whether the examples stand before the question.
        answered: whether the wanted answer is appended, to learn from.

    Returns:
        The prompt.
    """
    asked = lesson.asked
    return build_prompt(
        tokenizer,
        asked.question,
        asked.passages,
        answer=asked.answer if answered else None,
        limit=limit,
        shown=without_passages(lesson).support.demonstrations if show else (),
        instruction=FOLLOW,
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """Where lessons come from.

    Attributes:
        tasks: number of contracts; 0 draws a new one for every lesson.
        natural: share of lessons that are the benchmarks as they are.
        seed: of all draws.
    """

    tasks: int = 0
    natural: float = 0.5
    seed: int = 0


def pools_of(rows: Sequence[Prepared]) -> Mapping[str, list[Prepared]]:
    """Sort questions whose passages hold an answer by their source.

    Args:
        rows: of the prepared file.

    Returns:
        Questions by source.

    Raises:
        RaggdError: a source is held out of training, or nothing is left.
    """
    held = {row.task for row in rows} & HELD_TASKS
    if held:
        raise RaggdError(
            f"the prepared file holds {', '.join(sorted(held))}, which no training may see: "
            "prepare it from training questions."
        )
    pools: dict[str, list[Prepared]] = {}
    for row in rows:
        if row.passages:
            pools.setdefault(row.task, []).append(row)
    if not pools:
        raise RaggdError("the prepared file holds no question whose passages hold its answer.")
    return pools


def draw_lessons(rows: Sequence[Prepared], mixture: Mixture, count: int) -> Iterator[Lesson]:
    """Draw the lessons of a training: a pure function of its arguments.

    Args:
        rows: of the prepared file.
        mixture: what they are drawn from.
        count: number of lessons.

    Yields:
        The lessons, in order; a contract that does not apply to its source is drawn anew.
    """
    pools = pools_of(rows)
    tasks = sorted(pools)
    # a root of the size: small sources are seen more often, large ones do not drown them
    weights = [len(pools[task]) ** 0.5 for task in tasks]
    for number in range(count):
        draw = random.Random(f"lesson {mixture.seed} {number}")
        while True:
            task = draw.choices(tasks, weights)[0]
            contract = NATURAL
            if draw.random() >= mixture.natural:
                at = draw.randrange(mixture.tasks) if mixture.tasks else draw.randrange(10**9)
                contract = draw_contract(at, mixture.seed)
                check_held_out(contract)
            lesson = draw_lesson(contract, pools[task], draw, size=draw.choice(SIZES))
            if lesson is not None:
                yield lesson
                break
