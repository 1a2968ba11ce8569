"""A stock vLLM server for the tests: how it is started, asked and watched."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pytest

from raggd.files import cache_folder

ON_PROCESSORS = (
    # vLLM's LoRA for processors copies an adapter once per token: no more modules than needed
    *("--lora-target-modules", "q_proj", "k_proj", "v_proj"),
    "--enforce-eager",  # compiling takes longer than these answers
)
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""Reuse the memory of those copies, which else is mapped and zeroed anew for each (glibc)."""
_PATIENCE_S = 3600


@dataclass(frozen=True, slots=True)
class Written:
    """What the server answered: its first line, all its tokens and their log-probabilities."""

    text: str
    tokens: tuple[int, ...]
    told: tuple[float, ...]


@dataclass(slots=True)
class Busiest:
    """The most that was seen in one batch."""

    requests: int = 0
    adapters: int = 0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _environment(folder: Path) -> dict[str, str]:
    # predictions are made anew: of the cache, the server sees the converted backbones alone
    cache = folder / "cache"
    cache.mkdir()
    (cache / "backbones").symlink_to(cache_folder() / "backbones")
    own = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(_PATIENCE_S),  # a busy machine is no failure
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "RAGGD_CACHE": str(cache),
        "RAGGD_SETTINGS": str(folder / "settings.toml"),
        "RAGGD_SUPPORTS": str(folder / "supports"),
    }
    return os.environ | MEMORY | own


@contextmanager
def stock_server(folder: Path, arguments: Sequence[str]) -> Iterator[str]:
    """Run a stock vLLM server; all that it knows of raggd is the installed plugin.

    Args:
        folder: with ``settings.toml`` and the folder ``supports``; gets the log.
        arguments: of the server, port aside.

    Yields:
        Its address.
    """
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=_environment(folder), stdout=out, stderr=out
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
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


def complete(server: str, model: str, prompt: Sequence[int], longest: int) -> Written:
    """Ask for the greedy continuation of a prompt.

    Args:
        server: its address.
        model: name of the model or adapter.
        prompt: tokens.
        longest: most tokens to write.

    Returns:
        The answer.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "temperature": 0,
        "max_tokens": longest,
        "logprobs": 1,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        choice = json.load(answer)["choices"][0]
    text = str(choice["text"]).strip()
    first = text.splitlines()[0].strip() if text else ""
    return Written(first, tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))


def _look(server: str, seen: Busiest) -> None:
    text = urllib.request.urlopen(f"{server}/metrics", timeout=60).read().decode()
    running = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.MULTILINE)
    seen.requests = max(seen.requests, int(float(running[1])) if running else 0)
    for names in re.findall(r'running_lora_adapters="([^"]*)"', text):
        seen.adapters = max(seen.adapters, len([n for n in names.split(",") if n]))


@contextmanager
def watched(server: str) -> Iterator[Busiest]:
    """Watch what the server runs in one batch, by its own metrics.

    Args:
        server: its address.

    Yields:
        The most that was seen so far.
    """
    seen, done = Busiest(), Event()

    def watch() -> None:
        while not done.wait(0.5):
            _look(server, seen)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
