"""Batches, losses and greedy answers against the plain computation, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from raggd.backbone import batch as batches
from raggd.backbone.batch import (
    STEP,
    answer_losses,
    last_states,
    make_batch,
    padded_length,
    read_prefix,
    self_seeing,
)
from raggd.backbone.generate import (
    common_opening,
    decode,
    read_prompts,
    score,
)
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone, end_tokens, stop_tokens, wrap_model
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.prompts import Prompt, answer_tokens, build_prompt
from raggd.records import RaggdError, SupportSet

LENGTH = 8
"""Most tokens per answer."""


def answered(backbone: Backbone, supports: Sequence[SupportSet]) -> list[Prompt]:
    return [
        build_prompt(backbone.tokenizer, d.question, d.passages, answer=d.answer, limit=200)
        for s in supports
        for d in s.demonstrations
    ]


def asked(backbone: Backbone, supports: Sequence[SupportSet]) -> list[Prompt]:
    return [
        build_prompt(backbone.tokenizer, d.question, d.passages, limit=200)
        for s in supports
        for d in s.demonstrations
    ]


@pytest.mark.parametrize(
    "make",
    [
        tiny.make_backbone,
        partial(tiny.make_sliding_backbone, window=6),
        partial(tiny.make_gemma_backbone, window=6),
    ],
)
def test_padding_that_sees_itself_changes_no_gradient(
    make: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make()
    base = tiny.random_base(backbone)
    shown = [Prompt(tuple(range(5, 5 + n)), 2, 0) for n in (4, 9, 30)]
    batch = make_batch(shown, backbone)

    def gradients() -> list[Tensor]:
        update = base.zero_update().map(lambda t: t.requires_grad_(True))
        with attach(backbone, base, update):
            losses = answer_losses(backbone, batch)
        factors = [t for pair in update.factors.values() for t in pair]
        return [losses.detach(), *torch.autograd.grad(losses.sum(), factors)]

    expected = gradients()
    config = backbone.model.config.get_text_config()
    monkeypatch.setattr(batches, "seen", lambda _, mask: self_seeing(config, mask))
    for found, wanted in zip(gradients(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    # the window counts, and padding is shut out: otherwise losses differ
    full = torch.ones_like(batch.mask)
    monkeypatch.setattr(batches, "seen", lambda _, mask: self_seeing(config, full))
    assert not torch.allclose(gradients()[0], expected[0], atol=1e-3)
    wide = SimpleNamespace(layer_types=getattr(config, "layer_types", None), sliding_window=None)
    monkeypatch.setattr(batches, "seen", lambda _, mask: self_seeing(wide, mask))
    narrow = getattr(config, "sliding_window", None)
    assert torch.allclose(gradients()[0], expected[0], atol=1e-5) == (narrow is None)


def test_layers_that_see_in_a_way_of_their_own_keep_the_plain_mask() -> None:
    mask = torch.tensor([[0, 1, 1]])
    for kinds in (["chunked_attention"], ["full_attention", "linear_attention"]):
        assert self_seeing(SimpleNamespace(layer_types=kinds), mask) is mask
    assert self_seeing(SimpleNamespace(layer_types=["full_attention"]), mask).shape == (1, 1, 3, 3)


def test_the_opening_of_an_answer_counts_as_often_as_asked(tiny_backbone: Backbone) -> None:
    shown = [Prompt(tuple(range(5, 5 + n)), answer, 0) for n, answer in ((9, 3), (6, 1), (12, 2))]
    batch = make_batch(shown, tiny_backbone)
    first = [Prompt(p.tokens[: len(p.tokens) - p.answer_tokens + 1], 1, 0) for p in shown]
    with torch.no_grad():
        plain = answer_losses(tiny_backbone, batch)
        found = answer_losses(tiny_backbone, batch, torch.tensor([0.5, 2.0, 0.0]))
        opening = answer_losses(tiny_backbone, make_batch(first, tiny_backbone))
    expected = plain + torch.tensor([0.5, 2.0, 0.0]) * opening
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_batch_is_padded_on_the_left(tiny_backbone: Backbone) -> None:
    prompts = [Prompt((5, 6, 7, 8), 2, 0), Prompt((9, 2), 1, 0)]
    batch = make_batch(prompts, tiny_backbone)
    before = [0] * (STEP - 4)
    padding = [3] * (STEP - 4)
    assert batch.tokens.tolist() == [[*padding, 5, 6, 7, 8], [*padding, 3, 3, 9, 2]]
    assert batch.mask.tolist() == [[*before, 1, 1, 1, 1], [*before, 0, 0, 1, 1]]
    assert batch.positions.tolist() == [[*before, 0, 1, 2, 3], [*before, 0, 0, 0, 1]]
    assert batch.keep == 3
    assert batch.answer_mask.tolist() == [[True, True], [False, True]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_the_answer_mask_marks_the_answers_and_nothing_else(
    frozen_backbone: Backbone, sizes: list[tuple[int, int]]
) -> None:
    prompts = [Prompt((1,) * (before + answer), answer, 0) for before, answer in sizes]
    batch = make_batch(prompts, frozen_backbone)
    targets = batch.keep - 1
    assert batch.tokens.shape[1] % STEP == 0
    assert batch.tokens.shape[1] - max(sum(size) for size in sizes) < STEP
    assert batch.answer_mask.shape == (len(sizes), targets)
    for row, (before, answer) in enumerate(sizes):
        assert batch.answer_mask[row].tolist() == [False] * (targets - answer) + [True] * answer
        assert int(batch.mask[row].sum()) == before + answer


@torch.no_grad()
def plain_loss(backbone: Backbone, prompt: Prompt) -> Tensor:
    """Mean negative log-likelihood of the answer, from all logits of the prompt alone."""
    tokens = torch.tensor([prompt.tokens])
    scores = backbone.model(input_ids=tokens).logits[0].log_softmax(-1)
    first = len(prompt.tokens) - prompt.answer_tokens
    picked = [scores[at - 1, prompt.tokens[at]] for at in range(first, len(prompt.tokens))]
    return -torch.stack(picked).mean()


def test_losses_are_those_of_the_answers_alone(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    prompts = answered(tiny_backbone, supports)
    assert len({p.answer_tokens for p in prompts}) > 1
    assert len({len(p.tokens) for p in prompts}) > 1
    with attach(tiny_backbone, base), torch.no_grad():
        got = answer_losses(tiny_backbone, make_batch(prompts, tiny_backbone))
        wanted = torch.stack([plain_loss(tiny_backbone, p) for p in prompts])
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    longer = [Prompt(p.tokens, p.answer_tokens + 1, 0) for p in prompts]
    with attach(tiny_backbone, base), torch.no_grad():
        other = answer_losses(tiny_backbone, make_batch(longer, tiny_backbone))
    assert not torch.allclose(got, other, atol=1e-2)


def test_the_padding_token_does_not_matter(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    prompts = answered(tiny_backbone, supports)
    with torch.no_grad():
        batch = make_batch(prompts, tiny_backbone)
        other = batch.tokens.masked_fill(batch.mask == 0, 50)
        assert not torch.equal(other, batch.tokens)
        losses = [answer_losses(tiny_backbone, b) for b in (batch, replace(batch, tokens=other))]
    assert torch.equal(*losses)


def test_only_the_answers_logits_are_computed(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    batch = make_batch(answered(tiny_backbone, supports), tiny_backbone)
    shapes: list[torch.Size] = []

    def spy(_: Any, inputs: tuple[Tensor, ...]) -> None:
        shapes.append(inputs[0].shape)

    handle = tiny_backbone.model.lm_head.register_forward_pre_hook(spy)
    try:
        answer_losses(tiny_backbone, batch)
    finally:
        handle.remove()
    assert batch.keep < batch.tokens.shape[1]
    assert [shape[1] for shape in shapes] == [batch.keep]


def test_last_states_are_those_of_the_end_tokens(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    prompts = answered(tiny_backbone, supports)
    with attach(tiny_backbone, base):
        states = last_states(tiny_backbone, make_batch(prompts, tiny_backbone))
        with torch.no_grad():
            alone = [
                tiny_backbone.model(
                    input_ids=torch.tensor([p.tokens]), output_hidden_states=True
                ).hidden_states[-1][0, -1]
                for p in prompts
            ]
    assert (states.shape, states.dtype) == ((len(prompts), 32), torch.float32)
    assert float((states[0] - states[1]).abs().max()) > 0.1
    torch.testing.assert_close(states, torch.stack(alone), atol=1e-5, rtol=1e-5)
    assert not states.requires_grad


def greedy_answers(backbone: Backbone, prompts: Sequence[Prompt], most: int) -> list[str]:
    return decode(backbone, read_prompts(backbone, prompts), most)


@torch.no_grad()
def plain_greedy(backbone: Backbone, prompt: Prompt) -> str:
    """Greedy decoding without cache, padding or batch."""
    tokens = list(prompt.tokens)
    for _ in range(LENGTH):
        token = int(backbone.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)
        if token in backbone.stops:
            break
    text: str = backbone.tokenizer.decode(tokens[len(prompt.tokens) :], skip_special_tokens=True)
    return (text.strip().splitlines() or [""])[0].strip()


def each_alone(
    backbone: Backbone, base: BaseAdapter | None, updates: Update | None, prompts: list[Prompt]
) -> list[str]:
    answers = []
    for row, prompt in enumerate(prompts):
        with attach(backbone, base, updates.row(row) if updates else None):
            answers.append(plain_greedy(backbone, prompt))
    return answers


@pytest.mark.parametrize("template", [tiny.TEMPLATE, None], ids=["chat", "plain"])
def test_answers_of_a_batch_are_those_of_plain_decoding(
    template: str | None, supports: list[SupportSet]
) -> None:
    backbone = tiny.make_backbone(template=template)
    base = tiny.random_base(backbone)
    prompts = asked(backbone, supports)
    bare = greedy_answers(backbone, prompts, LENGTH)
    assert bare == each_alone(backbone, None, None, prompts)
    with attach(backbone, base):
        adapted = greedy_answers(backbone, prompts, LENGTH)
    assert adapted == each_alone(backbone, base, None, prompts)
    assert len(set(bare)) == len(set(adapted)) == len(prompts)
    assert not set(bare) & set(adapted)


def test_each_row_is_answered_with_its_own_update(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    prompts = [asked(tiny_backbone, supports)[0]] * 3 + asked(tiny_backbone, supports)[1:]
    updates = tiny.random_updates(base, len(prompts))
    with attach(tiny_backbone, base, updates):
        together = greedy_answers(tiny_backbone, prompts, LENGTH)
    assert len(set(together[:3])) == 3  # one prompt, three updates, three answers
    assert together == each_alone(tiny_backbone, base, updates, prompts)
    with attach(tiny_backbone, base, updates.row(0)):
        shared = greedy_answers(tiny_backbone, prompts, LENGTH)
    assert shared[0] == together[0]
    assert all(a != b for a, b in zip(shared[1:], together[1:], strict=True))


class _Scripted(torch.nn.Module):
    """A model that says what it is told, and remembers what it was shown."""

    def __init__(self, rows: list[list[int]], words: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows, self.words = rows, words
        self.masks: list[int] = []
        self.positions: list[list[int]] = []

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any
    ) -> Any:
        step = len(self.masks)
        self.masks.append(attention_mask.shape[1])
        self.positions.append(position_ids[:, -1].tolist())
        logits = torch.zeros(len(self.rows), 1, self.words)
        for row, said in enumerate(self.rows):
            logits[row, 0, said[step] if step < len(said) else 50] = 1.0
        return type("Output", (), {"logits": logits})


def test_answers_are_first_lines_without_special_tokens() -> None:
    tokenizer = tiny.tiny_tokenizer()

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    texts = ["Lima</s>", "\n\n the king\nqueen</s>", "</s>", "<assistant>red bird</s>", "\n</s>"]
    model = _Scripted([ids(text) for text in texts], len(tokenizer))
    backbone = Backbone("scripted", model, tokenizer, {}, "", [tokenizer.eos_token_id])
    prompts = [Prompt((1, 7, 8), 0, 0), *[Prompt((1, 7), 0, 0)] * (len(texts) - 1)]
    answers = greedy_answers(backbone, prompts, 20)
    assert answers == ["Lima", "the king", "", "red bird", ""]
    longest = max(len(ids(text)) for text in texts)
    assert model.masks == list(range(STEP, STEP + longest)), "it stops when all have ended"
    assert model.positions[1] == [3, 2, 2, 2, 2], "counted from each row's first token"
    short = _Scripted([ids(text) for text in texts], len(tokenizer))
    greedy_answers(replace(backbone, model=short), prompts, 2)
    assert len(short.masks) == 2


def test_a_line_break_ends_a_plain_answer_only() -> None:
    chat, plain = tiny.tiny_tokenizer(), tiny.tiny_tokenizer(None)
    (line,) = plain.encode("\n", add_special_tokens=False)
    assert stop_tokens(chat, None) == [chat.eos_token_id]
    assert stop_tokens(plain, None) == sorted([plain.eos_token_id, line])


def test_end_tokens_of_the_generation_settings_end_an_answer_too() -> None:
    backbone = tiny.make_backbone()
    own, user = backbone.tokenizer.eos_token_id, backbone.tokenizer.convert_tokens_to_ids("<user>")
    assert backbone.stops == [own]
    backbone.model.generation_config.eos_token_id = [user, own]
    assert wrap_model(backbone.model, backbone.tokenizer, "x").stops == sorted([own, user])
    assert end_tokens(backbone.tokenizer, backbone.model) == [own, user]  # its own closes answers
    backbone.tokenizer.eos_token = None
    with pytest.raises(RaggdError, match="no end token"):
        end_tokens(backbone.tokenizer, backbone.model)


# ---- reading once


def golds(backbone: Backbone, supports: Sequence[SupportSet]) -> list[list[int]]:
    return [answer_tokens(backbone.tokenizer, d.answer) for s in supports for d in s.demonstrations]


def test_scores_from_a_reading_are_the_losses_of_a_pass_of_their_own(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    prompts, whole = asked(tiny_backbone, supports), answered(tiny_backbone, supports)
    tokens = golds(tiny_backbone, supports)
    assert len({len(answer) for answer in tokens}) > 1
    updates = tiny.random_updates(base, len(prompts))
    with torch.no_grad(), attach(tiny_backbone, base, updates):
        reading = read_prompts(tiny_backbone, prompts)
        first = score(tiny_backbone, reading, tokens)
        answers = decode(tiny_backbone, reading, LENGTH)
        again = score(tiny_backbone, reading, tokens)
        wanted = answer_losses(tiny_backbone, make_batch(whole, tiny_backbone))
        other = score(tiny_backbone, reading, tokens[::-1])
    assert float((other - wanted).abs().max()) > 0.1
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(first, again), "answering leaves the reading as it was"
    assert answers == each_alone(tiny_backbone, base, updates, prompts)
    assert reading.cache.get_seq_length() == reading.mask.shape[1]


def test_an_answer_of_one_token_is_scored_from_the_reading_alone(tiny_backbone: Backbone) -> None:
    prompt = Prompt((1, 8, 9), 0, 0)
    reading = read_prompts(tiny_backbone, [prompt])
    got = score(tiny_backbone, reading, [[2]])
    wanted = plain_loss(tiny_backbone, Prompt((1, 8, 9, 2), 1, 0))
    torch.testing.assert_close(got[0], wanted, atol=1e-6, rtol=1e-6)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_common_opening_is_the_longest_that_leaves_every_prompt_a_token(
    rows: list[list[int]],
) -> None:
    found = common_opening([Prompt(tuple(row), 0, 0) for row in rows])
    size = len(found)
    assert all(tuple(row[:size]) == found and len(row) > size for row in rows)
    longer = {tuple(row[: size + 1]) for row in rows}
    assert len(longer) > 1 or min(map(len, rows)) == size + 1


def few_shot(backbone: Backbone, supports: Sequence[SupportSet]) -> list[Prompt]:
    """Prompts of different lengths that open with the same demonstrations."""
    shown = supports[0].demonstrations
    others = (*supports[1].demonstrations, supports[2].demonstrations[1])
    questions = ["what is salt ?", "where is the red bird and the blue bird ?", "who is king ?"]
    return [
        build_prompt(backbone.tokenizer, q, d.passages, limit=300, shown=shown)
        for q, d in zip(questions, others, strict=True)
    ]


@pytest.mark.parametrize("window", [0, 30], ids=["full", "sliding"])
@pytest.mark.parametrize("template", [tiny.TEMPLATE, None], ids=["chat", "plain"])
def test_prompts_read_from_a_shared_opening_are_those_read_in_full(
    template: str | None, window: int, supports: list[SupportSet]
) -> None:
    backbone = (
        tiny.make_sliding_backbone(window) if window else tiny.make_backbone(template=template)
    )
    base = tiny.random_base(backbone)
    update = tiny.random_update(base)
    prompts = few_shot(backbone, supports)
    tokens = common_opening(prompts)
    assert len(tokens) > 40
    assert len({len(p.tokens) for p in prompts}) == 3
    gold = golds(backbone, supports)[:3]
    with attach(backbone, base, update):
        opening = read_prefix(backbone, tokens)
        shared = read_prompts(backbone, prompts, prefixes=[opening] * 3)
        full = read_prompts(backbone, prompts)
        assert decode(backbone, shared, LENGTH) == decode(backbone, full, LENGTH)
        wanted = score(backbone, full, gold)
        torch.testing.assert_close(score(backbone, shared, gold), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shared.logits, full.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(shared.mask, full.mask)
    with attach(backbone, base):
        wrong = read_prompts(
            backbone, prompts, prefixes=[opening] * 3
        )  # read under another adapter
    with attach(backbone, base):
        right = read_prompts(backbone, prompts)
    assert not torch.allclose(wrong.logits, right.logits, atol=1e-2)


def test_the_opening_is_not_read_again(tiny_backbone: Backbone, supports: list[SupportSet]) -> None:
    prompts = few_shot(tiny_backbone, supports)
    opening = read_prefix(tiny_backbone, common_opening(prompts))
    seen: list[int] = []

    def spy(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.shape[1])

    handle = tiny_backbone.projections["q"][0].register_forward_hook(spy)
    try:
        read_prompts(tiny_backbone, prompts, prefixes=[opening] * len(prompts))
        read_prompts(tiny_backbone, prompts[::-1])
    finally:
        handle.remove()
    longest = max(len(p.tokens) for p in prompts)
    assert seen == [longest - len(opening.tokens), padded_length(longest)]


def test_an_opening_that_does_not_fit_is_not_used(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    prompts = few_shot(tiny_backbone, supports)
    opening = read_prefix(tiny_backbone, common_opening(prompts))
    others = asked(tiny_backbone, supports)  # they begin otherwise
    much = Prompt(opening.tokens + (8,) * (2 * len(opening.tokens)), 0, 0)
    got = read_prompts(tiny_backbone, others, prefixes=[opening] * len(others))
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(got.logits, read_prompts(tiny_backbone, others).logits)
    batch = [prompts[0], much]  # padding longer than the opening
    got = read_prompts(tiny_backbone, batch, prefixes=[opening] * 2)
    close(got.logits, read_prompts(tiny_backbone, batch).logits)
