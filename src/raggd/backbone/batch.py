"""Left-padded batches of prompts, and forward passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt

STEP = 16
"""Lengths are padded to a multiple of this: at others the processor's attention in bfloat16 takes
up to twice as long (477 tokens: 14 ms a layer, 480: 7 ms), and fewer lengths are compiled for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts of one batch, padded on the left so that all answers end together.

    Attributes:
        tokens: (rows, length) token ids.
        mask: (rows, length), 1 on real tokens.
        positions: (rows, length), position ids counted from each row's first real token.
        answer_mask: (rows, keep - 1), True where the *target* is an answer token; the last
            ``keep`` positions hold all answers and the position before each first answer token.
        keep: number of last positions whose logits are needed.
        prefix: (vectors, hidden size), embeddings that stand before every prompt in the place of
            its first tokens (prompt tuning); None for none.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    answer_mask: Tensor
    keep: int
    prefix: Tensor | None = None


def padded_length(tokens: int) -> int:
    """Return the length that a batch whose longest row has `tokens` is padded to."""
    return tokens + -tokens % STEP


def make_batch(
    prompts: Sequence[Prompt],
    padding: int,
    device: torch.device,
    prefix: Tensor | None = None,
) -> Batch:
    """Pad prompts on the left.

    Args:
        prompts: at least one.
        padding: the padding token's id.
        device: where the tensors go.
        prefix: (vectors, hidden size) embeddings to put before every prompt.

    Returns:
        The batch.
    """
    before = 0 if prefix is None else len(prefix)
    length = padded_length(max(len(p.tokens) for p in prompts) + before)
    tokens = torch.full((len(prompts), length), padding, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, length - len(prompt.tokens) - before :] = 1
    keep = max(p.answer_tokens for p in prompts) + 1
    distance = torch.arange(keep - 1, 0, -1)  # of each target from the end: keep-1 ... 1
    lengths = torch.tensor([p.answer_tokens for p in prompts])
    answer_mask = distance[None, :] <= lengths[:, None]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return Batch(
        tokens.to(device),
        mask.to(device),
        positions.to(device),
        answer_mask.to(device),
        keep,
        prefix,
    )


def model_inputs(backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
    """Return what the model reads: token ids, or embeddings where there is a prefix.

    Args:
        backbone: gives the embeddings of the tokens.
        batch: the prompts; gradients flow to its prefix.

    Returns:
        ``input_ids`` or ``inputs_embeds``, by name.
    """
    if batch.prefix is None:
        return {"input_ids": batch.tokens}
    embedded = backbone.model.get_input_embeddings()(batch.tokens)
    rows = torch.arange(len(embedded), device=embedded.device)[:, None]
    columns = batch.mask.argmax(1)[:, None] + torch.arange(len(batch.prefix), device=rows.device)
    vectors = batch.prefix.to(embedded).expand(len(embedded), -1, -1)
    return {"inputs_embeds": embedded.index_put((rows, columns), vectors)}


def last_positions(tokens: Tensor, keep: int) -> Tensor:
    """Positions whose logits are wanted, for the model's ``logits_to_keep``.

    A number would do the same slowly: the slice it makes is a view, for which the product with
    the vocabulary copies that matrix once per row (two thirds of a training step at 262,144 words).

    Args:
        tokens: (rows, length).
        keep: number of last positions.

    Returns:
        (keep,) positions, ascending.
    """
    length = tokens.shape[1]
    return torch.arange(length - keep, length, device=tokens.device)


def answer_losses(backbone: Backbone, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of each row's answer tokens, teacher-forced.

    Only the logits of the last ``batch.keep`` positions are computed.

    Args:
        backbone: inside or outside `attach`; gradients flow if they are enabled.
        batch: prompts with answers.

    Returns:
        (rows,) losses in nats per answer token, float32.
    """
    logits = backbone.model(
        **model_inputs(backbone, batch),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=last_positions(batch.tokens, batch.keep),
    ).logits[:, :-1]
    targets = batch.tokens[:, -(batch.keep - 1) :]
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    weights = batch.answer_mask.float()
    return (losses * weights).sum(1) / weights.sum(1)


@torch.no_grad()
def last_states(backbone: Backbone, batch: Batch) -> Tensor:
    """Hidden state of the last token (the end token after an answer) under the last norm.

    Args:
        backbone: inside or outside `attach`.
        batch: prompts; every row ends at the last position.

    Returns:
        (rows, hidden size), float32.
    """
    states = backbone.model.base_model(
        **model_inputs(backbone, batch),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    return states[:, -1].float()  # type: ignore[no-any-return]
