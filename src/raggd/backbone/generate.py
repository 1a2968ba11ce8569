"""Reading a batch of prompts once, then answering greedily and scoring gold answers from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.batch import (
    Prefix,
    Reading,
    join_caches,
    known_tokens,
    last_positions,
    make_batch,
    model_inputs,
    new_cache,
)
from raggd.backbone.capture import branch, steps_from
from raggd.backbone.extractive import Extract
from raggd.backbone.load import Backbone
from raggd.backbone.refusal import RefusalRule, decided
from raggd.data.prompts import Prompt

SHORTEST_OPENING = 128  # tokens from which on what prompts share is worth a forward pass of its own


def clean_answer(text: str, *, lines: bool = False) -> str:
    """Return a decoded answer without white space around it; its first line unless `lines`."""
    text = text.strip()
    return text if lines else (text.splitlines() or [""])[0].strip()


def common_opening(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Return the longest start that all prompts share, short of any prompt's last token.

    >>> common_opening([Prompt((1, 2, 3, 9), 0, 0), Prompt((1, 2, 4), 0, 0)])
    (1, 2)
    """
    first, last = min(p.tokens for p in prompts), max(p.tokens for p in prompts)
    size = min(len(p.tokens) for p in prompts) - 1
    same = next((i for i in range(size) if first[i] != last[i]), size)
    return first[:same]


def _known_columns(
    backbone: Backbone, prefixes: Sequence[Prefix | None], padding: Tensor, start: int
) -> Any:
    columns = (torch.arange(start, device=padding.device) - padding[:, None]).clamp_min(0)
    some = next(prefix for prefix in prefixes if prefix is not None)
    rows = [prefix or some for prefix in prefixes]  # a row without one has padding alone there
    layers = []
    for layer in range(len(some.layers)):
        parts = [
            [
                # one that was saved may have been read on another machine, in another precision
                tensor.to(backbone.device, backbone.dtype)[0][:, at.clamp_max(tensor.shape[2] - 1)]
                for tensor in prefix.layers[layer]
            ]
            for prefix, at in zip(rows, columns, strict=True)
        ]
        keys, values = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        layers.append((keys, values))
    return new_cache(layers)


@torch.no_grad()
def read_prompts(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    *,
    soft: Tensor | None = None,
    prefixes: Sequence[Prefix | None] = (),
    rules: Sequence[RefusalRule | None] = (),
) -> Reading:
    """Read prompts without answers in one forward pass, keeping keys and values.

    Inside `attach`, row i is read with row i of a batched update. `soft` are embeddings (vectors,
    hidden size) before every prompt (prompt tuning); a row whose prompt does not begin with its
    prefix is read in full; a row's rule decides whether its answer begins with a refusal.
    """
    batch = make_batch(prompts, backbone, soft)
    inputs, cache, start = model_inputs(backbone, batch), new_cache(), 0
    if soft is None and any(prefix is not None for prefix in prefixes):
        # A row begins with padding, then its prefix. The columns before the first one that some row
        # has to read are padding or known: the rest of a longer prefix is read again in the place
        # of padding, so the layout is that of the batch read in full.
        pairs = zip(prompts, prefixes, strict=True)
        unknown = max(len(prompt.tokens) - known_tokens(prompt, prefix) for prompt, prefix in pairs)
        start = max(0, batch.tokens.shape[1] - unknown)
        if start:
            cache = _known_columns(backbone, prefixes, batch.mask.argmax(1), start)
    read = backbone.model(
        **{name: tensor[:, start:] for name, tensor in inputs.items()},
        attention_mask=batch.mask,
        position_ids=batch.positions[:, start:],
        **backbone.with_cache(cache),
        logits_to_keep=last_positions(batch.tokens[:, start:], 1),
    )
    logits = read.logits[:, -1].float()
    if any(rules):
        logits = decided(logits, rules)
    return Reading(cache, logits, batch.mask, batch.positions[:, -1:] + 1)


def join_readings(readings: Sequence[Reading]) -> Reading:
    """Put readings below each other, in order, to be continued together."""
    if len(readings) == 1:
        return readings[0]
    cache, mask = join_caches([(reading.cache, reading.mask) for reading in readings])
    logits = torch.cat([reading.logits for reading in readings])
    return Reading(cache, logits, mask, torch.cat([reading.following for reading in readings]))


def _extracted(logits: Tensor, extracts: Sequence[Extract | None], last: list[Tensor]) -> Tensor:
    # of the rows that are held to their passages, nothing else stays possible
    logits = logits.clone()
    for row, extract in enumerate(extracts):
        if extract is not None:
            for tokens in last:
                extract.push(int(tokens[row]))
            logits[row] = extract.limit(logits[row])
    return logits


@torch.no_grad()
def decode(
    backbone: Backbone,
    reading: Reading,
    max_tokens: int,
    *,
    lines: Sequence[bool] = (),
    extracts: Sequence[Extract | None] = (),
) -> list[str]:
    """Answer the prompts that were read, by greedy decoding, special tokens removed.

    The backbone is in the state in which they were read. `lines`: whether a row's answer may have
    several lines (else none); `extracts` hold rows to words of passages.
    """
    tokenizer, logits, mask = backbone.tokenizer, reading.logits, reading.mask
    step = steps_from(backbone, reading, max_tokens)
    stops = torch.tensor(backbone.stops, device=mask.device)
    ended = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    chosen: list[Tensor] = []
    for _ in range(max_tokens):
        if chosen:
            logits = step(chosen[-1])
        if any(extracts):
            logits = _extracted(logits, extracts, chosen[-1:])
        chosen.append(logits.argmax(-1).masked_fill(ended, tokenizer.pad_token_id))
        ended = ended | torch.isin(chosen[-1], stops)
        if ended.all():
            break
    rows = torch.stack(chosen, 1).tolist()
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    allowed = lines or [False] * len(texts)
    return [clean_answer(t, lines=several) for t, several in zip(texts, allowed, strict=True)]


@torch.no_grad()
def score(backbone: Backbone, reading: Reading, answers: Sequence[Sequence[int]]) -> Tensor:
    """Mean loss (rows,) of one gold answer, in tokens, to each prompt that was read, per token.

    The backbone is in the state in which they were read; float32.
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
            attention_mask=torch.cat([reading.mask, weights[:, :-1].to(reading.mask)], 1),
            position_ids=reading.following + places[:-1],
            **backbone.with_cache(branch(reading.cache)),
        ).logits
        logits = torch.cat([logits, later.float()], 1)
    losses = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    return (losses * weights).sum(1) / lengths
