"""Rows that join and leave a batch write what they would write alone, and choose as they should."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raggd.backbone.batch import READ_TOKENS, WASTE, Reading, alike, padded_length, read_prefix
from raggd.backbone.capture import CapturedSteps, capture_for
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt, build_prompt
from raggd.methods.answering import adapted_rows, answer_batch
from raggd.methods.base import Adapted
from raggd.serving import scheduler
from raggd.serving.row import Probabilities, Sampler
from raggd.serving.scheduler import RunningBatch, cheapest_passes, start_of_pass
from tiny import hooks_of, make_gemma_backbone, random_base, random_update

TOKENS = 10
QUESTIONS = (
    "where is Lima ?",
    "who is the first king of the old country near the small blue river ?",
    "what eats honey ?",
    "how many red fish lives in the big sea north of Oslo ?",
    "which bee makes salt ?",
)


def prompts_of(backbone: Backbone) -> list[Prompt]:
    return [build_prompt(backbone.tokenizer, q, limit=200) for q in QUESTIONS]


def alone(backbone: Backbone, adapted: Adapted, prompt: Prompt, tokens: int = TOKENS) -> list[int]:
    """Greedy tokens of one row, from scratch at every step: no cache, no batch."""
    written: list[int] = []
    with adapted_rows(backbone, [adapted]), torch.no_grad():
        for _ in range(tokens):
            ids = torch.tensor([[*prompt.tokens, *written]], device=backbone.device)
            logits = backbone.model(input_ids=ids, use_cache=False).logits
            written.append(int(logits[0, -1].argmax()))
    return written


def play(
    backbone: Backbone, rows: Sequence[Adapted], starts: Sequence[int], lengths: Sequence[int]
) -> list[list[int]]:
    """Decode: row i joins before step ``starts[i]`` and leaves after ``lengths[i]`` tokens."""
    prompts = prompts_of(backbone)
    batch = RunningBatch(backbone)
    written: list[list[int]] = [[] for _ in rows]
    inside: list[int] = []
    for step in range(max(starts) + max(lengths) + 1):
        if inside:
            for i, logits in zip(inside, batch.step([written[i][-1] for i in inside]), strict=True):
                written[i].append(int(logits.argmax()))
        joining = [i for i, start in enumerate(starts) if start == step]
        if joining:
            first = batch.join([prompts[i] for i in joining], [rows[i] for i in joining])
            for i, logits in zip(joining, first, strict=True):
                written[i].append(int(logits.argmax()))
        inside += joining
        at = [n for n, i in enumerate(inside) if len(written[i]) < lengths[i]]
        batch.keep(at)
        inside = [inside[n] for n in at]
    assert not batch._states
    assert hooks_of(backbone) == 0
    return written


def static_steps(backbone: Backbone, reading: Reading, most: int) -> CapturedSteps:
    return CapturedSteps(backbone, capture_for(backbone, reading, most))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("starts", [(0, 0, 0, 0, 0), (0, 1, 1, 4, 12), (3, 0, 2, 0, 1)])
def test_rows_that_come_and_go_write_what_they_write_alone(
    monkeypatch: pytest.MonkeyPatch,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    starts: tuple[int, ...],
    static: bool,
) -> None:
    if static:  # what a GPU does, with room for few steps
        monkeypatch.setattr(scheduler, "steps_from", static_steps)
        monkeypatch.setattr(scheduler, "AHEAD", 3)
    updates = [random_update(base, seed) for seed in (2, 3, 4, 5)]
    rows = [*(Adapted(base, update) for update in updates), Adapted(base)]
    lengths = (10, 3, 7, 1, 9)
    found = play(tiny_backbone, rows, starts, lengths)
    expected = [
        alone(tiny_backbone, row, prompt, n)
        for row, prompt, n in zip(rows, prompts_of(tiny_backbone), lengths, strict=True)
    ]
    assert found == expected
    others = [*rows[1:], rows[0]]
    swapped = [
        alone(tiny_backbone, row, prompt, n)
        for row, prompt, n in zip(others, prompts_of(tiny_backbone), lengths, strict=True)
    ]
    assert sum(a != b for a, b in zip(expected, swapped, strict=True)) >= 4


def test_rows_of_different_prefixes_and_updates_share_a_batch(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    updates = [random_update(base, seed) for seed in (2, 3, 4)]
    rows = [*(Adapted(base, update) for update in updates), Adapted(base), Adapted(base)]
    prompts = prompts_of(tiny_backbone)
    for at, length in ((0, 5), (2, 9), (3, 3)):
        with adapted_rows(tiny_backbone, [rows[at]]):
            prefix = read_prefix(tiny_backbone, prompts[at].tokens[:length])
        rows[at] = replace(rows[at], prefix=prefix)
    lengths, read = (10, 3, 7, 1, 9), []
    real = tiny_backbone.model.forward
    with pytest.MonkeyPatch.context() as patch:

        def spy(*args: object, **kwargs: torch.Tensor) -> object:
            read.append(kwargs["input_ids"].shape[1])
            return real(*args, **kwargs)

        patch.setattr(tiny_backbone.model, "forward", spy)
        found = play(tiny_backbone, rows, (0, 1, 1, 4, 12), lengths)
    assert read[0] == len(prompts[0].tokens) - 5, "the prefix was read again"
    plain = [replace(row, prefix=None) for row in rows]
    assert found == [
        alone(tiny_backbone, row, prompt, n)
        for row, prompt, n in zip(plain, prompts, lengths, strict=True)
    ]


def test_it_writes_what_offline_generation_writes(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    rows = [Adapted(base, random_update(base, seed)) for seed in range(2, 7)]
    found = play(tiny_backbone, rows, [0] * 5, [TOKENS] * 5)
    ends = set(tiny_backbone.stops)
    texts = []
    for tokens in found:
        end = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(tiny_backbone.tokenizer.decode(tokens[:end], skip_special_tokens=True))
    offline = answer_batch(tiny_backbone, rows, prompts_of(tiny_backbone), TOKENS)
    firsts = [(text.strip().splitlines() or [""])[0].strip() for text in texts]
    assert firsts == offline
    assert len(set(offline)) > 2


def test_a_sliding_window_is_kept_when_rows_join() -> None:
    backbone = make_gemma_backbone(window=8)
    base = random_base(backbone)
    rows = [Adapted(base, random_update(base, seed)) for seed in range(2, 7)]
    found = play(backbone, rows, (0, 2, 2, 4, 5), [TOKENS] * 5)
    assert found == [
        alone(backbone, row, p) for row, p in zip(rows, prompts_of(backbone), strict=True)
    ]


def test_padding_that_no_row_needs_is_dropped(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    prompts = prompts_of(tiny_backbone)
    batch = RunningBatch(tiny_backbone)
    batch.join(prompts[:2], [Adapted(base)] * 2)
    lengths = [len(p.tokens) for p in prompts[:2]]
    assert batch._mask.shape[1] == padded_length(max(lengths))
    batch.keep([0])
    assert batch._mask.shape[1] == lengths[0] < lengths[1]


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, group in enumerate(rest):
            yield [*rest[:at], [items[0], *group], *rest[at + 1 :]]


@given(st.lists(st.integers(1, 600), max_size=6), st.integers(0, 400))
def test_prompts_are_read_in_the_cheapest_passes(lengths: list[int], start: int) -> None:
    def cost(groups: list[list[int]]) -> float:
        sizes = [max(lengths[i] for i in group) * len(group) for group in groups]
        fits = all(s <= 1000 or len(g) == 1 for s, g in zip(sizes, groups, strict=True))
        return sum(start + size for size in sizes) if fits else math.inf

    groups = cheapest_passes(lengths, start, 1000)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert cost(groups) == min(map(cost, partitions(list(range(len(lengths))))))


def test_the_cost_of_a_pass_is_measured(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    spent = [0.0]

    def waits(tokens: int) -> Any:
        spent[0] += 0.5 + 0.01 * tokens + (next(clock) == 0)  # the first is slow
        return SimpleNamespace(logits=torch.zeros(1, 1))

    where = "raggd.serving.scheduler"
    monkeypatch.setattr(f"{where}.read_prompts", lambda _, asked: waits(len(asked[0].tokens)))
    monkeypatch.setattr(f"{where}.time.perf_counter", lambda: spent[0])
    assert start_of_pass(tiny_backbone) == pytest.approx(50)


@given(st.lists(st.integers(1, 2000), max_size=20))
def test_alike_prompts_share_a_pass(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[i] for i in group]
        assert max(sizes) <= WASTE * min(sizes)
        assert len(sizes) == 1 or max(sizes) * len(sizes) <= READ_TOKENS


# --- choosing tokens


def test_the_likeliest_token_is_taken_at_temperature_zero() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert {Sampler().choose(logits) for _ in range(20)} == {1}
    assert Sampler(temperature=1e-300).choose(logits) == 1


def test_seeds_repeat_and_differ() -> None:
    logits = torch.zeros(1000)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler.choose(logits) for _ in range(8)]

    assert drawn(1) == drawn(1)
    assert drawn(-1) == drawn(-1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_temperature_and_nucleus_shape_the_draw() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def shares(sampler: Sampler) -> torch.Tensor:
        drawn = torch.tensor([sampler.choose(logits) for _ in range(4000)])
        return drawn.bincount(minlength=4) / 4000

    assert torch.allclose(shares(Sampler(1.0, seed=0)), logits.exp(), atol=0.03)
    hot = (logits / 2).softmax(-1)
    assert torch.allclose(shares(Sampler(2.0, seed=0)), hot, atol=0.03)
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    assert torch.allclose(shares(Sampler(1.0, top_p=0.7, seed=0)), expected, atol=0.03)


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    token = Sampler(temperature=2.0, seed=3).choose(logits)
    told = Probabilities(lambda other, _: bytes([other + 65]), 4)
    (found,) = told.take(token, logits, 1, last=True).content
    own = logits.log_softmax(-1)
    assert found.bytes == [token + 65]
    assert found.logprob == pytest.approx(float(own[token]))
    assert [top.bytes[0] - 65 for top in found.top_logprobs] == own.topk(4).indices.tolist()
