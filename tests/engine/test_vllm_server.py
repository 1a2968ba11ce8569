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
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: run `make engine-test`")

from raggd.adaptation.export import model_source
from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import choose_by_hash, scored_questions, support_pool
from raggd.data.prompts import Prompt
from raggd.data.supports import save_support
from raggd.evaluation.tasks import support_sets
from raggd.methods.answering import adapted_rows, answer_batch, render
from raggd.methods.base import Adapted
from raggd.retrieval.evidence import evidence_for
from raggd.settings import load_settings

QUESTIONS, SETS, LONGEST = 50, 4, 24
SETTINGS = '[backbone]\ndtype = "float32"\n'
BARE = "smollm2"
"""The name by which the server knows the model itself."""
TIE = 0.01
"""Where an answer differs, its tokens may lie at most this far below our best ones, in nats."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of settings and support sets."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def work(root: Path) -> dict[str, Any]:
    """Fifty questions with our answers: four support sets, the base adapter, the bare model."""
    parts = Assembly(load_settings(root / "settings.toml"))
    asked = choose_by_hash(scored_questions(parts.source, "nq"), QUESTIONS, 0)
    drawn = draw_supports(support_pool(parts.source, "nq"), 3, SETS, 0)
    sets = support_sets("nq", drawn, parts.retriever, 3)
    for support in sets:
        save_support(root / "supports", support)
    adapted = parts.method("rag-gd").adapt(sets)
    choices = [(BARE, Adapted()), ("raggd/base", Adapted(parts.base))]
    choices += [(f"raggd/{s.id}", a) for s, a in zip(sets, adapted, strict=True)]
    picked = [choices[i % len(choices)] for i in range(QUESTIONS)]
    prompts = [
        render(parts.backbone, a, q.text, passages, limit=1024, reserve=LONGEST)
        for q, passages, (_, a) in zip(
            asked, evidence_for(asked, parts.retriever, 3), picked, strict=True
        )
    ]

    def answers(rows: list[Adapted]) -> list[str]:
        found = [""] * QUESTIONS
        for base in (True, False):  # a batch has one base adapter, or none
            at = [i for i in range(QUESTIONS) if (rows[i].base is not None) == base]
            for start in range(0, len(at), 10):
                part = at[start : start + 10]
                texts = answer_batch(
                    parts.backbone, [rows[i] for i in part], [prompts[i] for i in part], LONGEST
                )
                for i, text in zip(part, texts, strict=True):
                    found[i] = text
        return found

    rows = [a for _, a in picked]
    return {
        "model": model_source(parts.backbone),
        "prompts": prompts,
        "names": [name for name, _ in picked],
        "ours": answers(rows),
        "of another set": answers(rows[1:] + rows[:1]),
        "rows": rows,
        "backbone": parts.backbone,
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
        *("--model", work["model"], "--served-model-name", BARE, "--dtype", "float32"),
        *("--enable-lora", "--max-lora-rank", "64", "--max-loras", str(SETS + 1)),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--port", str(port)),
    ]
    environment = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",  # a busy machine is no failure
        "KMP_BLOCKTIME": "0",
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


def _complete(server: str, model: str, prompt: Prompt) -> tuple[str, list[int]]:
    body = {
        "model": model,
        "prompt": list(prompt.tokens),
        "temperature": 0,
        "max_tokens": LONGEST,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{server}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        choice = json.load(answer)["choices"][0]
    text = str(choice["text"]).strip()
    return (text.splitlines()[0].strip() if text else ""), choice["token_ids"]


@torch.no_grad()
def _regret(work: dict[str, Any], at: int, written: list[int]) -> float:
    """How far the engine's tokens lie below the best ones of our own model, at most, in nats."""
    prompt, backbone = work["prompts"][at].tokens, work["backbone"]
    with adapted_rows(backbone, [work["rows"][at]]):
        logits = backbone.model(torch.tensor([[*prompt, *written]])).logits[0].float()
    told = logits[len(prompt) - 1 : -1]
    chosen = told.gather(-1, torch.tensor(written)[:, None])[:, 0]
    return float((told.max(-1).values - chosen).max())


def test_vllm_answers_as_raggd_does_with_adapters_mixed_in_one_batch(
    server: str, work: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        given = list(
            pool.map(
                lambda pair: _complete(server, *pair),
                zip(work["names"], work["prompts"], strict=True),
            )
        )
    theirs = [text for text, _ in given]
    same = [own == other for own, other in zip(work["ours"], theirs, strict=True)]
    wrong = [own == other for own, other in zip(work["of another set"], theirs, strict=True)]
    regrets = [round(_regret(work, i, given[i][1]), 5) for i, ok in enumerate(same) if not ok]
    report = {
        "equal": sum(same),
        "equal to the answers of another adapter": sum(wrong),
        "nats below our best token, where not equal": regrets,
    }
    sys.stderr.write(json.dumps(report) + "\n")
    differing = [(a, b) for a, b, ok in zip(work["ours"], theirs, same, strict=True) if not ok]
    assert sum(wrong) < sum(same), "the adapters make no difference here: the test shows nothing"
    assert sum(same) >= QUESTIONS - 2, differing
    assert max(regrets, default=0.0) < TIE, list(zip(differing, regrets, strict=True))


def test_names_that_are_not_raggds_are_refused(server: str, work: dict[str, Any]) -> None:
    for name in ("raggd/0123456789abcdef", "someone/else"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _complete(server, name, work["prompts"][0])
        assert refused.value.code == 404
