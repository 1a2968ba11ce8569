"""Support sets: drawn from a pool, rendered, and encoded by backbone + W0 (paper section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raggd.backbone.batch import Batch, last_states, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import choose_by_hash
from raggd.data.prompts import Prompt, build_prompt
from raggd.records import Demonstration, Question, RaggdError, SupportSet, content_id


def draw_supports(
    pool: Sequence[Question], size: int, draws: int, seed: int, purpose: str = ""
) -> list[list[Question]]:
    """Draw support sets from a pool of answered questions.

    The pool is shuffled by hash and cut into sets one after another, so two sets share no question
    until the pool is used up; then it is shuffled anew. A purpose changes the shuffle as a seed
    does: an evaluation that drew like the targets of a predictor, with the same seed, would be
    shown the very sets that the predictor was trained on.

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
        number = seed * 1_000_003 + lap
        number = int(content_id(purpose, str(number)), 16) if purpose else number
        order = choose_by_hash(pool, len(pool), number)
        sets += [list(order[i * size : (i + 1) * size]) for i in range(per_round)]
    return sets[:draws]


def answered_prompt(tokenizer: Any, shown: Demonstration, limit: int) -> Prompt:
    """Return a demonstration as the model is trained on it: passages, question, answer, end."""
    return build_prompt(tokenizer, shown.question, shown.passages, answer=shown.answer, limit=limit)


def equal_size(supports: Sequence[SupportSet]) -> int:
    """Return the number of demonstrations that all sets share.

    Raises:
        RaggdError: the sets differ in size.
    """
    sizes = {len(s.demonstrations) for s in supports}
    if len(sizes) != 1:
        raise RaggdError(f"support sets of one batch must have one size, found {sorted(sizes)}.")
    return sizes.pop()


def support_batch(backbone: Backbone, supports: Sequence[SupportSet], limit: int) -> Batch:
    """Batch all demonstrations of some support sets as rows, set after set.

    Each has at most `limit` tokens.
    """
    prompts = [
        answered_prompt(backbone.tokenizer, shown, limit)
        for support in supports
        for shown in support.demonstrations
    ]
    return make_batch(prompts, backbone.tokenizer.pad_token_id, backbone.device)


def encode_batch(backbone: Backbone, base: BaseAdapter, batch: Batch) -> Tensor:
    """Return the state at each row's end token under the base adapter, as `last_states` does."""
    with attach(backbone, base):
        return last_states(backbone, batch)


def encode_supports(
    backbone: Backbone, base: BaseAdapter, supports: Sequence[SupportSet], limit: int
) -> Tensor:
    """Encode support sets of N demonstrations each in one forward pass: (sets, N, hidden size).

    In float32, where the backbone is; their mean over N is the paper's pooled state.
    """
    size = equal_size(supports)
    states = encode_batch(backbone, base, support_batch(backbone, supports, limit))
    return states.reshape(len(supports), size, -1)
