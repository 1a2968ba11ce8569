"""Batches, losses and greedy answers against the plain computation, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from raggd.backbone.batch import STEP, answer_losses, last_states, make_batch
from raggd.backbone.generate import greedy_answers, stop_tokens
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.prompts import Prompt, build_prompt
from raggd.records import SupportSet

CPU = torch.device("cpu")
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


def test_a_batch_is_padded_on_the_left() -> None:
    prompts = [Prompt((5, 6, 7, 8), 2, 0), Prompt((9, 2), 1, 0)]
    batch = make_batch(prompts, 3, CPU)
    before = [0] * (STEP - 4)
    padding = [3] * (STEP - 4)
    assert batch.tokens.tolist() == [[*padding, 5, 6, 7, 8], [*padding, 3, 3, 9, 2]]
    assert batch.mask.tolist() == [[*before, 1, 1, 1, 1], [*before, 0, 0, 1, 1]]
    assert batch.positions.tolist() == [[*before, 0, 1, 2, 3], [*before, 0, 0, 0, 1]]
    assert batch.keep == 3
    assert batch.answer_mask.tolist() == [[True, True], [False, True]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5))
def test_the_answer_mask_marks_the_answers_and_nothing_else(sizes: list[tuple[int, int]]) -> None:
    prompts = [Prompt((1,) * (before + answer), answer, 0) for before, answer in sizes]
    batch = make_batch(prompts, 3, CPU)
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
        got = answer_losses(tiny_backbone, make_batch(prompts, 3, CPU))
        wanted = torch.stack([plain_loss(tiny_backbone, p) for p in prompts])
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    longer = [Prompt(p.tokens, p.answer_tokens + 1, 0) for p in prompts]
    with attach(tiny_backbone, base), torch.no_grad():
        other = answer_losses(tiny_backbone, make_batch(longer, 3, CPU))
    assert not torch.allclose(got, other, atol=1e-2)


def test_the_padding_token_does_not_matter(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    prompts = answered(tiny_backbone, supports)
    with torch.no_grad():
        losses = [answer_losses(tiny_backbone, make_batch(prompts, p, CPU)) for p in (3, 50)]
    assert torch.equal(*losses)


def test_only_the_answers_logits_are_computed(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    batch = make_batch(answered(tiny_backbone, supports), 3, CPU)
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
        states = last_states(tiny_backbone, make_batch(prompts, 3, CPU))
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


@torch.no_grad()
def plain_greedy(backbone: Backbone, prompt: Prompt) -> str:
    """Greedy decoding without cache, padding or batch."""
    tokens = list(prompt.tokens)
    for _ in range(LENGTH):
        token = int(backbone.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)
        if token in stop_tokens(backbone.tokenizer):
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
    """A model that generates what it is told."""

    def __init__(self, rows: list[list[int]]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows = rows
        self.options: dict[str, Any] = {}

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        self.options = options
        width = max(len(row) for row in self.rows)
        padded = [row + [3] * (width - len(row)) for row in self.rows]
        return torch.cat([input_ids, torch.tensor(padded)], 1)


def test_answers_are_first_lines_without_special_tokens() -> None:
    tokenizer = tiny.tiny_tokenizer()

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    texts = ["Lima</s>", "\n\n the king\nqueen</s>", "</s>", "<assistant>red bird", "\n"]
    model = _Scripted([ids(text) for text in texts])
    backbone = Backbone("scripted", model, tokenizer, {}, "")
    prompts = [Prompt((1, 7, 8), 0, 0)] * len(texts)
    assert greedy_answers(backbone, prompts, 4) == ["Lima", "the king", "", "red bird", ""]
    assert model.options["max_new_tokens"] == 4
    assert model.options["do_sample"] is False
    assert model.options["attention_mask"].tolist() == [[0] * (STEP - 3) + [1] * 3] * len(texts)


def test_a_line_break_ends_a_plain_answer_only() -> None:
    chat, plain = tiny.tiny_tokenizer(), tiny.tiny_tokenizer(None)
    (line,) = plain.encode("\n", add_special_tokens=False)
    assert stop_tokens(chat) == [chat.eos_token_id]
    assert stop_tokens(plain) == sorted([plain.eos_token_id, line])
