"""The documents that are served: the index in use, exchanged for another when they change."""

from __future__ import annotations

import asyncio
import logging
import time
import unicodedata
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from raggd.api import Rag
from raggd.data.prompts import Exchange
from raggd.records import Passage, RaggdError, content_id
from raggd.retrieval.base import Retriever, fused
from raggd.retrieval.build import Index, look_at
from raggd.serving.bodies import IndexView
from raggd.serving.errors import internal_error
from raggd.serving.gate import Metrics

LONGEST = 50  # words of an earlier question, its last, or answer, searched for with a follow-up
DEPTH = 20  # passages of each search whose ranks are fused
LOG = logging.getLogger("raggd.serving")
T = TypeVar("T")


def state_of(corpus: Path) -> str:
    """Return a value that changes when a file is added, removed or written, without reading any."""
    try:
        return content_id(*map(repr, look_at(corpus).files))
    except RaggdError:  # there is none, for the moment
        return ""


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


class Documents:
    """Whoever asks takes `retriever` once, and keeps it: what is swapped meanwhile is another."""

    def __init__(self, rag: Rag, metrics: Metrics) -> None:
        """Open the index."""
        self._rag = rag
        self._metrics = metrics
        self._indexer = ThreadPoolExecutor(1, thread_name_prefix="raggd-index")
        # an engine of the user's own, named by its import path, is searched as it is
        named = ":" in rag.parts.settings.retrieval.retriever
        self.own = bool(named or rag.parts.settings.data.corpus)
        self._watched = rag.parts.corpus if self.own and not named else None
        self._state = state_of(self._watched) if self._watched else ""
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

    def view(self, *, changed: bool = False, seconds: float = 0.0) -> IndexView:
        """Return a description of the index in use."""
        return IndexView(
            corpus="own" if self.own else "embedded",
            passages=len(self),
            fingerprint=self.retriever.fingerprint,
            changed=changed,
            seconds=round(seconds, 2),
            skipped=self._index.skipped if self._index else (),
        )

    def refresh(self) -> IndexView:
        """Search what changed from now on, if it can be indexed; to be called `aside`."""
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
        return self.view(changed=changed, seconds=seconds)

    def refresh_or_warn(self) -> None:
        """Do as `refresh`, where nobody waits for an answer: a failure goes to the log."""
        try:
            self.refresh()
        except RaggdError as error:
            LOG.warning("the documents changed, the old index stays in use: %s", error)
        except Exception as error:  # a fault of ours must not end the watching without a word
            internal_error(error)

    async def watch(self, seconds: float) -> None:
        """Look for changes every so many seconds (0: never), until cancelled."""
        while self._watched and seconds:
            await asyncio.sleep(seconds)
            await self.aside(self._look)

    def _look(self) -> None:
        if self._watched and state_of(self._watched) != self._state:
            self.refresh_or_warn()
