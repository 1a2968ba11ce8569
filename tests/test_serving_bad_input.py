"""Everything a client can do wrong: a clear 4xx in OpenAI's form, nothing logged, nothing lost."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raggd.backbone.load import Backbone
from raggd.methods.store import Store
from raggd.records import RaggdError
from raggd.serving.gate import read_keys
from raggd.settings import changed
from serving_fixtures import Running, demonstrations, questions, running, served, tiny_parts
from workflow_fixtures import parts_with

SECRET = "zanzibar"
"""A word that only prompts hold: it must not turn up in the log."""
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(
    frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with served(frozen_backbone, tmp_path_factory) as started:
        yield started


@pytest.fixture
def client(server: Running, caplog: pytest.LogCaptureFixture) -> Iterator[httpx.Client]:
    caplog.set_level(logging.INFO)
    with server.client() as made:
        yield made
    server.wait_idle()
    assert SECRET not in caplog.text
    good = httpx.post(server.url + CHAT, json=chat(questions(1)[0]))
    assert good.status_code == 200, "the server must go on as before"


def chat(question: Any = f"where is {SECRET} ?", **more: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": question}], **more}


def refusal(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert len(error["message"]) > 10
    return str(error["message"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "base", "messages": [',
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'"text"',
        b"null",
        b"[1, 2]",
    ],
)
def test_malformed_json(client: httpx.Client, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(chat("Zoë")).encode("cp1252").replace(b"\\u00eb", b"\xeb"),
        b'{"metadata": ' + b'{"a": ' * 4_000 + b"1" + b"}" * 4_001,
        b'{"seed": ' + b"1" * 5_000 + b"}",
        gzip.compress(json.dumps(chat()).encode(), mtime=0),
    ],
)
def test_a_body_that_no_reader_begins(client: httpx.Client, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert "cannot be read as JSON in UTF-8" in refusal(answer, 400, "invalid_json")


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        (CHAT, '{"model": "base", "messages": [], "model": "raggd"}', "model"),
        (CHAT, '{"model": "base", "messages": [{"role": "user", "role": "system"}]}', "role"),
        (CHAT, '{"raggd": {"guess": true, "gu\\u0065ss": false}}', "guess"),
        ("/v1/completions", '{"prompt": "a", "prompt": "b"}', "prompt"),
        ("/v1/supports", '{"demonstrations": [{"answer": "a", "answer": "b"}]}', "answer"),
        ("/v1/evaluations", '{"support": "a", "support": "a"}', "support"),
    ],
)
def test_a_key_that_occurs_twice(client: httpx.Client, path: str, body: str, key: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert f'the key "{key}" occurs twice' in refusal(answer, 400, "invalid_json")


def test_a_body_that_is_not_declared_as_json(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=json.dumps(chat()), headers={"content-type": "text/plain"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("change", "status", "code", "word"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "gpt-4"),
        ({"model": "bsae"}, 404, "model_not_found", "did you mean 'base'"),
        ({"model": "adapted/"}, 404, "model_not_found", "adapted/<support id>"),
        ({"model": "base/x"}, 404, "model_not_found", "base/x"),
        ({"model": "adapted/0123456789abcdef"}, 404, "support_not_found", "/v1/supports"),
        ({"model": "adapted/../../etc/passwd"}, 404, "support_not_found", "/v1/supports"),
        ({"model": "adapted/..%2f..%2fetc"}, 404, "support_not_found", "/v1/supports"),
        ({"model": "adapted"}, 400, "support_missing", "raggd.demonstrations"),
        ({"raggd": {"support": "../x"}}, 400, "invalid_value", "does not adapt"),
        ({"model": "raggd", "raggd": {"support": "../x"}}, 404, "support_not_found", "support"),
        ({"model": "raggd", "raggd": {"support": ""}}, 400, "invalid_value", "raggd.support"),
        ({"raggd": {"method": "tt-sgd"}}, 400, "invalid_value", "vanilla-rag"),
        ({"raggd": {"method": "vanilla-rag"}}, 400, "invalid_value", "leave it out"),
        ({"raggd": {"metod": "base"}}, 400, "unsupported_parameter", "raggd.metod"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"logit_bias": {"50256": -100}}, 400, "unsupported_parameter", "logit_bias"),
        ({"raggd": {"support": "x" * 201}}, 400, "invalid_value", "200 characters"),
        ({"top_k": 40}, 400, "invalid_value", "top_k"),
        ({"n": 2}, 400, "invalid_value", "'n'"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"temperature": "0"}, 400, "invalid_value", "temperature"),
        ({"top_p": 0}, 400, "invalid_value", "top_p"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": 100_000}, 400, "invalid_value", "backbone.context_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, 400, "invalid_value", "differ"),
        (
            {"presence_penalty": 1.0},
            400,
            "invalid_value",
            "penalty': this server takes 0",
        ),
        ({"n": 0}, 400, "invalid_value", "'n': this server takes 1"),
        ({"stop": ["a"] * 5}, 400, "invalid_value", "stop"),
        ({"stop": ""}, 400, "invalid_value", "stop"),
        ({"top_logprobs": 2}, 400, "invalid_value", "logprobs"),
        ({"response_format": {"type": "json_object"}}, 400, "invalid_value", "response_format"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_value", "'user'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "role"),
        ({"messages": "hello"}, 400, "invalid_value", "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            400,
            "unsupported_parameter",
            "calls no tools",
        ),
    ],
)
def test_wrong_fields(
    client: httpx.Client, change: dict[str, Any], status: int, code: str, word: str
) -> None:
    assert word in refusal(client.post(CHAT, json=chat() | change), status, code)


@pytest.mark.parametrize("text", ["", "   \n", "\t"])
def test_an_empty_question(client: httpx.Client, text: str) -> None:
    assert "empty" in refusal(client.post(CHAT, json=chat(text)), 400, "invalid_value")
    answer = client.post("/v1/completions", json={"model": "base", "prompt": ["a", text]})
    assert "empty" in refusal(answer, 400, "invalid_value")


@pytest.mark.parametrize(("prompt", "word"), [([], "at least 1"), (["x"] * 33, "at most 32")])
def test_too_few_or_many_prompts(client: httpx.Client, prompt: list[str], word: str) -> None:
    answer = client.post("/v1/completions", json={"model": "base", "prompt": prompt})
    assert word in refusal(answer, 400, "invalid_value")


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x85"])
def test_control_characters(client: httpx.Client, character: str) -> None:
    message = refusal(client.post(CHAT, json=chat(f"where{character} ?")), 400, "invalid_value")
    assert f"U+{ord(character):04X} at position 5" in message
    shown = [{"question": f"who{character} ?", "answer": "Lima"}]
    refusal(client.post("/v1/supports", json={"demonstrations": shown}), 400, "invalid_value")


def test_half_a_surrogate_pair(client: httpx.Client) -> None:
    body = b'{"model": "base", "messages": [{"role": "user", "content": "a \\ud800 b"}]}'
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    refusal(answer, 400, "invalid_value")


def test_half_a_surrogate_pair_in_a_name(client: httpx.Client) -> None:
    body = b'{"model": "base", "messages": [], "\\ud800x": 1}'
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_more_evidence_than_any_context_holds(client: httpx.Client) -> None:
    for given in ([{"text": "red bird " * 500}] * 10, [{"text": "bee"}] * 17, [{"text": " "}]):
        answer = client.post(CHAT, json=chat(raggd={"passages": given}))
        assert "raggd.passages" in refusal(answer, 400, "invalid_value")
    fits = client.post(CHAT, json=chat(raggd={"passages": [{"text": "red bird " * 500}] * 3}))
    assert fits.status_code == 200
    assert fits.json()["raggd"]["passages_cut"] == 3


def test_an_image_cannot_be_read(client: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    for content in ([part], [{"type": "text", "text": "What is this ?"}, part]):
        message = refusal(client.post(CHAT, json=chat(content)), 400, "invalid_value")
        assert "reads text alone" in message


@pytest.mark.parametrize("role", ["tool", "function"])
def test_what_a_tool_returned_is_not_read(client: httpx.Client, role: str) -> None:
    turns = [*chat()["messages"], {"role": role, "content": "15"}]
    message = refusal(client.post(CHAT, json=chat(messages=turns)), 400, "invalid_value")
    assert message.startswith("'messages.1.role': ")
    assert message.endswith("calls no tools.")


def test_ten_megabytes_of_text(client: httpx.Client) -> None:
    long = f"{SECRET} " * (10 * 2**20 // 9)
    message = refusal(client.post(CHAT, json=chat(long)), 413, "body_too_large")
    assert "1024 KiB" in message

    def parts() -> Iterator[bytes]:  # without a length in the header
        yield b'{"model": "base", "messages": [{"role": "user", "content": "'
        for _ in range(200):
            yield b"x" * 10_000

    answer = client.post(CHAT, content=parts(), headers={"content-type": "application/json"})
    refusal(answer, 413, "body_too_large")


def test_a_prompt_longer_than_the_context(client: httpx.Client) -> None:
    for words in (400, 20_000):  # just too long, and far too long to be worth counting
        answer = client.post(CHAT, json=chat("red bird " * words))
        refusal(answer, 400, "context_length_exceeded")


def test_an_instruction_beyond_any_context_is_not_read(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(*_: Any, **__: Any) -> None:
        raise AssertionError("all others would wait for it")

    monkeypatch.setattr("raggd.serving.request.render", counted)
    monkeypatch.setattr(Store, "adapt", counted)
    turns = [{"role": "system", "content": "red bird " * 20_000}, *chat()["messages"]]
    shown = {"model": "raggd", "raggd": {"demonstrations": demonstrations(0)}}
    for more in ({}, shown):
        answer = client.post(CHAT, json=chat(messages=turns) | more)
        assert "180000 characters" in refusal(answer, 400, "context_length_exceeded")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("shown", "code", "word"),
    [
        ([], "invalid_value", "demonstrations"),
        ([{"question": "who is the king ?"}], "invalid_value", "answer"),
        ([{"question": "who is the king ?", "answer": " "}], "invalid_value", "empty"),
        ([{"question": "who is the king ?", "answer": None}], "invalid_value", "answer"),
        ([{"question": " ", "answer": "Lima"}], "invalid_value", "empty"),
        ([{"question": "who ?", "answer": "Lima", "aswer": "x"}], "unsupported_parameter", "aswer"),
        ([{"question": "кто король севера ?", "answer": "Лима"}], "no_passages", "language"),
        ([{"question": "谁是北方的国王？", "answer": "利马"}], "no_passages", "language"),
        ([{"question": "wer ist ?", "answer": "Lima"}], "no_passages", "language"),
        ([{"question": "red bird " * 400, "answer": "Lima"}], "context_length_exceeded", "tokens"),
        (demonstrations(0) * 9, "invalid_value", "at most 16 items"),
    ],
)
def test_demonstrations_that_cannot_be_used(
    client: httpx.Client, shown: list[dict[str, Any]], code: str, word: str
) -> None:
    stored = client.post("/v1/supports", json={"demonstrations": shown})
    assert word in refusal(stored, 400, code)
    asked = client.post(CHAT, json=chat(model="raggd", raggd={"demonstrations": shown}))
    assert word in refusal(asked, 400, code)
    assert client.get("/v1/supports").json()["data"] == []


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "0123456789abcdef", "x" * 3000, "%00", "a%0ab"],
)
def test_path_tricks_in_ids(client: httpx.Client, name: str, server: Running) -> None:
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/v1/supports/{name}")
        assert answer.status_code in {404, 405}, answer.text
        assert "error" in answer.json()


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    refusal(client.get("/v1/nothing"), 404, "not_found")
    refusal(client.get("/static/../app.py"), 404, "not_found")
    refusal(client.get("/static/%2e%2e%2fapp.py"), 404, "not_found")
    refusal(client.put(CHAT, json=chat()), 405, "method_not_allowed")
    refusal(client.get("/v1/models/none/at/all"), 404, "model_not_found")


def test_what_is_no_object_is_told_how_to_be_sent(client: httpx.Client) -> None:
    whole = json.dumps(chat())
    for body, kind in ((whole, "text/plain"), (whole, "x/y"), ("null", "application/json")):
        answer = client.post(CHAT, content=body, headers={"content-type": kind})
        refusal(answer, 400, "invalid_json")
        assert "Content-Type: application/json" in answer.text


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    for path in ("/", "/health", "/v1/models", "/openapi.json"):
        head, whole = client.head(path), client.get(path)
        assert head.status_code == whole.status_code == 200
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert head.content == b""
    assert client.head(CHAT).status_code == 405
    assert 'raggd_requests_total{route="/health",status="200"}' in client.get("/metrics").text


def test_a_full_disk_is_not_the_clients_fault(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("raggd.files.tempfile.mkstemp", full)
        answer = client.post("/v1/supports", json={"demonstrations": demonstrations(3)})
    assert "its log says where" in refusal(answer, 507, "not_stored")
    assert "the disk is full" in caplog.text
    assert client.get("/v1/supports").json()["data"] == []


def test_another_host_name_is_refused(client: httpx.Client) -> None:
    for host in ("evil.example:80", "evil.example", "127.0.0.1.evil.example", "[::", "[x]:1"):
        answer = client.post(CHAT, json=chat(), headers={"host": host})
        refusal(answer, 403, "wrong_host")
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        answer = client.post(CHAT, json=chat(questions(1)[0]), headers={"host": host})
        assert answer.status_code == 200, host


def test_support_sets_of_another_base(server: Running, client: httpx.Client) -> None:
    body = {"demonstrations": demonstrations(0), "base": "0" * 16}
    message = refusal(client.post("/v1/supports", json=body), 409, "support_of_another_base")
    assert server.service.base.fingerprint in message


def test_a_wrong_key(
    frozen_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    parts = tiny_parts(tmp_path, frozen_backbone)
    with (
        running(parts, {"alice": "right", "shop": "voilà"}) as server,
        server.client() as client,
    ):
        for key in ("", "wrong", "rightt", "ключ", "alice"):
            header = {"authorization": f"Bearer {key}".encode()} if key else {}
            refusal(client.post(CHAT, json=chat(), headers=header), 401, "invalid_api_key")
            assert client.get("/metrics", headers=header).status_code == 401
            assert client.get("/v1/supports", headers=header).status_code == 401
        assert client.get("/health").status_code == 200
        for key in ("right", "voilà"):
            header = {"authorization": f"Bearer {key}".encode()}
            assert client.post(CHAT, json=chat(), headers=header).status_code == 200
        proxied = {"authorization": "Bearer right", "host": "raggd.example.org"}
        assert client.get("/v1/models", headers=proxied).status_code == 200
        basic = {"authorization": "Basic right"}
        assert client.post(CHAT, json=chat(), headers=basic).status_code == 401
    lines = [r.getMessage() for r in caplog.records if r.name == "raggd.serving"]
    named = [line.split()[-1] for line in lines if " 200 " in line and CHAT in line]
    assert named[-2:] == ["alice", "shop"]  # the test before may end late
    assert not any("right" in line or "voil" in line for line in lines), "a key was logged"


def test_a_page_of_another_site(
    server: Running, frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    ours, strange = {"origin": "http://localhost:3000"}, {"origin": "https://evil.example"}
    before = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    allowed = "access-control-allow-origin"
    with server.client() as client:  # none is named, so none may
        answer = client.options(CHAT, headers=ours | before)
        assert answer.status_code >= 400
        assert allowed not in answer.headers
        assert allowed not in client.post(CHAT, json=chat(), headers=ours).headers
    parts = tiny_parts(tmp_path, frozen_backbone)
    parts = parts_with(
        changed(parts.settings, "serving", origins=[ours["origin"]]), frozen_backbone
    )
    with running(parts, {"alice": "right"}) as named, named.client() as client:
        answer = client.options(CHAT, headers=ours | before)  # a browser asks it without the key
        assert answer.status_code == 200, answer.text
        assert answer.headers[allowed] == ours["origin"]
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
        assert client.options("/v1/supports/x", headers=ours | before).status_code == 200
        key = {"authorization": "Bearer right"}
        for header, status in ((ours | key, 200), (ours, 401)):
            answer = client.post(CHAT, json=chat(), headers=header)
            assert (answer.status_code, answer.headers[allowed]) == (status, ours["origin"])
        answer = client.options(CHAT, headers=strange | before)
        assert answer.status_code == 400
        assert allowed not in answer.headers
        assert allowed not in client.post(CHAT, json=chat(), headers=strange | key).headers


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# who  key\nalice  k1\n\nshop k#2 # from March\n")
    assert read_keys(path) == {"alice": "k1", "shop": "k#2"}
    path.write_text("alice k1\n", encoding="utf-8-sig")
    assert read_keys(path) == {"alice": "k1"}, "the mark of the encoding is no part of a name"
    path.write_text("alice k1\n", encoding="utf-16")
    assert read_keys(path) == {"alice": "k1"}
    for text in ("alice", "a k1\na k2", "a k1\nb k1", "a b c", "", "# none"):
        path.write_text(text)
        with pytest.raises(RaggdError, match="name and a key") as error:
            read_keys(path)
        assert "k1" not in str(error.value), "an error must not show a key"
    with pytest.raises(RaggdError, match="cannot read"):
        read_keys(tmp_path / "none")
