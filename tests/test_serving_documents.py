"""Documents that change while the server runs: every request is answered from one whole index."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.data.documents.passages import Block
from raggd.retrieval.build import Index
from raggd.serving.service import state_of
from serving_fixtures import Running, running, tiny_parts

CHAT = "/v1/chat/completions"
PLACES = ("Lima", "Oslo")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    return write(folder, "Lima")


def write(folder: Path, place: str) -> Path:
    """Two files that say the same place: an answer from half an index would see two places."""
    for name in ("king", "queen"):
        (folder / f"{name}.md").write_text(f"The {name} lives in {place} .\n")
    return folder


def ask(server: Running) -> list[str]:
    """The passages that a question about both files is answered from."""
    turn = {"role": "user", "content": "where lives the king ? where lives the queen ?"}
    body = {"model": "base", "messages": [turn], "max_tokens": 2}
    answer = httpx.post(server.url + CHAT, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [passage["text"] for passage in answer.json()["raggd"]["passages"]]


def places(passages: list[str]) -> set[str]:
    return {place for place in PLACES if any(place in passage for passage in passages)}


def test_a_file_changed_while_sixteen_clients_ask(
    frozen_backbone: Backbone, tmp_path: Path, documents: Path
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0.05)
    with running(parts) as server, ThreadPoolExecutor(16) as pool:
        seen: list[set[str]] = []

        def client(_: int) -> None:
            for _ in range(200):
                seen.append(places(ask(server)))
                if seen[-1] == {"Oslo"}:
                    return
            raise AssertionError("the change was never seen")

        asking = [pool.submit(client, number) for number in range(16)]
        while not seen:
            time.sleep(0.005)
        assert seen[0] == {"Lima"}
        # both files at once: the folder is exchanged, as a deployment does it
        write_elsewhere = tmp_path / "next"
        write_elsewhere.mkdir()
        write(write_elsewhere, "Oslo")
        documents.rename(tmp_path / "before")
        write_elsewhere.rename(documents)
        for one in asking:
            one.result()
        assert {frozenset(one) for one in seen} == {frozenset({"Lima"}), frozenset({"Oslo"})}
        assert server.metric("raggd_index_swaps_total") == 1


def post(server: Running) -> httpx.Response:
    return httpx.post(server.url + "/v1/index", timeout=60)


def test_an_endpoint_indexes_what_changed(
    frozen_backbone: Backbone, tmp_path: Path, documents: Path
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0)
    with running(parts) as server:
        before: dict[str, Any] = httpx.get(server.url + "/v1/index").json()
        assert (before["corpus"], before["changed"]) == ("own", False)
        assert post(server).json()["changed"] is False
        write(documents, "Oslo")
        assert places(ask(server)) == {"Lima"}, "nobody has looked"
        after = post(server).json()
        assert after["changed"] is True
        assert after["fingerprint"] != before["fingerprint"]
        assert places(ask(server)) == {"Oslo"}
        (documents / "new.md").write_text("The bee eats honey .\n")
        assert post(server).json()["passages"] == after["passages"] + 1
        assert server.metric("raggd_passages") == after["passages"] + 1


@pytest.mark.filterwarnings("ignore::raggd.retrieval.base.RetrievalWarning")
def test_the_index_tells_what_is_not_in_it(
    frozen_backbone: Backbone, tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path) -> Iterator[Block]:
        yield from (Block("The wren sings ."), Block("", lost="page 2 of 2 holds no text"))

    monkeypatch.setattr("raggd.data.documents.rst.read", half)
    (documents / "plan.dwg").write_bytes(b"AC1032")
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0)
    unknown = {"file": "plan.dwg", "reason": "no reader for .dwg", "partly": False}
    part = {"file": "wren.rst", "reason": "page 2 of 2 holds no text", "partly": True}
    with running(parts) as server:
        assert httpx.get(server.url + "/v1/index").json()["skipped"] == [unknown]
        (documents / "wren.rst").write_text("The wren sings .")
        assert post(server).json()["skipped"] == [unknown, part]
        assert httpx.get(server.url + "/v1/index").json()["skipped"] == [unknown, part]
        (documents / "plan.dwg").unlink()
        (documents / "wren.rst").unlink()
        assert post(server).json()["skipped"] == []


def test_a_fault_does_not_end_the_watching(
    frozen_backbone: Backbone,
    tmp_path: Path,
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0.05)
    with running(parts) as server:
        index_of, asked = Assembly.index_of, list[Path]()

        def failing(self: Assembly, corpus: Path) -> Index:
            asked.append(corpus)
            if len(asked) == 1:
                raise KeyError("a fault")
            return index_of(self, corpus)

        monkeypatch.setattr(Assembly, "index_of", failing)
        write(documents, "Oslo")
        until(lambda: len(asked) == 1)
        (documents / "new.md").write_text("The bee eats honey .\n")
        until(lambda: places(ask(server)) == {"Oslo"})
    assert "internal error: KeyError" in caplog.text


def until(true: Callable[[], bool]) -> None:
    """Wait for what the server does by itself."""
    for _ in range(6_000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_indexing_keeps_nobody_waiting(
    frozen_backbone: Backbone, tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0)
    done, index_of = threading.Event(), Assembly.index_of

    def slow(self: Assembly, corpus: Path) -> Index:
        done.wait()
        return index_of(self, corpus)

    with running(parts) as server, server.client() as client, ThreadPoolExecutor(40) as pool:
        asked = "where lives the king ?"
        body = {"demonstrations": [{"question": asked, "answer": "Lima"}]}
        model = client.post("/v1/supports", json=body).json()["model"]
        monkeypatch.setattr(Assembly, "index_of", slow)
        try:
            looking = [pool.submit(post, server) for _ in range(40)]
            until(lambda: server.service.documents._indexer._work_queue.qsize() == 39)
            turn = {"role": "user", "content": asked}
            answer = client.post(CHAT, json={"model": model, "messages": [turn], "max_tokens": 2})
            assert answer.status_code == 200
        finally:
            done.set()
        assert {each.result().status_code for each in looking} == {200}


def test_documents_that_cannot_be_read_leave_the_old_index(
    frozen_backbone: Backbone, tmp_path: Path, documents: Path
) -> None:
    parts = tiny_parts(tmp_path, frozen_backbone, documents, watch_s=0)
    with running(parts) as server:
        documents.rename(tmp_path / "elsewhere")
        refused = post(server)
        assert refused.status_code == 400
        assert "documents" in refused.json()["error"]["message"]
        assert places(ask(server)) == {"Lima"}
        assert server.metric("raggd_index_failures_total") == 1
        (tmp_path / "elsewhere").rename(documents)
        assert post(server).json()["changed"] is False


def test_the_embedded_corpus_never_changes(server: Running) -> None:
    answer = post(server)
    assert answer.json()["corpus"] == "embedded"
    assert answer.json()["changed"] is False


def test_the_state_of_a_folder_tells_every_change(documents: Path) -> None:
    states = [state_of(documents)]
    (documents / "sub").mkdir()
    (documents / "sub" / "a.md").write_text("a")
    states.append(state_of(documents))
    (documents / "sub" / "a.md").rename(documents / "sub" / "b.md")
    states.append(state_of(documents))
    (documents / "king.md").unlink()
    states.append(state_of(documents))
    (documents / "link.md").symlink_to(documents / "nowhere.md")
    assert state_of(documents) == states[-1]
    assert len(set(states)) == 4
    assert state_of(documents / "queen.md") != state_of(documents / "none.md")
