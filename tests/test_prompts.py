"""Prompts: templates, the answer's tokens, and what is cut when they are too long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.data import prompts
from raggd.data.prompts import (
    ANSWER_CUE,
    READ,
    WITH_PASSAGES,
    answer_tokens,
    build_prompt,
    passage_lines,
    prompt_fingerprint,
    system_text,
    turn_tokens,
    user_text,
)
from raggd.records import Demonstration, Passage, RaggdError
from tiny import NO_SYSTEM, TEMPLATE, WORDS, tiny_tokenizer

CHAT = tiny_tokenizer()
PLAIN = tiny_tokenizer(None)
PASSAGES = (
    Passage("1", "Lima is\n the   capital of Peru .", "Lima"),
    Passage("2", "the river flows west"),
)


def text_of(tokenizer: Any, tokens: tuple[int, ...]) -> str:
    return " ".join(tokenizer.decode(tokens).split())


def holds(tokens: tuple[int, ...], part: list[int]) -> bool:
    """Whether `part` stands in `tokens` in one piece."""
    return any(list(tokens[i : i + len(part)]) == part for i in range(len(tokens)))


def words_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def test_passages_are_numbered_one_a_line() -> None:
    assert passage_lines(PASSAGES) == (
        "[1] Lima: Lima is the capital of Peru .\n[2] the river flows west"
    )
    assert user_text(" who ? ", ()) == "Question: who ?"
    assert user_text("who ?", PASSAGES) == f"{passage_lines(PASSAGES)}\n\nQuestion: who ?"


@given(st.lists(st.builds(Passage, *[st.text("a \n\r\x0b[2]", max_size=9)] * 4), max_size=3))
def test_no_passage_takes_more_than_its_line(passages: list[Passage]) -> None:
    for sources in (False, True):
        lines = passage_lines(passages, sources).splitlines()
        assert [line[:3] for line in lines] == [f"[{n + 1}]" for n in range(len(passages))]


def test_a_chat_prompt_has_a_system_turn_and_ends_where_the_answer_begins() -> None:
    prompt = build_prompt(CHAT, "who is the king ?", PASSAGES, limit=300)
    text = text_of(CHAT, prompt.tokens)
    assert text.startswith("<system> Use the passages")
    assert text.endswith("Question : who is the king ? </s> <assistant>")
    assert (prompt.answer_tokens, prompt.passages_cut) == (0, 0)
    closed = text_of(CHAT, build_prompt(CHAT, "who is the king ?", limit=300).tokens)
    assert closed.startswith("<system> Answer the question")
    assert "[" not in closed


def test_a_template_without_system_turns_gets_the_instruction_in_the_users() -> None:
    tokenizer = tiny_tokenizer(NO_SYSTEM)
    with pytest.raises(Exception, match="no system turns"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
    shown = Demonstration("d", "where is Lima ?", (), "Peru")
    prompt = build_prompt(tokenizer, "who ?", PASSAGES, limit=300, shown=[shown])
    text = text_of(tokenizer, prompt.tokens)
    assert "<system>" not in text
    assert text.startswith("<user> Use the passages")
    assert "Question : where is Lima ? </s> <assistant> Peru </s> <user>" in text
    assert text.endswith("Question : who ? </s> <assistant>")


def test_without_a_chat_template_the_prompt_is_plain_text() -> None:
    shown = Demonstration("d", "where is Lima ?", (PASSAGES[1],), "Peru")
    prompt = build_prompt(PLAIN, "who ?", PASSAGES, answer=" the king ", limit=300, shown=[shown])
    assert prompt.tokens[0] == PLAIN.bos_token_id
    asked = [shown.question, "who ?"]
    texts = [user_text(q, p) for q, p in zip(asked, (shown.passages, PASSAGES), strict=True)]
    plain = f"{WITH_PASSAGES}\n\n{texts[0]}\n{ANSWER_CUE} Peru\n\n{texts[1]}\n{ANSWER_CUE} the king"
    wanted = [PLAIN.bos_token_id, *words_of(PLAIN, plain), PLAIN.eos_token_id]
    assert list(prompt.tokens) == wanted
    assert "<user>" not in text_of(PLAIN, prompt.tokens)
    no_start = tiny_tokenizer(None)
    no_start.bos_token = None
    assert build_prompt(no_start, "who ?", limit=300).tokens[0] == words_of(PLAIN, "Answer")[0]


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
def test_the_answer_comes_last_with_its_end_token(tokenizer: Any) -> None:
    bare = build_prompt(tokenizer, "who ?", PASSAGES, limit=300)
    prompt = build_prompt(tokenizer, "who ?", PASSAGES, answer="the old king", limit=300)
    assert prompt.answer_tokens == 4
    assert prompt.tokens[: -prompt.answer_tokens] == bare.tokens  # what the model sees to answer
    assert list(prompt.tokens[-4:]) == answer_tokens(tokenizer, "the old king")
    assert prompt.tokens[-1] == tokenizer.eos_token_id


def test_demonstrations_come_first_and_in_order() -> None:
    shown = [
        Demonstration("1", "where is Lima ?", (PASSAGES[0],), "Peru"),
        Demonstration("2", "where is Rome ?", (), "far east"),
    ]
    text = text_of(CHAT, build_prompt(CHAT, "who ?", limit=300, shown=shown).tokens)
    places = [text.index(p) for p in ("where is Lima", "Peru </s>", "where is Rome", "who ?")]
    assert places == sorted(places)
    assert text.startswith("<system> Use the passages")  # a demonstration has some
    assert text.count("<assistant>") == 3


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN])
def test_an_instruction_and_earlier_turns_reach_the_model(tokenizer: Any) -> None:
    plain = build_prompt(tokenizer, "who is king ?", PASSAGES, limit=900)
    told = build_prompt(
        tokenizer,
        "who is king ?",
        PASSAGES,
        limit=900,
        instruction="the honey lives north",
        earlier=[("where is Lima ?", "near Oslo")],
    )
    assert told != plain
    assert (plain.question, told.question) == ("who is king ?", "where is Lima ? who is king ?")
    text = text_of(tokenizer, told.tokens)
    parts = ["the honey lives north", "where is Lima", "near Oslo", "who is king"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    same = build_prompt(tokenizer, "who is king ?", PASSAGES, limit=900, instruction=" ")
    assert same == plain


def test_an_instruction_stands_in_place_of_the_call_for_brevity() -> None:
    assert system_text(True) == WITH_PASSAGES
    assert system_text(True, "Answer in a sentence.") == f"{READ} Answer in a sentence."
    assert system_text(False, " Answer in a sentence. ") == "Answer in a sentence."


def test_an_empty_question_is_refused() -> None:
    for question in ("", " \n"):
        with pytest.raises(RaggdError, match="question is empty"):
            build_prompt(CHAT, question, limit=300)


def test_fingerprints_tell_templates_apart() -> None:
    prints = {prompt_fingerprint(tiny_tokenizer(t)) for t in (TEMPLATE, NO_SYSTEM, None)}
    assert len(prints) == 3
    assert prompt_fingerprint(CHAT) == prompt_fingerprint(tiny_tokenizer())


def test_passages_are_cut_from_the_last() -> None:
    passages = tuple(Passage(str(i), " ".join([WORDS[i]] * 20), "") for i in range(3))
    whole = build_prompt(CHAT, "who ?", passages, answer="king", limit=300)
    size = len(whole.tokens)
    assert whole.passages_cut == 0
    shorter = build_prompt(CHAT, "who ?", passages, answer="king", limit=size - 5)
    assert size - 10 <= len(shorter.tokens) <= size - 5  # no more than needed, to a word
    assert shorter.passages_cut == 1
    counts = [shorter.tokens.count(words_of(CHAT, WORDS[i])[0]) for i in range(3)]
    full = [whole.tokens.count(words_of(CHAT, WORDS[i])[0]) for i in range(3)]
    assert counts[:2] == full[:2]
    assert full[2] - 10 <= counts[2] < full[2]
    two = build_prompt(CHAT, "who ?", passages, answer="king", limit=size - 30)
    assert two.passages_cut == 2
    assert "[ 3 ]" not in text_of(CHAT, two.tokens)
    none = build_prompt(CHAT, "who ?", passages, answer="king", limit=size - 62)
    assert none.passages_cut == 3


@pytest.mark.parametrize("part", ["text", "title"])
def test_what_no_context_could_hold_is_not_tokenised(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def noted(tokenizer: Any, turns: Any) -> list[int]:
        seen.append(max(len(turn["content"]) for turn in turns))
        return turn_tokens(tokenizer, turns)

    monkeypatch.setattr(prompts, "turn_tokens", noted)
    huge = replace(Passage("1", "sea", "city"), **{part: "sea " * 1_000_000})
    prompt = build_prompt(CHAT, "who ?", [huge, Passage("2", "king")], limit=300)
    assert len(prompt.tokens) <= 300
    assert prompt.passages_cut == 2
    assert max(seen) < 300 * 17


def test_room_is_left_for_the_answer_to_be_generated() -> None:
    passages = [Passage("1", " ".join(["sea"] * 50))]
    size = len(build_prompt(CHAT, "who ?", passages, limit=300).tokens)
    assert build_prompt(CHAT, "who ?", passages, limit=size).passages_cut == 0
    reserved = build_prompt(CHAT, "who ?", passages, limit=size, reserve=10)
    assert len(reserved.tokens) <= size - 10
    assert reserved.passages_cut == 1


def test_a_question_that_does_not_fit_is_refused() -> None:
    bare = len(build_prompt(CHAT, "who ?", answer="king", limit=300).tokens)
    build_prompt(CHAT, "who ?", PASSAGES, answer="king", limit=bare)
    needs = rf"needs {bare} tokens without any passage, more than the limit of {bare - 1} \(2 are"
    with pytest.raises(RaggdError, match=needs):
        build_prompt(CHAT, "who ?", PASSAGES, answer="king", limit=bare - 1)
    with pytest.raises(RaggdError, match=f"needs {bare + 7} tokens"):
        build_prompt(CHAT, "who ?", answer="king", limit=bare, reserve=7)


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
passage_lists = st.lists(st.builds(Passage, st.just("p"), sentences, st.sampled_from(["", "Lima"])))


@settings(max_examples=60, deadline=None)
@given(
    passages=passage_lists,
    question=sentences,
    answer=sentences,
    limit=st.integers(10, 250),
    template=st.sampled_from([CHAT, PLAIN]),
)
def test_whatever_the_lengths_question_and_answer_stay_whole(
    passages: list[Passage], question: str, answer: str, limit: int, template: Any
) -> None:
    free = build_prompt(template, question, passages, answer=answer, limit=10_000)
    bare = build_prompt(template, question, (), answer=answer, limit=10_000)
    assert free.passages_cut == 0
    if len(bare.tokens) > limit:
        with pytest.raises(RaggdError, match=f"limit of {limit}"):
            build_prompt(template, question, passages, answer=answer, limit=limit)
        return
    prompt = build_prompt(template, question, passages, answer=answer, limit=limit)
    assert len(prompt.tokens) <= limit
    assert prompt.tokens[-prompt.answer_tokens :] == free.tokens[-free.answer_tokens :]
    assert holds(prompt.tokens, words_of(template, f"Question: {question}"))
    assert (prompt.passages_cut == 0) == (len(free.tokens) <= limit)
    if prompt.passages_cut == 0:
        assert prompt.tokens == free.tokens
    for number, passage in enumerate(passages[: len(passages) - prompt.passages_cut], start=1):
        title = f"{passage.title}: " if passage.title else ""
        assert holds(prompt.tokens, words_of(template, f"[{number}] {title}{passage.text}"))


@pytest.mark.parametrize(
    "text", ["x" * 400, "ab\n\n" * 150, "\u00e9\u4e2d" * 200, " " * 50 + "a b"]
)
def test_cutting_ends_for_odd_texts_too(text: str) -> None:
    passages = [Passage("1", text, "Lima"), Passage("2", text)]
    bare = len(build_prompt(CHAT, "who ?", limit=300).tokens)
    for room in (0, 3, 11):
        prompt = build_prompt(CHAT, "who ?", passages, limit=bare + room)
        assert len(prompt.tokens) <= bare + room


def _byte_tokenizer() -> Any:
    """Every byte is a token: cutting may split a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "</s>"])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>")


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=120), room=st.integers(0, 200))
def test_cutting_ends_when_characters_are_split(text: str, room: int) -> None:
    tokenizer = BYTES
    bare = len(build_prompt(tokenizer, "who ?", limit=10_000).tokens)
    prompt = build_prompt(tokenizer, "who ?", [Passage("1", text)] * 2, limit=bare + room)
    assert len(prompt.tokens) <= bare + room


BYTES = _byte_tokenizer()
