"""Building an index in a process of its own, so that its time and memory are its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from raggd.data.documents import read_passages
from raggd.retrieval.base import Budget, peak_memory
from raggd.retrieval.bm25 import K1, B, BM25Kind
from raggd.retrieval.build import look_at, update_index
from raggd.retrieval.terms import tokenize


@dataclass(frozen=True, slots=True)
class Built:
    """What a build took."""

    seconds: float  # reading the corpus included
    cpu_seconds: float  # of the processor; of use on a busy machine
    peak_memory: int  # bytes that the process held at most
    disk: int  # bytes of the finished index


Build = Callable[[Path, int, Path, int], Built]
"""Corpus, number of its first passages, folder to write, memory bound -> what it took."""


def build_ours(corpus: Path, count: int, folder: Path, bound: int) -> Built:
    """Build raggd's index of the first passages of a corpus, within a bound in bytes."""
    first = folder.with_name(f"{folder.name}-first.jsonl")
    with first.open("w", encoding="utf-8") as file:
        for passage in islice(read_passages(corpus), count):
            file.write(json.dumps(asdict(passage)) + "\n")
    started, cpu = time.perf_counter(), time.process_time()
    update_index(look_at(first), folder, BM25Kind(Budget(bound)))
    return _built(started, cpu, folder)


def build_bm25s(corpus: Path, count: int, folder: Path, bound: int) -> Built:
    """Build the index of bm25s over the same words with the same parameters.

    The bound is not kept: bm25s holds everything in memory.
    """
    import bm25s

    started, cpu = time.perf_counter(), time.process_time()
    passages = islice(read_passages(corpus), count)
    tokens = [tokenize(f"{p.title}\n{p.text}") for p in passages]
    index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
    index.index(tokens, create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)
    return _built(started, cpu, folder)


def _built(started: float, cpu: float, folder: Path) -> Built:
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Built(seconds, cpu_seconds, peak_memory(), disk)


def apart(build: Build, corpus: Path, count: int, folder: Path, bound: int) -> Built:
    """Build by one of the two above in a new process."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(build, corpus, count, folder, bound).result()
