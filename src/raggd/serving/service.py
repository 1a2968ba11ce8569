"""What the server does, without HTTP: prepare a request's rows, adapt, keep support sets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from raggd.api import Rag
from raggd.core.low_rank import Update
from raggd.data.prompts import Exchange
from raggd.files import cache_folder
from raggd.methods.answering import render
from raggd.methods.base import Adapted
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for
from raggd.serving.bodies import DemonstrationFields
from raggd.serving.chat import shows_json
from raggd.serving.documents import Documents
from raggd.serving.errors import ApiError, BadRequestError, StoppingError
from raggd.serving.metrics import Metrics
from raggd.serving.request import Request, given_passages
from raggd.serving.row import Probabilities, Row
from raggd.serving.scheduler import Scheduler
from raggd.serving.scripts import share_a_script
from raggd.serving.supports import StoredSupport, SupportStore, norms_of
from raggd.serving.text import AnswerText, TokenBytes
from raggd.serving.updates import UpdateCache

T = TypeVar("T")
OWN = "own"
"""Task of demonstrations that come with a request."""
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
        self._rag_gd = parts.method(parts.adapting)
        self._bytes_of = TokenBytes(self.backbone.tokenizer)
        limits = parts.settings.serving
        self.updates = UpdateCache(limits.updates_mb << 20)
        folder = Path(limits.supports) if limits.supports else cache_folder() / "supports"
        self.supports = SupportStore(
            folder,
            self.base.spec,
            self.base.fingerprint,
            self._rag_gd.hashes["predictor"],
            most=limits.max_supports,
        )
        self.stopping = False
        self._open = 0
        self._lock = threading.Lock()
        self._adapting: dict[str, asyncio.Task[Update]] = {}
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="raggd-prepare")
        self.scheduler = Scheduler(
            self.backbone, self._adapt, self.metrics, rows=limits.rows, threads=threads
        )

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self.stopping = True
        self.scheduler.close()
        self._preparer.shutdown()

    # Asking

    def admit(self, count: int) -> Callable[[], None]:
        """Let answers in, or turn them away.

        Args:
            count: answers.

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

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        release = self.admit(1)
        try:
            yield
        finally:
            release()

    async def prepare(self, request: Request) -> None:
        """Find passages and what to adapt to, render the prompts, and submit the rows.

        Args:
            request: is told its rows before they are submitted.
        """
        retriever = self.documents.retriever  # one for the whole request
        adapted, milliseconds = await self._adapted(request, retriever)
        with self.scheduler.expecting():
            started = time.perf_counter()
            rows, evidence = await self._aside(lambda: self._rows(request, adapted, retriever))
            request.opened(rows, evidence, {"prepare": since(started), "adapt": milliseconds})
            self.scheduler.submit(rows)

    async def _aside(self, work: Callable[[], T]) -> T:
        # retrieval and tokenisation: neither on the event loop nor in the model's thread
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    async def _adapted(self, request: Request, retriever: Retriever) -> tuple[Adapted, float]:
        if request.method != "rag-gd":
            if request.format:
                raise no_json()
            return Adapted(self.base if request.method == "base" else None), 0.0
        if request.support:
            support = self.supports.get(request.support).support
        else:
            support = await self._aside(
                lambda: self._support(OWN, request.demonstrations, retriever)
            )
        if request.format and not shows_json(support.demonstrations, request.format):
            raise no_json()
        request.support = support.id
        started = time.perf_counter()
        held = self.updates.get(support.id)
        update = held or await self._update(support)
        (self.metrics.update_misses if held is None else self.metrics.update_hits).inc()
        return Adapted(self.base, update), 0.0 if held else since(started)

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
                passages = self._evidence(request.searched or question, retriever)
            evidence.append(passages)
            rows.append(self._row(request, adapted, question, passages))
        return rows, evidence

    def _fit_turns(self, request: Request) -> None:
        # earlier turns may take a quarter of the context: the oldest go first
        if not request.earlier:
            return
        request.searched = self_contained(request.questions[0], request.earlier)
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
        usual = self.settings.evaluation.max_answer_tokens
        try:
            prompt = render(
                self.backbone,
                adapted,
                question,
                passages,
                limit=limit,
                reserve=min(request.max_tokens, max(limit // RESERVE, usual)),
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
            ),
            probabilities=(
                None if request.sampling.top_logprobs is None else Probabilities(self._bytes_of)
            ),
            max_tokens=min(request.max_tokens, limit - len(prompt.tokens)),
            emit=request.take,
            ignore_end=request.ignore_end,
        )

    def _evidence(self, question: str, retriever: Retriever) -> tuple[Passage, ...]:
        asked = Question("asked", question)
        return evidence_for([asked], retriever, self.settings.retrieval.top_k)[0]

    # Adapting

    def _adapt(self, support: SupportSet) -> Adapted:
        return self._rag_gd.adapt([support])[0]

    async def _update(self, support: SupportSet) -> Update:
        # requests for the same set wait for one adaptation, whoever of them goes away
        name = support.id
        task = self._adapting.get(name)
        if task is None:
            task = self._adapting[name] = asyncio.create_task(self._fetch(support))
            task.add_done_callback(lambda _: self._adapting.pop(name, None))
        return await asyncio.shield(task)

    async def _fetch(self, support: SupportSet) -> Update:
        stored = self.supports.find(support.id)
        update = (
            await self._aside(lambda: self.supports.load_update(support.id)) if stored else None
        )
        if update is None:
            update = (await asyncio.wrap_future(self.scheduler.adapt(support))).update
            assert update is not None, "the predictor gave no update"
            if stored:
                fresh = update
                await self._aside(lambda: self.supports.save_update(support.id, fresh))
        there = (self.backbone.device, self.backbone.dtype)
        self.updates.put(support.id, update.map(lambda tensor: tensor.to(*there)))
        self.metrics.update_bytes.set(self.updates.bytes)
        self.metrics.updates_dropped.set(self.updates.dropped)
        return update

    def _support(
        self, task: str, fields: Sequence[DemonstrationFields], retriever: Retriever
    ) -> SupportSet:
        most = self.settings.serving.demonstrations
        if len(fields) > most:
            raise BadRequestError(
                f"{len(fields)} demonstrations: this server takes at most {most} "
                "(serving.demonstrations); three do.",
                "demonstrations",
            )
        shown = [self._shown(i, d, retriever) for i, d in enumerate(fields, start=1)]
        return SupportSet(task, tuple(shown))

    def _shown(
        self, number: int, fields: DemonstrationFields, retriever: Retriever
    ) -> Demonstration:
        question, answer = fields.question.strip(), fields.answer.strip()
        param = f"demonstrations.{number - 1}"
        if fields.passages is not None:
            passages = given_passages(fields.passages)
        else:
            passages = self._evidence(question, retriever)
            if self.settings.retrieval.top_k and not share_a_script(question, passages):
                raise BadRequestError(
                    f"no passage fits demonstration {number} (is it in another language than the "
                    "corpus?): ask in the language of the corpus, or give passages with it.",
                    param,
                    "no_passages",
                )
        limit = self.settings.target.max_tokens
        used = len(self.backbone.tokenizer.encode(f"{question}\n{answer}"))
        if used > limit // 2:
            raise BadRequestError(
                f"demonstration {number} has {used} tokens without its passages: this server takes "
                f"at most {limit // 2} (half of target.max_tokens).",
                param,
                "context_length_exceeded",
            )
        return Demonstration(f"line-{number}", question, passages, answer)

    async def store(
        self, task: str, fields: Sequence[DemonstrationFields]
    ) -> tuple[StoredSupport, bool]:
        """Store a support set with its update.

        Args:
            task: its name.
            fields: the demonstrations.

        Returns:
            The stored set, and whether it is new.
        """
        with self._admitted():
            retriever = self.documents.retriever
            support = await self._aside(lambda: self._support(task, fields, retriever))
            held = self.supports.find(support.id)
            if held and held.predictor == self._rag_gd.hashes["predictor"]:
                return held, False
            started = time.perf_counter()
            update = self.updates.get(support.id) or await self._update(support)
            stored = StoredSupport(
                support,
                int(time.time()),
                self.base.fingerprint,
                self._rag_gd.hashes["predictor"],
                norms_of(self.base, update),
                since(started),
            )
            await self._aside(lambda: self.supports.add(stored, update))
            return stored, True

    async def forget(self, name: str) -> None:
        """Delete a stored support set.

        Args:
            name: its id.
        """
        await self._aside(lambda: self.supports.remove(name))
        self.updates.discard(name)


def since(started: float) -> float:
    """Return the milliseconds since a time of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 1)


def self_contained(question: str, earlier: Sequence[Exchange]) -> str:
    """Return what to search for when a question may lean on what was asked before.

    Args:
        question: the follow-up.
        earlier: the turns before it.

    Returns:
        The question before it, then the follow-up.
    """
    return f"{earlier[-1][0].strip()} {question.strip()}"


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
