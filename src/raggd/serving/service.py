"""What all requests share, without HTTP: admission, the threads, adapting, support sets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import hypot
from typing import Any, TypeVar

from raggd.api import Rag
from raggd.core.low_rank import effective_change, norm
from raggd.data.questions import OWN_TASK
from raggd.data.reading import template_of
from raggd.data.shown import says_no
from raggd.methods.base import Adapted
from raggd.methods.store import StoredSet
from raggd.records import Demonstration, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.serving.bodies import DemonstrationFields, SupportRequest, SupportView, given_passages
from raggd.serving.documents import Documents, passages_for, share_a_script
from raggd.serving.errors import ApiError, BadRequestError, StoppingError
from raggd.serving.gate import Metrics
from raggd.serving.row import TokenBytes
from raggd.serving.scheduler import Scheduler

LOG = logging.getLogger("raggd.serving")
T = TypeVar("T")
MOST_SETS = 1000  # support sets that a server keeps


def milliseconds_since(started: float) -> float:
    """Return the time since a reading of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 1)


def _are_classes(shown: Sequence[Demonstration]) -> bool:
    template, _ = template_of(shown)
    return template is not None and template.classes


def _is_bare(fields: DemonstrationFields, shown: Demonstration) -> bool:
    # whether it lacks passages that were looked for: of what it refuses, there may be none at all
    found = share_a_script(shown.question, shown.passages)
    return fields.passages is None and not (found or (not shown.passages and says_no(shown)))


class Service:
    """Everything behind the routes. Its coroutines belong to one event loop."""

    def __init__(self, rag: Rag, threads: int | None = None) -> None:
        """Load model, weights and index, and start the scheduler.

        `threads` of the processor are the model's alone; None takes them as they are.
        """
        self.rag, self.store, self.settings = rag, rag.store, rag.parts.settings
        self.metrics = Metrics()
        self.metrics.update_bytes.set_function(lambda: self.store.bytes)
        self.metrics.updates_dropped.set_function(lambda: self.store.dropped)
        self.backbone, self.base = rag.parts.backbone, rag.parts.base
        self.documents = Documents(rag, self.metrics)
        self.stopping = False
        self.bytes_of = TokenBytes(self.backbone.tokenizer)
        self._open = 0
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="raggd-prepare")
        rag.method()  # refused now if its weights are not there
        rows = self.settings.serving.rows
        self.scheduler = Scheduler(self.backbone, self.metrics, rows=rows, threads=threads)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        self.stopping = True
        self.scheduler.close()
        self._preparer.shutdown()
        self.documents.close()

    # Asking

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Let answers in for as long as they take; 503 while it stops, 429 if its queue is full."""
        if self.stopping:
            raise StoppingError
        if self._open + count > self.settings.serving.queue:
            raise ApiError(
                429,
                "queue_full",
                f"{self._open} answers are waiting or being written, and {count} more exceed "
                "what this server takes (serving.queue): ask again in a moment.",
                headers={"Retry-After": "1"},
            )
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what is neither for the event loop nor for the model's thread: search, tokenise."""
        return await asyncio.get_running_loop().run_in_executor(self._preparer, work)

    # Adapting

    async def support_of(
        self, fields: Sequence[DemonstrationFields], retriever: Retriever, task: str = OWN_TASK
    ) -> SupportSet:
        """Make a support set of a request's demonstrations."""
        numbered = list(enumerate(fields, start=1))
        shown = await self.aside(lambda: [self._shown(i, d, retriever) for i, d in numbered])
        bare = [i for i, d in numbered if _is_bare(d, shown[i - 1])]
        if (
            bare
            and self.settings.retrieval.top_k
            and not await self.aside(lambda: _are_classes(shown))
        ):
            raise BadRequestError(
                f"no passage fits demonstration {bare[0]} (is it in another language than the "
                "corpus?): ask in the language of the corpus, or give passages with it, [] for an "
                "example that refuses.",
                f"demonstrations.{bare[0] - 1}",
                "no_passages",
            )
        return SupportSet(task, tuple(shown))

    def _shown(
        self, number: int, fields: DemonstrationFields, retriever: Retriever
    ) -> Demonstration:
        question, answer = fields.question.strip(), fields.answer.strip()
        k, limit = self.settings.retrieval.top_k, self.settings.target.max_tokens // 2
        given = fields.passages
        passages = (
            passages_for([question], retriever, k) if given is None else given_passages(given)
        )
        used = len(self.backbone.tokenizer.encode(f"{question}\n{answer}"))
        if used > limit:
            raise BadRequestError(
                f"demonstration {number} has {used} tokens without its passages: this server takes "
                f"at most {limit} (half of target.max_tokens).",
                f"demonstrations.{number - 1}",
                "context_length_exceeded",
            )
        return Demonstration(fields.id or f"line-{number}", question, passages, answer)

    async def adapted_to(self, support: SupportSet, instruction: str = "") -> tuple[Adapted, float]:
        """Adapt to a set, or look up what it was adapted to: 0 milliseconds."""
        started = time.perf_counter()
        key = self.rag.key(support, instruction=instruction)
        known = await asyncio.to_thread(self.store.find, key, self.base)
        if known is not None:
            self.metrics.update_hits.inc()
            return known, 0.0
        self.metrics.update_misses.inc()
        method = self.rag.method(instruction=instruction)

        def adapt() -> Adapted:
            made = self.store.find(key, None)  # for another request, meanwhile
            if made is None:
                with self.metrics.adaptation.time():
                    made = method.adapt([support])[0]
                # what a request brings along, examples or instruction, is never written to disk
                stored = support.id in self.store and not instruction
                self.store.put(key, made, on_disk=stored)
            return made

        adapted = await asyncio.wrap_future(self.scheduler.run(adapt))
        return adapted, milliseconds_since(started)

    # Stored support sets: the command line's are here too, and these are there

    async def add(self, body: SupportRequest) -> tuple[SupportView, bool]:
        """Store and adapt a set of this base, if there is room (429); say whether it is new."""
        in_use = self.base.fingerprint
        if body.base not in {None, in_use}:
            raise ApiError(
                409,
                "support_of_another_base",
                f"this support set is meant for base adapter '{body.base}', this server runs "
                f"'{in_use}': leave 'base' out.",
                param="base",
            )
        with self.admitted(1):
            retriever = self.documents.retriever
            support = await self.support_of(body.demonstrations, retriever, body.task)
            new = support.id not in self.store
            if new and len(self.store.names()) >= MOST_SETS:
                raise ApiError(
                    429,
                    "too_many_supports",
                    f"{MOST_SETS} support sets are stored, the most that a server holds: "
                    "DELETE some first.",
                )
            stored = await asyncio.to_thread(self.store.add, support)
            if not self.store.facts(self.rag.key(support)):
                adapted, milliseconds = await self.adapted_to(support)
                await asyncio.to_thread(self._keep, support, adapted, milliseconds)
            return await self.aside(lambda: self.told(stored)), new

    def _keep(self, support: SupportSet, adapted: Adapted, milliseconds: float) -> None:
        facts: dict[str, Any] = {"adapt_ms": milliseconds, "norms": {}}
        if adapted.base is not None and adapted.update is not None:
            update = adapted.update.map(lambda tensor: tensor.float().cpu())
            change = effective_change(adapted.base, update)
            facts["norms"] = {p: norm(f).tolist() for p, f in change.items()}
        there = support.id in self.store  # it may have been deleted meanwhile
        self.store.put(self.rag.key(support), adapted, facts, on_disk=there)

    def stored(self, name: str) -> StoredSet:
        """Look a stored set up; 404 if there is none."""
        self.require(name)
        return self.store.stored(name)

    def require(self, name: str) -> None:
        """Refuse the id of a set that is not stored: 404."""
        if name not in self.store:
            raise ApiError(
                404,
                "support_not_found",
                "there is no stored support set of that id: POST its demonstrations to "
                "/v1/supports, or see GET /v1/supports.",
                param="support",
            )

    def views(self) -> list[SupportView]:
        """Return all sets, newest first; a damaged one is reported and left out."""
        shown = []
        for name in self.store.names():
            try:
                shown.append(self.view(self.store.stored(name)))
            except RaggdError as error:
                LOG.warning("support set %s is left out: %s", name, error)
        return sorted(shown, key=lambda view: (-view.created, view.id))

    def told(self, stored: StoredSet) -> SupportView:
        """Return a stored set with what is odd about it; blocks while that is looked for."""
        view = self.view(stored)
        view.remarks = self.rag.remarks(stored.support)
        return view

    def view(self, stored: StoredSet) -> SupportView:
        """Return a stored set as replies show it."""
        support = stored.support
        facts = self.store.facts(self.rag.key(support))
        norms = facts.get("norms") or {}
        return SupportView(
            id=support.id,
            model=f"adapted/{support.id}",
            task=support.task,
            created=stored.created,
            base=self.base.fingerprint,
            demonstrations=support.demonstrations,
            norms=norms,
            norm=hypot(*(value for layers in norms.values() for value in layers)),
            adapt_ms=facts.get("adapt_ms"),
        )
