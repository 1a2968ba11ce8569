"""The support encoder: demonstrations through backbone + W0 to states (paper section 5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raggd.adaptation.supports import answered_prompt
from raggd.backbone.batch import Batch, last_states, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.records import RaggdError, SupportSet


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
    """Encode support sets of N demonstrations each in one forward pass.

    Returns:
        (sets, N, hidden size), float32, where the backbone is; their mean over N is the paper's
        pooled state.
    """
    size = equal_size(supports)
    with attach(backbone, base):
        states = last_states(backbone, support_batch(backbone, supports, limit))
    return states.reshape(len(supports), size, -1)
