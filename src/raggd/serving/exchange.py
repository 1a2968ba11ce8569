"""One request in progress: events from preparation, engine, clock and connection, in one queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raggd.records import Passage
from raggd.serving.engine import Engine
from raggd.serving.errors import ApiError, as_api_error
from raggd.serving.row import Event, Failed, Row

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
GONE = ApiError(499, "client_closed_request", "the client closed the connection.")


@dataclass(frozen=True, slots=True)
class Source:
    """What an answer is written from, to be told with it.

    Attributes:
        method: of `Method`.
        support: id of the support set, if any.
        passages: evidence, best first.
        passages_cut: how many were shortened or left out.
        prompt_tokens: length of the prompt.
        timings: milliseconds of ``prepare`` and ``adapt``.
    """

    method: str
    support: str | None
    passages: tuple[Passage, ...]
    passages_cut: int
    prompt_tokens: int
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything is prepared: the answers are queued."""

    sources: tuple[Source, ...]


class Exchange:
    """Collects the events of one request, and gives its rows up when the client is gone."""

    def __init__(self, engine: Engine, release: Callable[[], None]) -> None:
        """Start with nothing asked.

        Args:
            engine: where rows are submitted.
            release: called once when the exchange is closed.
        """
        self._engine = engine
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | Opened]] = asyncio.Queue()
        self._rows: list[Row] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._clock: asyncio.TimerHandle | None = None
        self._closed = False

    def watch(self, receive: Receive, timeout: float) -> None:
        """End the exchange with a failure when the client hangs up or time runs out.

        Args:
            receive: gives the connection's next message; the body has been read.
            timeout: seconds from now.
        """
        late = ApiError(
            504, "timeout", f"no answer within {timeout:g} s (serving.timeout_s): ask again later."
        )
        self._clock = self._loop.call_later(timeout, self._put, 0, Failed(late))
        self._tasks.append(asyncio.create_task(self._hang_up(receive)))

    async def _hang_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._put(0, Failed(GONE))

    def run(self, preparation: Awaitable[Opened]) -> None:
        """Run what prepares the answers; its failure becomes an event.

        Args:
            preparation: submits the rows.
        """
        self._tasks.append(asyncio.create_task(self._prepare(preparation)))

    async def _prepare(self, preparation: Awaitable[Opened]) -> None:
        try:
            self._put(0, await preparation)
        except Exception as error:
            self._put(0, Failed(as_api_error(error)))

    def _put(self, index: int, event: Event | Opened) -> None:
        self._events.put_nowait((index, event))

    def sink(self, index: int) -> Callable[[Event], None]:
        """Return what takes the events of one row, from any thread.

        Args:
            index: of the row in this request.

        Returns:
            The function.
        """

        def emit(event: Event) -> None:
            if not self._closed:
                with suppress(RuntimeError):  # the loop has ended: nobody listens any more
                    self._loop.call_soon_threadsafe(self._put, index, event)

        return emit

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue the rows of the request.

        Args:
            rows: whose events go to this exchange.
        """
        for row in rows:
            self._rows.append(row)
            self._engine.submit(row)

    async def next(self) -> tuple[int, Event | Opened]:
        """Wait for the next event.

        Returns:
            The index of its row, and the event.

        Raises:
            ApiError: the request failed, timed out, or the client is gone.
        """
        index, event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    def close(self) -> None:
        """Give up what is unfinished. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._clock:
            self._clock.cancel()
        for task in self._tasks:
            task.cancel()
        for row in self._rows:
            if not row.done:
                self._engine.cancel(row)
        self._release()


class Since:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def ms(self) -> float:
        """Milliseconds until now."""
        return round((time.perf_counter() - self._start) * 1000, 1)
