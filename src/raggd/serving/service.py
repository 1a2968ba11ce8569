"""What all requests share, without HTTP: documents, admission, the threads, adapting."""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from raggd.api import Rag
from raggd.data.documents import Skipped
from raggd.data.prompts import Exchange
from raggd.data.questions import OWN_TASK
from raggd.data.reading import template_of
from raggd.data.shown import says_no
from raggd.methods.base import Adapted
from raggd.methods.store import StoredSet
from raggd.records import Demonstration, Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever, fused
from raggd.retrieval.build import Index, look_at
from raggd.serving.bodies import DemonstrationFields, given_passages
from raggd.serving.errors import LOG, ApiError, internal_error, stopping
from raggd.serving.gate import Metrics
from raggd.serving.row import TokenBytes
from raggd.serving.scheduler import Scheduler

LONGEST = 50  # words of an earlier question, its last, or answer, searched for with a follow-up
DEPTH = 20  # passages of each search whose ranks are fused
T = TypeVar("T")


def milliseconds_since(started: float) -> float:
    """Return the time since a reading of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 1)


def searches_for(question: str, earlier: Sequence[Exchange]) -> list[str]:
    """Return what to search for when a question may lean on what was asked before.

    The question before it with the follow-up, and the same with what was answered in between: the
    answer names things but may be wrong. Of what was tried, both together find the passage most
    often (docs/serving.md).

    >>> searches_for("And when?", [("Who wrote Dracula?", "Bram Stoker")])
    ['Who wrote Dracula? And when?', 'Who wrote Dracula? Bram Stoker And when?']
    """
    asked, answered = earlier[-1]
    start, words = asked.split()[-LONGEST:], answered.split()[:LONGEST]
    return [" ".join([*start, *between, *question.split()]) for between in ([], words)]


def passages_for(searches: Sequence[str], retriever: Retriever, k: int) -> tuple[Passage, ...]:
    """Return at most `k` passages for one question, best first; several searches are fused."""
    depth = k if len(searches) == 1 else max(k, DEPTH)
    return tuple(hit.passage for hit in fused(retriever.search(searches, depth))[:k])


def _scripts(text: str) -> set[str]:
    # by the first words of their letters' Unicode names
    letters = {character for character in text if character.isalpha()}
    return {unicodedata.name(letter, "?").split()[0] for letter in letters}


def share_a_script(question: str, passages: Sequence[Passage]) -> bool:
    """Return whether passages were found that could be in the question's language."""
    asked = _scripts(question)
    return any(not asked or asked & _scripts(f"{p.title} {p.text}") for p in passages)


class IndexView(BaseModel):
    """The index that is searched now."""

    object: Literal["index"] = "index"
    corpus: Literal["embedded", "own"]
    passages: int
    fingerprint: str
    changed: bool  # whether another index is searched from now on, since the documents changed
    seconds: float  # that looking and indexing took
    skipped: tuple[Skipped, ...]


def state_of(corpus: Path | None) -> str:
    """Return a value that changes when a file is added, removed or written, without reading any."""
    try:
        return content_id(*map(repr, look_at(corpus).files)) if corpus else ""
    except RaggdError:  # there is none, for the moment
        return ""


class Documents:
    """The index in use, exchanged for another when its documents change.

    Whoever asks takes `retriever` once, and keeps it: what is swapped meanwhile is another.
    """

    def __init__(self, rag: Rag, metrics: Metrics) -> None:
        self._rag, self._metrics = rag, metrics
        self._indexer = ThreadPoolExecutor(1, thread_name_prefix="raggd-index")
        # an engine of the user's own, named by its import path, is searched as it is
        named = ":" in rag.parts.settings.retrieval.retriever
        own = bool(named or rag.parts.settings.data.corpus)
        self.corpus: Literal["embedded", "own"] = "own" if own else "embedded"
        self._watched = rag.parts.corpus if own and not named else None
        self._state = state_of(self._watched)
        # not the cached one: a server does not write its users' questions to disk
        self._index: Index | None = None if named else rag.parts.index
        self.retriever: Retriever = self._index.retriever if self._index else rag.retriever
        metrics.passages.set_function(lambda: len(self))

    def aside(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Do what looks for changes, one at a time; others do not wait for it."""
        return asyncio.get_running_loop().run_in_executor(self._indexer, work)

    def close(self) -> None:
        """Look for no more changes."""
        self._indexer.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Return the number of passages; 0 where the engine does not tell."""
        return len(self.retriever) if isinstance(self.retriever, Sized) else 0

    async def get_index(self) -> IndexView:
        """Show which index is searched."""
        return self._view()

    async def refresh_index(self) -> IndexView:
        """Index the documents that changed, and search them from now on."""
        return await self.aside(self._refresh)

    def _view(self, *, changed: bool = False, seconds: float = 0.0) -> IndexView:
        return IndexView(
            corpus=self.corpus,
            passages=len(self),
            fingerprint=self.retriever.fingerprint,
            changed=changed,
            seconds=round(seconds, 2),
            skipped=self._index.skipped if self._index else (),
        )

    def _refresh(self) -> IndexView:
        # to be called `aside`
        started = time.perf_counter()
        before = self.retriever.fingerprint
        if self._watched:
            # noted before reading: a file that is written meanwhile is seen the next time
            self._state = state_of(self._watched)
            with self._metrics.index_failures.count_exceptions():
                self._index = self._rag.parts.index_of(self._watched)
            self.retriever = self._index.retriever
        changed = self.retriever.fingerprint != before
        seconds = time.perf_counter() - started
        if changed:
            self._metrics.index_swaps.inc()
            LOG.info("documents changed: %d passages, %.1f s", len(self), seconds)
        return self._view(changed=changed, seconds=seconds)

    def look(self, *, at_once: bool = False) -> None:
        """Index the documents where they changed, or `at_once`; a failure goes to the log."""
        try:
            if at_once or state_of(self._watched) != self._state:
                self._refresh()
        except RaggdError as error:
            LOG.warning("the documents changed, the old index stays in use: %s", error)
        except Exception as error:  # a fault of ours must not end the watching without a word
            internal_error(error)

    async def watch(self, seconds: float) -> None:
        """Look for changes every so many seconds (0: never), until cancelled."""
        while self._watched and seconds:
            await asyncio.sleep(seconds)
            await self.aside(self.look)


class Service:
    """Everything behind the routes. Its coroutines belong to one event loop."""

    def __init__(self, rag: Rag, threads: int | None = None) -> None:
        """Load all, start the scheduler; processor `threads`, if given, are the model's alone."""
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

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Let answers in for as long as they take; 503 while it stops, 429 if its queue is full."""
        if self.stopping:
            raise stopping()
        if self._open + count > self.settings.serving.queue:
            raise ApiError(
                f"{self._open} answers are waiting or being written, and {count} more exceed "
                "what this server takes (serving.queue): ask again in a moment.",
                code="queue_full",
                status=429,
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

    def stored(self, name: str) -> StoredSet:
        """Look a stored support set up; 404 if there is none."""
        with self.looking_for(name):
            return self.store.stored(name)

    @contextmanager
    def looking_for(self, name: str) -> Iterator[None]:
        """Answer 404 to what fails as that set is not stored, or was deleted meanwhile."""
        try:
            yield
        except RaggdError as error:
            if name in self.store:
                raise
            raise ApiError(
                "there is no stored support set of that id: POST its demonstrations to "
                "/v1/supports, or see GET /v1/supports.",
                "support",
                "support_not_found",
                404,
            ) from error

    def support_of(
        self, fields: Sequence[DemonstrationFields], retriever: Retriever, task: str = OWN_TASK
    ) -> SupportSet:
        """Make a support set of demonstrations, which blocks; one that shows nothing is refused."""
        shown = [self._shown(i, each, retriever) for i, each in enumerate(fields, start=1)]
        bare = [
            number
            for number, (given, d) in enumerate(zip(fields, shown, strict=True), start=1)
            if given.passages is None
            and not share_a_script(d.question, d.passages)
            and (d.passages or not says_no(d))  # of what it refuses, there may be none at all
        ]
        if bare and self.settings.retrieval.top_k:
            template, _ = template_of(shown)
            if template is None or not template.classes:
                raise ApiError(
                    f"no passage fits demonstration {bare[0]} (is it in another language than the "
                    "corpus?): ask in the language of the corpus, or give passages with it, [] for "
                    "an example that refuses.",
                    f"demonstrations.{bare[0] - 1}",
                    "no_passages",
                )
        return SupportSet(task, tuple(shown))

    def _shown(
        self, number: int, fields: DemonstrationFields, retriever: Retriever
    ) -> Demonstration:
        question, answer = fields.question.strip(), fields.answer.strip()
        k, limit = self.settings.retrieval.top_k, self.settings.target.max_tokens // 2
        used = len(self.backbone.tokenizer.encode(f"{question}\n{answer}"))
        if used > limit:
            raise ApiError(
                f"demonstration {number} has {used} tokens without its passages: this server takes "
                f"at most {limit} (half of target.max_tokens).",
                f"demonstrations.{number - 1}",
                "context_length_exceeded",
            )
        if fields.passages is None:
            passages = passages_for([question], retriever, k)
        else:
            passages = given_passages(fields.passages)
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
            if made := self.store.find(key, None):  # for another request, meanwhile
                return made
            with self.metrics.adaptation.time():
                made = self.store.adapt(method, [support], self.rag.identity)[0]
            # what a request brings along, examples or instruction, is never written to disk, nor
            # what was deleted meanwhile
            if support.id in self.store and not instruction:
                self.store.put(key, made)
            return made

        adapted = await asyncio.wrap_future(self.scheduler.run(adapt))
        return adapted, milliseconds_since(started)
