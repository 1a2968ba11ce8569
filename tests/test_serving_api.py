"""The server as the unmodified `openai` client sees it; answers equal the offline method's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from serving_fixtures import (
    Running,
    demonstrations,
    offline_answer,
    questions,
)

TOKENS = 12


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, question: str, model: str = "base", **more: object):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=TOKENS, **more
    )


def store(server: Running, number: int) -> str:
    with server.client() as plain:
        answer = plain.post("/v1/supports", json={"demonstrations": demonstrations(number)})
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()["id"]


@pytest.mark.parametrize("method", ["vanilla-rag", "base"])
def test_a_chat_equals_the_offline_method(
    server: Running, client: openai.OpenAI, method: str
) -> None:
    for question in questions(4):
        found = ask(client, question, method)
        assert found.choices[0].message.content == offline(server, method, question)
        assert found.choices[0].finish_reason in {"stop", "length"}
        assert found.usage.completion_tokens <= TOKENS
        assert found.raggd["method"] == method
        assert len(found.raggd["passages"]) == 2
        assert found.raggd["timings"]["read"] > 0


def offline(server: Running, method: str, question: str, number: int | None = None) -> str:
    shown = demonstrations(number) if number is not None else ()
    server.wait_idle()
    return offline_answer(server.parts, method, question, shown, TOKENS)


def test_a_support_set_changes_the_answers_into_the_offline_ones(
    server: Running, client: openai.OpenAI
) -> None:
    model = f"adapted/{store(server, 0)}"
    asked = questions(6)
    adapted = [ask(client, q, model).choices[0].message.content for q in asked]
    plain = [ask(client, q, "base").choices[0].message.content for q in asked]
    assert adapted != plain
    assert adapted == [offline(server, "rag-gd", q, 0) for q in asked]


def test_demonstrations_may_come_with_the_request(server: Running, client: openai.OpenAI) -> None:
    question = questions(1)[0]
    extra = {"raggd": {"demonstrations": demonstrations(1)}}
    first = ask(client, question, "raggd", extra_body=extra)
    again = ask(client, question, "raggd", extra_body=extra)
    assert first.choices[0].message.content == offline(server, "rag-gd", question, 1)
    assert first.raggd["support"] == again.raggd["support"]
    assert first.raggd["timings"]["adapt"] > 0
    assert again.raggd["timings"]["adapt"] == 0


def test_what_is_odd_about_demonstrations_is_told(server: Running, client: openai.OpenAI) -> None:
    odd = [d | {"answer": "unknown to us"} for d in demonstrations(1)]
    found = [
        ask(client, questions(1)[0], "raggd", extra_body={"raggd": {"demonstrations": shown}})
        for shown in (odd, demonstrations(1))
    ]
    assert "demonstrations refuse" in found[0].raggd["remarks"][0]
    assert found[0].raggd["remarks"] != found[1].raggd["remarks"]
    with server.client() as plain:
        made = plain.post("/v1/supports", json={"demonstrations": odd, "task": "odd"}).json()
        again = plain.get(f"/v1/supports/{made['id']}").json()
    assert made["remarks"] == again["remarks"] == found[0].raggd["remarks"]


def test_an_example_may_refuse_what_nothing_is_found_for(
    server: Running, client: openai.OpenAI
) -> None:
    refusing = {"question": "wer ist ?", "answer": "not in our files"}
    shown = [*demonstrations(1), refusing]
    found = ask(client, questions(1)[0], "raggd", extra_body={"raggd": {"demonstrations": shown}})
    assert found.raggd["support"]
    shown[0] = {**refusing, "answer": "Lima"}
    with pytest.raises(openai.BadRequestError, match="no passage fits demonstration 1"):
        ask(client, questions(1)[0], "raggd", extra_body={"raggd": {"demonstrations": shown}})
    shown[0]["passages"] = []
    assert ask(client, questions(1)[0], "raggd", extra_body={"raggd": {"demonstrations": shown}})


def test_demonstrations_that_sort_questions_need_no_passages(
    server: Running, client: openai.OpenAI
) -> None:
    def sorted_into(*answers: str):
        shown = [{"question": f"wer {i} ?", "answer": answer} for i, answer in enumerate(answers)]
        return ask(client, "wo ?", "raggd", extra_body={"raggd": {"demonstrations": shown}})

    assert sorted_into("north", "south", "north").raggd["support"]
    with pytest.raises(openai.BadRequestError, match="no passage fits demonstration 1"):
        sorted_into("north", "south", "east")


def test_a_stream_says_the_same_in_pieces(server: Running, client: openai.OpenAI) -> None:
    model = f"adapted/{store(server, 0)}"
    for question in questions(6):
        whole = ask(client, question, model)
        chunks = list(
            ask(client, question, model, stream=True, stream_options={"include_usage": True})
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        ends = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert ends[-1] == whole.choices[0].finish_reason
        assert set(ends[:-1]) == {None}
        assert chunks[-1].usage == whole.usage
        assert chunks[0].raggd["passages"] == whole.raggd["passages"]


def test_sixteen_at_once_with_eight_support_sets(server: Running) -> None:
    models = [f"adapted/{store(server, number)}" for number in range(8)]
    asked = [(questions(16)[i], i % 8) for i in range(16)]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with client, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda at: ask(client, at[0], models[at[1]]), asked))
    answers = [f.choices[0].message.content for f in found]
    expected = [offline(server, "rag-gd", q, number) for q, number in asked]
    assert answers == expected
    assert len(set(answers)) > 8, "the answers must be able to tell a mix-up"
    mixed = [offline(server, "rag-gd", q, (number + 1) % 8) for q, number in asked]
    assert sum(a != b for a, b in zip(expected, mixed, strict=True)) >= 8
    assert max(f.raggd["batch"] for f in found) == 8, "they were not answered together"


def test_models_are_listed(server: Running, client: openai.OpenAI) -> None:
    model = f"adapted/{store(server, 0)}"
    names = [known.id for known in client.models.list()]
    assert names[:4] == ["raggd", "vanilla-rag", "base", "adapted"]
    assert model in names
    assert client.models.retrieve(model).id == model


def test_completions_answer_a_list_of_prompts(server: Running, client: openai.OpenAI) -> None:
    asked = questions(3)
    found = client.completions.create(model="base", prompt=asked, max_tokens=TOKENS)
    assert [c.index for c in found.choices] == [0, 1, 2]
    assert [c.text for c in found.choices] == [offline(server, "base", q) for q in asked]
    pieces = client.completions.create(model="base", prompt=asked, max_tokens=TOKENS, stream=True)
    texts = ["", "", ""]
    for chunk in pieces:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [c.text for c in found.choices]
