"""Prefixes: read once, different in every row, and the same as reading everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.backbone.batch import Prefix, known_tokens, read_prefix
from raggd.backbone.generate import clean_answer, decode, read_prompts
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, stack_updates
from raggd.data.prompts import Prompt
from tiny import make_sliding_backbone, random_update


def _prompt(*lengths: int, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    return Prompt(tuple(torch.randint(7, 90, (size,), generator=generator).tolist()), 0, 0)


def _rows(sizes: list[tuple[int, int]]) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    prompts = [_prompt(first, rest, seed=i) for i, (first, rest) in enumerate(sizes)]
    return prompts, [p.tokens[:first] for p, (first, _) in zip(prompts, sizes, strict=True)]


SIZES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=5)


@given(sizes=SIZES)
@settings(deadline=None, max_examples=40)
def test_rows_with_different_prefixes_read_as_whole_prompts_do(
    frozen_backbone: Backbone, sizes: list[tuple[int, int]]
) -> None:
    prompts, starts = _rows(sizes)
    prefixes = [read_prefix(frozen_backbone, start) if start else None for start in starts]
    whole = read_prompts(frozen_backbone, prompts)
    parts = read_prompts(frozen_backbone, prompts, prefixes=prefixes)
    torch.testing.assert_close(parts.logits, whole.logits, atol=1e-4, rtol=1e-4)
    assert decode(frozen_backbone, parts, 4) == decode(frozen_backbone, whole, 4)


def test_only_what_follows_the_prefix_is_read(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, starts = _rows([(48, 9), (40, 12)])
    prefixes = [read_prefix(tiny_backbone, start) for start in starts]
    lengths: list[int] = []
    original = tiny_backbone.model.forward

    def spy(*args: object, **kwargs: torch.Tensor) -> object:
        lengths.append(kwargs["input_ids"].shape[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(tiny_backbone.model, "forward", spy)
    read_prompts(tiny_backbone, prompts, prefixes=prefixes)
    assert lengths == [12]


def test_a_prefix_of_other_keys_changes_the_answer(tiny_backbone: Backbone) -> None:
    prompts, starts = _rows([(20, 5)])
    prefix = read_prefix(tiny_backbone, starts[0])
    wrong = Prefix(prefix.tokens, tuple((k * 2, v * 2) for k, v in prefix.layers))
    whole = read_prompts(tiny_backbone, prompts)
    parts = read_prompts(tiny_backbone, prompts, prefixes=[wrong])
    assert (parts.logits - whole.logits).abs().max() > 1e-3


def test_a_prompt_that_does_not_begin_with_its_prefix_is_read_in_full(
    tiny_backbone: Backbone,
) -> None:
    prompts, _ = _rows([(20, 5)])
    foreign = read_prefix(tiny_backbone, _prompt(20, seed=9).tokens)
    assert known_tokens(prompts[0], foreign) == 0
    parts = read_prompts(tiny_backbone, prompts, prefixes=[foreign])
    torch.testing.assert_close(parts.logits, read_prompts(tiny_backbone, prompts).logits)


def test_each_row_has_its_own_prefix_and_its_own_update(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    prompts, starts = _rows([(30, 6), (18, 11), (25, 4)])
    updates = [random_update(base, seed=i, size=0.2) for i in range(3)]
    alone = []
    prefixes = []
    for prompt, start, update in zip(prompts, starts, updates, strict=True):
        with attach(tiny_backbone, base, update):
            prefixes.append(read_prefix(tiny_backbone, start))
            alone.append(read_prompts(tiny_backbone, [prompt]).logits[0])
    with attach(tiny_backbone, base, stack_updates(updates)):
        together = read_prompts(tiny_backbone, prompts, prefixes=prefixes).logits
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_a_sliding_window_sees_the_same_positions() -> None:
    backbone = make_sliding_backbone(16)
    prompts, starts = _rows([(40, 7), (22, 19)])
    prefixes = [read_prefix(backbone, start) for start in starts]
    parts = read_prompts(backbone, prompts, prefixes=prefixes)
    torch.testing.assert_close(
        parts.logits, read_prompts(backbone, prompts).logits, atol=1e-4, rtol=1e-4
    )


def test_several_lines_stay_where_they_are_wanted() -> None:
    assert clean_answer(" a \n b\n\n") == "a"
    assert clean_answer(" a \n b\n\n", lines=True) == "a \n b"
    assert clean_answer("  ") == clean_answer("", lines=True) == ""
