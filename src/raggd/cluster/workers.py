"""Workers on a Ray cluster: joining it in clear words, sharing it out, tasks that outlive a worker.

Each task is done once, whoever does it in the end: a worker's result is only what it returns; a
task whose worker died is given to another one, and a task that no worker survives is named.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from raggd.provenance import versions
from raggd.records import RaggdError

T = TypeVar("T")
LOCAL = "local"
"""The address that stands for a cluster of this machine alone, started and stopped here."""
_MISSING = "a cluster needs Ray, which is not installed: `pip install 'raggd[cluster]'`."
SECONDS = 5.0
"""How long a cluster may take to accept a connection."""
START_SECONDS = 600
"""How long workers may take to start; a busy cluster gives none."""
TRIES = 3
"""Workers that may die over one task."""
_REPORT = 12


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RaggdError(_MISSING) from error
    return ray


def check_address(address: str) -> None:
    """Refuse what `connected` cannot connect to, without connecting.

    Raises:
        RaggdError: it is no address, or Ray is not installed.
    """
    _, colon, port = address.rpartition(":")
    if address not in {LOCAL, "auto"} and not (colon and port.isdigit()):
        raise RaggdError(
            f"--cluster '{address}': expected 'local', 'auto' or HOST:PORT of a Ray head node."
        )
    if importlib.util.find_spec("ray") is None:
        raise RaggdError(_MISSING)


def _check_reachable(address: str) -> None:
    # Ray itself tries for minutes before it gives up
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise RaggdError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start one with "
            "`ray start --head --port=6379`, or use --cluster local."
        ) from error


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Use a cluster inside a ``with`` block, as the module ray, connected.

    The address is ``local``, ``auto`` (the cluster that runs on this machine), or HOST:PORT.

    Raises:
        RaggdError: there is no cluster at the address, or it runs other versions of Ray or Python,
            or Ray is not installed.
    """
    check_address(address)
    ray = _ray()
    if address != LOCAL:
        _check_reachable(address)
    if ray.is_initialized():  # the caller's own connection stays
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RaggdError(
            f"cannot use the Ray cluster '{address}': {reason} All nodes need the same versions of "
            "Python and Ray."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class ClusterOptions:
    """The workers of a run, on the cluster at an address that `connected` takes.

    No `workers` (0) are one per GPU, or one per node where there is none; no `threads` share all
    processor cores out.
    """

    address: str
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse an address that is none, or a missing Ray, before any work."""
        check_address(self.address)


def shares(ray: Any, options: ClusterOptions) -> tuple[int, dict[str, Any], int]:
    """Share a cluster out: workers, what each reserves (as Ray's `remote` takes it), its threads.

    Raises:
        RaggdError: more processor cores are asked for than the cluster has.
    """
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    count = options.workers or gpus or nodes
    if gpus:
        return count, {"num_gpus": min(1.0, gpus / count)}, options.threads
    threads = options.threads or max(1, cores // count)
    if count * threads > cores:
        raise RaggdError(
            f"{count} workers of {threads} cores each: the cluster has {cores} processor cores. "
            "Ask for less by --workers or --worker-threads."
        )
    return count, {"num_cpus": threads}, threads


def check_node(told: Mapping[str, Any]) -> None:
    """Refuse a worker that cannot do its part, or has other versions than this machine.

    Raises:
        RaggdError: it cannot; the node and the reason are named.
    """
    node = told["node"]
    if told["problem"]:
        raise RaggdError(f"the worker on node '{node}' cannot do its part: {told['problem']}")
    for name, version in versions().items():
        there = told["versions"].get(name)
        if there != version:
            raise RaggdError(
                f"the worker on node '{node}' has {name} {there}, this machine {version}: results "
                "could differ. Install the same versions on all nodes."
            )


def settle(folder: str, threads: int) -> None:
    """Make this process a worker with so many processor threads; 0 leaves the number as it is.

    Relative paths start in `folder`, the driver's, if it is there.
    """
    if folder and Path(folder).is_dir():
        os.chdir(folder)
    if threads:
        import torch

        torch.set_num_threads(threads)


def deaths(ray: Any) -> tuple[type[Exception], ...]:
    """Name what Ray raises when a worker, its node or its result is gone, and the work does not."""
    found = ray.exceptions
    # a worker that Ray ended to save the node's memory is no RayActorError
    return (
        found.RayActorError, found.OutOfMemoryError, found.WorkerCrashedError,
        found.NodeDiedError, found.ObjectLostError,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    # Ray's longest messages are reports of many lines, the reason in their first
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if len(lines) < _REPORT else lines[0]


@dataclass
class _Slot(Generic[T]):
    worker: Any
    last: T | None = None


class Scheduler(Generic[T]):
    """A number of workers, replaced when they die; `deaths` counts those that did."""

    def __init__(self, ray: Any, start: Callable[[], Any], size: int) -> None:
        """Start so many workers: `start` makes an actor with a method ``work(task)``."""
        self._ray = ray
        self._start = start
        self._slots = [_Slot[T](start()) for _ in range(size)]
        self.deaths = 0

    def __len__(self) -> int:
        return len(self._slots)

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker and wait for all.

        Raises:
            RaggdError: a worker could not be started, or died.
        """
        calls = [getattr(slot.worker, method).remote(*arguments) for slot in self._slots]
        try:
            return list(self._ray.get(calls, timeout=START_SECONDS))
        except self._ray.exceptions.GetTimeoutError as error:
            raise RaggdError(
                f"the cluster did not start {len(self._slots)} workers within {START_SECONDS} s: "
                "its processors or GPUs are taken or too few. Ask for fewer by --workers."
            ) from error
        except deaths(self._ray) as error:
            reason = _reason(error)
            raise RaggdError(
                f"a worker of the cluster did not start or died at once ({reason}): look at its "
                "node's memory and at Ray's log."
            ) from error

    def run(
        self,
        tasks: Sequence[T],
        deliver: Callable[[T, Any], None],
        near: Callable[[T, T], bool] = lambda *_: False,
    ) -> None:
        """Do all tasks, the first ones first; `deliver` is told each result as it comes.

        `near` says whether a worker that did the first task does the second with what it has
        loaded.

        Raises:
            RaggdError: `TRIES` workers died over a task.
        """
        waiting = list(range(len(tasks)))
        tries = [0] * len(tasks)
        idle = list(self._slots)
        busy: dict[Any, tuple[_Slot[T], int]] = {}
        while waiting or busy:
            while waiting and idle:
                slot = idle.pop()
                number = self._choose(slot, waiting, tasks, near)
                slot.last = tasks[number]
                busy[slot.worker.work.remote(tasks[number])] = (slot, number)
            (done,), _ = self._ray.wait(list(busy), num_returns=1)
            slot, number = busy.pop(done)
            idle.append(slot)
            try:
                result = self._ray.get(done)
            except deaths(self._ray) as error:
                tries[number] += 1
                self._replace(slot, tasks[number], tries[number], error)
                waiting.insert(0, number)
                continue
            deliver(tasks[number], result)

    @staticmethod
    def _choose(
        slot: _Slot[T], waiting: list[int], tasks: Sequence[T], near: Callable[[T, T], bool]
    ) -> int:
        last = slot.last
        if last is not None:
            for place, number in enumerate(waiting):
                if near(last, tasks[number]):
                    return waiting.pop(place)
        return waiting.pop(0)

    def _replace(self, slot: _Slot[T], task: T, tries: int, error: Exception) -> None:
        self.deaths += 1
        if tries >= TRIES:
            reason = _reason(error)
            raise RaggdError(
                f"{tries} workers died over {task} ({reason}): it may need more memory than a "
                "node has. What was finished is kept; the same command continues."
            ) from error
        slot.worker, slot.last = self._start(), None

    def stop(self) -> None:
        """End all workers."""
        for slot in self._slots:
            self._ray.kill(slot.worker)


@contextmanager
def workers(options: ClusterOptions, kind: type, *arguments: Any) -> Iterator[Scheduler[Any]]:
    """Start workers of a kind inside a ``with`` block: ``kind(*arguments, folder, threads)``."""
    with connected(options.address) as ray:
        count, reserved, threads = shares(ray, options)
        actor = ray.remote(**reserved)(kind)
        here = str(Path.cwd())
        made = Scheduler[Any](ray, lambda: actor.remote(*arguments, here, threads), count)
        try:
            yield made
        finally:
            made.stop()
