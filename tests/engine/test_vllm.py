"""Stock vLLM serves predicted adapters by name, and answers as raggd does."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from raggd.adaptation.export import model_source, read_peft_rank
from raggd.data.prompts import Prompt
from raggd.engines.vllm import RaggdResolver
from raggd.methods.answering import adapted_rows, answer_batch
from raggd.methods.base import Adapted

vllm = pytest.importorskip("vllm", reason="vLLM has its own environment: make engine-test")

MOST_TOKENS = 24
SAME = 0.9
"""Least share of equal answers."""
TIE = 0.05
"""Where answers differ, the engine's token may lie at most this far below the best one (nats)."""


@pytest.fixture(scope="module")
def resolver(rag: Any, cache: Path) -> RaggdResolver:
    return RaggdResolver(rag)


@pytest.fixture(scope="module")
def lora_requests(rag: Any, cases: Any, resolver: RaggdResolver) -> dict[str, Any]:
    """What the resolver gives for each name, numbered as vLLM's server would."""
    model = model_source(rag.parts.backbone)
    found = {}
    for number, name in enumerate(dict.fromkeys(case.adapter for case in cases), start=1):
        request = asyncio.run(resolver.resolve_lora(model, name))
        request.lora_int_id = number
        found[name] = request
    return found


def one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines[0] if lines else ""


@torch.no_grad()
def regret(rag: Any, row: Adapted, prompt: Sequence[int], written: Sequence[int]) -> float:
    """How far the engine's tokens lie below the best ones of our own model, at most."""
    tokens = torch.tensor([[*prompt, *written]])
    with adapted_rows(rag.parts.backbone, [row]):
        logits = rag.parts.backbone.model(tokens).logits[0, len(prompt) - 1 : -1].float()
    best = logits.max(-1).values
    chosen = logits.gather(-1, torch.tensor(written)[:, None])[:, 0]
    return float((best - chosen).max())


def ours(rag: Any, rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> list[str]:
    found: list[str] = []
    for at in range(0, len(rows), 8):
        found += answer_batch(
            rag.parts.backbone, rows[at : at + 8], prompts[at : at + 8], MOST_TOKENS
        )
    return found


def report(name: str, equal: int, total: int, regrets: Sequence[float]) -> None:
    worst = max(regrets, default=0.0)
    text = f"\n{name}: {equal} of {total} answers equal; largest regret {worst:.4f} nats\n"
    sys.stdout.write(text)


def test_the_resolver_knows_its_own_names_only(
    rag: Any, resolver: RaggdResolver, lora_requests: dict[str, Any]
) -> None:
    model = model_source(rag.parts.backbone)
    for wrong in ("other", "raggd/", "raggd/../x", f"raggd/{'0' * 16}"):
        assert asyncio.run(resolver.resolve_lora(model, wrong)) is None
    ranks = {name: read_peft_rank(Path(r.lora_path)) for name, r in lora_requests.items()}
    assert ranks.pop("raggd/base") == 16
    assert set(ranks.values()) == {48}


def test_adapted_and_bare_requests_of_one_batch(
    rag: Any, cases: Any, lora_requests: dict[str, Any]
) -> None:
    engine = vllm.LLM(
        model=model_source(rag.parts.backbone),
        dtype="float32",
        enable_lora=True,
        max_lora_rank=64,
        max_loras=len(lora_requests),
        max_model_len=1024,
        max_num_seqs=16,
        enforce_eager=True,
    )
    prompts = [Prompt(case.tokens, 0, 0) for case in cases]
    mixed = [(p, lora_requests[c.adapter]) for p, c in zip(prompts, cases, strict=True)]
    both = [pair for p, m in zip(prompts, mixed, strict=True) for pair in (m, (p, None))]
    outputs = engine.generate(
        [{"prompt_token_ids": list(p.tokens)} for p, _ in both],
        vllm.SamplingParams(temperature=0, max_tokens=MOST_TOKENS),
        lora_request=[request for _, request in both],
        use_tqdm=False,
    )
    bare = [Adapted()] * len(cases)
    for name, rows, part in (
        ("adapted", [case.row for case in cases], outputs[::2]),
        ("bare", bare, outputs[1::2]),
    ):
        mine = ours(rag, rows, prompts)
        theirs = [one_line(o.outputs[0].text) for o in part]
        written = [list(o.outputs[0].token_ids) for o in part]
        regrets = [
            regret(rag, row, prompt.tokens, tokens)
            for row, prompt, tokens in zip(rows, prompts, written, strict=True)
        ]
        equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
        report(name, equal, len(cases), regrets)
        assert equal >= SAME * len(cases), list(zip(mine, theirs, strict=True))
        assert max(regrets) < TIE
    adapted, plain = outputs[::2], outputs[1::2]
    differ = sum(
        a.outputs[0].text != b.outputs[0].text for a, b in zip(adapted, plain, strict=True)
    )
    assert differ > len(cases) // 2, "the adapters change answers at all"


# --- the server


@pytest.fixture(scope="module")
def server(rag: Any, cases: Any, cache: Path) -> Iterator[str]:
    """vLLM's own OpenAI server, with nothing but the plug-in."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = cache / "server"  # its cache: the backbone's weights are named by folder
    home.mkdir()
    (home / "supports").symlink_to(cache / "supports")
    settings = home / "settings.toml"
    settings.write_text('[backbone]\ndtype = "float32"\n', encoding="utf-8")
    environment = os.environ | {
        "RAGGD_CACHE": str(home),
        "RAGGD_SETTINGS": str(settings),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": "raggd",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model_source(rag.parts.backbone), "--served-model-name", "smollm2"]
    command += ["--dtype", "float32", "--enable-lora", "--max-lora-rank", "64", "--max-loras", "4"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (cache / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(process, f"{address}/health", cache / "server.log")
            yield address
        finally:
            process.terminate()
            process.wait(timeout=120)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(900):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def complete(address: str, model: str, tokens: Sequence[int]) -> str:
    body = {"model": model, "prompt": list(tokens), "max_tokens": MOST_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=900) as response:
        return one_line(json.load(response)["choices"][0]["text"])


def test_a_stock_server_answers_by_name(rag: Any, cases: Any, server: str) -> None:
    chosen = cases[:16]
    prompts = [Prompt(case.tokens, 0, 0) for case in chosen]
    mine = ours(rag, [case.row for case in chosen], prompts)
    mine += ours(rag, [Adapted()] * 4, prompts[:4])
    jobs = [(case.adapter, case.tokens) for case in chosen]
    jobs += [("smollm2", case.tokens) for case in chosen[:4]]
    with ThreadPoolExecutor(len(jobs)) as pool:
        theirs = list(pool.map(lambda job: complete(server, *job), jobs))
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
    report("server", equal, len(jobs), [])
    assert equal >= SAME * len(jobs), list(zip(mine, theirs, strict=True))
    with pytest.raises(urllib.error.HTTPError) as refused:
        complete(server, f"raggd/{'0' * 16}", chosen[0].tokens)
    assert refused.value.code == 404
