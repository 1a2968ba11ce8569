"""Batched greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raggd.backbone.batch import make_batch
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt


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


@torch.no_grad()
def greedy_answers(backbone: Backbone, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
    """Generate an answer to each prompt, in one batch, by greedy decoding.

    Called inside `attach`, the adapted model answers; row i uses row i of a batched update.

    Args:
        backbone: the frozen model.
        prompts: prompts without answers.
        max_tokens: most tokens per answer.

    Returns:
        The first line of each answer, special tokens removed.
    """
    tokenizer = backbone.tokenizer
    batch = make_batch(prompts, tokenizer.pad_token_id, backbone.device)
    generated = backbone.model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,  # some models bring one along; greedy means greedy
        eos_token_id=stop_tokens(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    new = generated[:, batch.tokens.shape[1] :]
    return [_clean(tokenizer.decode(row, skip_special_tokens=True)) for row in new]
