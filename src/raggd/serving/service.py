"""What the server does, without HTTP: prepare a request's rows, adapt, keep support sets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from raggd.api import Rag
from raggd.methods.answering import render
from raggd.methods.base import Adapted
from raggd.records import Passage, RaggdError
from raggd.retrieval.base import Retriever
from raggd.serving.bodies import SupportRequest, SupportView
from raggd.serving.chat import shows_json
from raggd.serving.documents import Documents, passages_for, searches_for
from raggd.serving.errors import ApiError, BadRequestError, StoppingError
from raggd.serving.metrics import Metrics
from raggd.serving.request import Request
from raggd.serving.row import Probabilities, Row
from raggd.serving.scheduler import Scheduler
from raggd.serving.supports import Supports, since
from raggd.serving.text import AnswerText, TokenBytes

T = TypeVar("T")
RESERVE = 8
"""Passages give way to an answer of this part of the context; a longer one takes what is left."""


class Service:
    """Everything behind the routes. Its coroutines belong to one event loop."""

    def __init__(self, rag: Rag, threads: int | None = None) -> None:
        """Load model, weights and index, and start the scheduler.

        Args:
            rag: what to serve.
            threads: processor threads for the model alone; None takes them as they are.
        """
        parts = rag.parts
        self.settings = parts.settings
        self.metrics = Metrics()
        self.backbone = parts.backbone
        self.base = parts.base
        self.documents = Documents(rag, self.metrics)
        self._bytes_of = TokenBytes(self.backbone.tokenizer)
        self.stopping = False
        self._open = 0
        self._lock = threading.Lock()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="raggd-prepare")
        method = rag.method()
        self.scheduler = Scheduler(
            self.backbone,
            lambda support: method.adapt([support])[0],
            self.metrics,
            rows=self.settings.serving.rows,
            threads=threads,
        )
        self.supports = Supports(rag, self.scheduler.adapt, self.metrics)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self.stopping = True
        self.scheduler.close()
        self._preparer.shutdown()

    # Asking

    def admit(self, count: int) -> Callable[[], None]:
        """Let answers in, or turn them away.

        Returns:
            What to call when they are done.

        Raises:
            StoppingError: it takes no more.
            ApiError: its queue is full.
        """
        if self.stopping:
            raise StoppingError
        with self._lock:
            if self._open + count > self.settings.serving.queue:
                raise ApiError(
                    429,
                    "queue_full",
                    f"{self._open} answers are waiting or being written, and {count} more exceed "
                    "what this server takes (serving.queue): ask again in a moment.",
                    headers={"Retry-After": "1"},
                )
            self._open += count

        def release() -> None:
            with self._lock:
                self._open -= count

        return release

    async def prepare(self, request: Request) -> None:
        """Find passages and what to adapt to, render the prompts, and submit the rows."""
        retriever = self.documents.retriever  # one for the whole request
        adapted, milliseconds = await self._adapted(request, retriever)
        with self.scheduler.expecting():
            started = time.perf_counter()
            rows, evidence = await self._aside(lambda: self._rows(request, adapted, retriever))
            request.opened(rows, evidence, {"prepare": since(started), "adapt": milliseconds})
            self.scheduler.submit([row for i, row in enumerate(rows) if not request.unfounded(i)])
        for index, row in enumerate(rows):
            if request.unfounded(index):
                row.skip()

    async def _aside(self, work: Callable[[], T]) -> T:
        # retrieval and tokenisation: neither on the event loop nor in the model's thread
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    async def _adapted(self, request: Request, retriever: Retriever) -> tuple[Adapted, float]:
        if request.method != "adapted":
            if request.format:
                raise no_json()
            return Adapted(self.base if request.method == "base" else None), 0.0
        if request.support:
            support = self.supports.get(request.support).support
        else:
            make = partial(self.supports.of, request.demonstrations, retriever)
            support = await self._aside(make)
        if request.format and not shows_json(support.demonstrations, request.format):
            raise no_json()
        request.support = support.id
        return await self.supports.adapted(support)

    def _rows(
        self, request: Request, adapted: Adapted, retriever: Retriever
    ) -> tuple[list[Row], list[tuple[Passage, ...]]]:
        self._fit_turns(request)
        rows, evidence = [], []
        for question in request.questions:
            if len(question) > 32 * self.settings.backbone.context_tokens:
                # far beyond any context: not worth a search
                raise too_long(f"it has {len(question)} characters")
            passages = request.passages
            if passages is None:
                k = self.settings.retrieval.top_k
                passages = passages_for(request.searched or [question], retriever, k)
            evidence.append(passages)
            rows.append(self._row(request, adapted, question, passages))
        return rows, evidence

    def _fit_turns(self, request: Request) -> None:
        # earlier turns may take a quarter of the context: the oldest go first
        if not request.earlier:
            return
        request.searched = searches_for(request.questions[0], request.earlier)
        room, kept = self.settings.backbone.context_tokens // 4, 0
        for turn in reversed(request.earlier):
            room -= len(self.backbone.tokenizer.encode("\n".join(turn)))
            if room < 0:
                break
            kept += 1
        request.turns_cut = len(request.earlier) - kept
        request.earlier = request.earlier[request.turns_cut :]

    def _row(
        self, request: Request, adapted: Adapted, question: str, passages: Sequence[Passage]
    ) -> Row:
        tokenizer = self.backbone.tokenizer
        limit = self.settings.backbone.context_tokens
        usual = max(self.settings.evaluation.max_answer_tokens, adapted.most)
        most = request.max_tokens or usual
        try:
            prompt = render(
                self.backbone,
                adapted,
                question,
                passages,
                limit=limit,
                reserve=min(most, max(limit // RESERVE, usual)),
                instruction=request.instruction,
                earlier=request.earlier,
            )
        except RaggdError as error:
            raise too_long(str(error)) from error
        return Row(
            prompt=prompt,
            adapted=adapted,
            sampling=request.sampling,
            writer=AnswerText(
                lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
                request.stops,
                lines=adapted.lines,
            ),
            probabilities=(
                None if request.sampling.top_logprobs is None else Probabilities(self._bytes_of)
            ),
            max_tokens=min(most, limit - len(prompt.tokens)),
            emit=request.take,
            ignore_end=request.ignore_end,
        )

    async def store(self, body: SupportRequest) -> tuple[SupportView, bool]:
        """Store a support set with what it was adapted to.

        Returns:
            The stored set, and whether it is new.
        """
        release = self.admit(1)
        try:
            retriever = self.documents.retriever
            make = partial(self.supports.of, body.demonstrations, retriever, body.task)
            return await self.supports.add(await self._aside(make))
        finally:
            release()


def too_long(reason: str) -> ApiError:
    """Return the error for a prompt that does not fit the context, status 400."""
    message = f"the question does not fit the context: {reason}"
    return BadRequestError(message, "messages", "context_length_exceeded")


def no_json() -> ApiError:
    """Return the error for JSON that nothing has shown the model how to write, status 400."""
    return BadRequestError(
        "response_format: JSON is written where demonstrations show it: give "
        "raggd.demonstrations, or a support set, whose every answer is a JSON object with the keys "
        "that you want.",
        "response_format",
    )
