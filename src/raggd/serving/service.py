"""What the server does, without HTTP: prepare answers, find updates, keep support sets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import Update
from raggd.data.prompts import Prompt
from raggd.files import cache_folder
from raggd.methods.answering import render
from raggd.methods.base import Adapted, Method
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for
from raggd.serving.asks import Ask, given_passages
from raggd.serving.engine import Engine
from raggd.serving.errors import ApiError, BadRequestError, stopping
from raggd.serving.exchange import Exchange, Opened, Receive, Since, Source
from raggd.serving.fields import DemonstrationFields
from raggd.serving.metrics import Metrics
from raggd.serving.row import Row
from raggd.serving.sampling import Sampler
from raggd.serving.scripts import share_a_script
from raggd.serving.supports import StoredSupport, SupportStore, norms_of
from raggd.serving.text import AnswerText
from raggd.serving.updates import UpdateCache

T = TypeVar("T")
OWN = "own"
"""Task of demonstrations that come with a request."""


class Service:
    """Everything behind the routes. Its coroutines belong to one event loop."""

    def __init__(self, parts: Assembly, threads: int | None = None) -> None:
        """Load model, weights and index, and start the engine.

        Args:
            parts: what to serve.
            threads: processor threads for the engine alone; None takes them as they are.
        """
        self.settings = parts.settings
        self.metrics = Metrics()
        self.backbone: Backbone = parts.backbone
        self.base = parts.base
        self._rag_gd: Method = parts.method(parts.adapting)
        # not the cached one: a server does not write its users' questions to disk
        self._retriever: Retriever = parts.index.retriever
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
        self._predictions: dict[str, asyncio.Task[Update]] = {}
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="raggd-prepare")
        self.engine = Engine(
            self.backbone, self._predict, self.metrics, rows=limits.rows, threads=threads
        )

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self.stopping = True
        self.engine.close()
        self._preparer.shutdown()

    # Asking

    def begin(self, ask: Ask, receive: Receive) -> Exchange:
        """Start to answer; what happens arrives as events.

        Args:
            ask: what is asked.
            receive: gives the connection's next message.

        Returns:
            The exchange, to be closed by the caller.
        """
        exchange = Exchange(self.engine, self._slots(len(ask.questions)))
        exchange.watch(receive, self.settings.serving.timeout_s)
        exchange.run(self._prepare(ask, exchange))
        return exchange

    def _slots(self, count: int) -> Callable[[], None]:
        if self.stopping:
            raise stopping()
        with self._lock:
            if self._open + count > self.settings.serving.queue:
                raise ApiError(
                    429,
                    "queue_full",
                    f"{self._open} answers are waiting or being written, the most that this "
                    "server takes (serving.queue): ask again in a moment.",
                    headers={"Retry-After": "1"},
                )
            self._open += count

        def release() -> None:
            with self._lock:
                self._open -= count

        return release

    @contextmanager
    def _slot(self) -> Iterator[None]:
        release = self._slots(1)
        try:
            yield
        finally:
            release()

    async def _prepare(self, ask: Ask, exchange: Exchange) -> Opened:
        adapted, support, adapt_ms = await self._adapted(ask)
        with self.engine.expecting():
            watch = Since()
            ready = await self._aside(lambda: self._rendered(ask, adapted))
            rows = [self._row(ask, adapted, p, exchange, i) for i, (p, _) in enumerate(ready)]
            exchange.submit(rows)
        timings = {"prepare": watch.ms, "adapt": adapt_ms}
        return Opened(
            tuple(
                Source(ask.method, support, found, p.passages_cut, len(p.tokens), timings)
                for p, found in ready
            )
        )

    async def _aside(self, work: Callable[[], T]) -> T:
        # retrieval and tokenisation: neither on the event loop nor in the model's thread
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    async def _adapted(self, ask: Ask) -> tuple[Adapted, str | None, float]:
        if ask.method == "vanilla-rag":
            return Adapted(), None, 0.0
        if ask.method == "base":
            return Adapted(self.base), None, 0.0
        if ask.support:
            support = self.supports.get(ask.support).support
        else:
            support = await self._aside(lambda: self._support(OWN, ask.demonstrations))
        watch = Since()
        held = self.updates.get(support.id)
        update = held or await self._update(support)
        (self.metrics.update_misses if held is None else self.metrics.update_hits).inc()
        return Adapted(self.base, update), support.id, 0.0 if held else watch.ms

    def _rendered(self, ask: Ask, adapted: Adapted) -> list[tuple[Prompt, tuple[Passage, ...]]]:
        return [self._prompt(ask, adapted, question) for question in ask.questions]

    def _prompt(
        self, ask: Ask, adapted: Adapted, question: str
    ) -> tuple[Prompt, tuple[Passage, ...]]:
        limit = self.settings.backbone.context_tokens
        if len(question) > 32 * limit:  # far beyond any context: not worth a search
            raise too_long(f"it has {len(question)} characters")
        passages = ask.passages if ask.passages is not None else self._evidence(question)
        try:
            prompt = render(
                self.backbone, adapted, question, passages, limit=limit, reserve=ask.max_tokens
            )
        except RaggdError as error:
            raise too_long(str(error)) from error
        return prompt, passages

    def _evidence(self, question: str) -> tuple[Passage, ...]:
        asked = Question("asked", question)
        return evidence_for([asked], self._retriever, self.settings.retrieval.top_k)[0]

    def _row(
        self, ask: Ask, adapted: Adapted, prompt: Prompt, exchange: Exchange, index: int
    ) -> Row:
        tokenizer = self.backbone.tokenizer
        return Row(
            prompt=prompt,
            adapted=adapted,
            sampler=Sampler(ask.sampling),
            writer=AnswerText(
                lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)), ask.stops
            ),
            max_tokens=ask.max_tokens,
            emit=exchange.sink(index),
            ignore_end=ask.ignore_end,
        )

    # Adapting

    def _predict(self, support: SupportSet) -> Update:
        update = self._rag_gd.adapt([support])[0].update
        assert update is not None, "the predictor gave no update"
        return update

    async def _update(self, support: SupportSet) -> Update:
        # requests for the same set wait for one prediction, whoever of them goes away
        name = support.id
        task = self._predictions.get(name)
        if task is None:
            task = self._predictions[name] = asyncio.create_task(self._fetch(support))
            task.add_done_callback(lambda _: self._predictions.pop(name, None))
        return await asyncio.shield(task)

    async def _fetch(self, support: SupportSet) -> Update:
        stored = self.supports.find(support.id)
        update = (
            await self._aside(lambda: self.supports.load_update(support.id)) if stored else None
        )
        if update is None:
            update = await asyncio.wrap_future(self.engine.adapt(support))
            if stored:
                fresh = update
                await self._aside(lambda: self.supports.save_update(support.id, fresh))
        self._keep(support.id, update)
        return update

    def _keep(self, name: str, update: Update) -> None:
        self.updates.put(name, update.map(lambda tensor: tensor.to(self.backbone.dtype)))
        self.metrics.update_bytes.set(self.updates.bytes)
        self.metrics.updates_dropped.set(self.updates.dropped)

    def _support(self, task: str, fields: Sequence[DemonstrationFields]) -> SupportSet:
        most = self.settings.serving.demonstrations
        if len(fields) > most:
            raise BadRequestError(
                f"{len(fields)} demonstrations: this server takes at most {most} "
                "(serving.demonstrations); three do.",
                "demonstrations",
            )
        return SupportSet(task, tuple(self._shown(i, d) for i, d in enumerate(fields, start=1)))

    def _shown(self, number: int, fields: DemonstrationFields) -> Demonstration:
        question, answer = fields.question.strip(), fields.answer.strip()
        if fields.passages is not None:
            passages = given_passages(fields.passages)
        else:
            passages = self._evidence(question)
            if self.settings.retrieval.top_k and not share_a_script(question, passages):
                raise BadRequestError(
                    f"no passage fits demonstration {number} (is it in another language than the "
                    "corpus?): ask in the language of the corpus, or give passages with it.",
                    f"demonstrations.{number - 1}",
                    "no_passages",
                )
        limit = self.settings.target.max_tokens
        used = len(self.backbone.tokenizer.encode(f"{question}\n{answer}"))
        if used > limit // 2:
            raise BadRequestError(
                f"demonstration {number} has {used} tokens without its passages: this server takes "
                f"at most {limit // 2} (half of target.max_tokens).",
                f"demonstrations.{number - 1}",
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
        with self._slot():
            support = await self._aside(lambda: self._support(task, fields))
            held = self.supports.find(support.id)
            if held and held.predictor == self._rag_gd.hashes["predictor"]:
                return held, False
            watch = Since()
            update = self.updates.get(support.id)
            if update is None:
                update = await self._update(support)
            stored = StoredSupport(
                support,
                int(time.time()),
                self.base.fingerprint,
                self._rag_gd.hashes["predictor"],
                norms_of(self.base, update),
                watch.ms,
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


def too_long(reason: str) -> ApiError:
    """Build the error for a prompt that does not fit the context.

    Args:
        reason: what is too long.

    Returns:
        The error, status 400.
    """
    return BadRequestError(
        f"the question does not fit the context: {reason}", "messages", "context_length_exceeded"
    )
