"""An index built by workers of a real Ray cluster is the one that a single process builds."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.assembly import Assembly
from raggd.cluster import index as cluster_index
from raggd.cluster.crew import Crew
from raggd.cluster.index import FleetWorkers, _introduced, even_rows, run_index_on
from raggd.cluster.index_worker import EncodingWorker, Lines, Made, SortingWorker
from raggd.records import Passage, RaggdError
from raggd.retrieval import build
from raggd.retrieval.bm25 import build_bm25
from raggd.retrieval.dense import build_dense
from raggd.retrieval.encoder import load_encoder
from raggd.retrieval.estimate import estimate_bm25, estimate_dense
from raggd.retrieval.memory import Budget, held_memory
from raggd.retrieval.ranges import missing_ranges
from raggd.retrieval.shards import EMBEDDINGS, drop_shards, open_shards
from raggd.settings import load_settings
from test_retrieval_dense import WORDS, save_tiny_bert
from workflow_fixtures import run_cli, write_lines

SRC = Path(__file__).resolve().parents[1] / "src"


class Silent:
    """A progress that shows nothing."""

    def __call__(self, *_: object) -> None: ...

    def say(self, _: str) -> None: ...


def corpus_of(size: int) -> list[Passage]:
    rng = random.Random(0)
    return [
        Passage(f"id{n:03d}", " ".join(rng.choices(WORDS, k=rng.randint(1, 9))), rng.choice(WORDS))
        for n in range(size)
    ]


CORPUS = corpus_of(90)


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(SRC))  # what workers and driver processes import
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: starved on a busy machine
        yield


@pytest.fixture(scope="module")
def address(_surroundings: None) -> Iterator[str]:
    """A cluster with two processor cores that outlives its drivers."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = ({"id": p.id, "contents": f"{p.title}\n{p.text}"} for p in CORPUS)
    return write_lines(tmp_path / "corpus.jsonl", lines)


@pytest.fixture
def workers(address: str) -> Iterator[FleetWorkers]:
    with ExitStack() as stack:
        yield FleetWorkers(Crew(address, 2), stack, lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def dying_once(kind: type, flag: Path) -> type:
    """A worker whose process is killed over the second piece of work of the first of them."""

    class Dying(kind):  # type: ignore[misc]
        def work(self, task: Lines) -> Any:
            if task.start and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().work(task)

    return Dying


def test_ranges_sorted_by_workers_make_the_same_files(
    address: str, corpus: Path, tmp_path: Path
) -> None:
    told = run_cli("index", corpus, "--cluster", address, "--workers", 2, "--json").json()
    assert (told["built"], told["passages"]) == (True, 90)
    assert told["cluster"].pop("seconds") > 0
    assert 10**7 < told["cluster"].pop("worker_memory") < 5 * 10**8
    assert told["cluster"] == {"workers": 2, "tasks": 2, "deaths": 0}
    build_bm25(CORPUS, tmp_path / "one")
    build_bm25(CORPUS, tmp_path / "two", rows=45)
    made = contents(Path(told["folder"]))
    assert made.keys() != contents(tmp_path / "one").keys()
    assert made == contents(tmp_path / "two")
    again = run_cli("index", corpus, "--cluster", address, "--json").json()
    assert (again["built"], again["cluster"]["workers"]) == (False, 0)


def test_a_killed_worker_and_ranges_that_end_early(
    workers: FleetWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_bm25(CORPUS, tmp_path / "whole")
    assert workers.speed("bm25") == 2

    class Cramped(SortingWorker):
        """As if its memory bound allowed twenty passages."""

        def work(self, task: Lines) -> Any:
            kept = task.content.splitlines(keepends=True)[:20]
            return super().work(Lines(task.start, b"".join(kept)))

    monkeypatch.setattr(cluster_index, "SortingWorker", dying_once(Cramped, tmp_path / "flag"))
    seen: list[tuple[int, int | None]] = []
    made = build_bm25(
        CORPUS, tmp_path / "index", lambda *at: seen.append(at), workers=workers, rows=50
    )
    assert (workers.told["deaths"], workers.told["tasks"]) == (1, 6)
    assert [s.start for s in made._segments] == [0, 20, 40, 45, 65, 85]
    assert seen[-1] == (90, 90)
    assert made.search(WORDS, 10) == whole.search(WORDS, 10)


_DRIVER = """
import os, signal, sys
from functools import partial
from pathlib import Path
from raggd.assembly import Assembly
from raggd.cluster.crew import Crew
from raggd.cluster.index import run_index_on
from raggd.retrieval import build
from raggd.settings import load_settings

class Deadly:
    def say(self, text): pass
    def __call__(self, label, done, total):
        if done >= 30:
            os.kill(os.getpid(), signal.SIGKILL)

build.build_bm25 = partial(build.build_bm25, rows=15)
run_index_on(Assembly(load_settings(), Deadly()), Path(sys.argv[1]), Crew(sys.argv[2], 2), Deadly())
"""


def test_a_killed_driver_goes_on_from_what_is_there(
    address: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", _DRIVER, str(corpus), address]
    driver = subprocess.run(command, capture_output=True, text=True, check=False)
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    (left,) = (tmp_path / "cache" / "indexes").glob(".bm25-*.partial")
    shutil.copytree(left, tmp_path / ".alone.partial")
    assert len(list(left.glob("range-*.json"))) == 2
    monkeypatch.setattr(build, "build_bm25", partial(build_bm25, rows=15))
    monkeypatch.setattr(
        cluster_index, "SortingWorker", dying_once(SortingWorker, tmp_path / "flag")
    )
    told = run_index_on(Assembly(load_settings()), corpus, Crew(address, 2), Silent())
    assert not left.exists()
    assert told["built"]
    assert (told["cluster"]["tasks"], told["cluster"]["deaths"]) == (4, 1)
    build_bm25(CORPUS, tmp_path / "one", rows=15)
    assert contents(Path(told["folder"])) == contents(tmp_path / "one")
    # what a cluster began, one process may finish
    known = (len(CORPUS), json.loads((tmp_path / "one/index.json").read_text())["corpus_hash"])
    build_bm25(iter(()), tmp_path / "alone", rows=15, known=known)
    assert contents(tmp_path / "alone") == contents(tmp_path / "one")


def test_a_killed_worker_changes_no_vector(
    workers: FleetWorkers, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(str(model), device="cpu", precision="float32")
    monkeypatch.setattr(
        cluster_index, "EncodingWorker", dying_once(EncodingWorker, tmp_path / "flag")
    )
    build_dense(CORPUS, tmp_path / "index", encoder, workers=workers, shard=20)
    assert (workers.told["deaths"], workers.told["tasks"]) == (1, 5)
    build_dense(CORPUS, tmp_path / "one", encoder)
    assert contents(tmp_path / "index") == contents(tmp_path / "one")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 23), st.integers(1, 6), st.randoms(use_true_random=False), st.data())
def test_shards_in_any_order_become_one_file(
    count: int, shard: int, order: random.Random, data: st.DataObject
) -> None:
    vectors = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while True:  # stopped and opened again
            with open_shards(folder, count, 3, shard) as shards:
                todo = shards.missing()
                order.shuffle(todo)
                done = shards.done
                for start, end in todo[: data.draw(st.integers(1, 5))]:
                    shards.put(start, vectors[start:end])
                    done += end - start
                    assert shards.done == done
                if not shards.missing():
                    break
        assert np.array_equal(np.load(folder / EMBEDDINGS), vectors)
        assert [file.name for file in folder.iterdir()] == [EMBEDDINGS]
        np.save(folder / "vectors-000000000007.npy", vectors)
        drop_shards(folder)
        assert list(folder.iterdir()) == []


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=9),
    st.integers(1, 7),
    st.integers(0, 60),
    st.lists(st.integers(1, 30), min_size=90, max_size=90),
)
def test_missing_ranges_fill_the_gaps(
    steps: list[int], rows: int, most: int, sizes: list[int]
) -> None:
    ends = np.cumsum(steps).tolist()
    passages = ends[-1]
    there = [span for at, span in enumerate(pairwise(ends)) if at % 2 and span[0] < span[1]]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    found = missing_ranges(there, passages, rows, offsets, most)
    covered = [row for start, end in [*there, *found] for row in range(start, end)]
    assert sorted(covered) == list(range(passages))
    for start, end in found:
        assert end - start <= rows
        assert not most or end - start == 1 or offsets[end] - offsets[start] <= most


@pytest.mark.parametrize(("passages", "rows", "workers"), [(90, 50, 2), (1, 9, 4), (1000, 30, 3)])
def test_workers_get_as_much_each(passages: int, rows: int, workers: int) -> None:
    even = even_rows(passages, rows, workers)
    assert even <= rows
    count = len(missing_ranges([], passages, even))
    assert count % workers == 0 or passages < workers or count > 20


def test_unfit_workers_are_named(model: Path, tmp_path: Path) -> None:
    class Told:
        def __init__(self, introduce: Callable[[], dict[str, Any]]) -> None:
            self.told = [{**introduce(), "node": "n7"}]

        def ask_all(self, _: str) -> list[dict[str, Any]]:
            return self.told

    def introduced(worker: Any, identity: str) -> list[dict[str, Any]]:
        return _introduced(Told(worker.introduce), identity, "another encoder")  # type: ignore[arg-type]

    fit = EncodingWorker(str(model), "float32", "", 0)
    identity = fit.introduce()["identity"]
    assert len(introduced(fit, identity)) == 1
    with pytest.raises(RaggdError, match="node 'n7' has another encoder"):
        introduced(fit, "other")
    with pytest.raises(RaggdError, match="node 'n7' cannot do its part: cannot load the encoder"):
        introduced(EncodingWorker(str(tmp_path / "none"), "float32", "", 0), identity)
    with pytest.raises(RaggdError, match="memory bound of 20 MB is too small for a worker"):
        introduced(SortingWorker(20_000_000), "")


def test_a_worker_keeps_its_own_bound() -> None:
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in corpus_of(2_000)]
    task = Lines(7, "\n".join(lines).encode())
    made = SortingWorker(held_memory() + 10**9).work(task)
    assert isinstance(made, Made)
    assert (made.value.start, made.value.end) == (7, 2_007)
    refused = SortingWorker(held_memory()).work(task)
    assert isinstance(refused, RaggdError)
    assert "too small for sorting" in str(refused)


def test_without_ray_the_extra_is_named_before_any_work(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "ray", None)
    for command in (["index", corpus], ["targets", "--out", tmp_path / "out"]):
        refusal = run_cli(*command, "--cluster", "local").refusal()
        assert "pip install 'raggd[cluster]'" in refusal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_estimates_count_the_workers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    encoder = load_encoder(str(model), device="cpu", precision="float32")
    alone, shared = (estimate_dense(CORPUS, 10**6, encoder, speed) for speed in (1.0, 4.0))
    assert shared.seconds == alone.seconds / 4
    alone, shared = (estimate_bm25(CORPUS, 10**6, Budget(10**9), speed) for speed in (1.0, 3.0))
    assert shared.seconds == pytest.approx(alone.seconds / 2)  # a quarter stays with the driver


def test_databases_are_filled_without_a_cluster(corpus: Path) -> None:
    pytest.importorskip("ray")
    options = ["--set", "retrieval.retriever='qdrant'", "--set", "retrieval.url='http://x'"]
    refusal = run_cli("index", corpus, "--cluster", "local", *options).refusal()
    assert "kind bm25 and dense, not qdrant: leave --cluster out" in refusal
