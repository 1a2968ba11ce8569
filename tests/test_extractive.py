"""Answers held to the words of their passages: a part of them, and only where examples say so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from raggd.backbone.extractive import Extract
from raggd.backbone.generate import decode, read_prompts
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt, answer_tokens
from raggd.data.reading import template_of
from raggd.data.template import REFUSAL, AnswerTemplate
from raggd.data.text import is_boundary
from raggd.methods.answering import VERDICTS, extract_of, render
from raggd.methods.base import Adapted
from raggd.records import Demonstration, Passage
from raggd.serving.row import Probabilities, Sampler

WORDS = ("the", "red", "fish", "lives", "near", "Oslo", "(north)", "well-known", "U.S.", "東京都に")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), max_size=3)


def is_part(answer: str, texts: Sequence[str]) -> bool:
    """Whether an answer stands in a text, from a start of a word to an end of one."""
    return any(
        text.startswith(answer, at)
        and is_boundary(text, at)
        and is_boundary(text, at + len(answer))
        for text in texts
        for at in range(len(text))
    )


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A tokenizer whose tokens are parts of words and of characters, spaces included."""
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=300, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token="<end>")
    tokenizer.chat_template = tiny.TEMPLATE
    stop = tokenizer.convert_tokens_to_ids("<end>")
    return SimpleNamespace(tokenizer=tokenizer, stops=[stop])


@given(texts=TEXTS, draw=st.randoms(use_true_random=False))
def test_an_answer_is_a_part_of_a_passage(
    byte_level: Any, texts: list[str], draw: random.Random
) -> None:
    extract, stops, written = Extract(byte_level, texts), set(byte_level.stops), list[int]()
    while not stops & set(written):
        written.append(draw.choice(sorted(extract.allowed())))
        extract.push(written[-1])
    answer = byte_level.tokenizer.decode(written[:-1])
    assert is_part(answer, texts) if texts else answer == ""


@given(texts=TEXTS.filter(bool), draw=st.randoms(use_true_random=False))
def test_every_part_of_a_passage_may_be_the_answer(
    byte_level: Any, texts: list[str], draw: random.Random
) -> None:
    words = draw.choice(texts).split()
    start = draw.randrange(len(words))
    answer = " ".join(words[start : draw.randint(start + 1, len(words))])
    extract = Extract(byte_level, texts)
    for token in answer_tokens(byte_level.tokenizer, answer)[:-1]:
        assert token in extract.allowed()
        extract.push(token)
    assert set(byte_level.stops) <= extract.allowed()


@pytest.mark.parametrize("mark", ["", "- ", "* ", "2. ", "| ", "> ", "```\n"])
def test_no_answer_goes_from_one_paragraph_item_or_row_to_the_next(
    byte_level: Any, mark: str
) -> None:
    # lines of one paragraph are no such end, and no answer begins with such a mark
    texts = [f"{mark}the red\nfish\n{mark or chr(10)}lives near"]
    begun = set(answer_tokens(byte_level.tokenizer, mark.strip())[:1])
    for answer, ends in (("the red fish", True), ("fish", True), ("lives", False)):
        extract = Extract(byte_level, texts)
        assert mark in {"", "2. "} or not extract.allowed() & begun
        for token in answer_tokens(byte_level.tokenizer, answer)[:-1]:
            extract.push(token)
        assert (extract.allowed() == set(byte_level.stops)) is ends


def write(backbone: Backbone, extracts: list[Extract | None], seed: int, most: int) -> list[str]:
    """Answers of the random model to random prompts."""
    generator = torch.Generator().manual_seed(seed)
    size = len(backbone.tokenizer)
    rows = torch.randint(4, size, (len(extracts), 6), generator=generator).tolist()
    reading = read_prompts(backbone, [Prompt(tuple(row), 0, 0) for row in rows])
    return decode(backbone, reading, most, extracts=extracts)


def test_rows_are_held_each_to_its_own_and_others_not_at_all(tiny_backbone: Backbone) -> None:
    def extracts() -> list[Extract | None]:
        return [Extract(tiny_backbone, ["red fish"]), None, Extract(tiny_backbone, ["Oslo lives"])]

    red, free, oslo = write(tiny_backbone, extracts(), 5, 9)
    unheld = write(tiny_backbone, [None] * 3, 5, 9)
    assert free == unheld[1]
    assert not any(text and is_part(text, ["red fish", "Oslo lives"]) for text in unheld)
    assert is_part(red, ["red fish"])
    assert is_part(oslo, ["Oslo lives"])


def test_a_whole_answer_may_be_given_besides_and_not_a_part_of_it(tiny_backbone: Backbone) -> None:
    extract = Extract(tiny_backbone, ["Oslo"], [REFUSAL])
    tokens = answer_tokens(tiny_backbone.tokenizer, REFUSAL)[:-1]
    for token in tokens:
        assert token in extract.allowed()
        assert not extract.allowed() & set(tiny_backbone.stops)
        extract.push(token)
    assert extract.allowed() == set(tiny_backbone.stops)


def test_what_is_sampled_is_held_too_and_its_probability_is_the_models_own(
    tiny_backbone: Backbone,
) -> None:
    logits = torch.randn(len(tiny_backbone.tokenizer), generator=torch.Generator().manual_seed(0))
    allowed = Extract(tiny_backbone, ["red fish"]).allowed()
    sampler = Sampler(temperature=5.0, seed=1)
    chosen = [sampler.choose(logits, Extract(tiny_backbone, ["red fish"])) for _ in range(20)]
    assert set(chosen) <= allowed
    told = Probabilities(lambda *_: b"x", 2)
    for token in chosen:
        (one,) = told.take(token, logits, len(chosen), last=True).content
        assert one.logprob == pytest.approx(float(logits.log_softmax(-1)[token]))


def shown(*answers: str) -> list[Demonstration]:
    """Demonstrations whose passages hold three names."""
    text = "The Red Lion, Oslo and Lake Turin. It was 1944 or B."
    return [Demonstration(str(i), "?", (Passage("p", text),), a) for i, a in enumerate(answers)]


@pytest.mark.parametrize("answers", [("Oslo", "Lake Turin"), ("<b>Oslo</b>", "<b>1944</b>"),
                                     ("OSLO", "RED LION"), ("oslo", "lake turin")])  # fmt: skip
def test_examples_that_stand_in_their_passages_hold_the_answer_there(
    answers: Sequence[str],
) -> None:
    template, _ = template_of(shown(*answers))
    assert template is not None
    assert template.extractive


FREE = [
    ("Oslo",),
    ("Oslo", "Oslo", "1944"),
    ("B", "Oslo"),
    ("Osl", "1944"),
    ("Oslo is cold", "1944"),
    ("oslo", "Lake Turin"),
    ("yes", "no"),
    ("Oslo", "1944", "Rome"),
    ("<b>Oslo</b>", "<b>1944</b>", "<b>Rome</b>"),
]


@pytest.mark.parametrize("answers", FREE)
def test_others_leave_it_free(answers: Sequence[str]) -> None:
    template, _ = template_of(shown(*answers))
    assert template is None or not template.extractive


def test_marks_of_passages_are_written_only_where_examples_show_some(
    tiny_backbone: Backbone,
) -> None:
    template, plain = template_of(shown("<b>Oslo</b>", "<b>1944</b>"))
    passages = (Passage("p", "the *red* fish [sea] Oslo"),)
    starts = {}
    for row in (
        Adapted(template=template, shown=plain),
        Adapted(
            template=template, shown=tuple(replace(d, answer=f"*[{d.answer}]*") for d in plain)
        ),
    ):
        prompt = render(tiny_backbone, row, "who?", passages, limit=400)
        extract = extract_of(tiny_backbone, row, prompt)
        assert extract is not None
        starts[row.shown] = {text for texts in extract._first.values() for text in texts}
    bare, marked = starts.values()
    assert bare == {"the red fish", "red fish", "fish", "sea", "Oslo"}
    assert "*red* fish [sea] Oslo" in marked


def test_what_is_read_decides_what_it_is_held_to(tiny_backbone: Backbone) -> None:
    template, _ = template_of(shown("<b>Oslo</b>", "<b>1944</b>"))
    row, passages = Adapted(template=template), (Passage("p", "red fish", "Oslo"),)
    for question, besides in (("is it red?", VERDICTS), ("who?", ()), ("Woraus ist es?", ())):
        prompt = render(tiny_backbone, row, question, passages, limit=300)
        extract = extract_of(tiny_backbone, row, prompt)
        assert extract is not None
        words = ("red", "fish", "Oslo", *besides)
        firsts = {answer_tokens(tiny_backbone.tokenizer, word)[0] for word in words}
        assert extract.allowed() == firsts
    path = (Passage("p", "red fish", "Peru > Oslo"),)
    extract = extract_of(tiny_backbone, row, render(tiny_backbone, row, "who?", path, limit=300))
    assert extract is not None
    assert {text for texts in extract._first.values() for text in texts} >= {"Peru", "Oslo"}
    counted = replace(row, template=replace(template or AnswerTemplate(), numbers=True))
    costs = (Passage("p", "It costs 1,290 EUR.", "Price"),)
    extract = extract_of(tiny_backbone, counted, render(tiny_backbone, row, "?", costs, limit=300))
    assert extract is not None
    assert {t for texts in extract._first.values() for t in texts} <= {"1,290", "290"}
    wordy = extract_of(tiny_backbone, counted, prompt)
    assert wordy is not None
    assert answer_tokens(tiny_backbone.tokenizer, "fish")[0] in wordy.allowed()
    bare = render(tiny_backbone, row, "who?", (), limit=300)
    assert extract_of(tiny_backbone, row, bare) is None
    assert extract_of(tiny_backbone, Adapted(), prompt) is None
