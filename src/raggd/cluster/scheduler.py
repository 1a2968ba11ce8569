"""Tasks on workers that may die: each task is done once, whoever does it in the end.

A worker's result is only what it returns; a task whose worker died is given to another one, and a
task that no worker survives is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raggd.records import RaggdError

T = TypeVar("T")
START_SECONDS = 600
"""How long workers may take to start; a busy cluster gives none."""
TRIES = 3
"""Workers that may die over one task."""
_REPORT = 12


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
    """A number of workers, replaced when they die.

    Attributes:
        deaths: workers that died so far.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], size: int) -> None:
        """Start so many workers: `start` makes an actor with a method ``work(task)``."""
        self._ray = ray
        self._start = start
        self._slots = [_Slot[T](start()) for _ in range(size)]
        self.deaths = 0

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
        load: Callable[[T], Any] = lambda task: task,
    ) -> None:
        """Do all tasks, the first ones first; `deliver` is told each result as it comes.

        `near` says whether a worker that did the first task does the second with what it has
        loaded. `load` makes what a worker is sent for a task, when it is sent: what waits is not
        held in memory.

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
                busy[slot.worker.work.remote(load(tasks[number]))] = (slot, number)
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
