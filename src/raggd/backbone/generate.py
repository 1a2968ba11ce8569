"""Reading a batch of prompts once, then answering greedily and scoring gold answers from it.

The keys and values of the prompts are kept: decoding and scoring both start from them. Prompts that
open with the same long text (the demonstrations of a few-shot prompt) have it read once for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.batch import (
    Batch,
    last_positions,
    make_batch,
    model_inputs,
    padded_length,
)
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt

SHORTEST_OPENING = 128
"""Tokens from which on a shared opening is worth a forward pass of its own."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What several prompts begin with, read once.

    Attributes:
        tokens: their common first tokens.
        layers: keys and values (1, heads, tokens, head size) of each layer.
    """

    tokens: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """Prompts that the model has read; `decode` and `score` leave it as it is.

    Attributes:
        cache: keys and values of all positions.
        logits: (rows, vocabulary) after each prompt's last token, float32.
        mask: (rows, length), 1 on real tokens.
        following: (rows, 1), position id of the next token.
    """

    cache: Any
    logits: Tensor
    mask: Tensor
    following: Tensor


def stop_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: end of text; a line break without a chat template."""
    stops = {tokenizer.eos_token_id}
    if getattr(tokenizer, "chat_template", None) is None:
        for text in ("\n", "\n\n"):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            if len(tokens) == 1:
                stops.add(tokens[0])
    return sorted(stops)


def _clean(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines[0] if lines else ""


def new_cache(layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Any:
    """Make a cache that keeps all positions in every layer, those with a sliding window too.

    Args:
        layers: keys and values (rows, heads, tokens, head size) of each layer; none is empty.

    Returns:
        The cache.
    """
    # without the model's configuration, which would drop what lies behind a sliding window
    from transformers import DynamicCache

    return DynamicCache(ddp_cache_data=list(layers)) if layers else DynamicCache()


def _branch(cache: Any) -> Any:
    # a layer grows by making new tensors, so copies of the layers may share the old ones
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def common_opening(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Return the longest start that all prompts share, short of any prompt's last token.

    >>> common_opening([Prompt((1, 2, 3, 9), 0, 0), Prompt((1, 2, 4), 0, 0)])
    (1, 2)
    """
    first, last = min(p.tokens for p in prompts), max(p.tokens for p in prompts)
    size = min(len(p.tokens) for p in prompts) - 1
    same = next((i for i in range(size) if first[i] != last[i]), size)
    return first[:same]


@torch.no_grad()
def read_opening(backbone: Backbone, tokens: tuple[int, ...]) -> Opening:
    """Read what several prompts begin with.

    Args:
        backbone: inside or outside `attach`; the prompts must be read in the same state.
        tokens: at least one.

    Returns:
        The opening, for `read_prompts`.
    """
    cache = new_cache()
    inputs = torch.tensor([tokens], device=backbone.device)
    backbone.model.base_model(input_ids=inputs, past_key_values=cache, use_cache=True)
    return Opening(tokens, tuple((layer.keys, layer.values) for layer in cache.layers))


def _fits(opening: Opening, prompts: Sequence[Prompt]) -> bool:
    # padding takes the place of the opening's first columns, so it may not be longer
    lengths = [len(p.tokens) for p in prompts]
    size = len(opening.tokens)
    longest = padded_length(max(lengths))
    begin = all(p.tokens[:size] == opening.tokens for p in prompts)
    return begin and min(lengths) > size and longest - min(lengths) <= size


def _opened(opening: Opening, batch: Batch) -> Any:
    # Row i of a left-padded batch begins with padding, then the opening. Its first columns come
    # from the opening's keys, moved by the padding: the layout is that of the batch read in full.
    size, padding = len(opening.tokens), batch.mask.argmax(1)
    columns = torch.arange(size, device=padding.device) - padding[:, None]
    columns = columns.clamp_min(0)
    return new_cache(
        [
            (keys[0][:, columns].transpose(0, 1), values[0][:, columns].transpose(0, 1))
            for keys, values in opening.layers
        ]
    )


@torch.no_grad()
def read_prompts(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    *,
    prefix: Tensor | None = None,
    opening: Opening | None = None,
) -> Reading:
    """Read prompts in one forward pass, keeping keys and values.

    Args:
        backbone: inside or outside `attach`; row i is read with row i of a batched update.
        prompts: without answers.
        prefix: (vectors, hidden size) embeddings before every prompt.
        opening: read before in the same state; used where the prompts begin with it.

    Returns:
        What `decode` and `score` continue from.
    """
    batch = make_batch(prompts, backbone.tokenizer.pad_token_id, backbone.device, prefix)
    inputs, cache, start = model_inputs(backbone, batch), new_cache(), 0
    if opening is not None and prefix is None and _fits(opening, prompts):
        cache, start = _opened(opening, batch), len(opening.tokens)
    logits = backbone.model(
        **{name: tensor[:, start:] for name, tensor in inputs.items()},
        attention_mask=batch.mask,
        position_ids=batch.positions[:, start:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last_positions(batch.tokens[:, start:], 1),
    ).logits[:, -1]
    return Reading(cache, logits.float(), batch.mask, batch.positions[:, -1:] + 1)


def _grown(mask: Tensor, more: Tensor) -> Tensor:
    return torch.cat([mask, more.to(mask)], 1)


@torch.no_grad()
def decode(backbone: Backbone, reading: Reading, max_tokens: int) -> list[str]:
    """Answer the prompts that were read, by greedy decoding.

    Args:
        backbone: in the state in which the prompts were read.
        reading: the prompts.
        max_tokens: most tokens per answer.

    Returns:
        The first line of each answer, special tokens removed.
    """
    tokenizer, logits, mask = backbone.tokenizer, reading.logits, reading.mask
    stops = torch.tensor(stop_tokens(tokenizer), device=mask.device)
    cache, position = _branch(reading.cache), reading.following
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    chosen: list[Tensor] = []
    for _ in range(max_tokens):
        if chosen:
            mask = _grown(mask, torch.ones_like(position))
            logits = backbone.model(
                input_ids=chosen[-1][:, None],
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            position = position + 1
        chosen.append(logits.argmax(-1).masked_fill(ended, tokenizer.pad_token_id))
        ended = ended | torch.isin(chosen[-1], stops)
        if ended.all():
            break
    rows = torch.stack(chosen, 1).tolist()
    return [_clean(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


@torch.no_grad()
def score(backbone: Backbone, reading: Reading, answers: Sequence[Sequence[int]]) -> Tensor:
    """Mean negative log-likelihood of one gold answer to each prompt that was read.

    Args:
        backbone: in the state in which the prompts were read.
        reading: the prompts.
        answers: tokens of each answer, end token included.

    Returns:
        (rows,) nats per answer token, float32.
    """
    lengths = torch.tensor([len(answer) for answer in answers], device=reading.mask.device)
    longest = int(lengths.max())
    places = torch.arange(longest, device=lengths.device)
    tokens = torch.zeros(len(answers), longest, dtype=torch.long)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = torch.tensor(answer)
    tokens, weights = tokens.to(lengths.device), places < lengths[:, None]
    logits = reading.logits[:, None]
    if longest > 1:
        later = backbone.model(
            input_ids=tokens[:, :-1],
            attention_mask=_grown(reading.mask, weights[:, :-1]),
            position_ids=reading.following + places[:-1],
            past_key_values=_branch(reading.cache),
            use_cache=True,
        ).logits
        logits = torch.cat([logits, later.float()], 1)
    losses = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    return (losses * weights).sum(1) / lengths
