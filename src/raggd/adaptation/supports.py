"""Support sets drawn from a pool, and the prompts that demonstrations are in every training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raggd.data.benchmarks import choose_by_hash
from raggd.data.prompts import Prompt, build_prompt
from raggd.records import Demonstration, Question, RaggdError, content_id


def _shuffle(seed: int, purpose: str) -> int:
    return int(content_id(purpose, str(seed)), 16) if purpose else seed


def draw_supports(
    pool: Sequence[Question], size: int, draws: int, seed: int, purpose: str = ""
) -> list[list[Question]]:
    """Draw support sets from a pool of answered questions.

    The pool is shuffled by hash and cut into sets one after another, so two sets share no question
    until the pool is used up; then it is shuffled anew.

    Args:
        pool: in any order.
        size: N, questions per set.
        draws: sets to draw.
        seed: changes the shuffle.
        purpose: changes it too: an evaluation that drew like the targets of a predictor, with the
            same seed, would be shown the very sets that the predictor was trained on.

    Raises:
        RaggdError: the pool holds fewer than `size` questions.
    """
    if len(pool) < size:
        task = pool[0].task if pool else "?"
        raise RaggdError(
            f"the support pool of '{task}' holds {len(pool)} questions, a support set needs "
            f"{size}: lower target.demonstrations or give a larger pool."
        )
    sets: list[list[Question]] = []
    per_round = len(pool) // size
    for lap in range(-(-draws // per_round)):
        order = choose_by_hash(pool, len(pool), _shuffle(seed * 1_000_003 + lap, purpose))
        sets += [list(order[i * size : (i + 1) * size]) for i in range(per_round)]
    return sets[:draws]


def answered_prompt(tokenizer: Any, shown: Demonstration, limit: int) -> Prompt:
    """Return a demonstration as the model is trained on it: passages, question, answer, end."""
    return build_prompt(tokenizer, shown.question, shown.passages, answer=shown.answer, limit=limit)
