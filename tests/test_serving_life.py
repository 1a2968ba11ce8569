"""The life of a server: clients that hang up, time limits, a full queue, failures, a good end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from raggd.api import Rag
from raggd.backbone.load import Backbone
from raggd.methods import store
from raggd.methods.spec import EXAMPLES_FILE
from raggd.methods.store import Store
from raggd.records import RaggdError
from raggd.serving import supports
from raggd.serving.app import bind
from raggd.serving.gate import is_local
from raggd.serving.openai import Chat, ChatRequest
from raggd.serving.scheduler import RunningBatch
from raggd.serving.service import Service
from raggd.settings import ServingSettings
from serving_fixtures import Running, demonstrations, offline_answer, questions, running, tiny_parts
from tiny import random_update
from workflow_fixtures import run_cli, save_backbone

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))


def chat(question: str = "", **more: Any) -> dict[str, Any]:
    question = question or questions(1)[0]
    return {"model": "base", "messages": [{"role": "user", "content": question}], **more}


LONG = {"max_tokens": 200, "ignore_eos": True}
"""A request that takes 200 steps."""


class Valve:
    """Holds every decoding step until it is opened, so that tests need no clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        self.steps = 0
        real = RunningBatch.step

        def step(batch: RunningBatch) -> Any:
            self._open.wait(60)
            self.steps += 1
            return real(batch)

        monkeypatch.setattr(RunningBatch, "step", step)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def valve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valve]:
    made = Valve(monkeypatch)
    yield made
    made.open()


def until(condition: Any) -> None:
    """Wait for something that is about to happen."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def raw_request(server: Running, body: dict[str, Any]) -> socket.socket:
    """Send a chat request over a socket of our own, and leave the answer unread."""
    host, port = server.url.removeprefix("http://").split(":")
    text = json.dumps(body)
    connection = socket.create_connection((host, int(port)))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_gives_its_row_free(
    frozen_backbone: Backbone, tmp_path: Path, valve: Valve, stream: bool
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server:
        valve.shut()
        gone = raw_request(server, chat(stream=stream, **LONG))
        until(lambda: server.service.scheduler.running == 1)
        gone.close()
        until(lambda: server.service._open == 0)
        valve.open()
        server.wait_idle()
        assert valve.steps < 10
        assert server.metric("raggd_cancelled_total") == 1
        assert httpx.post(server.url + CHAT, json=chat()).status_code == 200


def test_a_client_that_hangs_up_while_waiting_is_never_begun(
    frozen_backbone: Backbone, tmp_path: Path, valve: Valve
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone, rows=1)) as server:
        valve.shut()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(httpx.post, server.url + CHAT, json=chat(max_tokens=3))
            until(lambda: server.service.scheduler.running == 1)
            gone = raw_request(server, chat(**LONG))
            until(lambda: server.service.scheduler.waiting == 1)
            gone.close()
            until(lambda: server.service._open == 1)
            valve.open()
            assert first.result().status_code == 200
        server.wait_idle()
        assert valve.steps < 10


def test_a_request_that_takes_too_long(
    frozen_backbone: Backbone, tmp_path: Path, valve: Valve
) -> None:
    # long enough for a busy machine to begin the stream
    with running(tiny_parts(tmp_path, frozen_backbone, timeout_s=1.5)) as server:
        valve.shut()
        plain = httpx.post(server.url + CHAT, json=chat(**LONG), timeout=60)
        assert plain.status_code == 504
        assert plain.json()["error"]["code"] == "timeout"
        valve.open()
        server.wait_idle()
        valve.shut()
        stream = httpx.post(server.url + CHAT, json=chat(stream=True, **LONG), timeout=60)
        assert stream.status_code == 200  # it had begun
        last = stream.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        valve.open()
        server.wait_idle()


def test_a_full_queue_turns_requests_away(
    frozen_backbone: Backbone, tmp_path: Path, valve: Valve
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone, rows=1, queue=2)) as server:
        valve.shut()
        with ThreadPoolExecutor(2) as pool:
            taken = [
                pool.submit(httpx.post, server.url + CHAT, json=chat(max_tokens=3), timeout=60)
                for _ in range(2)
            ]
            until(lambda: server.service._open == 2)
            refused = httpx.post(server.url + CHAT, json=chat())
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
            assert httpx.get(server.url + "/health").json()["status"] == "ok"
            shown = {"demonstrations": demonstrations(0)}
            assert httpx.post(server.url + "/v1/supports", json=shown).status_code == 429
            valve.open()
            assert [one.result().status_code for one in taken] == [200, 200]
        three = {"model": "base", "prompt": questions(3)}
        never = httpx.post(server.url + "/v1/completions", json=three)
        assert never.status_code == 400, "it would be refused for ever"
        assert never.json()["error"]["code"] == "too_many_prompts"
        assert "serving.queue" in never.json()["error"]["message"]


def test_a_failing_step_fails_its_rows_and_no_more(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunningBatch.step
    broken = threading.Event()

    def step(batch: RunningBatch) -> Any:
        if broken.is_set():
            raise RuntimeError("zanzibar")
        return real(batch)

    monkeypatch.setattr(RunningBatch, "step", step)
    with running(tiny_parts(tmp_path, frozen_backbone)) as server:
        broken.set()
        failed = httpx.post(server.url + CHAT, json=chat(**LONG))
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "internal_error"
        assert "zanzibar" not in failed.text
        broken.clear()
        assert httpx.post(server.url + CHAT, json=chat()).status_code == 200


def test_a_bug_in_the_engine_does_not_end_it(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server:
        with monkeypatch.context() as patch:
            patch.setattr(RunningBatch, "leave", lambda *_: 1 / 0)
            httpx.post(server.url + CHAT, json=chat())
        assert httpx.post(server.url + CHAT, json=chat()).status_code == 200
        assert server.service.scheduler.alive


def test_what_is_in_progress_is_finished_when_the_server_stops(
    frozen_backbone: Backbone, tmp_path: Path, valve: Valve
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone)
    with ThreadPoolExecutor(4) as pool, running(parts) as server:
        valve.shut()
        asked = [
            pool.submit(httpx.post, server.url + CHAT, json=chat(stream=i % 2 == 0, max_tokens=9))
            for i in range(4)
        ]
        until(lambda: server.service._open == 4)
        server.service.stopping = True  # what the signal handler does first
        late = httpx.post(server.url + CHAT, json=chat())
        assert late.status_code == 503
        assert late.headers["retry-after"] == "1"
        assert httpx.get(server.url + "/health").status_code == 503
        threading.Timer(0.3, valve.open).start()
    answers = [one.result() for one in asked]
    assert [a.status_code for a in answers] == [200] * 4
    assert all(a.text.endswith("data: [DONE]\n\n") for a in answers[::2])


def test_the_command_serves_and_ends_well_on_a_signal(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    tiny_parts(tmp_path, frozen_backbone)
    folder = save_backbone(frozen_backbone, tmp_path / "backbone")
    documents = tmp_path / "documents"
    documents.mkdir()
    for number, text in enumerate(("The king lives in Lima .", "The bee lives in Oslo .")):
        (documents / f"{number}.md").write_text(text)
    code = "from raggd.cli import main\nmain()"
    command = [
        *(sys.executable, "-c", code, "serve", "--port", "0", "--json"),
        *("--settings", str(tmp_path / "settings.toml"), "--set", f"backbone.name='{folder}'"),
        *("--set", f"serving.supports='{tmp_path}/supports'", "--set", "serving.watch_s=0"),
        *("--corpus", str(documents)),
    ]
    for sent in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        with process:
            try:
                log = _ask_and_stop(process, sent, documents)
            finally:
                process.kill()
        assert process.returncode == 0, log
        assert f"POST {CHAT} 200" in log
        assert "zanzibar" not in log


def _ask_and_stop(process: subprocess.Popen[str], sent: int, documents: Path) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    url = json.loads(line)["url"]  # said once it listens: the first request arrives
    found = httpx.post(url + CHAT, json=chat("where is the king ? zanzibar"), timeout=60)
    assert found.status_code == 200
    assert found.json()["raggd"]["passages"][0]["text"] == "The king lives in Lima ."
    before = httpx.get(url + "/v1/index").json()["passages"]
    (documents / f"{sent}.md").write_text(f"The fish lives in Rome since {sent} .")
    process.send_signal(signal.SIGHUP)
    until(lambda: httpx.get(url + "/v1/index").json()["passages"] == before + 1)
    process.send_signal(sent)
    return process.communicate(timeout=60)[1]


def test_support_sets_and_their_updates_survive_a_restart(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    body = {"demonstrations": demonstrations(0), "task": "cities"}
    parts = tiny_parts(tmp_path, frozen_backbone)
    with running(parts) as server, server.client() as client:
        first = client.post("/v1/supports", json=body)
        assert first.status_code == 201
        stored = first.json()
        assert {len(norms) for norms in stored["norms"].values()} == {3}
        assert stored["norm"] > 0
        assert client.post("/v1/supports", json=body).status_code == 200
        model = stored["model"]
        said = client.post(CHAT, json=chat(model=model)).json()["choices"]
        adaptations = server.metric("raggd_adaptation_seconds_count")
    with running(parts) as server, server.client() as client:
        listed = stored | {"remarks": None}  # they are looked for where one set is asked for
        assert client.get("/v1/supports").json()["data"] == [listed]
        assert client.get(f"/v1/supports/{stored['id']}").json() == stored
        assert client.get(f"/v1/models/{model}").json()["id"] == model
        assert client.post(CHAT, json=chat(model=model)).json()["choices"] == said
        assert (adaptations, server.metric("raggd_adaptation_seconds_count")) == (1, 0)
        assert server.metric("raggd_update_cache_hits_total") == 1
        assert client.delete(f"/v1/supports/{stored['id']}").json()["deleted"] is True
        assert client.delete(f"/v1/supports/{stored['id']}").status_code == 404
        assert client.post(CHAT, json=chat(model=model)).status_code == 404
        assert list((tmp_path / "supports").iterdir()) == []


def test_the_command_lines_sets_are_the_servers(frozen_backbone: Backbone, tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone)
    with running(parts) as server, server.client() as client:
        added = Rag(parts).support([(d["question"], d["answer"]) for d in demonstrations(0)])
        Store(tmp_path / "supports").add(added)  # what `raggd supports add` does, meanwhile
        (shown,) = client.get("/v1/supports").json()["data"]
        assert (shown["id"], shown["norms"], shown["adapt_ms"]) == (added.id, {}, None)
        answer = client.post(CHAT, json=chat(model=shown["model"])).json()
        assert answer["raggd"]["support"] == added.id
        server.wait_idle()
        expected = offline_answer(parts, "rag-gd", questions(1)[0], demonstrations(0))
        assert answer["choices"][0]["message"]["content"] == expected
        stored = client.post("/v1/supports", json={"demonstrations": demonstrations(1)}).json()
        assert stored["id"] in Store(tmp_path / "supports").names()
        Store(tmp_path / "supports").remove(added.id)
        assert client.post(CHAT, json=chat(model=shown["model"])).status_code == 404


def test_who_does_not_read_holds_no_place_for_ever(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    service = Service(Rag(tiny_parts(tmp_path, frozen_backbone, timeout_s=0.2)))
    body = ChatRequest.model_validate(chat(stream=True))
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.Event().wait()  # the connection takes nothing more

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def answer() -> None:
        await Chat(service, body)({}, receive, send)

    try:
        asyncio.run(answer())
        assert [message["type"] for message in sent] == ["http.response.start"]
        assert service._open == 0
    finally:
        service.close()


def test_a_damaged_set_is_stored_anew_or_deleted(frozen_backbone: Backbone, tmp_path: Path) -> None:
    body = {"demonstrations": demonstrations(0)}
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        path = f"/v1/supports/{client.post('/v1/supports', json=body).json()['id']}"
        file = server.service.store.file(path.rpartition("/")[2])
        for mend in (lambda: client.post("/v1/supports", json=body), lambda: client.delete(path)):
            file.write_text(file.read_text().replace("own", "other"))
            refused = client.get(path)
            assert refused.status_code == 400
            assert "was changed" in refused.json()["error"]["message"]
            assert mend().status_code == 200
        assert client.get(path).status_code == client.delete(path).status_code == 404


def test_a_set_that_is_deleted_meanwhile_is_not_found(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"demonstrations": demonstrations(0)}
    real, both, read = Store.remove, threading.Barrier(2, timeout=60), store.read_json

    def remove(*args: Any) -> None:  # both have been let in before either deletes
        both.wait()
        real(*args)

    def gone(path: Path, **what: Any) -> Any:  # another process is faster
        path.unlink()
        return read(path, **what)

    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        made = client.post("/v1/supports", json=body).json()
        path = f"/v1/supports/{made['id']}"
        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(Store, "remove", remove)
            asked = [pool.submit(httpx.delete, server.url + path) for _ in range(2)]
            assert sorted(one.result().status_code for one in asked) == [200, 404]
        for ask in (
            lambda: client.get(path),
            lambda: client.post(CHAT, json=chat(model=made["model"])),
            lambda: client.post("/v1/evaluations", json={"support": made["id"]}),
        ):
            client.post("/v1/supports", json=body)
            store._read_set.cache_clear()
            with monkeypatch.context() as patch:
                patch.setattr(store, "read_json", gone)
                answer = ask()
            assert (answer.status_code, made["id"] in server.service.store) == (404, False)


def test_nothing_stays_of_a_set_that_is_deleted_while_it_is_adapted_to(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        method = type(server.service.rag.method())
        real = method.adapt

        def adapt(*args: Any) -> Any:
            made = real(*args)
            (name,) = server.service.store.names()
            assert httpx.delete(f"{server.url}/v1/supports/{name}").status_code == 200
            return made

        monkeypatch.setattr(method, "adapt", adapt)
        client.post("/v1/supports", json={"demonstrations": demonstrations(0)})
        assert list((tmp_path / "supports").iterdir()) == []


def test_examples_are_read_once_under_each_instruction(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone)
    random_update(parts.base).save(parts.weights / EXAMPLES_FILE)
    with running(parts) as server, server.client() as client:
        # answers in words that stand in no passage: the model chooses its own
        words = ("salt honey", "old red bird")
        pairs = zip(demonstrations(0), words, strict=True)
        body = {"demonstrations": [{**shown, "answer": answer} for shown, answer in pairs]}
        model = client.post("/v1/supports", json=body).json()["model"]
        texts = []
        for said in ("the big fish eats honey", "in few words", "in few words"):
            turns = [{"role": "system", "content": said}, *chat()["messages"]]
            answer = client.post(CHAT, json=chat(model=model, messages=turns)).json()
            texts.append(answer["choices"][0]["message"]["content"])
        assert texts[1] == texts[2] != texts[0]
        assert server.metric("raggd_adaptation_seconds_count") == 3
        (kept,) = (tmp_path / "supports").glob("*.safetensors")
        assert b"in few words" not in kept.read_bytes(), "what a request says is not written"
        server.wait_idle()
        rag = Rag(parts)
        adapted = rag.adapt(rag.store.stored(model.partition("/")[2]).support, instruction=said)
        assert rag.answer(questions(1)[0], adapted).text == texts[2]


def test_what_examples_settle_is_written_around_every_answer_streamed_or_not(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone)
    random_update(parts.base).save(parts.weights / EXAMPLES_FILE)
    passages = ["Bees make honey.", "London has many bridges."]
    shown = [
        {"question": "what", "passages": [{"text": t}], "answer": json.dumps({"answer": a})}
        for t, a in zip(passages, ("honey", "many bridges"), strict=True)
    ]
    body = chat(model="raggd", raggd={"demonstrations": shown})
    body["response_format"] = {"type": "json_object"}
    with running(parts) as server, server.client() as client:
        whole = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
        assert set(json.loads(whole)) == {"answer"}
        with client.stream("POST", CHAT, json=body | {"stream": True}) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        assert "".join(c["delta"].get("content") or "" for c in choices) == whole
        plain = [{**d, "answer": json.loads(d["answer"])["answer"]} for d in shown]
        bare = client.post(CHAT, json=chat(model="raggd", raggd={"demonstrations": plain})).json()
        assert json.loads(whole)["answer"] == bare["choices"][0]["message"]["content"]


def test_a_damaged_update_is_predicted_again_and_a_damaged_set_left_out(
    frozen_backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone)
    with running(parts) as server, server.client() as client:
        kept, broken = (
            client.post("/v1/supports", json={"demonstrations": demonstrations(n)}).json()["id"]
            for n in (0, 1)
        )
        said = client.post(CHAT, json=chat(model=f"adapted/{kept}")).json()["choices"]
    for path in (tmp_path / "supports").glob("*.safetensors"):
        path.write_bytes(b"x" * 100)
    path = tmp_path / "supports" / f"{broken}.json"
    path.write_text(path.read_text().replace("what lies near", "what is near"))
    with running(parts) as server, server.client() as client:
        assert [s["id"] for s in client.get("/v1/supports").json()["data"]] == [kept]
        assert client.post(CHAT, json=chat(model=f"adapted/{kept}")).json()["choices"] == said
        assert server.metric("raggd_adaptation_seconds_count") == 1
        refused = client.post(CHAT, json=chat(model=f"adapted/{broken}"))
        assert refused.status_code == 400
        assert "it was changed" in refused.json()["error"]["message"]
    assert f"{broken} is left out" in caplog.text


def test_a_full_store_refuses_and_updates_stay_within_their_bound(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supports, "MOST_SETS", 2)
    parts = tiny_parts(tmp_path, frozen_backbone)
    with running(parts) as server, server.client() as client:
        server.service.store._bound = 1  # nothing fits
        for number in range(2):
            body = {"demonstrations": demonstrations(number)}
            assert client.post("/v1/supports", json=body).status_code == 201
        full = client.post("/v1/supports", json={"demonstrations": demonstrations(2)})
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "too_many_supports"
        assert server.metric("raggd_update_cache_bytes") == 0
        for stored in client.get("/v1/supports").json()["data"]:
            assert client.post(CHAT, json=chat(model=stored["model"])).status_code == 200


def test_the_same_set_asked_for_at_once_is_predicted_once(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    body = chat(model="raggd", raggd={"demonstrations": demonstrations(0)})
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, server.url + CHAT, json=body) for _ in range(8)]
        texts = {one.result().json()["choices"][0]["message"]["content"] for one in asked}
        assert len(texts) == 1
        assert server.metric("raggd_adaptation_seconds_count") == 1


def test_sampling_by_seed_stop_strings_and_probabilities(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:

        def said(**more: Any) -> dict[str, Any]:
            found = client.post(CHAT, json=chat(max_tokens=16, **more)).json()
            return dict(found["choices"][0])

        def text(**more: Any) -> str:
            return str(said(**more)["message"]["content"])

        hot = {"temperature": 2.0, "top_p": 1.0}
        assert text(seed=1, **hot) == text(seed=1, **hot)
        assert len({text(seed=seed, **hot) for seed in range(4)}) > 1
        whole = text()
        words = whole.split()
        assert len(words) > 2
        cut = said(stop=[words[2]])
        assert cut["message"]["content"] == whole[: whole.index(words[2])].strip()
        assert cut["finish_reason"] == "stop"
        told = said(logprobs=True, top_logprobs=2)["logprobs"]["content"]
        assert all(t["logprob"] == t["top_logprobs"][0]["logprob"] <= 0 for t in told)
        exact = client.post(CHAT, json=chat(max_tokens=20, ignore_eos=True)).json()
        assert exact["usage"]["completion_tokens"] == 20
        assert exact["choices"][0]["finish_reason"] == "length"


def test_passages_may_be_given_and_left_out_of_the_answer(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        given = [{"text": "The bee lives in Quito .", "title": "bee", "source": "bees.md"}]
        found = client.post(CHAT, json=chat(raggd={"passages": given})).json()
        assert found["raggd"]["passages"] == [{"id": "given-1", **given[0]}]
        none = client.post(CHAT, json=chat(raggd={"passages": []})).json()
        assert none["raggd"]["passages"] == []
        assert none["usage"]["prompt_tokens"] < found["usage"]["prompt_tokens"]
        hidden = client.post(CHAT, json=chat(raggd={"show_passages": False})).json()
        assert hidden["raggd"]["passages"] is None


def test_metrics_tell_and_hold_no_text(frozen_backbone: Backbone, tmp_path: Path) -> None:
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        client.post(CHAT, json=chat("where is the zanzibar ?"))
        client.get("/zanzibar")
        text = client.get("/metrics").text
        assert "zanzibar" not in text
        for name in (
            'raggd_requests_total{route="/v1/chat/completions",status="200"} 1.0',
            'raggd_requests_total{route="other",status="404"} 1.0',
            "raggd_waiting 0.0",
            "raggd_batch_rows_count",
            "raggd_adaptation_seconds_count",
            "raggd_decode_step_seconds_sum",
            "raggd_update_cache_hits_total",
            "process_resident_memory_bytes",
        ):
            assert name in text, name


def test_an_address_in_use_is_refused_before_anything_loads(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RaggdError, match=f"port {port}"):
            bind(ServingSettings(port=port))
        ran = run_cli("serve", "--port", port, "--set", "backbone.name=nowhere")
    assert "Choose another --port" in ran.refusal()
    with pytest.raises(RaggdError, match="cannot serve"):
        bind(ServingSettings(host="203.0.113.7", port=0))


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("x.y", False)],
)
def test_which_addresses_are_local(host: str, local: bool) -> None:
    assert is_local(host) is local
