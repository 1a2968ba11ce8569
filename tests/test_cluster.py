"""A study on a real Ray cluster of two worker processes: a worker is killed, the driver too."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from raggd.adaptation.targets import load_targets
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.cluster.runs import (
    PartTask,
    StudyWorker,
    TargetWorker,
    _tasks,
    run_study_on,
    run_targets_on,
)
from raggd.cluster.workers import ClusterOptions, Dispatcher, Worker, check_worker, workers
from raggd.progress import silent
from raggd.provenance import versions
from raggd.records import RaggdError
from raggd.settings import changed, load_settings
from raggd.study.plan import all_cells, load_study
from raggd.study.run import StudyRunner
from raggd.training import fits
from raggd.training import run as training
from study_fixtures import World, lasting, make_world, read_records
from workflow_fixtures import run_cli, settings_text, stage

METHODS = ("query-only", "base", "tt-sgd", "rag-gd")
SRC = Path(__file__).resolve().parents[1] / "src"


@pytest.fixture(scope="module")
def world(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(SRC))  # what workers and driver processes import
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: starved on a busy machine
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # workers need not compile three tiny layers
        yield make_world(frozen_backbone, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def study_file(world: World) -> Path:
    return world.study(METHODS, questions=10)


@pytest.fixture(scope="module")
def whole(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as one process runs it."""
    out = tmp_path_factory.mktemp("whole")
    StudyRunner(load_study(study_file), out, silent).run()
    return out


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    """A cluster with two processor cores that outlives its drivers."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


def part_files(out: Path) -> list[Path]:
    return sorted(out.glob("*/*/seed-*/parts/*.json"))


def worker_processes() -> list[int]:
    """Processes of this test's cluster in which a StudyWorker lives: our own descendants."""
    found, parents = [], {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            name = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(entry.name)] = int(status[1])
        if b"StudyWorker" in name and status[0] != "Z":
            found.append(int(entry.name))

    def ours(process: int) -> bool:
        while process in parents:
            if process == os.getpid():
                return True
            process = parents[process]
        return False

    return [process for process in found if ours(process)]


def wait_for(condition: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform != "linux", reason="finds worker processes through /proc")
def test_a_killed_worker_and_a_killed_driver_change_nothing(
    whole: Path, study_file: Path, address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from raggd.cli import main; main()", "study"]
    options = [str(study_file), "--out", str(out), "--cluster", address, "--workers", "2"]
    driver = subprocess.Popen([*command, *options], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: bool(part_files(out)) or driver.poll() is not None)
        before = worker_processes()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        at_death = len(part_files(out))
        wait_for(lambda: len(part_files(out)) >= at_death + 3 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.communicate()
    saved = {path: path.stat().st_mtime_ns for path in part_files(out)}
    total = len(part_files(whole))
    assert 4 <= len(saved) < total, "the driver was to die in the middle"
    assert not read_records(out)
    found = run_study_on(load_study(study_file), out, silent, ClusterOptions(address, 2))
    assert found["complete"] == found["cells"]
    assert found["cluster"]["computed"] == total - len(saved)
    assert {path: path.stat().st_mtime_ns for path in saved} == saved, "computed twice"
    assert len(part_files(out)) == total
    assert lasting(read_records(out)) == lasting(read_records(whole))
    again = run_study_on(load_study(study_file), out, silent, ClusterOptions(address, 2))
    assert (again["now"], again["cluster"]["parts"]) == (0, 0)


def test_workers_that_keep_dying_are_given_up(address: str) -> None:
    class Fragile(Worker[str, str]):
        def identities(self) -> dict[str, str]:
            return {}

        def result(self, task: str) -> str:
            if task == "deadly":
                os._exit(1)
            return task * 2

    got: list[Any] = []
    with workers(ClusterOptions(address, 1), silent, Fragile) as scheduler:
        scheduler.check({})
        with pytest.raises(RaggdError, match="3 workers died over deadly"):
            scheduler.run(["a", "deadly", "b"], lambda _, result: got.append(result), str)
    assert got == ["aa"]


def test_a_task_goes_where_its_model_is_loaded() -> None:
    class Now:
        """Work that is done at once, in place of an actor."""

        def __init__(self) -> None:
            self.done: list[str] = []
            self.work = self

        def remote(self, task: str) -> str:
            self.done.append(task)
            return task

    class Instant:
        exceptions = type("E", (), {"RayActorError": KeyError})

        @staticmethod
        def wait(calls: list[str], num_returns: int) -> tuple[list[str], list[str]]:
            return calls[:1], calls[1:]

        @staticmethod
        def get(call: str) -> str:
            return call

    actors = [Now(), Now()]
    scheduler = Dispatcher[str, str](Instant, actors)
    tasks = ["a1", "b1", "a2", "b2", "a3", "b3"]
    got: list[str] = []
    scheduler.run(tasks, lambda task, _: got.append(task), str, needs=lambda task: task[0])
    assert sorted(got) == sorted(tasks)
    assert all(len({task[0] for task in actor.done}) == 1 for actor in actors)


def test_a_worker_computes_what_no_longer_fits_and_keeps_the_rest(
    whole: Path, study_file: Path
) -> None:
    study = load_study(study_file)
    runner = StudyRunner(study, whole, silent)
    cells = [cell for cell in all_cells(study) if cell.method == "rag-gd"][:1]
    (first, second) = _tasks(runner, cells)
    worker = StudyWorker(study, cells, "", 0)
    kept = worker.work(first)
    assert not isinstance(kept, RaggdError)
    assert kept == first.known
    spoiled = PartTask(
        second.cell, second.draw, second.known.replace('"identity": "', '"identity": "x')
    )
    fresh = worker.work(spoiled)
    assert not isinstance(fresh, RaggdError)
    assert fresh not in {"", spoiled.known}
    beyond = worker.work(PartTask(first.cell, 99))
    assert not isinstance(beyond, RaggdError)
    assert beyond == ""


def test_unfit_workers_are_named(study_file: Path, world: World, tmp_path: Path) -> None:
    study = load_study(study_file)
    cells = all_cells(study)[:3]
    told = StudyWorker(study, cells, "", 0).introduce()
    own = told["identities"]
    check_worker(told, own)

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(RaggdError, match=message):
            check_worker({**told, "node": "n7", **changes}, own)

    refused("node 'n7' has torch 1.0, this machine", versions={**versions(), "torch": "1.0"})
    refused("node 'n7' has other data or weights for tiny", identities={**own, cells[1].path: "?"})
    empty = world.study(METHODS, name="empty", weights=tmp_path / "nothing")
    without = StudyWorker(load_study(empty), cells, "", 0).introduce()
    with pytest.raises(RaggdError, match=r"cannot do its part: .*base.safetensors"):
        check_worker(without, own)


def test_a_cluster_that_is_not_there(study_file: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else answers there
        port = taken.getsockname()[1]
        ran = run_cli("study", study_file, "--out", tmp_path, "--cluster", f"127.0.0.1:{port}")
        assert f"no Ray cluster answers at 127.0.0.1:{port}" in ran.refusal()
    ran = run_cli("study", study_file, "--out", tmp_path, "--cluster", "nonsense")
    assert "expected 'local', 'auto' or HOST:PORT" in ran.refusal()


def test_too_many_workers_and_a_foreign_folder(
    study_file: Path, world: World, address: str, tmp_path: Path
) -> None:
    study = load_study(study_file)
    with pytest.raises(RaggdError, match="9 workers of 1 cores each: the cluster has 2"):
        run_study_on(study, tmp_path / "a", silent, ClusterOptions(address, 9))
    other = load_study(world.study(METHODS, name="other", questions=4))
    cells = all_cells(other, method=["base"], benchmark=["nq"])
    StudyRunner(other, tmp_path / "b", silent).run(cells)
    with pytest.raises(RaggdError, match="holds another study"):
        run_study_on(study, tmp_path / "b", silent, ClusterOptions(address))


@pytest.fixture
def run_parts(world: World, tmp_path: Path) -> Assembly:
    path = tmp_path / "settings.toml"
    text = settings_text(world.data, str(world.model), str(world.weights))
    path.write_text(text, encoding="utf-8")
    return Assembly(load_settings(path))


def test_targets_made_by_workers_are_those_of_one_process(
    run_parts: Assembly, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "compile_layers", lambda _: nullcontext())
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    stage("targets", run_parts, alone)
    wanted = {path.name: path for path in alone.glob("shard-*")}
    assert len(wanted) == 3
    kept = shared / sorted(wanted)[0]
    shared.mkdir()
    shutil.copy(alone / "store.json", shared)
    shutil.copy(wanted[kept.name], kept)
    before = kept.stat().st_mtime_ns
    found = run_targets_on(training.Run(run_parts, shared, (shared,)), ClusterOptions(address, 1))
    assert found["sets"] == 8
    assert {path.name for path in shared.glob("shard-*")} == set(wanted)
    assert kept.stat().st_mtime_ns == before
    one, two = load_targets(alone), load_targets(shared)
    assert one.support_ids == two.support_ids
    assert float(one.vectors.float().std()) > 1e-4
    torch.testing.assert_close(one.vectors, two.vectors, atol=1e-4, rtol=0.02)
    torch.testing.assert_close(one.states, two.states, atol=1e-4, rtol=1e-4)


def test_a_target_worker_without_weights_says_so(run_parts: Assembly, tmp_path: Path) -> None:
    changes = changed(run_parts.settings, "adapter", weights=str(tmp_path / "none"))
    told = TargetWorker(changes, False, "", 0).introduce()
    assert "base.safetensors" in told["problem"]
    with pytest.raises(RaggdError, match="cannot do its part"):
        check_worker(told, {})
