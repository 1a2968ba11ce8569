"""Throughput: eight updates in one batch, against none, and against one request after another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.load.client import LoadClient, Said
from benchmarks.load.work import SETS, Workload
from raggd.evaluation.timing import in_turn, ratio_of

Progress = Callable[[str, int, int | None], None]
PLAIN = {"logprobs": False}
LONG = {"max_tokens": 48, "ignore_eos": True, **PLAIN}
"""An answer of exactly 48 tokens; the natural ones have about six."""


class _Crowd:
    # as many clients as there are rows; each keeps its connection
    def __init__(self, url: str, workload: Workload, models: list[str]) -> None:
        self._clients = [LoadClient(url) for _ in models]
        self._asked = list(zip(self._clients, workload.questions, models, strict=False))
        self._pool = ThreadPoolExecutor(len(models))
        self.batches: list[int] = []

    def together(self, more: dict[str, Any]) -> None:
        said = list(self._pool.map(lambda a: a[0].ask(a[1], a[2], **more), self._asked))
        self.batches.append(max(answer.batch for answer in said))

    def in_a_row(self, more: dict[str, Any]) -> None:
        client = self._clients[0]
        said: list[Said] = [client.ask(question, m, **more) for _, question, m in self._asked]
        self.batches.append(max(answer.batch for answer in said))

    def close(self) -> None:
        self._pool.shutdown()
        for client in self._clients:
            client.http.close()


def measure_throughput(
    url: str, workload: Workload, rounds: int, progress: Progress
) -> dict[str, Any]:
    """Time eight questions in four ways, in turn, with natural and with long answers.

    The server is otherwise idle; every round times every way once.

    Returns:
        Per kind of answer: ``mixed_vs_plain`` (throughput of eight different updates over none)
        and ``mixed_vs_in_a_row`` (over one request after another), medians with their ranges.
    """
    client = LoadClient(url)
    models = [client.store(shown) for shown in workload.supports[:SETS]]
    mixed, plain = _Crowd(url, workload, models), _Crowd(url, workload, ["base"] * SETS)
    bare = _Crowd(url, workload, ["vanilla-rag"] * SETS)
    alone = _Crowd(url, workload, models)
    results: dict[str, Any] = {}
    kinds: dict[str, dict[str, Any]] = {"natural": PLAIN, "long": LONG}
    for at, (kind, more) in enumerate(kinds.items()):
        progress(f"throughput, {kind} answers", at, len(kinds))
        works = {
            "mixed": partial(mixed.together, more),
            "plain": partial(plain.together, more),
            "bare": partial(bare.together, more),
            "in_a_row": partial(alone.in_a_row, more),
        }
        times = in_turn(works, rounds)
        results[kind] = {
            "mixed_vs_plain": asdict(ratio_of(times["plain"], times["mixed"])),
            "mixed_vs_bare": asdict(ratio_of(times["bare"], times["mixed"])),
            "mixed_vs_in_a_row": asdict(ratio_of(times["in_a_row"], times["mixed"])),
        }
    for crowd in (mixed, plain, bare, alone):
        crowd.close()
    client.http.close()
    batches = {"mixed": min(mixed.batches), "in_a_row": max(alone.batches)}
    return {"rows": SETS, "rounds": rounds, "batches": batches, **results}
