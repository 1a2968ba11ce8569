"""Workers on a Ray cluster: joining it in clear words, sharing it out, tasks that outlive a worker.

A worker's result is only what it returns. Ray starts a worker that died again, anywhere, and gives
it its task again; a task that no worker survives is named.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from raggd.files import first_line
from raggd.progress import Progress, silent
from raggd.provenance import versions
from raggd.records import RaggdError

T = TypeVar("T")
R = TypeVar("R")
LOCAL = "local"
"""The address that stands for a cluster of this machine alone, started and stopped here."""
SECONDS = 5.0  # how long a cluster may take to accept a connection
START_SECONDS = 600  # how long workers may take to start; a busy cluster gives none
TRIES = 3  # workers that may die over one task
_LONG_REPORT = 12


@dataclass(frozen=True)
class ClusterOptions:
    """The workers of a run on a cluster."""

    address: str  # ``local``, ``auto`` (what runs here), or HOST:PORT
    workers: int = 0  # 0: one per GPU, or one per node where there is none
    threads: int = 0  # 0: all processor cores are shared out

    def __post_init__(self) -> None:
        _, colon, port = self.address.rpartition(":")
        if self.address not in {LOCAL, "auto"} and not (colon and port.isdecimal()):
            raise RaggdError(
                f"--cluster '{self.address}': expected 'local', 'auto' or HOST:PORT of a Ray head "
                "node."
            )
        if importlib.util.find_spec("ray") is None:
            raise RaggdError(
                "a cluster needs Ray, which is not installed: `pip install 'raggd[cluster]'`."
            )


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Use a cluster inside a ``with`` block, as the module ray; one that cannot be is refused."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if address not in {LOCAL, "auto"}:  # Ray itself tries for minutes before it gives up
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS).close()
        except OSError as error:
            raise RaggdError(
                f"no Ray cluster answers at {address} ({error.strerror or error}): start one with "
                "`ray start --head --port=6379`, or use --cluster local."
            ) from error
    if ray.is_initialized():  # the caller's own connection stays
        yield ray
        return
    where = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise RaggdError(
            f"cannot use the Ray cluster '{address}': {first_line(error)} All nodes need the same "
            "versions of Python and Ray."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def shares(ray: Any, options: ClusterOptions) -> tuple[int, dict[str, Any], int]:
    """Share a cluster's cores out: workers, what each reserves (for `remote`), its threads."""
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


class Worker(ABC, Generic[T, R]):
    """What does tasks in a process of the cluster; what it has loaded stays for the next one."""

    def __init__(self, folder: str, threads: int) -> None:
        """Take so many processor threads (0: as they are), and the driver's `folder`, if here."""
        if folder and Path(folder).is_dir():
            os.chdir(folder)
        if threads:
            import torch

            torch.set_num_threads(threads)
        self._scratch = tempfile.TemporaryDirectory(prefix="raggd-worker-")
        self.scratch = Path(self._scratch.name)

    def introduce(self) -> dict[str, Any]:
        """Say what this node has, for `check_worker`; the ``problem`` is why it cannot work."""
        told = {"node": platform.node(), "versions": versions(), "problem": "", "identities": {}}
        try:
            return told | {"identities": self.identities()}
        except RaggdError as error:
            return told | {"problem": str(error)}

    def work(self, task: T) -> R | RaggdError:
        """Do a task; a `RaggdError` is returned, not raised, so that it arrives unwrapped."""
        try:
            return self.result(task)
        except RaggdError as error:
            return error

    @abstractmethod
    def identities(self) -> Mapping[str, str]:
        """Return hashes of what results depend on, by what is made of it."""

    @abstractmethod
    def result(self, task: T) -> R:
        """Do a task."""


def check_worker(told: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Refuse a worker that cannot do its part, or has other versions, data or weights than this."""
    worker = f"the worker on node '{told['node']}'"
    if told["problem"]:
        raise RaggdError(f"{worker} cannot do its part: {told['problem']}")
    for name, version in versions().items():
        if (there := told["versions"].get(name)) != version:
            raise RaggdError(
                f"{worker} has {name} {there}, this machine {version}: results could differ. "
                "Install the same versions on all nodes."
            )
    for made, identity in own.items():
        if told["identities"].get(made) != identity:
            raise RaggdError(
                f"{worker} has other data or weights for {made}: give all nodes the same files at "
                "the same paths."
            )


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    # what Ray raises when a worker, its node or its result is gone, and the work does not;
    # a worker that it ended to save the node's memory is no RayActorError
    found = ray.exceptions
    return (
        found.RayActorError, found.OutOfMemoryError, found.WorkerCrashedError,
        found.NodeDiedError, found.ObjectLostError,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    # Ray's longest messages are reports of many lines, the reason in their first
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if len(lines) < _LONG_REPORT else lines[0]


class Dispatcher(Generic[T, R]):
    """Hands tasks to workers: actors of Ray with the methods of `Worker`."""

    def __init__(self, ray: Any, actors: Sequence[Any], progress: Progress = silent) -> None:
        self._ray, self._actors, self._progress = ray, actors, progress

    def __len__(self) -> int:
        return len(self._actors)

    def check(self, own: Mapping[str, str]) -> None:
        """Wait for all workers to start, or name why not; `check_worker` looks at each."""
        calls = [actor.introduce.remote() for actor in self._actors]
        try:
            for told in self._ray.get(calls, timeout=START_SECONDS):
                check_worker(told, own)
        except self._ray.exceptions.GetTimeoutError as error:
            raise RaggdError(
                f"the cluster did not start {len(self)} workers within {START_SECONDS} s: its "
                "processors or GPUs are taken or too few. Ask for fewer by --workers."
            ) from error
        except _deaths(self._ray) as error:
            raise RaggdError(
                f"a worker of the cluster did not start or died at once ({_reason(error)}): look "
                "at its node's memory and at Ray's log."
            ) from error

    def run(
        self,
        tasks: Sequence[T],
        deliver: Callable[[T, R | RaggdError], None],
        label: Callable[[T], str],
        needs: Callable[[T], str] = lambda _: "",
    ) -> None:
        """Do all tasks, the first ones first; `deliver` is told each result as it comes.

        `needs` names what is loaded for a task: a worker that has it is given that task first.

        Raises:
            RaggdError: `TRIES` workers died over a task.
        """
        waiting = list(tasks)
        idle = [(actor, "") for actor in self._actors]
        busy: dict[Any, tuple[Any, T]] = {}
        while waiting or busy:
            while waiting and idle:
                actor, has = idle.pop()
                at = next((at for at, task in enumerate(waiting) if needs(task) == has), 0)
                task = waiting.pop(at)
                busy[actor.work.remote(task)] = actor, task
            (ready,), _ = self._ray.wait(list(busy), num_returns=1)
            actor, task = busy.pop(ready)
            idle.append((actor, needs(task)))
            try:
                result = self._ray.get(ready)
            except _deaths(self._ray) as error:
                raise RaggdError(
                    f"{TRIES} workers died over {task} ({_reason(error)}): it may need more memory "
                    "than a node has. What was finished is kept; the same command continues."
                ) from error
            deliver(task, result)
            done = len(tasks) - len(waiting) - len(busy)
            self._progress(f"{label(task)} ({len(self)} workers)", done, len(tasks))


@contextmanager
def workers(
    options: ClusterOptions, progress: Progress, kind: type[Worker[T, R]], *arguments: Any
) -> Iterator[Dispatcher[T, R]]:
    """Start workers of a kind inside a ``with`` block: ``kind(*arguments, folder, threads)``."""
    progress(f"connecting to cluster {options.address}", 0, None)
    with connected(options.address) as ray:
        count, reserved, threads = shares(ray, options)
        lasting = {"max_restarts": -1, "max_task_retries": TRIES - 1}
        start = ray.remote(**reserved, **lasting)(kind).remote
        progress(f"{count} workers are starting", 0, None)
        actors = [start(*arguments, str(Path.cwd()), threads) for _ in range(count)]
        try:
            yield Dispatcher(ray, actors, progress)
        finally:
            for actor in actors:
                ray.kill(actor)
