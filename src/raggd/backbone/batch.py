"""Left-padded batches of prompts, their keys and values, and prefixes that were read before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt

STEP = 16  # lengths are padded to a multiple of it: at others attention takes up to twice as long
WASTE = 1.25  # a prompt joins a shorter one's forward pass only up to this ratio of their lengths
READ_TOKENS = 2048  # of such a pass at most, padding included; a longer prompt is alone


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts of one batch, padded on the left so that all answers end together."""

    tokens: Tensor  # (rows, length) token ids
    mask: Tensor  # (rows, length), 1 on real tokens
    positions: Tensor  # (rows, length), position ids counted from each row's first real token
    answer_mask: Tensor  # (rows, keep - 1), True where the *target* is an answer token
    keep: int  # last positions whose logits are needed: all answers, and the one before each
    prefix: Tensor | None = None  # (vectors, hidden size), before every prompt (prompt tuning)


@dataclass(frozen=True, slots=True)
class Reading:
    """Prompts that the model has read; answering and scoring leave it as it is."""

    cache: Any  # keys and values of all positions
    logits: Tensor  # (rows, vocabulary) after each prompt's last token, float32
    mask: Tensor  # (rows, length), 1 on real tokens
    following: Tensor  # (rows, 1), position id of the next token


def padded_length(tokens: int) -> int:
    """Return the length that a batch whose longest row has `tokens` is padded to."""
    return tokens + -tokens % STEP


def make_batch(
    prompts: Sequence[Prompt], backbone: Backbone, prefix: Tensor | None = None
) -> Batch:
    """Pad prompts (at least one) on the left, for a backbone."""
    before = 0 if prefix is None else len(prefix)
    length = padded_length(max(len(p.tokens) for p in prompts) + before)
    tokens = torch.full((len(prompts), length), backbone.tokenizer.pad_token_id)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, length - len(prompt.tokens) - before :] = 1
    keep = max(p.answer_tokens for p in prompts) + 1
    distance = torch.arange(keep - 1, 0, -1)  # of each target from the end: keep-1 ... 1
    lengths = torch.tensor([p.answer_tokens for p in prompts])
    answer_mask = distance[None, :] <= lengths[:, None]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    made = (tokens, mask, positions, answer_mask)
    tokens, mask, positions, answer_mask = (tensor.to(backbone.device) for tensor in made)
    return Batch(tokens, mask, positions, answer_mask, keep, prefix)


def model_inputs(backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """Return token ids, or embeddings where there is a prefix, to which gradients flow."""
    if batch.prefix is None:
        return {"input_ids": batch.tokens}
    embedded = backbone.model.get_input_embeddings()(batch.tokens)
    rows = torch.arange(len(embedded), device=embedded.device)[:, None]
    columns = batch.mask.argmax(1)[:, None] + torch.arange(len(batch.prefix), device=rows.device)
    vectors = batch.prefix.to(embedded).expand(len(embedded), -1, -1)
    return {"inputs_embeds": embedded.index_put((rows, columns), vectors)}


def last_positions(tokens: Tensor, keep: int) -> Tensor:
    """Positions (keep,) whose logits are wanted, for the model's ``logits_to_keep``.

    A number would do the same slowly: its slice is a view, for which the product with the
    vocabulary copies that matrix once per row (two thirds of a training step at 262,144 words).
    """
    length = tokens.shape[1]
    return torch.arange(length - keep, length, device=tokens.device)


def seen(backbone: Backbone, mask: Tensor) -> Any:
    """Return what positions attend to, for a pass with gradients: `mask` (rows, length) itself.

    On a GPU padding sees itself: kernels give NaN as gradients where a position sees nothing.
    """
    config = backbone.model.config.get_text_config()
    blind = mask.device.type == "cuda" and config._attn_implementation == "sdpa"
    return self_seeing(config, mask) if blind and not mask.all() else mask


def self_seeing(config: Any, mask: Tensor) -> Any:
    """Return for `mask` (rows, length) what each position sees of each, padding itself alone.

    Boolean, (rows, 1, length, length); by kind of layer where a model has several.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    behind = places[:, None] - places
    causal = (behind >= 0) & mask[:, None, None].bool() | (behind == 0)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    near = causal & (behind < window) if window else causal
    if not kinds:
        return near
    by_kind = {"full_attention": causal, "sliding_attention": near}
    if not by_kind.keys() >= set(kinds):  # its own library knows what such layers see
        return mask
    return causal if set(kinds) == {"full_attention"} else by_kind


def answer_losses(backbone: Backbone, batch: Batch, opening: Tensor | None = None) -> Tensor:
    """Mean loss (rows,) of each row's answer tokens, teacher-forced, in nats per token, float32.

    `opening` (rows,) is how often the loss of an answer's first token is added to that.
    """
    logits = backbone.model(
        **model_inputs(backbone, batch),
        attention_mask=seen(backbone, batch.mask),
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=last_positions(batch.tokens, batch.keep),
    ).logits[:, :-1]
    targets = batch.tokens[:, -(batch.keep - 1) :]
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    weights = batch.answer_mask.float()
    means = (losses * weights).sum(1) / weights.sum(1)
    if opening is None:
        return means
    first = weights.argmax(1, keepdim=True)
    return means + opening * losses.gather(1, first)[:, 0]


@torch.no_grad()
def last_states(backbone: Backbone, batch: Batch) -> Tensor:
    """Return the last token's state under the last norm, (rows, hidden size), float32."""
    states = backbone.model.base_model(
        **model_inputs(backbone, batch),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    return states[:, -1].float()  # type: ignore[no-any-return]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Group places of `lengths`, in tokens, so that little of a forward pass is padding.

    >>> alike([100, 400, 110, 420])
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = groups[-1] if groups else []
        similar = bool(last) and lengths[at] <= WASTE * lengths[last[0]]
        if similar and lengths[at] * (len(last) + 1) <= READ_TOKENS:
            last.append(at)
        else:
            groups.append([at])
    return groups


def _padded(part: Tensor, length: int) -> Tensor:
    # keys and values are (rows, heads, tokens, width), a mask is (rows, tokens)
    missing = length - part.shape[-2 if part.dim() > 2 else -1]
    return functional.pad(part, (0, 0, missing, 0) if part.dim() > 2 else (missing, 0))


def join_caches(parts: Sequence[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Put caches and masks (rows, length) below each other, shorter ones padded on the left."""
    if len(parts) == 1:
        return parts[0]
    length = max(mask.shape[1] for _, mask in parts)
    joined = []
    for layers in zip(*(cache.layers for cache, _ in parts), strict=True):
        keys = torch.cat([_padded(layer.keys, length) for layer in layers])
        joined.append((keys, torch.cat([_padded(layer.values, length) for layer in layers])))
    return new_cache(joined), torch.cat([_padded(mask, length) for _, mask in parts])


@dataclass(frozen=True, slots=True)
class Prefix:
    """First tokens of prompts, read before in the state in which they are continued.

    The examples of a support set, read once per task, cost every later question no reading: it
    attends to some 60 to 90 more positions. Rows of one batch may have different prefixes.
    """

    tokens: tuple[int, ...]  # what was read
    # keys and values (1, heads, tokens, head size) of each layer
    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


def known_tokens(prompt: Prompt, prefix: Prefix | None) -> int:
    """Return how many tokens of a prompt its prefix holds: all of them, or 0 if it does not fit."""
    size = len(prefix.tokens) if prefix else 0
    fits = prefix and len(prompt.tokens) > size and prompt.tokens[:size] == prefix.tokens
    return size if fits else 0


def new_cache(layers: Sequence[tuple[Tensor, Tensor]] = ()) -> Any:
    """Make a cache of all positions, of keys and values (rows, heads, tokens, size) by layer."""
    # without the model's configuration, which would drop what lies behind a sliding window
    from transformers import DynamicCache

    return DynamicCache(ddp_cache_data=list(layers))


@torch.no_grad()
def read_prefix(backbone: Backbone, tokens: Sequence[int]) -> Prefix:
    """Read what prompts begin with, for `read_prompts`; inside or outside `attach`."""
    cache = new_cache()
    inputs = torch.tensor([list(tokens)], device=backbone.device)
    backbone.model.base_model(input_ids=inputs, **backbone.with_cache(cache))
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return Prefix(tuple(tokens), layers)
