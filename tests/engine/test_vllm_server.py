"""A stock vLLM server answers with predicted adapters by name, as raggd's own path does.

`make engine-test` runs this in an environment with vLLM's build for processors.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: run `make engine-test`")

from raggd.adaptation.export import model_source
from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import choose_by_hash, scored_questions, support_pool
from raggd.data.prompts import Prompt
from raggd.data.supports import save_support
from raggd.evaluation.tasks import support_sets
from raggd.methods.answering import answer_batch, render
from raggd.methods.base import Adapted
from raggd.retrieval.evidence import evidence_for
from raggd.settings import load_settings

QUESTIONS, SETS, LONGEST = 50, 4, 24
SETTINGS = '[backbone]\ndtype = "float32"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of settings and support sets."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def work(root: Path) -> dict[str, Any]:
    """Fifty questions, each for one of four support sets or the base adapter, with our answers."""
    parts = Assembly(load_settings(root / "settings.toml"))
    asked = choose_by_hash(scored_questions(parts.source, "nq"), QUESTIONS, 0)
    drawn = draw_supports(support_pool(parts.source, "nq"), 3, SETS, 0)
    sets = support_sets("nq", drawn, parts.retriever, 3)
    for support in sets:
        save_support(root / "supports", support)
    adapted = parts.method("rag-gd").adapt(sets)
    choices = [("raggd/base", Adapted(parts.base))]
    choices += [(f"raggd/{s.id}", a) for s, a in zip(sets, adapted, strict=True)]
    picked = [choices[i % len(choices)] for i in range(QUESTIONS)]
    prompts = [
        render(parts.backbone, a, q.text, passages, limit=1024, reserve=LONGEST)
        for q, passages, (_, a) in zip(
            asked, evidence_for(asked, parts.retriever, 3), picked, strict=True
        )
    ]

    def answers(rows: list[Adapted]) -> list[str]:
        found: list[str] = []
        for start in range(0, QUESTIONS, 10):
            at = slice(start, start + 10)
            found += answer_batch(parts.backbone, rows[at], prompts[at], LONGEST)
        return found

    rows = [a for _, a in picked]
    return {
        "model": model_source(parts.backbone),
        "prompts": prompts,
        "names": [name for name, _ in picked],
        "ours": answers(rows),
        "of another set": answers(rows[1:] + rows[:1]),
        "tokenizer": parts.backbone.tokenizer,
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def server(work: dict[str, Any], root: Path) -> Iterator[str]:
    """A stock vLLM server; all that it knows of raggd is the installed plugin."""
    port = _free_port()
    arguments = [
        *("--model", work["model"], "--served-model-name", "smollm2", "--dtype", "float32"),
        *("--enable-lora", "--max-lora-rank", "64", "--max-loras", str(SETS + 1)),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--port", str(port)),
    ]
    environment = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "RAGGD_SETTINGS": str(root / "settings.toml"),
        "RAGGD_SUPPORTS": str(root / "supports"),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, root / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the server ended:\n{log.read_text()[-4000:]}")
        try:
            urllib.request.urlopen(address, timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def _complete(server: str, model: str, prompt: Prompt) -> str:
    body = {
        "model": model,
        "prompt": list(prompt.tokens),
        "temperature": 0,
        "max_tokens": LONGEST,
    }
    request = urllib.request.Request(
        f"{server}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        text = str(json.load(answer)["choices"][0]["text"]).strip()
    return text.splitlines()[0].strip() if text else ""


def test_vllm_answers_as_raggd_does_with_adapters_mixed_in_one_batch(
    server: str, work: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        theirs = list(
            pool.map(
                lambda pair: _complete(server, *pair),
                zip(work["names"], work["prompts"], strict=True),
            )
        )
    same = [own == other for own, other in zip(work["ours"], theirs, strict=True)]
    wrong = [own == other for own, other in zip(work["of another set"], theirs, strict=True)]
    report = {"equal": sum(same), "equal to the answers of another adapter": sum(wrong)}
    sys.stderr.write(json.dumps(report) + "\n")
    differing = [(a, b) for a, b, ok in zip(work["ours"], theirs, same, strict=True) if not ok]
    assert sum(wrong) < sum(same), "the adapters make no difference here: the test shows nothing"
    assert sum(same) >= QUESTIONS - 1, differing


def test_names_that_are_not_raggds_are_refused(server: str, work: dict[str, Any]) -> None:
    for name in ("raggd/0123456789abcdef", "someone/else"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _complete(server, name, work["prompts"][0])
        assert refused.value.code == 404
