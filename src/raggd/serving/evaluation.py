"""Does adapting help? A stored set, or one's own questions, scored while the server goes on.

One evaluation runs at a time, in a thread of its own; what needs the model waits for its turn
between the steps of the answers in progress. Nothing of it stays on disk.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from raggd.records import Question, SupportSet
from raggd.serving.bodies import EvaluationRequest, EvaluationView, TableView
from raggd.serving.errors import ApiError, BadRequestError, as_api_error
from raggd.serving.service import Service
from raggd.study.evaluate import FEWEST, own_methods, score_task, set_task

KEPT = 8  # evaluations that can be looked at, the newest
TOO_FEW = (
    "{count} is too few to tell chance from help: look at the answers, and ask "
    f"{FEWEST} questions or more for advice."
)


class Evaluations:
    """Starts, shows and ends evaluations; called from one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._views: dict[str, EvaluationView] = {}

    def start(self, body: EvaluationRequest) -> EvaluationView:
        """Begin an evaluation, one at a time, of two examples or more; `view` says how far."""
        support = self._service.stored(body.support).support
        shown = {each.question for each in support.demonstrations}
        fields = [(f.question.strip(), f.answer.strip()) for f in body.questions or []]
        asked = [
            Question(f"q{number}", question, (answer,))
            for number, (question, answer) in enumerate(fields, start=1)
            if question not in shown
        ]
        if not asked and (fields or len(support.demonstrations) < 2):
            told = "every question is an example of the set, too: give others."
            alone = "a set of one example cannot be asked and shown: give questions."
            raise BadRequestError(told if fields else alone, "questions", "too_few_questions")
        if any(view.status == "running" for view in self._views.values()):
            raise ApiError(
                409, "evaluation_running", "an evaluation is running: wait for it, or DELETE it."
            )
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

    def view(self, name: str) -> EvaluationView:
        """Return how far an evaluation is; 404 if there is none of that id."""
        try:
            return self._views[name]
        except KeyError:
            raise ApiError(404, "evaluation_not_found", "there is no such evaluation.") from None

    def cancel(self, name: str) -> EvaluationView:
        """End an evaluation after the answers that are being written."""
        view = self.view(name)
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
            # of few questions only the scores are shown: their p-values would pretend to know
            enough = task.size >= FEWEST
            shown = report.tables if enough else report.tables[:1]
            view.tables = [
                TableView(
                    caption=table.caption,
                    columns=[column.heading for column in table.columns],
                    rows=[list(row) for row in table.rows],
                )
                for table in shown
            ]
            view.advice = report.advice if enough else TOO_FEW.format(count=task.size)
            view.status = "done"
        except CancelledError:
            view.status = "cancelled"
        except Exception as error:
            view.advice = as_api_error(error).message
            view.status = "failed"
