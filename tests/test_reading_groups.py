"""Prompts of different lengths are read in groups on a processor, and answered as if alone."""

from __future__ import annotations

import pytest
import torch

from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt
from raggd.methods import answering
from raggd.methods.answering import answer_rows, reading_groups
from raggd.methods.base import Adapted
from tiny import make_backbone, random_update

LENGTHS = (90, 20, 40, 22, 44, 85)


def rows_and_prompts(base: BaseAdapter) -> tuple[list[Adapted], list[Prompt]]:
    rows = [Adapted(base, random_update(base, seed=40 + i, size=0.4)) for i in range(len(LENGTHS))]
    prompts = [
        Prompt(tuple(8 + (i * 7 + at) % 60 for at in range(n)), 0, 0) for i, n in enumerate(LENGTHS)
    ]
    return rows, prompts


def test_groups_are_for_float32_on_a_processor(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    _, prompts = rows_and_prompts(base)
    assert reading_groups(tiny_backbone, prompts) == [[1, 3], [2, 4], [5, 0]]
    assert reading_groups(make_backbone(dtype=torch.bfloat16), prompts) == [[0, 1, 2, 3, 4, 5]]


def test_answers_and_losses_keep_their_rows(
    tiny_backbone: Backbone, base: BaseAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, prompts = rows_and_prompts(base)
    golds = ["Lima", "the red bird", "Oslo", "old tree", "sea", "Rome"]
    grouped, losses = answer_rows(tiny_backbone, rows, prompts, 6, golds=golds)
    monkeypatch.setattr(answering, "reading_groups", lambda _, p: [list(range(len(p)))])
    together, expected = answer_rows(tiny_backbone, rows, prompts, 6, golds=golds)
    alone = [
        answer_rows(tiny_backbone, [row], [prompt], 6)[0][0]
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    assert grouped == together == alone
    assert len(set(grouped)) > 3
    assert losses is not None
    assert expected is not None
    assert torch.allclose(losses, expected, atol=1e-4)
    assert losses.std() > 1e-2  # an exchange of rows would show
