"""What clients send as a matter of course: messages sent back, nulls, turns, JSON, bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raggd.data.prompts import Prompt
from raggd.methods.base import Adapted
from raggd.serving.bodies import Schema
from raggd.serving.errors import ApiError
from raggd.serving.openai import ChatRequest, Message, turns_of
from raggd.serving.row import (
    AnswerText,
    Probabilities,
    Row,
    Sampler,
    TextPiece,
    TokenBytes,
)
from raggd.serving.service import passages_for, searches_for
from serving_fixtures import Running, demonstrations, questions

CHAT = "/v1/chat/completions"
UNSET = (
    *("tools", "tool_choice", "functions", "function_call", "audio", "modalities", "n", "seed"),
    *("reasoning_effort", "prediction", "web_search_options", "response_format", "raggd", "stop"),
)


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(client: httpx.Client, *turns: Any, **more: Any) -> httpx.Response:
    body = {"model": "base", "messages": list(turns), "max_tokens": 8, **more}
    return client.post(CHAT, json=body)


def said(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# --- the round trip


def test_the_clients_own_message_comes_back(server: Running) -> None:
    turns: list[Any] = [user(questions(1)[0])]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for question in questions(3)[1:]:
            answer = client.chat.completions.create(model="base", messages=turns, max_tokens=8)
            message = answer.choices[0].message
            for form in (message, message.model_dump(), message.model_dump(exclude_none=True)):
                client.chat.completions.create(
                    model="base", messages=[*turns, form, user(question)], max_tokens=2
                )
            turns += [message, user(question)]


@pytest.mark.parametrize("name", UNSET)
def test_null_means_unset(client: httpx.Client, name: str) -> None:
    plain = said(ask(client, user(questions(1)[0])))
    found = said(ask(client, user(questions(1)[0]), **{name: None}))
    assert found["choices"] == plain["choices"]


def test_null_means_unset_inside_too(client: httpx.Client) -> None:
    bare = {"text": "Lima lies in Peru ."}
    nulls = {"title": None, "id": None, "source": None}
    asked = user("where is Lima ?")
    answers = [said(ask(client, asked, raggd={"passages": [p]})) for p in (bare, bare | nulls)]
    assert answers[0]["raggd"]["passages"] == answers[1]["raggd"]["passages"]
    shown = demonstrations(5)
    empty = {"demonstrations": [{**d, "id": None, "passages": None} for d in shown], "task": None}
    made = [client.post("/v1/supports", json=b) for b in ({"demonstrations": shown}, empty)]
    assert [one.status_code for one in made] == [201, 200], "it is the same set"
    client.delete(f"/v1/supports/{made[0].json()['id']}")


def test_one_form_of_text_asks_the_same(client: httpx.Client) -> None:
    question = questions(1)[0]
    composed, decomposed = f"{question} caf\u00e9", f"\ufeff{question} cafe\u0301\u200b"
    body = {"instruction": "d\u00e9j\u00e0"}, {"instruction": "de\u0301ja\u0300"}
    first = said(ask(client, user(composed), raggd=body[0]))
    second = said(ask(client, user(decomposed), raggd=body[1]))
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]
    assert said(ask(client, user(question)))["usage"] != first["usage"]
    assert ask(client, user("\u200b\ufeff")).status_code == 400


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content.0.", "alone"),
        ({"content": [{"type": "text"}]}, "content.0.text", "required"),
        ({"content": [{"type": "text", "text": "a", "x": 1}]}, "content.0.x", "not a parameter"),
        ({"content": 5}, "content", "string"),
        ({"content": ["where ?"]}, "content.0", "JSON object"),
        ({"A B": 1}, "A B", "not a parameter"),
    ],
)
def test_a_wrong_part_is_named_by_its_place(
    client: httpx.Client, change: dict[str, Any], param: str, word: str
) -> None:
    error = ask(client, {**user("where is Lima ?"), **change}).json()["error"]
    assert error["param"].startswith(f"messages.0.{param}")
    assert word in error["message"]
    tokens = client.post("/v1/completions", json={"model": "base", "prompt": [1, 2]})
    assert tokens.json()["error"]["param"] == "prompt.0"


def test_neutral_values_are_taken_and_others_refused(client: httpx.Client) -> None:
    neutral = {
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
        "tools": [],
        "tool_choice": "none",
        "n": 1,
        "logit_bias": {},
        "repetition_penalty": 1,
        "top_k": -1,
        "min_p": 0.0,
        "reasoning_effort": "none",
        "verbosity": "medium",
        "prompt_cache_retention": "24h",
    }
    neutral |= {"logprobs": False, "top_logprobs": 0}
    assert ask(client, user("where is Lima ?"), **neutral).status_code == 200
    for name, value in (
        ("modalities", ["text", "audio"]),
        ("tool_choice", "required"),
        ("n", 2),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("reasoning_effort", "high"),
    ):
        refused = ask(client, user("where is Lima ?"), **{name: value})
        assert refused.status_code == 400, name
        assert name in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "refusal": "no", "tool_calls": None, "audio": None},
        {"role": "assistant", "content": "Lima", "refusal": None, "annotations": []},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant"},
        {"role": "assistant", "content": "Lima", "reasoning_content": "A city, so ..."},
        {"role": "assistant", "content": '{"at": "Lima"}', "parsed": {"at": "Lima"}},
    ],
)
def test_turns_of_the_assistant_as_they_come(client: httpx.Client, turn: dict[str, Any]) -> None:
    said(ask(client, user("where is Lima ?"), turn, user("who is king ?")))


# --- conversation and instruction


def test_earlier_turns_and_an_instruction_reach_the_model(client: httpx.Client) -> None:
    first, second = questions(2)
    alone = said(ask(client, user(second)))
    talk = [user(first), {"role": "assistant", "content": "Lima"}, user(second)]
    later = said(ask(client, *talk))
    assert later["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]
    assert later["raggd"]["searched"] == searches_for(second, [(first, "Lima")])
    assert alone["raggd"]["searched"] is None
    told = said(ask(client, {"role": "system", "content": "honey " * 40}, user(second)))
    assert told["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + 20
    body = {"model": "base", "prompt": second, "raggd": {"instruction": "honey " * 40}}
    completed = client.post("/v1/completions", json={**body, "max_tokens": 8}).json()
    assert completed["usage"]["prompt_tokens"] == told["usage"]["prompt_tokens"]
    assert completed["choices"][0]["text"] == told["choices"][0]["message"]["content"]


def test_what_is_searched_for_is_bounded_and_told_only_where_it_was(client: httpx.Client) -> None:
    first, second = questions(2)
    long = [user("fish " * 90_000 + first), {"role": "assistant", "content": "Lima"}, user(second)]
    found = said(ask(client, *long))["raggd"]
    assert found["turns_cut"] == 1
    for text in found["searched"]:
        assert len(text.split()) < 150
        assert first in text
        assert second in text
    given = said(ask(client, *long, raggd={"passages": [{"text": "Lima lies in Peru ."}]}))["raggd"]
    assert (given["searched"], given["hits"]) == (None, 1)


def test_several_searches_are_fused_by_their_ranks(server: Running) -> None:
    retriever = server.service.documents.retriever
    first, second = questions(2)
    one, other = (passages_for([text], retriever, 4) for text in (first, second))
    assert passages_for([first, first], retriever, 4) == one
    both = passages_for([first, second], retriever, 4)
    assert {both[0], both[1]} == {one[0], other[0]}
    assert passages_for([first, second], retriever, 0) == ()


@pytest.mark.parametrize("said_before", ["where is {} ?", "{}"])
def test_a_long_conversation_loses_its_oldest_turns(
    server: Running, client: httpx.Client, said_before: str
) -> None:
    turns: list[Any] = []
    for number in range(60):
        turns += [user(said_before.format(number)), {"role": "assistant", "content": "Lima"}]
    asked, none = user("who is king ?"), {"passages": []}
    found, alone = (
        said(ask(client, *turns, asked, raggd=none)),
        said(ask(client, asked, raggd=none)),
    )
    assert 0 < found["raggd"]["turns_cut"] < 60
    more = found["usage"]["prompt_tokens"] - alone["usage"]["prompt_tokens"]
    quarter = server.parts.settings.backbone.context_tokens // 4
    assert quarter // 2 < more <= quarter, "turns are counted as they are shown"


def test_how_a_chat_is_read() -> None:
    def turn(role: str, text: str | None) -> Message:
        return Message.model_validate({"role": role, "content": text})

    turns = [
        turn("system", "be brief"),
        turn("assistant", "hello"),
        turn("user", "a"),
        turn("user", "b"),
        turn("assistant", "c"),
        turn("developer", "in German"),
        turn("user", "d"),
    ]
    chat = ChatRequest(model="base", messages=turns)
    assert turns_of(chat.messages) == ("be brief\nin German", "d", (("a\nb", "c"),))
    with pytest.raises(ApiError, match="'user' last"):
        turns_of(ChatRequest(model="base", messages=turns[:5]).messages)


def test_an_answer_may_be_as_long_as_the_context_leaves(client: httpx.Client) -> None:
    found = said(ask(client, user(questions(1)[0]), max_tokens=256, ignore_eos=True))
    assert found["usage"]["total_tokens"] == 256
    assert found["raggd"]["passages"], "passages do not give way to a long answer"


# --- nothing found


def test_where_nothing_is_found_the_model_is_not_asked(
    server: Running, client: httpx.Client
) -> None:
    foreign = "Quando apre il museo?"
    server.wait_idle()
    before = server.metric("raggd_answer_tokens_total")
    found = said(ask(client, user(foreign)))
    message = found["choices"][0]["message"]
    assert (message["content"], found["raggd"]["hits"]) == ("", 0)
    assert "No passage" in message["refusal"]
    assert found["usage"]["completion_tokens"] == 0
    stream = ask(client, user(foreign), stream=True).text
    assert "No passage" in stream
    assert stream.endswith("data: [DONE]\n\n")
    two = {"model": "base", "prompt": [foreign, questions(1)[0]], "max_tokens": 8}
    texts = [c["text"] for c in client.post("/v1/completions", json=two).json()["choices"]]
    assert texts == [
        "",
        said(ask(client, user(questions(1)[0])))["choices"][0]["message"]["content"],
    ]
    assert server.metric("raggd_answer_tokens_total") <= before + 16
    for more in ({"guess": True}, {"passages": []}):
        asked = said(ask(client, user(foreign), raggd=more))
        assert asked["usage"]["completion_tokens"] > 0
        assert asked["choices"][0]["message"]["refusal"] is None
    said(ask(client, user(foreign), {"role": "assistant", **message}, user(questions(1)[0])))


def test_where_nothing_is_found_the_answer_is_the_refusal_that_was_shown() -> None:
    for refusals, wanted in (((), ""), (("not there", "no"), "not there")):
        row, pieces = started(byte_level(), [], refusals)
        row.skip()
        assert (row.text, row.done) == (wanted, True)
        assert pieces == [TextPiece(wanted, None, "stop")]


# --- JSON


def test_json_is_written_where_demonstrations_show_it(client: httpx.Client) -> None:
    shown = [{**d, "answer": json.dumps({"who": d["answer"]})} for d in demonstrations(2)]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"required": ["who"]}}}
    for wanted in ({"type": "json_object"}, schema):
        more = {"response_format": wanted, "model": "raggd", "raggd": {"demonstrations": shown}}
        found = said(ask(client, user("who is king ?"), **more))
        assert found["raggd"]["valid_json"] is _is_json(found["choices"][0]["message"]["content"])
    other = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"required": ["when"]}}}
    for wanted, examples in (
        ({"type": "json_object"}, demonstrations(2)),
        (other, shown),
        ({"type": "json_object"}, None),
    ):
        more = {"response_format": wanted, "model": "raggd", "raggd": {"demonstrations": examples}}
        refused = ask(client, user("who is king ?"), **more)
        assert refused.status_code == 400
        assert "demonstrations" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"properties": {"who": {"type": "string"}}, "additionalProperties": False}, True),
        ({"properties": {"who": {"type": "number"}}, "required": ["who"]}, False),
        ({"properties": {"when": {}}}, False),
        ({"properties": {"who": {"enum": ["nobody"]}}, "required": ["who"]}, False),
        ({"additionalProperties": False}, False),
        ({"type": "array"}, False),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"required": ["who"]}}}, True),
        ({"$ref": "#"}, False),
    ],
)
def test_a_schema_that_the_demonstrations_do_not_fit_is_refused(
    client: httpx.Client, schema: dict[str, Any], fits: bool
) -> None:
    shown = [{**d, "answer": json.dumps({"who": d["answer"]})} for d in demonstrations(2)]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    more = {"response_format": wanted, "model": "raggd", "raggd": {"demonstrations": shown}}
    answer = ask(client, user("who is king ?"), **more)
    assert (answer.status_code == 200) is fits, answer.text


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"required": 5}, "required"),
        ({"properties": ["a"]}, "properties"),
        ({"type": [1]}, "type"),
        ({"properties": {"a": {"$ref": "http://somewhere"}}}, "properties.a"),
    ],
)
def test_what_is_no_schema_is_refused(
    client: httpx.Client, schema: dict[str, Any], where: str
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused = ask(client, user("who is king ?"), response_format=wanted)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"].startswith(f"response_format.json_schema.schema.{where}")


@pytest.mark.parametrize(
    "wanted", [{"type": "json_schema"}, {"type": "json_object", "json_schema": {"name": "x"}}]
)
def test_a_schema_goes_with_its_type_alone(client: httpx.Client, wanted: dict[str, Any]) -> None:
    refused = ask(client, user("who is king ?"), response_format=wanted)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"


def test_parts_of_a_schema_that_refer_to_each_other_are_looked_at_once() -> None:
    # each refers twice to the next: 2 to the power of 60 ways through them
    parts = {f"p{i}": {"anyOf": [{"$ref": f"#/$defs/p{i + 1}"}] * 2} for i in range(60)}
    for kind, right in (("null", False), ("string", True)):
        whole = {"$ref": "#/$defs/p0", "$defs": parts | {"p60": {"type": kind}}}
        assert Schema.model_validate(whole).fits("text") is right
    assert not Schema.model_validate({"$ref": "#/$defs/lost"}).fits("text")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 2) | st.sampled_from("ab"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)
KINDS = st.sampled_from(
    ["object", "array", "string", "boolean", "null", "integer", "number", ["null", "object"]]
)
SCHEMAS = st.recursive(
    st.booleans() | st.just({"$ref": "#/$defs/A"}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": KINDS,
            "enum": st.lists(st.none() | st.booleans() | st.integers(0, 2), min_size=1),
            "const": st.booleans() | st.sampled_from("ab"),
            "properties": st.dictionaries(st.sampled_from("ab"), inner),
            "required": st.lists(st.sampled_from("ab"), unique=True),
            "additionalProperties": inner,
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "description": st.just("whatever"),
        },
    ),
    max_leaves=6,
)


@given(VALUES, SCHEMAS, SCHEMAS)
def test_json_fits_a_schema_as_the_reference_says(value: Any, schema: Any, named: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    named = True if named == {"$ref": "#/$defs/A"} else named
    whole = {"allOf": [schema], "$defs": {"A": True if "$ref" in str(named) else named}}
    right = jsonschema.Draft202012Validator(whole).is_valid(value)
    ours = Schema.model_validate({"anyOf": [schema], "$defs": whole["$defs"]})
    assert ours.fits(value) == right


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# --- bytes


def byte_level() -> Any:
    """A tokenizer whose tokens are single bytes, as GPT-2 writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


def byte_fallback() -> Any:
    """A tokenizer that writes spaces as ▁ and unknown characters as bytes, as Gemma does."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdef.ö"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=False))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def started(
    tokenizer: Any, stops: list[str], refusals: tuple[str, ...] = ()
) -> tuple[Row, list[TextPiece]]:
    """A row of which nothing is written, and the pieces that it will tell."""
    pieces: list[Any] = []
    row = Row(
        prompt=Prompt((1,), 0, 0),
        adapted=Adapted(refusals=refusals),
        sampler=Sampler(),
        writer=AnswerText(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), stops),
        probabilities=Probabilities(TokenBytes(tokenizer), 1),
        max_tokens=1000,
        emit=lambda _, piece: pieces.append(piece),
    )
    return row, pieces


def write(tokenizer: Any, text: str, stops: list[str]) -> tuple[Row, list[TextPiece]]:
    """Let a row write a text, token by token, then end."""
    row, pieces = started(tokenizer, stops)
    end = int(tokenizer.eos_token_id)
    for token in [*tokenizer.encode(text, add_special_tokens=False), end]:
        row.take(torch.nn.functional.one_hot(torch.tensor(token), end + 1) * 5.0, frozenset([end]))
        if row.done:
            break
    return row, pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(st.sampled_from([*"abc ö.", "\n", "🙂", "漢"]), max_size=12),
    stops=st.lists(st.sampled_from(["b", "c.", "🙂"]), max_size=1),
)
def test_the_bytes_of_the_tokens_are_the_text(name: str, text: str, stops: list[str]) -> None:
    row, pieces = write(TOKENIZERS[name], text, stops)
    shown = "".join(piece.text for piece in pieces)
    assert shown == row.text
    streamed = [token for piece in pieces if piece.logprobs for token in piece.logprobs.content]
    assert row.probabilities
    assert streamed == row.probabilities.told
    assert b"".join(bytes(token.bytes) for token in streamed).decode() == shown
    assert all(token.bytes for token in streamed)


def test_a_character_of_four_bytes_is_four_tokens() -> None:
    row, _ = write(byte_level(), "a🙂", [])
    assert row.probabilities
    told = row.probabilities.told
    assert [token.bytes for token in told] == [[97], *([b] for b in "🙂".encode())]
    assert told[1].top_logprobs[0].bytes == told[1].bytes


def test_probabilities_are_the_same_in_a_stream(client: httpx.Client) -> None:
    more = {"logprobs": True, "top_logprobs": 2}
    whole = said(ask(client, user(questions(1)[0]), **more))["choices"][0]
    stream = ask(client, user(questions(1)[0]), stream=True, **more).text
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    chunks = [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]
    told = [t for c in chunks if c["logprobs"] for t in c["logprobs"]["content"]]
    assert told == whole["logprobs"]["content"]
    joined = b"".join(bytes(t["bytes"]) for t in told).decode()
    assert joined == "".join(t["token"] for t in told) == whole["message"]["content"]
