"""A soak: mixed load for minutes, every answer checked by its content, memory watched."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import httpx
import numpy as np

from benchmarks.load.client import CHAT, LoadClient, Said, chat_body, load_client
from benchmarks.load.visitors import Expected, Tally, Visitor, summary
from benchmarks.load.work import SETS, OwnServer, Workload

Progress = Callable[[str, int, int | None], None]
MEMORY = "process_resident_memory_bytes"
SAMPLE_S = 5.0


def expected_answers(client: LoadClient, workload: Workload, progress: Progress) -> Expected:
    """Ask an idle server every question of every model, one at a time: what is right."""
    models = [client.store(shown) for shown in workload.supports[:SETS]] + ["base", "vanilla-rag"]
    pairs = [(question, model) for question in workload.questions for model in models]
    found: dict[tuple[str, str], Said] = {}
    for number, (question, model) in enumerate(pairs):
        progress("asking alone", number, len(pairs))
        found[question, model] = client.ask(question, model)
    return found


def told_apart(expected: Expected, tolerance: float) -> float:
    """Measure how well answers tell one support set from another.

    It is the share of the pairs of models, over all questions, whose answers differ by more than
    twice the tolerance: what is that far from one is not near another.
    """
    questions = dict.fromkeys(question for question, _ in expected)
    pairs = [
        one.distance(other)
        for question in questions
        for one, other in combinations([e for (q, _), e in expected.items() if q == question], 2)
    ]
    return sum(distance > 2 * tolerance for distance in pairs) / max(len(pairs), 1)


@contextmanager
def _sampled_memory(url: str) -> Iterator[list[tuple[float, float]]]:
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        started = time.perf_counter()
        with load_client(url, 60) as client:
            while not done.wait(SAMPLE_S):
                try:
                    held = client.metric(MEMORY)
                except httpx.HTTPError:
                    continue
                samples.append((time.perf_counter() - started, held / 2**20))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def memory_slope(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Fit a line through the memory of a process, seconds and MiB.

    The first third, where everything is used for the first time, is left out.

    Returns:
        ``mib_per_minute``, and ``first``, ``last`` and ``most`` MiB of what was fitted.
    """
    kept = np.array(samples[len(samples) // 3 :], dtype=float).reshape(-1, 2)
    if len(kept) < 3:
        return {}
    slope = float(np.polyfit(kept[:, 0] / 60, kept[:, 1], 1)[0])
    held = kept[:, 1]
    ends = {"first": held[0], "last": held[-1], "most": held.max()}
    return {"mib_per_minute": round(slope, 3)} | {k: round(float(v), 1) for k, v in ends.items()}


def run_soak(
    url: str,
    workload: Workload,
    *,
    minutes: float,
    visitors: int,
    tolerance: float,
    progress: Progress,
) -> dict[str, Any]:
    """Let visitors do what they like, and check all that the server says.

    Args:
        url: of the server.
        workload: questions, and more support sets than `SETS`.
        minutes: how long.
        visitors: threads; each asks again as soon as it has its answer.
        tolerance: largest difference of a log-probability that counts as the same.
        progress: told how far it is.

    Returns:
        Counts, times, memory, and how well the check can tell support sets apart.
    """
    with load_client(url) as client:
        expected = expected_answers(client, workload, progress)
    stored = list(dict.fromkeys(m for _, m in expected if m.startswith("adapted/")))
    inline = {m: list(w) for m, w in zip(stored, workload.supports, strict=False)}
    spare = [list(shown) for shown in workload.supports[SETS:]]
    tally = Tally()
    end = time.perf_counter() + 60 * minutes

    def visit(number: int) -> None:
        with load_client(url) as client:
            dice = random.Random(number)
            one = Visitor(client, expected, inline, spare, tolerance, tally, dice)
            while time.perf_counter() < end:
                one.visit()
                if number == 0:
                    left = max(0, end - time.perf_counter())
                    progress("soak, seconds", int(60 * minutes - left), int(60 * minutes))

    started = time.perf_counter()
    with _sampled_memory(url) as samples, ThreadPoolExecutor(visitors) as pool:
        list(pool.map(visit, range(visitors)))
    seconds = time.perf_counter() - started
    found = summary(tally)
    answered = found["counts"].get("right", 0)
    return {
        "minutes": round(seconds / 60, 2),
        "visitors": visitors,
        "tolerance": tolerance,
        "told_apart": round(told_apart(expected, tolerance), 4),
        "right_per_second": round(answered / seconds, 3),
        **found,
        "memory": memory_slope(samples),
        "memory_samples": [[round(t, 1), round(m, 1)] for t, m in samples],
    }


def stop_under_load(server: OwnServer, workload: Workload, requests: int = 8) -> dict[str, Any]:
    """Send SIGTERM while so many requests at once are being answered.

    Returns:
        ``finished`` of ``requests``, and the ``exit_code``.
    """

    def ask(number: int) -> bool:
        question = workload.questions[number % len(workload.questions)]
        body = chat_body(question, "base", max_tokens=64, ignore_eos=True)
        found = httpx.post(server.url + CHAT, json=body, timeout=300)
        return bool(found.status_code == 200 and found.json()["usage"]["completion_tokens"] == 64)

    with ThreadPoolExecutor(requests) as pool, load_client(server.url) as client:
        asked = [pool.submit(ask, number) for number in range(requests)]
        while client.metric("raggd_running") < requests and not all(a.done() for a in asked):
            time.sleep(0.05)
        code = server.stop()
        finished = sum(a.result() for a in asked if not a.exception())
    return {"requests": requests, "finished": finished, "exit_code": code}
