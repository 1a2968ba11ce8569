"""Support sets in the server: made from requests, adapted to once, kept in the one store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from math import hypot
from typing import Any

from raggd.api import Rag
from raggd.core.low_rank import BaseAdapter, Update, effective_change, norm
from raggd.methods.base import Adapted
from raggd.methods.stored import StoredSet
from raggd.records import Demonstration, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.serving.bodies import DemonstrationFields, DemonstrationView, SupportView
from raggd.serving.documents import given_passages, passages_for
from raggd.serving.errors import ApiError, BadRequestError
from raggd.serving.metrics import Metrics
from raggd.serving.scripts import share_a_script

LOG = logging.getLogger("raggd.serving")
OWN = "own"
"""Task of demonstrations that come with a request."""


def since(started: float) -> float:
    """Return the milliseconds since a time of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 1)


def norms_of(base: BaseAdapter, update: Update) -> dict[str, list[float]]:
    """Return the Frobenius norm of the change of the weights, per projection and layer."""
    change = effective_change(base, update.map(lambda tensor: tensor.float().cpu()))
    return {p: [round(v, 8) for v in norm(f).tolist()] for p, f in change.items()}


class Supports:
    """What requests adapt to. The command line's sets are here too, and these are there."""

    def __init__(
        self, rag: Rag, adapt: Callable[[SupportSet], Future[Adapted]], metrics: Metrics
    ) -> None:
        """Read nothing yet."""
        self._rag, self._adapt, self._metrics = rag, adapt, metrics
        self._store = rag.store
        self._settings = rag.parts.settings
        self._tasks: dict[str, asyncio.Task[Adapted]] = {}

    def of(
        self, fields: Sequence[DemonstrationFields], retriever: Retriever, task: str = OWN
    ) -> SupportSet:
        """Make a support set of a request's demonstrations; blocks while it retrieves.

        Returns:
            The set.

        Raises:
            BadRequestError: there are too many, one is too long, or no passage fits it.
        """
        most = self._settings.serving.demonstrations
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
        k, limit = self._settings.retrieval.top_k, self._settings.target.max_tokens // 2
        if fields.passages is not None:
            passages = given_passages(fields.passages)
        else:
            passages = passages_for([question], retriever, k)
            if k and not share_a_script(question, passages):
                raise BadRequestError(
                    f"no passage fits demonstration {number} (is it in another language than the "
                    "corpus?): ask in the language of the corpus, or give passages with it.",
                    param,
                    "no_passages",
                )
        used = len(self._rag.parts.backbone.tokenizer.encode(f"{question}\n{answer}"))
        if used > limit:
            raise BadRequestError(
                f"demonstration {number} has {used} tokens without its passages: this server takes "
                f"at most {limit} (half of target.max_tokens).",
                param,
                "context_length_exceeded",
            )
        return Demonstration(f"line-{number}", question, passages, answer)

    async def adapted(self, support: SupportSet) -> tuple[Adapted, float]:
        """Adapt to a set, or look up what it was adapted to.

        Returns:
            The adapted state, and the milliseconds that it took: 0 where it was there.
        """
        started = time.perf_counter()
        key = self._rag.key(support)
        known = await asyncio.to_thread(self._store.find, key, self._rag.parts.base)
        if known is not None:
            self._metrics.update_hits.inc()
            return known, 0.0
        self._metrics.update_misses.inc()
        # requests for the same set wait for one adaptation, whoever of them goes away
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._made(key, support))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return await asyncio.shield(task), since(started)

    async def _made(self, key: str, support: SupportSet) -> Adapted:
        adapted = await asyncio.wrap_future(self._adapt(support))
        return await self._kept(key, adapted, {}, on_disk=self._store.file(support.id).is_file())

    async def _kept(
        self, key: str, adapted: Adapted, facts: dict[str, Any], *, on_disk: bool
    ) -> Adapted:
        kept = await asyncio.to_thread(self._store.put, key, adapted, facts, on_disk=on_disk)
        self._metrics.update_bytes.set(self._store.bytes)
        self._metrics.updates_dropped.set(self._store.dropped)
        return kept

    async def add(self, support: SupportSet) -> tuple[SupportView, bool]:
        """Store a set with what it was adapted to.

        Returns:
            The stored set, and whether it is new.

        Raises:
            ApiError: 429 when the store is full.
        """
        most, names = self._settings.serving.max_supports, self._store.names()
        if support.id not in names and len(names) >= most:
            raise ApiError(
                429,
                "too_many_supports",
                f"{most} support sets are stored, the most that this server holds "
                "(serving.max_supports): DELETE some first.",
            )
        key = self._rag.key(support)
        stored = await asyncio.to_thread(self._store.add, support)
        if not self._store.facts(key):
            adapted, milliseconds = await self.adapted(support)
            facts: dict[str, Any] = {"adapt_ms": milliseconds, "norms": {}}
            if adapted.base is not None and adapted.update is not None:
                facts["norms"] = norms_of(adapted.base, adapted.update)
            await self._kept(key, adapted, facts, on_disk=True)
        return self._view(stored), support.id not in names

    def get(self, name: str) -> StoredSet:
        """Look a stored set up.

        Returns:
            The set.

        Raises:
            ApiError: 404 if there is none.
        """
        if name not in self._store.names():
            raise ApiError(
                404,
                "support_not_found",
                "there is no stored support set of that id: POST its demonstrations to "
                "/v1/supports, or see GET /v1/supports.",
                param="support",
            )
        return self._store.stored(name)

    def remove(self, name: str) -> None:
        """Delete a stored set and all that it was adapted to; 404 if there is none."""
        self.get(name)
        self._store.remove(name)

    def __len__(self) -> int:
        return len(self._store.names())

    def view(self, name: str) -> SupportView:
        """Return a stored set as replies show it; 404 if there is none."""
        return self._view(self.get(name))

    def views(self) -> list[SupportView]:
        """Return all sets, newest first; a damaged one is reported and left out."""
        shown = []
        for name in self._store.names():
            try:
                shown.append(self._view(self._store.stored(name)))
            except RaggdError as error:
                LOG.warning("support set %s is left out: %s", name, error)
        return sorted(shown, key=lambda view: (-view.created, view.id))

    def _view(self, stored: StoredSet) -> SupportView:
        support = stored.support
        facts = self._store.facts(self._rag.key(support))
        norms = facts.get("norms") or {}
        return SupportView(
            id=support.id,
            model=f"adapted/{support.id}",
            task=support.task,
            created=stored.created,
            base=self._rag.parts.base.fingerprint,
            demonstrations=[DemonstrationView.model_validate(d) for d in support.demonstrations],
            norms=norms,
            norm=hypot(*(value for layers in norms.values() for value in layers)),
            adapt_ms=facts.get("adapt_ms"),
        )
