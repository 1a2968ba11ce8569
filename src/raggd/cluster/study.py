"""`raggd study --cluster`: part files made by workers, before the ordinary run looks for them.

The driver writes every part file as it arrives and nothing else; records are written by the
ordinary run, which finds all parts there. So the driver may die at any time too: started again, it
hands out what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raggd.cluster.workers import ClusterOptions, Worker, check_worker, workers
from raggd.files import write_text
from raggd.progress import Progress, silent
from raggd.records import RaggdError
from raggd.study.folder import check_cells
from raggd.study.plan import Cell, Identities, Part
from raggd.study.run import run_study
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings


@dataclass(frozen=True)
class PartTask:
    """One method on one draw.

    `known` is the text of its part file, if there is one: it is computed again only if it no longer
    fits.
    """

    cell: Cell
    draw: int
    known: str = field(default="", repr=False)

    @property
    def path(self) -> str:
        """Its part file, below the study's folder."""
        name = f"{self.cell.benchmark}-{self.draw:03d}-{self.cell.method}.json"
        return f"{self.cell.folder}/parts/{name}"


@dataclass(frozen=True)
class PartDone:
    """A part file as a worker returns it; it is empty where the benchmark has fewer draws."""

    text: str
    questions: int
    computed: bool


class StudyWorker(Worker[PartTask, PartDone]):
    """Answers draws of a study."""

    def __init__(
        self, study: StudySettings, cells: Sequence[Cell], folder: str, threads: int
    ) -> None:
        """Load nothing yet; `cells` are those that it may be asked for."""
        super().__init__(folder, threads)
        self._study, self._cells = study, cells
        self._runner = StudyRunner(study, self.scratch, silent)

    def identities(self) -> dict[str, str]:
        """Return the identity of each cell, by its path."""
        check_cells(self._study, self._cells)
        identities = Identities(self._study)
        return {cell.path: identities.of(cell) for cell in self._cells}

    def result(self, task: PartTask) -> PartDone:
        """Answer a draw with a method: its part file."""
        cell, runner = task.cell, self._runner
        whole = runner.task(cell.seed, cell.retriever, cell.benchmark)
        if task.draw >= len(whole.draws):
            return PartDone("", 0, computed=False)
        path = self.scratch / task.path
        if task.known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(task.known, encoding="utf-8")
        parts = runner.parts_of(cell.backbone, cell.retriever, cell.seed)
        runner.cell_run(cell, whole, parts).part(task.draw)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return PartDone(text, len(whole.draws[task.draw]), computed=text != task.known)


def _tasks(runner: StudyRunner, cells: Sequence[Cell]) -> list[PartTask]:
    # in the order of an ordinary run: draws first, all methods of a draw together
    found = []
    for unit in runner.units(cells):
        for cell in unit.cells:
            task = PartTask(cell, unit.draw)
            path = runner.out / task.path
            if path.is_file():
                task = replace(task, known=path.read_text(encoding="utf-8", errors="replace"))
            found.append(task)
    return found


def distribute(
    runner: StudyRunner, cells: Sequence[Cell], options: ClusterOptions, progress: Progress
) -> dict[str, Any]:
    """Let the workers of a cluster make what is missing of a study's part files.

    ``workers``, ``parts`` that were asked for, ``computed`` and ``refused`` ones, and the
    ``seconds`` that the parts took once all workers stood.
    """
    tasks = _tasks(runner, cells)
    found: dict[str, Any] = {"workers": 0, "parts": len(tasks), "computed": 0, "refused": 0}
    if not tasks:
        return found
    own = {cell.path: runner.identities.of(cell) for cell in cells}
    for cell in cells:  # indexes and evidence are made once, here, before the workers look for them
        runner.task(cell.seed, cell.retriever, cell.benchmark)
    with workers(options, progress, StudyWorker, runner.study, cells) as scheduler:
        for told in scheduler.introductions():
            check_worker(told, own)
        done, started = 0, time.monotonic()

        def deliver(task: PartTask, result: PartDone | RaggdError) -> None:
            nonlocal done
            done += 1
            if isinstance(result, RaggdError):  # the run at the end meets it again, and reports it
                found["refused"] += 1
            elif result.computed:
                write_text(runner.out / task.path, result.text)
                found["computed"] += 1
            label = f"{task.cell.backbone}, {task.cell.benchmark}: {task.cell.method}"
            progress(f"{label} ({len(scheduler)} workers)", done, len(tasks))

        scheduler.run(tasks, deliver, needs=lambda task: task.cell.backbone)
        seconds = round(time.monotonic() - started, 2)
        return found | {"workers": len(scheduler), "seconds": seconds}


def run_study_on(
    study: StudySettings, out: Path, part: Part, options: ClusterOptions, progress: Progress
) -> dict[str, Any]:
    """Run what is not finished of a study on a cluster.

    Result: as of `run_study`, and ``cluster``: what `distribute` returns.
    """

    def first(runner: StudyRunner, cells: Sequence[Cell]) -> dict[str, Any]:
        return {"cluster": distribute(runner, cells, options, progress)}

    return run_study(study, out, part, progress, first=first)
