"""Answering with adapted models: one batch, each row with its own update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.generate import greedy_answers
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import Update, stack_updates
from raggd.data.prompts import Prompt, build_prompt
from raggd.methods.base import Adapted
from raggd.records import Passage, RaggdError


def render(
    backbone: Backbone,
    adapted: Adapted,
    question: str,
    passages: Sequence[Passage],
    *,
    limit: int,
    reserve: int = 0,
    answer: str | None = None,
) -> Prompt:
    """Render the prompt that an adapted model answers from.

    Args:
        backbone: gives the tokenizer.
        adapted: says whether passages and demonstrations are shown.
        question: the question.
        passages: its evidence.
        limit: most tokens, answer included.
        reserve: tokens to leave free for generation.
        answer: a gold answer to append, for its likelihood.

    Returns:
        The prompt.
    """
    return build_prompt(
        backbone.tokenizer,
        question,
        passages if adapted.reads_evidence else (),
        answer=answer,
        limit=limit,
        reserve=reserve,
        shown=adapted.shown,
    )


def shared_update(rows: Sequence[Adapted]) -> Update | None:
    """Return one update for a batch: the rows' common one as it is, different ones stacked.

    Args:
        rows: at least one, all with the same base adapter.

    Returns:
        The update to attach; None if no row has any. A row without one gets the zero update.
    """
    first = rows[0].update
    if all(row.update is first for row in rows):
        return first
    base = rows[0].base
    if base is None:  # `attach` refuses an update without a base
        return next(row.update for row in rows if row.update is not None)
    zero = base.zero_update()
    return stack_updates([row.update or zero for row in rows])


@contextmanager
def adapted_rows(backbone: Backbone, rows: Sequence[Adapted]) -> Iterator[None]:
    """Attach what each row of a batch is answered with.

    Args:
        backbone: the frozen model.
        rows: one per row, at least one; all with the same base adapter, or all without.

    Yields:
        Nothing.

    Raises:
        RaggdError: rows with and without a base adapter, or with different ones, are mixed.
    """
    bases = {row.base.fingerprint if row.base else "" for row in rows}
    if len(bases) != 1:
        raise RaggdError(
            "one batch mixes rows of different base adapters (or with and without one): answer "
            "them in separate batches."
        )
    with attach(backbone, rows[0].base, shared_update(rows)):
        yield


def answer_batch(
    backbone: Backbone, rows: Sequence[Adapted], prompts: Sequence[Prompt], max_tokens: int
) -> list[str]:
    """Answer a batch of prompts, row i with ``rows[i]``.

    Args:
        backbone: the frozen model.
        rows: what answers each prompt.
        prompts: without answers.
        max_tokens: most tokens per answer.

    Returns:
        The answers.
    """
    with adapted_rows(backbone, rows):
        return greedy_answers(backbone, prompts, max_tokens)


@torch.no_grad()
def loss_batch(backbone: Backbone, rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> Tensor:
    """Teacher-forced loss of each prompt's answer, row i under ``rows[i]``.

    Args:
        backbone: the frozen model.
        rows: what scores each prompt.
        prompts: with answers.

    Returns:
        (rows,) nats per answer token.
    """
    batch = make_batch(prompts, backbone.tokenizer.pad_token_id, backbone.device)
    with adapted_rows(backbone, rows):
        return answer_losses(backbone, batch)
