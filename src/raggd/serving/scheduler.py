"""The scheduler: the one thread that runs the model. It adapts, lets rows join a batch, decodes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from raggd.backbone.batch import READ_TOKENS, Reading, join_caches, known_tokens, new_cache
from raggd.backbone.capture import Steps, steps_from
from raggd.backbone.device import claim
from raggd.backbone.generate import read_prompts
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import Update
from raggd.data.prompts import Prompt
from raggd.methods.answering import adapted_rows, follow_examples, rules_of, shared_update
from raggd.methods.base import Adapted
from raggd.serving.errors import as_api_error, stopping
from raggd.serving.gate import Metrics
from raggd.serving.row import Row

GATHER_S = 0.05
"""Longest wait of an idle scheduler for answers in preparation, so that they share a batch."""
AHEAD = 256  # steps that a static cache has room for when it is begun
MEASURED = (32, 160)  # tokens of the two prompts by which the cost of a pass is measured
T = TypeVar("T")


def cheapest_passes(
    lengths: Sequence[int], start: float, most: int = READ_TOKENS
) -> list[list[int]]:
    """Group prompts so that reading them costs least, padding and passes together.

    A forward pass costs as much as `start` tokens beside those in it, padding included, of which
    it holds at most `most`, unless it reads one prompt alone. Groups are positions in `lengths`.

    >>> cheapest_passes([100, 400, 110, 420], start=30)
    [[0, 2], [1, 3]]
    >>> cheapest_passes([100, 400, 110, 420], start=15)
    [[0, 2], [1], [3]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # of the first prompts, shortest first: what they cost at least, and in which groups
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for end, last in enumerate(order, start=1):
        ways = []
        for begin, (cost, groups) in enumerate(best):
            size = lengths[last] * (end - begin)
            if size <= most or begin == end - 1:
                ways.append((cost + start + size, [*groups, order[begin:end]]))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def start_of_pass(backbone: Backbone) -> float:
    """Measure what a forward pass costs beside its tokens, in tokens: few where these are dear."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        read_prompts(backbone, [Prompt((0,) * count, 0, 0)]).logits[0, 0].item()  # a GPU is awaited
        return time.perf_counter() - started

    few, many = (min(seconds(count) for _ in range(3)) for count in MEASURED)
    each = (many - few) / (MEASURED[1] - MEASURED[0])
    return few / each - MEASURED[0] if each > 0 and few > each * MEASURED[0] else 0.0


class RunningBatch:
    """Answers of one base adapter (or all of none), decoded together, each with its own update.

    They share one key-value cache, padded on the left, so that one which joins later is only padded
    further and a finished one is cut out; what stays is never computed again.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.rows: list[Row] = []
        self._backbone = backbone
        self._states: list[Adapted] = []
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._update: Update | None = None  # of all, kept: batches of two bases take turns
        self._held = ExitStack()
        self._steps: Steps | None = None
        self._left = 0  # steps that there is room for

    @torch.no_grad()
    def join(self, prompts: Sequence[Prompt], states: Sequence[Adapted]) -> Tensor:
        """Read and add prompts; return the (prompts, vocabulary) logits of their first tokens."""
        self.release()
        with adapted_rows(self._backbone, states):
            prefixes, rules = [state.prefix for state in states], rules_of(states, prompts)
            reading = read_prompts(self._backbone, prompts, prefixes=prefixes, rules=rules)
        parts = [(self._cache, self._mask)] if self._states else []
        self._cache, self._mask = join_caches([*parts, (reading.cache, reading.mask)])
        self._states += states
        self._stack()
        return reading.logits

    def _stack(self) -> None:
        update, target = shared_update(self._states), (self._backbone.device, self._backbone.dtype)
        self._update = update.map(lambda tensor: tensor.to(*target)) if update else None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to every answer; return the (answers, vocabulary) logits of the next."""
        if self._steps is None or not self._left:
            self.release()
            base, as_one = self._states[0].base, follow_examples(self._states)
            self._held.enter_context(attach(self._backbone, base, self._update, as_one=as_one))
            none, following = self._mask.new_empty(0), self._mask.sum(1, keepdim=True)
            reading = Reading(self._cache, none, self._mask, following)
            self._steps, self._left = steps_from(self._backbone, reading, AHEAD), AHEAD
            self._cache = None  # the steps have it until they are released
        self._left -= 1
        return self._steps(torch.tensor(tokens, device=self._mask.device))

    def keep(self, at: Sequence[int]) -> None:
        """Let all answers but some leave."""
        if len(at) == len(self._states):
            return
        self.release()
        self._states = [self._states[i] for i in at]
        if not self._states:
            self._cache, self._update = None, None
            return
        index = torch.tensor(at, device=self._mask.device)
        mask = self._mask[index]
        start = int(mask.any(0).int().argmax())  # columns before it are padding in every row
        self._mask = mask[:, start:]
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        self._cache = new_cache([(k[index, :, start:], v[index, :, start:]) for k, v in layers])
        self._stack()

    def release(self) -> None:
        """Leave the backbone as it is without this batch; the next step adapts it again."""
        if self._steps is not None:
            self._cache, self._mask = self._steps.state()
            self._steps = None
        self._held.close()


class Scheduler:
    """Owns the backbone while the server runs. Every method may be called from any thread."""

    def __init__(
        self, backbone: Backbone, metrics: Metrics, *, rows: int, threads: int | None = None
    ) -> None:
        """Start the thread; nothing else may use the model, nor its `threads`, from now on.

        At most so many `rows` are written together.
        """
        self._backbone, self._metrics = backbone, metrics
        self._most, self._threads = rows, threads
        self._stops = frozenset(backbone.stops)
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._waiting: deque[Row] = deque()
        self._preparing = 0
        self._start = 0.0
        self._closing = False
        # by base: only those can share a forward pass
        self._batches = defaultdict[str, RunningBatch](lambda: RunningBatch(backbone))
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.running.set_function(lambda: self.running)
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
        return sum(len(batch.rows) for batch in list(self._batches.values()))

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce answers in preparation: an idle scheduler waits a moment for them."""
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

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Do other work with the model, between two steps of the answers in progress."""
        result: Future[T] = Future()

        def done() -> None:
            if result.set_running_or_notify_cancel():
                try:
                    self._release(None)
                    result.set_result(work())
                except Exception as error:
                    result.set_exception(error)

        with self._changed:
            self._refuse_if_closing()
            self._work.append(done)
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
            raise stopping()

    def _run(self) -> None:
        if self._threads is not None:
            claim(self._threads)
        self._start = start_of_pass(self._backbone)
        while self._work_there():
            try:
                if self._work:
                    self._work.popleft()()
                for rows in self._joining():
                    self._pass(rows[0].base, rows, joining=True)
                for base, batch in self._batches.items():
                    self._leave(batch)
                    if batch.rows:
                        self._pass(base, batch.rows, joining=False)
            except Exception as error:  # a bug: its rows fail, the thread goes on
                for base in self._batches:
                    self._abandon(base, error)
        self._release(None)

    def _work_there(self) -> bool:
        with self._changed:
            if self.running:
                return True
            self._changed.wait_for(lambda: self._work or self._waiting or self._closing)
            if self._waiting:
                self._changed.wait_for(self._all_there, GATHER_S)
            return bool(self._work or self._waiting)

    def _all_there(self) -> bool:
        return self._preparing == 0 or len(self._waiting) >= self._most or self._closing

    def _release(self, but: RunningBatch | None) -> None:
        # the backbone carries one adaptation at a time
        for batch in self._batches.values():
            if batch is not but:
                batch.release()

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
        groups = []
        for rows in by_base.values():
            known = [known_tokens(row.prompt, row.adapted.prefix) for row in rows]
            unread = [len(row.prompt.tokens) - n for row, n in zip(rows, known, strict=True)]
            groups += [[rows[i] for i in at] for at in cheapest_passes(unread, self._start)]
        return groups

    def _pass(self, base: str, rows: list[Row], *, joining: bool) -> None:
        # one pass of the model: rows that join read their prompts, others add a token
        batch = self._batches[base]
        self._release(batch)
        started = time.perf_counter()
        try:
            if joining:
                batch.rows += rows
                for row in rows:
                    row.times.append(started)
                logits = batch.join([row.prompt for row in rows], [row.adapted for row in rows])
                self._metrics.prompt_tokens.inc(sum(len(row.prompt.tokens) for row in rows))
            else:
                logits = batch.step([row.last for row in rows])
                self._metrics.batch.observe(len(rows))
        except Exception as error:
            self._abandon(base, error)
            return
        for row, values in zip(rows, logits, strict=True):
            row.batch = max(row.batch, len(batch.rows))
            try:
                row.take(values, self._stops)
            except Exception as error:  # one answer's text must not end the others
                row.fail(as_api_error(error))
        self._metrics.answer_tokens.inc(len(rows))
        timer = self._metrics.read if joining else self._metrics.step
        timer.observe(time.perf_counter() - started)
        self._leave(batch)

    def _leave(self, batch: RunningBatch) -> None:
        self._metrics.cancelled.inc(sum(row.cancelled and not row.done for row in batch.rows))
        at = [i for i, row in enumerate(batch.rows) if not (row.done or row.cancelled)]
        if len(at) < len(batch.rows):
            batch.keep(at)
            batch.rows = [batch.rows[i] for i in at]

    def _abandon(self, base: str, error: Exception) -> None:
        # after a failure the batch may be half-made: its rows fail, and it starts anew
        batch, told = self._batches[base], as_api_error(error)
        for row in batch.rows:
            row.fail(told)
        batch.release()
        self._batches[base] = RunningBatch(self._backbone)
