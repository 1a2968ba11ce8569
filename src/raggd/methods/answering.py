"""Answering with adapted models: one batch, each row with its own update."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.soft_prefix import check_prefix
from raggd.backbone.batch import Prefix, Reading, alike, read_prefix
from raggd.backbone.extractive import Extract, Slots
from raggd.backbone.generate import (
    SHORTEST_OPENING,
    common_opening,
    decode,
    join_readings,
    read_prompts,
    score,
)
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.backbone.refusal import RefusalRule
from raggd.core.low_rank import Update, stack_updates
from raggd.data.closed import asks_what
from raggd.data.prompts import Exchange, Prompt, answer_tokens, build_prompt
from raggd.data.template import NUMBER, REFUSAL
from raggd.data.text import without_marks
from raggd.methods.base import Adapted
from raggd.records import Passage, RaggdError
from raggd.retrieval.evidence import coverage
from raggd.settings import Settings

_ACROSS = re.compile(r"[\[\]{}<>|=]")
VERDICTS = ("Yes", "No", "yes", "no")  # answers that no passage needs to hold


def render(
    backbone: Backbone,
    adapted: Adapted,
    question: str,
    passages: Sequence[Passage],
    *,
    limit: int,
    reserve: int = 0,
    answer: str | None = None,
    instruction: str = "",
    earlier: Sequence[Exchange] = (),
) -> Prompt:
    """Render the prompt that an adapted model answers from, in `limit` less `reserve` tokens.

    It says the question as it was asked, with the options that the model does not read.
    """
    asked = adapted.template.asked(question) if adapted.template else question
    prompt = build_prompt(
        backbone.tokenizer,
        asked,
        passages if adapted.reads_evidence else (),
        answer=answer,
        limit=limit,
        reserve=reserve,
        shown=adapted.shown,
        instruction=instruction or adapted.instruction,
        earlier=earlier,
        sources=adapted.sources,
    )
    return replace(prompt, question=prompt.question.removesuffix(asked) + question, asked=question)


def bounded_prompt(
    settings: Settings,
    backbone: Backbone,
    adapted: Adapted,
    question: str,
    passages: Sequence[Passage],
) -> Prompt:
    """Render a prompt with room for its answer, as long as the settings say."""
    limit = settings.backbone.context_tokens
    reserve = max(settings.evaluation.max_answer_tokens, adapted.most)
    return render(backbone, adapted, question, passages, limit=limit, reserve=reserve)


def shared_update(rows: Sequence[Adapted]) -> Update | None:
    """Return one update for a batch of one base: the common one, else stacked, zeros for none."""
    first = rows[0].update
    if all(row.update is first for row in rows):
        return first
    base = rows[0].base
    if base is None:  # `attach` refuses an update without a base
        return next(row.update for row in rows if row.update is not None)
    zero = base.zero_update()
    return stack_updates([row.update or zero for row in rows])


def follow_examples(rows: Sequence[Adapted]) -> bool:
    """Return whether all rows have examples before them: their one step is added with the base.

    Other methods add it apart, as they did when the study's answers were recorded.
    """
    return all(row.prefix is not None for row in rows)


def _refuse_mixed(what: str, kinds: set[Any]) -> None:
    if len(kinds) > 1:
        raise RaggdError(
            f"one batch mixes rows of different {what} (or with and without one): answer them in "
            "separate batches."
        )


def _shared_soft(backbone: Backbone, rows: Sequence[Adapted]) -> Tensor | None:
    _refuse_mixed("soft prefixes", {id(row.soft) for row in rows})
    prefix = rows[0].soft
    if prefix is None:
        return None
    check_prefix(backbone, prefix)
    return prefix.vectors.to(backbone.device)


def adapted_rows(backbone: Backbone, rows: Sequence[Adapted]) -> AbstractContextManager[None]:
    """Attach what the rows of a batch are answered with; rows of two base adapters are refused."""
    _refuse_mixed("base adapters", {row.base.fingerprint if row.base else "" for row in rows})
    return attach(backbone, rows[0].base, shared_update(rows), as_one=follow_examples(rows))


def opening_tokens(adapted: Adapted, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Return what all prompts of one adapted model begin with, where reading it once pays."""
    if len(prompts) < 2 or adapted.soft is not None or adapted.prefix:
        return ()
    tokens = common_opening(prompts)
    return tokens if len(tokens) >= SHORTEST_OPENING else ()


def shared_opening(
    backbone: Backbone, adapted: Adapted, prompts: Sequence[Prompt]
) -> Prefix | None:
    """Read once what all prompts of one adapted model begin with, where that pays; else None."""
    tokens = opening_tokens(adapted, prompts)
    if not tokens:
        return None
    with adapted_rows(backbone, [adapted]):
        return read_prefix(backbone, tokens)


def reading_groups(backbone: Backbone, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Choose which prompts of a batch are read in one forward pass; all are answered together.

    In float32 on a processor every padded position costs what a real one does. On a GPU, and where
    answers of earlier records are in bfloat16, one pass reads them all.
    """
    if backbone.device.type == "cpu" and backbone.dtype == torch.float32:
        return alike([len(prompt.tokens) for prompt in prompts])
    return [list(range(len(prompts)))]


def rules_of(rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> list[RefusalRule | None]:
    """Return what decides on refusing, for each row and what its prompt covers of its question."""
    return [
        row.rule.covering(coverage(prompt.question, prompt.passages)) if row.rule else None
        for row, prompt in zip(rows, prompts, strict=True)
    ]


def extract_of(backbone: Backbone, row: Adapted, prompt: Prompt) -> Extract | None:
    """Return what holds an answer to options, labels or words of passages, if the examples do."""
    template = row.template
    if template is None:
        return None
    refusal = [REFUSAL] if template.refusals else []
    choices = template.closed.choices(prompt.question) if template.closed else ()
    if template.closed and choices:
        chance = template.closed.chance(prompt.question, prompt.passages)
        return Extract(backbone, (), [*choices, *refusal], chance)
    if not (template.extractive or template.several) or not prompt.passages:
        return None
    texts = [t for p in prompt.passages for t in (*p.title.split(" > "), p.text) if t]
    numbers = [n for text in texts for n in NUMBER.findall(text)] if template.numbers else []
    if numbers:
        return Extract(backbone, numbers, refusal)
    marks = set().union(*(d.answer for d in row.shown))
    if not marks & set("*`"):  # Markdown's, and they show none
        texts = [without_marks(text) for text in texts]
    if not marks & set("[]{}<>|="):  # of code and tables: no answer goes across one
        texts = [part for text in texts for part in _ACROSS.split(text)]
    if template.several:
        return Slots(backbone, texts, template.several, refusal)
    if told := template.figures(texts):
        return Extract(backbone, (), [*told, *refusal])
    verdicts = () if asks_what(prompt.asked) else VERDICTS
    return Extract(backbone, texts, [*verdicts, *refusal])


def answer_rows(
    backbone: Backbone,
    rows: Sequence[Adapted],
    prompts: Sequence[Prompt],
    max_tokens: int,
    *,
    golds: Sequence[str] | None = None,
    opening: Prefix | None = None,
    timed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[str], Tensor | None]:
    """Read a batch of prompts once, answer them, and score gold answers from the same reading.

    `opening` is what all begin with, where it was read before; `timed` wraps what answering costs,
    without scoring. The losses of the golds, (rows,), are in nats per token.
    """
    groups = reading_groups(backbone, prompts)
    order = [at for group in groups for at in group]
    rows, prompts = [rows[at] for at in order], [prompts[at] for at in order]
    soft = _shared_soft(backbone, rows)
    prefixes = [row.prefix or opening for row in rows]

    def read(start: int, end: int) -> Reading:
        own, shown = rows[start:end], prompts[start:end]
        known, rules = prefixes[start:end], rules_of(own, shown)
        return read_prompts(backbone, shown, soft=soft, prefixes=known, rules=rules)

    with ExitStack() as stack:
        with timed():
            readings: list[Reading] = []
            if len(groups) > 1:
                for start, end in pairwise(accumulate(map(len, groups), initial=0)):
                    with adapted_rows(backbone, rows[start:end]):
                        readings.append(read(start, end))
            stack.enter_context(adapted_rows(backbone, rows))
            reading = join_readings(readings or [read(0, len(rows))])
            most = max(max_tokens, *(row.most for row in rows))
            pairs = zip(rows, prompts, strict=True)
            extracts = [extract_of(backbone, row, prompt) for row, prompt in pairs]
            lines = [row.lines for row in rows]
            texts = decode(backbone, reading, most, lines=lines, extracts=extracts)
        answers = [
            row.written(text, prompt)
            for row, text, prompt in zip(rows, texts, prompts, strict=True)
        ]
        back = sorted(range(len(order)), key=order.__getitem__)
        answers = [answers[at] for at in back]
        if golds is None:
            return answers, None
        tokens = [answer_tokens(backbone.tokenizer, golds[at]) for at in order]
        return answers, score(backbone, reading, tokens)[back]


def answer_batch(
    backbone: Backbone, rows: Sequence[Adapted], prompts: Sequence[Prompt], max_tokens: int
) -> list[str]:
    """Answer a batch of prompts, row i with ``rows[i]``."""
    return answer_rows(backbone, rows, prompts, max_tokens)[0]


def batches_of(rows: Sequence[Adapted], chosen: Sequence[int], size: int) -> list[list[int]]:
    """Group chosen rows so that those of one batch share a base adapter and a soft prefix."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i in chosen:
        base, soft = rows[i].base, rows[i].soft
        kind = (base.fingerprint if base else "", id(soft))
        groups.setdefault(kind, []).append(i)
    return [g[at : at + size] for g in groups.values() for at in range(0, len(g), size)]
