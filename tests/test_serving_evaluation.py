"""One's own questions scored by the server: the numbers are right, and nobody is kept waiting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raggd.backbone.load import Backbone
from raggd.methods.spec import method_label
from raggd.records import Question, RaggdError, SupportSet
from raggd.serving import supports
from raggd.study.evaluate import FEWEST, set_task
from serving_fixtures import (
    Running,
    demonstrations,
    offline_answer,
    offline_support,
    questions,
    running,
    tiny_parts,
)
from workflow_fixtures import files_under

URL = "/v1/evaluations"
WANTED = {"base", "base-few-shot", "rag-gd"}


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def store(client: httpx.Client, shown: list[dict[str, str]]) -> str:
    return str(client.post("/v1/supports", json={"demonstrations": shown}).json()["id"])


def finished(client: httpx.Client, view: dict[str, Any]) -> dict[str, Any]:
    for _ in range(6000):
        view = client.get(f"{URL}/{view['id']}").json()
        if view["status"] != "running":
            return view
        time.sleep(0.02)
    raise AssertionError(view)


def test_each_example_is_asked_adapted_to_the_others(server: Running, client: httpx.Client) -> None:
    shown = demonstrations(0, 4)
    started = client.post(URL, json={"support": store(client, shown)})
    assert started.status_code == 202
    assert started.json()["questions"] == len(shown)
    second = client.post(URL, json={"support": started.json()["support"]})
    if second.status_code != 409:  # the first was done already
        assert finished(client, second.json())["status"] == "done"
    asked = {"model": "base", "messages": [{"role": "user", "content": questions(1)[0]}]}
    answer = client.post("/v1/chat/completions", json=asked).json()
    text = answer["choices"][0]["message"]["content"]
    found = finished(client, started.json())
    assert (found["status"], found["done"]) == ("done", found["total"]), found
    assert "too few to tell" in found["advice"]
    server.wait_idle()
    assert text == offline_answer(server.parts, "base", questions(1)[0])
    (scores,) = found["tables"]
    rows = scores["rows"]
    assert {row[0] for row in rows} == {method_label(name) for name in WANTED}
    assert {row[1] for row in rows} == {str(len(shown))}
    assert not [f for f in files_under(Path(os.environ["RAGGD_CACHE"])) if "retrieval" in f]


def test_questions_of_ones_own_are_asked_of_a_stored_set(client: httpx.Client) -> None:
    support = store(client, demonstrations(1))
    asked = demonstrations(3, FEWEST)
    body = {"support": support, "questions": [*demonstrations(1), *asked]}  # those are left out
    found = finished(client, client.post(URL, json=body).json())
    assert (found["status"], found["questions"]) == ("done", FEWEST), found
    assert "too few to tell" not in found["advice"]
    assert len(found["tables"]) == 2, "the differences, too"
    assert found["advice"]
    assert {row[1] for row in found["tables"][0]["rows"]} == {str(FEWEST)}


def test_an_evaluation_is_ended(client: httpx.Client) -> None:
    support = store(client, demonstrations(1, 4))
    view = client.post(URL, json={"support": support, "questions": demonstrations(2, 20)}).json()
    ended = client.delete(f"{URL}/{view['id']}").json()
    assert ended["status"] in {"cancelled", "done"}
    assert finished(client, view)["status"] == ended["status"]
    again = client.post(URL, json={"support": support})
    assert again.status_code == 202, "the next one may start"
    finished(client, again.json())


def test_an_evaluation_that_is_ended_at_the_last_moment_stays_ended(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reached, go = supports.score_task, threading.Event(), threading.Event()

    def score(*args: Any) -> Any:
        report = real(*args)
        reached.set()
        go.wait(60)
        return report

    monkeypatch.setattr(supports, "score_task", score)
    asked = {"support": store(client, demonstrations(1, 4))}
    path = f"{URL}/{client.post(URL, json=asked).json()['id']}"
    assert reached.wait(60)
    ended = client.delete(path).json()
    go.set()
    for work in [each for each in threading.enumerate() if each.name == "raggd-evaluation"]:
        work.join()
    assert client.get(path).json() == ended
    assert (ended["status"], ended["tables"]) == ("cancelled", [])


def test_a_server_that_stops_takes_an_evaluation_along(
    frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with running(tiny_parts(tmp_path, frozen_backbone)) as server, server.client() as client:
        support = store(client, demonstrations(1, 4))
        client.post(URL, json={"support": support, "questions": demonstrations(2, 20)})
        (work,) = [each for each in threading.enumerate() if each.name == "raggd-evaluation"]
    assert not work.daemon, "the process waits for it"
    work.join()
    assert not list(tmp_path.glob("raggd-evaluation-*"))


def test_what_cannot_be_evaluated(client: httpx.Client) -> None:
    alone = store(client, demonstrations(5, 1))
    for body, status in (
        ({"support": alone}, 400),
        ({"support": "0" * 16}, 404),
        ({"support": alone, "questions": []}, 400),
        ({"support": alone, "questions": demonstrations(5, 1)}, 400),  # shown with their answers
        ({"support": alone, "questions": [{**demonstrations(6, 1)[0], "passages": []}]}, 400),
        ({}, 400),
    ):
        answer = client.post(URL, json=body)
        assert answer.status_code == status, answer.text
    for method in ("GET", "DELETE"):
        assert client.request(method, f"{URL}/none").status_code == 404


def test_examples_keep_their_passages_and_never_see_themselves(server: Running) -> None:
    support = offline_support(server.parts, demonstrations(0, 3), "own")
    retriever = server.parts.index.retriever
    task = set_task(support, [], retriever, 2)
    for (item,), shown in zip(task.draws, support.demonstrations, strict=True):
        assert (item.question.text, item.passages) == (shown.question, shown.passages)
        assert shown not in item.support.demonstrations
        assert len(item.support.demonstrations) == 2
    (draw,) = set_task(support, [Question("q", questions(1)[0], ("Lima",))], retriever, 2).draws
    assert draw[0].support == support
    with pytest.raises(RaggdError, match="one example cannot be asked and shown"):
        set_task(SupportSet("own", support.demonstrations[:1]), [], retriever, 2)
