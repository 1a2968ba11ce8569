"""A batch of answers in the making: rows join and leave between steps, each with its own update.

The rows share one key-value cache, padded on the left, so that a row which joins later is only
padded further and a finished one is cut out; what stays is never computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.generate import Reading, read_prompts
from raggd.backbone.interface import attach
from raggd.backbone.join import join_caches
from raggd.backbone.load import Backbone
from raggd.backbone.prefix import new_cache
from raggd.core.low_rank import Update
from raggd.data.prompts import Prompt
from raggd.methods.answering import shared_update
from raggd.methods.base import Adapted


def _layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


class RunningBatch:
    """Rows of one base adapter (or all of none), decoded together."""

    def __init__(self, backbone: Backbone) -> None:
        """Start without rows."""
        self._backbone = backbone
        self._rows: list[Adapted] = []
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._update: Update | None = None
        self._held = ExitStack()
        self._adapted = False

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def join(self, prompts: Sequence[Prompt], rows: Sequence[Adapted]) -> Tensor:
        """Read prompts and add them as rows.

        Returns:
            (prompts, vocabulary) logits of each first token.
        """
        self.release()
        backbone = self._backbone
        with attach(backbone, rows[0].base, self._stacked(rows)):
            reading = read_prompts(backbone, prompts, prefixes=[row.prefix for row in rows])
        self._merge(reading)
        self._rows += rows
        self._update = self._stacked(self._rows)
        return reading.logits

    def _stacked(self, rows: Sequence[Adapted]) -> Update | None:
        update = shared_update(rows)
        target = (self._backbone.device, self._backbone.dtype)
        return update.map(lambda tensor: tensor.to(*target)) if update else None

    def _merge(self, reading: Reading) -> None:
        cache, mask = reading.cache, reading.mask
        if not self._rows:
            self._cache, self._mask = cache, mask
            return
        self._cache, self._mask = join_caches([(self._cache, self._mask), (cache, mask)])

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to every row.

        Returns:
            (rows, vocabulary) logits of each next token.
        """
        if not self._adapted:
            self._held.enter_context(attach(self._backbone, self._rows[0].base, self._update))
            self._adapted = True
        positions = self._mask.sum(1, keepdim=True)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], 1)
        output = self._backbone.model(
            input_ids=torch.tensor(tokens, device=self._mask.device)[:, None],
            attention_mask=self._mask,
            position_ids=positions,
            **self._backbone.with_cache(self._cache),
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, at: Sequence[int]) -> None:
        """Let all rows but some leave."""
        if len(at) == len(self._rows):
            return
        self.release()
        self._rows = [self._rows[i] for i in at]
        if not self._rows:
            self._cache, self._update = None, None
            return
        index = torch.tensor(at, device=self._mask.device)
        mask = self._mask[index]
        start = int(mask.any(0).int().argmax())  # columns before it are padding in every row
        self._mask = mask[:, start:]
        self._cache = new_cache(
            [(k[index, :, start:], v[index, :, start:]) for k, v in _layers(self._cache)]
        )
        self._update = self._stacked(self._rows)

    def release(self) -> None:
        """Leave the backbone as it is without this batch; the next step adapts it again."""
        self._held.close()
        self._adapted = False
