"""Stored support sets: kept, shown, and scored: does adapting to one help?"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from math import hypot
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Response
from pydantic import AfterValidator, BaseModel, Field

from raggd.core.low_rank import effective_change, norm
from raggd.data.questions import OWN_TASK
from raggd.methods.base import Adapted
from raggd.methods.store import StoredSet
from raggd.records import Demonstration, Question, RaggdError, SupportSet
from raggd.serving.bodies import Body, Demonstrations, QuestionFields, ShortText, filled
from raggd.serving.errors import LOG, ApiError, as_api_error
from raggd.serving.service import Service
from raggd.study.evaluate import FEWEST, own_methods, score_task, set_task

MOST_SETS = 1000  # support sets that a server keeps
KEPT = 8  # evaluations that can be looked at, the newest


class SupportRequest(Body):
    """`POST /v1/supports`: demonstrations to adapt to."""

    demonstrations: Demonstrations
    task: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(filled)] | None = None
    # fingerprint of the base adapter that the set is meant for; another one is refused
    base: ShortText | None = None


class SupportView(BaseModel):
    """A stored support set."""

    id: str
    object: Literal["support"] = "support"
    model: str  # the name to ask for: ``adapted/`` and the id
    task: str
    created: int
    base: str  # fingerprint of the base adapter that the update starts from
    demonstrations: tuple[Demonstration, ...]
    # Frobenius norm of the update's change to the weights: per projection, layer by layer; of all
    norms: dict[str, list[float]]
    norm: float
    adapt_ms: float | None  # None if adapting was not needed here yet
    remarks: list[str] | None = None  # what is odd about them; None in a list


class Deleted(BaseModel):
    """`DELETE /v1/supports/{id}`."""

    id: str
    object: Literal["support.deleted"] = "support.deleted"
    deleted: Literal[True] = True


Item = TypeVar("Item")


class ListOf(BaseModel, Generic[Item]):
    """All of one kind."""

    object: Literal["list"] = "list"
    data: list[Item]


class Supports:
    """Routes of the stored sets: the command line's are here too, and these are there."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def add_support(self, body: SupportRequest, response: Response) -> SupportView:
        """Store demonstrations and predict the update that they ask for."""
        service, store = self._service, self._service.store
        in_use = service.base.fingerprint
        if body.base not in {None, in_use}:
            raise ApiError(
                f"this support set is meant for base adapter '{body.base}', this server runs "
                f"'{in_use}': leave 'base' out.",
                "base",
                "support_of_another_base",
                409,
            )
        with service.admitted(1):
            asked = body.demonstrations, service.documents.retriever, body.task or OWN_TASK
            support = await service.aside(lambda: service.support_of(*asked))
            new = support.id not in store
            if new and len(store.names()) >= MOST_SETS:
                raise ApiError(
                    f"{MOST_SETS} support sets are stored, the most that a server holds: "
                    "DELETE some first.",
                    code="too_many_supports",
                    status=429,
                )
            response.status_code = 201 if new else 200
            stored = await asyncio.to_thread(store.add, support)
            if not store.facts(service.rag.key(support)):
                adapted, milliseconds = await service.adapted_to(support)
                await asyncio.to_thread(self._keep, support, adapted, milliseconds)
            return await service.aside(lambda: self._view(stored, told=True))

    async def list_supports(self) -> ListOf[SupportView]:
        """List the support sets, newest first."""
        return ListOf(data=await self._service.aside(self.views))

    async def get_support(self, support: str) -> SupportView:
        """Show a support set."""
        stored = self._service.stored(support)
        return await self._service.aside(lambda: self._view(stored, told=True))

    async def delete_support(self, support: str) -> Deleted:
        """Delete a support set and its update."""
        with self._service.looking_for(support):
            await asyncio.to_thread(self._service.store.remove, support)
        return Deleted(id=support)

    def _keep(self, support: SupportSet, adapted: Adapted, milliseconds: float) -> None:
        facts: dict[str, Any] = {"adapt_ms": milliseconds, "norms": {}}
        if adapted.base is not None and adapted.update is not None:
            update = adapted.update.map(lambda tensor: tensor.float().cpu())
            change = effective_change(adapted.base, update)
            facts["norms"] = {p: norm(f).tolist() for p, f in change.items()}
        store = self._service.store
        there = support.id in store  # it may have been deleted meanwhile
        store.put(self._service.rag.key(support), adapted, facts, on_disk=there)

    def views(self) -> list[SupportView]:
        """Return all sets, newest first; a damaged one is reported and left out."""
        shown = []
        for name in self._service.store.names():
            try:
                shown.append(self._view(self._service.store.stored(name)))
            except RaggdError as error:
                LOG.warning("support set %s is left out: %s", name, error)
        return sorted(shown, key=lambda view: (-view.created, view.id))

    def _view(self, stored: StoredSet, *, told: bool = False) -> SupportView:
        # blocks while what is odd about it is looked for, if it is to be told
        support = stored.support
        facts = self._service.store.facts(self._service.rag.key(support))
        norms = facts.get("norms") or {}
        return SupportView(
            id=support.id,
            model=f"adapted/{support.id}",
            task=support.task,
            created=stored.created,
            base=self._service.base.fingerprint,
            demonstrations=support.demonstrations,
            norms=norms,
            norm=hypot(*(value for layers in norms.values() for value in layers)),
            adapt_ms=facts.get("adapt_ms"),
            remarks=self._service.rag.remarks(support) if told else None,
        )


class EvaluationRequest(Body):
    """`POST /v1/evaluations`: does adapting to a stored set help?"""

    support: ShortText
    # to ask, if they are not among the set's; without any, each of these, adapted to the others
    questions: Annotated[list[QuestionFields], Field(min_length=1, max_length=256)] | None = None


class TableView(BaseModel):
    """A table of an evaluation: its first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class EvaluationView(BaseModel):
    """Methods scored on one's own questions: how far, and what came out."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    status: Literal["running", "done", "failed", "cancelled"] = "running"
    support: str  # id of the set that is adapted to
    questions: int  # how many are asked, each of them by every method
    doing: str = "finding passages"
    done: int = 0  # answers that are written, of
    total: int = 0
    tables: list[TableView] = []
    advice: str = ""  # whether to adapt, and with what; or why it cannot be told


class Evaluations:
    """Routes that start, show and end evaluations.

    One runs at a time, in a thread of its own; what needs the model waits for its turn between the
    steps of the answers in progress. Nothing of it stays on disk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._views: dict[str, EvaluationView] = {}

    async def start_evaluation(self, body: EvaluationRequest) -> EvaluationView:
        """Score base, few shot and adapted model on one's own questions, in the background."""
        support = self._service.stored(body.support).support
        shown = {each.question for each in support.demonstrations}
        given = body.questions or []
        asked = [
            Question(f"q{number}", each.question.strip(), (each.answer.strip(),))
            for number, each in enumerate(given, start=1)
            if each.question.strip() not in shown
        ]
        if not asked and (given or len(support.demonstrations) < 2):
            told = "every question is an example of the set, too: give others."
            alone = "a set of one example cannot be asked and shown: give questions."
            raise ApiError(told if given else alone, "questions", "too_few_questions")
        if any(view.status == "running" for view in self._views.values()):
            told = "an evaluation is running: wait for it, or DELETE it."
            raise ApiError(told, code="evaluation_running", status=409)
        view = EvaluationView(
            id=uuid.uuid4().hex[:16],
            support=support.id,
            questions=len(asked) or len(support.demonstrations),
        )
        self._views[view.id] = view
        for old in list(self._views)[:-KEPT]:
            del self._views[old]
        # no daemon: it ends with the server, at its next turn, and takes its folder along
        work = (view, support, asked)
        threading.Thread(target=self._run, args=work, name="raggd-evaluation").start()
        return view

    async def get_evaluation(self, evaluation: str) -> EvaluationView:
        """Show how far an evaluation is."""
        if evaluation not in self._views:
            told = "there is no such evaluation."
            raise ApiError(told, code="evaluation_not_found", status=404)
        return self._views[evaluation]

    async def end_evaluation(self, evaluation: str) -> EvaluationView:
        """End an evaluation, after the answers that are being written."""
        view = await self.get_evaluation(evaluation)
        if view.status == "running":
            view.status = "cancelled"
        return view

    def _run(self, view: EvaluationView, support: SupportSet, asked: list[Question]) -> None:
        service, parts = self._service, self._service.rag.parts

        def progress(label: str, done: int, total: int | None) -> None:
            if view.status != "running" or service.stopping:
                raise CancelledError
            view.doing, view.done, view.total = label, done, total or 0

        def turn(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            return service.scheduler.run(work).result()

        try:
            k = service.settings.retrieval.top_k
            task = set_task(support, asked, service.documents.retriever, k)
            with tempfile.TemporaryDirectory(prefix="raggd-evaluation-") as folder:
                names = own_methods(parts)
                report = score_task(parts, task, names, Path(folder), progress, turn)
            progress(view.doing, view.done, view.total)  # it may have been ended meanwhile
            tables, view.advice = report.tables, report.advice
            if task.size < FEWEST:  # the scores alone: p-values would pretend to know
                tables = tables[:1]
                view.advice = (
                    f"{task.size} is too few to tell chance from help: look at the answers, and "
                    f"ask {FEWEST} questions or more for advice."
                )
            for table in tables:
                columns = [column.heading for column in table.columns]
                told = TableView(caption=table.caption, columns=columns, rows=table.rows)
                view.tables.append(told)
            view.status = "done"
        except CancelledError:
            view.status = "cancelled"
        except Exception as error:
            view.advice = as_api_error(error).body.error.message
            view.status = "failed"
