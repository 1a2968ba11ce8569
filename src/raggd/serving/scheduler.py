"""The scheduler: the one thread that runs the model. It adapts, lets rows join a batch, decodes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from raggd.backbone.join import alike
from raggd.backbone.load import Backbone
from raggd.backbone.threads import claim
from raggd.methods.base import Adapted
from raggd.records import SupportSet
from raggd.serving.batch import RunningBatch
from raggd.serving.errors import StoppingError, as_api_error
from raggd.serving.metrics import Metrics
from raggd.serving.row import Row

GATHER_S = 0.05
"""Longest wait of an idle scheduler for answers in preparation, so that they share a batch."""


@dataclass(eq=False)
class _Group:
    # rows of one base adapter, or without any: only they can share a forward pass
    batch: RunningBatch
    rows: list[Row] = field(default_factory=list)


class Scheduler:
    """Owns the backbone while the server runs. Every method may be called from any thread."""

    def __init__(
        self,
        backbone: Backbone,
        adapt: Callable[[SupportSet], Adapted],
        metrics: Metrics,
        *,
        rows: int,
        threads: int | None = None,
    ) -> None:
        """Start the thread.

        Args:
            backbone: the frozen model; nothing else may use it from now on.
            adapt: to a support set; called in the scheduler's thread.
            metrics: told what happens.
            rows: most answers written together.
            threads: processor threads for the model alone; None takes them as they are.
        """
        self._backbone = backbone
        self._threads = threads
        self._adapt = adapt
        self._metrics = metrics
        self._most = rows
        self._stops = frozenset(backbone.stops)
        self._changed = threading.Condition()
        self._supports: deque[tuple[SupportSet, Future[Adapted]]] = deque()
        self._waiting: deque[Row] = deque()
        self._preparing = 0
        self._closing = False
        self._groups: dict[str, _Group] = {}
        self._thread = threading.Thread(target=self._run, name="raggd-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes work."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Answers that wait to be begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return sum(len(group.rows) for group in list(self._groups.values()))

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce answers in preparation: an idle scheduler waits a moment for them.

        Yields:
            Nothing.
        """
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue answers; their pieces arrive through ``row.emit``."""
        with self._changed:
            self._refuse_if_closing()
            self._waiting += rows
            self._changed.notify_all()

    def adapt(self, support: SupportSet) -> Future[Adapted]:
        """Return a state adapted to the support set, once it is there."""
        result: Future[Adapted] = Future()
        with self._changed:
            self._refuse_if_closing()
            self._supports.append((support, result))
            self._changed.notify_all()
        return result

    def cancel(self, rows: Sequence[Row]) -> None:
        """Give answers up; their rows leave the batch before the next step."""
        with self._changed:
            for row in rows:
                row.cancelled = not row.done
            self._changed.notify_all()

    def close(self) -> None:
        """Finish what is queued, then end the thread. What comes later is refused with 503."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _refuse_if_closing(self) -> None:
        if not self.alive:
            raise StoppingError

    def _run(self) -> None:
        if self._threads is not None:
            claim(self._threads)
        while self._work_there():
            try:
                self._predict_one()
                for rows in self._joining():
                    self._join(rows)
                for group in self._groups.values():
                    self._step(group)
            except Exception as error:  # a bug: its rows fail, the thread goes on
                for group in self._groups.values():
                    self._abandon(group, error)
            self._metrics.waiting.set(self.waiting)
            self._metrics.running.set(self.running)
        self._release(None)

    def _work_there(self) -> bool:
        with self._changed:
            if self.running:
                return True
            self._changed.wait_for(lambda: self._supports or self._waiting or self._closing)
            if self._waiting:
                self._changed.wait_for(self._all_there, GATHER_S)
            return bool(self._supports or self._waiting)

    def _all_there(self) -> bool:
        return self._preparing == 0 or len(self._waiting) >= self._most or self._closing

    def _predict_one(self) -> None:
        if not self._supports:
            return
        support, result = self._supports.popleft()
        if not result.set_running_or_notify_cancel():
            return
        self._release(None)
        started = time.perf_counter()
        try:
            result.set_result(self._adapt(support))
        except Exception as error:
            result.set_exception(error)
        self._metrics.adaptation.observe(time.perf_counter() - started)

    def _release(self, but: _Group | None) -> None:
        # the backbone carries one adaptation at a time
        for group in self._groups.values():
            if group is not but:
                group.batch.release()

    def _joining(self) -> list[list[Row]]:
        with self._changed:
            for row in [row for row in self._waiting if row.cancelled]:
                self._waiting.remove(row)
                self._metrics.cancelled.inc()
            free = min(self._most - self.running, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(free)]
        by_base: dict[str, list[Row]] = {}
        for row in taken:
            by_base.setdefault(row.base, []).append(row)
        return [
            [rows[i] for i in at]
            for rows in by_base.values()
            for at in alike([len(row.prompt.tokens) for row in rows])
        ]

    def _join(self, rows: list[Row]) -> None:
        group = self._groups.setdefault(rows[0].base, _Group(RunningBatch(self._backbone)))
        self._release(group)
        started = time.perf_counter()
        for row in rows:
            row.begin()
        group.rows += rows
        try:
            logits = group.batch.join([row.prompt for row in rows], [row.adapted for row in rows])
        except Exception as error:
            self._abandon(group, error)
            return
        self._take(group, rows, logits)
        self._metrics.read.observe(time.perf_counter() - started)
        self._metrics.prompt_tokens.inc(sum(len(row.prompt.tokens) for row in rows))
        self._leave(group)

    def _step(self, group: _Group) -> None:
        self._leave(group)
        if not group.rows:
            return
        self._release(group)
        started = time.perf_counter()
        try:
            logits = group.batch.step([row.last for row in group.rows])
        except Exception as error:
            self._abandon(group, error)
            return
        self._take(group, group.rows, logits)
        self._metrics.step.observe(time.perf_counter() - started)
        self._metrics.batch.observe(len(group.rows))
        self._leave(group)

    def _take(self, group: _Group, rows: Sequence[Row], logits: Tensor) -> None:
        for row, values in zip(rows, logits, strict=True):
            row.batch = max(row.batch, len(group.rows))
            try:
                row.take(values, self._stops)
            except Exception as error:  # one answer's text must not end the others
                row.fail(as_api_error(error))
        self._metrics.answer_tokens.inc(len(rows))

    def _leave(self, group: _Group) -> None:
        self._metrics.cancelled.inc(sum(row.cancelled and not row.done for row in group.rows))
        at = [i for i, row in enumerate(group.rows) if not (row.done or row.cancelled)]
        if len(at) < len(group.rows):
            group.batch.keep(at)
            group.rows = [group.rows[i] for i in at]

    def _abandon(self, group: _Group, error: Exception) -> None:
        # after a failure the batch may be half-made: its rows fail, and it starts anew
        told = as_api_error(error)
        for row in group.rows:
            row.fail(told)
        group.batch.release()
        group.batch, group.rows = RunningBatch(self._backbone), []
