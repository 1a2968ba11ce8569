"""A real server on a tiny random model, whose answers differ from support set to support set."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.predictors.base import MLPPredictor, save_predictor
from raggd.api import Rag
from raggd.assembly import BASE_FILE, Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.methods.answering import answer_batch, render
from raggd.records import Demonstration, Question, SupportSet
from raggd.retrieval.evidence import evidence_for
from raggd.serving.app import create_app
from raggd.serving.gate import Keys
from raggd.serving.service import Service
from raggd.settings import load_settings
from tiny import random_base
from workflow_fixtures import facts, parts_with, settings_text, write_data


def save_sensitive_predictor(path: Path, base: BaseAdapter, width: int, size: float) -> None:
    """Write a predictor whose updates differ a lot from one support set to the next."""
    predictor = MLPPredictor(base.spec, base.fingerprint, width, 8, 4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        predictor.head.mul_(size)
        predictor.bias.mul_(size)
    save_predictor(path, predictor)


def tiny_parts(
    root: Path, backbone: Backbone, corpus: Path | None = None, **serving: Any
) -> Assembly:
    """Data, weights and settings of a server that answers in milliseconds."""
    weights = root / "weights"
    base = random_base(backbone)
    save_base(weights / BASE_FILE, base)
    save_sensitive_predictor(weights / "predictor.safetensors", base, 32, 0.1)
    data = root / "data"
    if not data.exists():
        write_data(data)
    path = root / "settings.toml"
    path.write_text(settings_text(data, "tiny", str(weights)), encoding="utf-8")
    values = {"supports": str(root / "supports"), "port": 0, "timeout_s": 30.0} | serving
    changes = [f"serving.{n}={v!r}".replace("'", '"') for n, v in values.items()]
    changes += [f'data.corpus="{corpus}"'] if corpus else []
    return parts_with(load_settings(path, changes), backbone)


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    service: Service
    parts: Assembly

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def wait_idle(self) -> None:
        """Wait until nothing is in progress any more."""
        for _ in range(60_000):
            if self.service._open == 0 and self.service.scheduler.running == 0:
                return
            time.sleep(0.005)
        raise AssertionError("the server is still busy")

    def metric(self, name: str) -> float:
        value = self.service.metrics.registry.get_sample_value(name)
        assert value is not None, name
        return value


@contextmanager
def running(parts: Assembly, keys: Keys | None = None) -> Iterator[Running]:
    """Serve on a free port until the block ends; leaves no thread and no hook behind."""
    service = Service(Rag(parts))
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(service, keys or {}),
        log_config=None,
        access_log=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[taken])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{taken.getsockname()[1]}", service, parts)
    finally:
        server.should_exit = True
        thread.join()
    assert not service.scheduler.alive


@contextmanager
def served(
    backbone: Backbone, factory: pytest.TempPathFactory, **serving: Any
) -> Iterator[Running]:
    """A running server in a folder and with a cache of its own, for a module's tests."""
    root = factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        with running(tiny_parts(root, backbone, **serving)) as started:
            yield started


def demonstrations(number: int, size: int = 2) -> list[dict[str, str]]:
    """Answered questions of the tiny corpus, other ones for every number."""
    chosen = facts()[30 + number * size : 30 + (number + 1) * size]
    return [
        {"question": fact.question["question"], "answer": fact.question["golden_answers"][0]}
        for fact in chosen
    ]


def questions(count: int) -> list[str]:
    """Questions of the tiny corpus."""
    return [fact.question["question"] for fact in facts()[:count]]


def offline_support(parts: Assembly, shown: Sequence[dict[str, str]], task: str) -> SupportSet:
    """The support set that `shown` stands for, made without the server."""
    retriever, k = parts.index.retriever, parts.settings.retrieval.top_k
    return SupportSet(
        task,
        tuple(
            Demonstration(
                f"line-{i}",
                d["question"],
                evidence_for([Question("q", d["question"])], retriever, k)[0],
                d["answer"],
            )
            for i, d in enumerate(shown, start=1)
        ),
    )


def offline_answer(
    parts: Assembly,
    method: str,
    question: str,
    shown: Sequence[dict[str, str]] = (),
    tokens: int | None = None,
) -> str:
    """What the method answers without the server, one question at a time."""
    support = offline_support(parts, shown or demonstrations(0), "own")
    adapted = parts.method(method).adapt([support])[0]
    retriever, k = parts.index.retriever, parts.settings.retrieval.top_k
    passages = evidence_for([Question("q", question)], retriever, k)[0]
    limit = parts.settings.backbone.context_tokens
    tokens = tokens or parts.settings.evaluation.max_answer_tokens
    prompt = render(parts.backbone, adapted, question, passages, limit=limit, reserve=tokens)
    return answer_batch(parts.backbone, [adapted], [prompt], tokens)[0]
