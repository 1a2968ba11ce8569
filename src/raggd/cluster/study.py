"""`raggd study --cluster`: part files made by workers, before the ordinary run looks for them.

The driver writes every part file as it arrives and nothing else; records are written by the
ordinary run, which finds all parts there. So the driver may die at any time too: started again, it
hands out what is missing.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raggd.cluster.workers import ClusterOptions, check_node, settle, workers
from raggd.files import write_text
from raggd.progress import Progress, silent
from raggd.provenance import versions
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


class StudyWorker:
    """Answers draws of a study; what it has loaded stays for the next one."""

    def __init__(self, study: StudySettings, folder: str, threads: int) -> None:
        """Load nothing yet."""
        settle(folder, threads)
        self._study = study
        self._scratch = tempfile.TemporaryDirectory(prefix="raggd-worker-")
        self._runner = StudyRunner(study, Path(self._scratch.name), silent)

    def introduce(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Say what this node has, for the driver to compare with its own.

        ``node``, ``versions``, ``identities`` of the cells, and ``problem``: why they cannot be
        computed here, if so.
        """
        found: dict[str, Any] = {"node": platform.node(), "versions": versions(), "problem": ""}
        try:
            check_cells(self._study, cells)
            identities = Identities(self._study)
            found["identities"] = {cell.path: identities.of(cell) for cell in cells}
        except RaggdError as error:
            found |= {"problem": str(error), "identities": {}}
        return found

    def work(self, task: PartTask) -> PartDone | RaggdError:
        """Answer a draw with a method: its part file.

        A `RaggdError` is returned, not raised, so that it arrives unwrapped.
        """
        try:
            return self._part(task)
        except RaggdError as error:
            return error

    def _part(self, task: PartTask) -> PartDone:
        cell, runner = task.cell, self._runner
        whole = runner.task(cell.seed, cell.retriever, cell.benchmark)
        if task.draw >= len(whole.draws):
            return PartDone("", 0, computed=False)
        path = Path(self._scratch.name) / task.path
        if task.known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(task.known, encoding="utf-8")
        parts = runner.parts_of(cell.backbone, cell.retriever, cell.seed)
        runner.cell_run(cell, whole, parts).part(task.draw)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return PartDone(text, len(whole.draws[task.draw]), computed=text != task.known)


def check_worker(told: Mapping[str, Any], cells: Mapping[str, str]) -> None:
    """Refuse a worker that would not compute the same cells, given by path and identity.

    Raises:
        RaggdError: it lacks data or weights, or has other ones, or other versions; both named.
    """
    check_node(told)
    for path, identity in cells.items():
        if told["identities"].get(path) != identity:
            raise RaggdError(
                f"the worker on node '{told['node']}' has other data or weights for {path}: give "
                "all nodes the same files at the same paths."
            )


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


def _near(last: PartTask, task: PartTask) -> bool:
    return last.cell.backbone == task.cell.backbone


def distribute(
    runner: StudyRunner, cells: Sequence[Cell], options: ClusterOptions, progress: Progress
) -> dict[str, Any]:
    """Let the workers of a cluster make what is missing of a study's part files.

    ``workers``, ``parts`` that were asked for, ``computed`` and ``refused`` ones, and ``deaths`` of
    workers, and the ``seconds`` that the parts took once all workers stood.
    """
    study, out = runner.study, runner.out
    tasks = _tasks(runner, cells)
    found: dict[str, Any] = {"parts": len(tasks), "computed": 0, "refused": 0}
    if not tasks:
        return found | {"workers": 0, "deaths": 0}
    own = {cell.path: runner.identities.of(cell) for cell in cells}
    for cell in cells:  # indexes and evidence are made once, here, before the workers look for them
        runner.task(cell.seed, cell.retriever, cell.benchmark)
    progress(f"connecting to cluster {options.address}", 0, None)
    with workers(options, StudyWorker, study) as scheduler:
        progress(f"{len(scheduler)} workers are starting", 0, None)
        for told in scheduler.ask_all("introduce", cells):
            check_worker(told, own)
        done, started = 0, time.monotonic()

        def deliver(task: PartTask, result: PartDone | RaggdError) -> None:
            nonlocal done
            done += 1
            if isinstance(result, RaggdError):  # the run at the end meets it again, and reports it
                found["refused"] += 1
            elif result.computed:
                write_text(out / task.path, result.text)
                found["computed"] += 1
            label = f"{task.cell.backbone}, {task.cell.benchmark}: {task.cell.method}"
            progress(f"{label} ({len(scheduler)} workers)", done, len(tasks))

        scheduler.run(tasks, deliver, _near)
        seconds = round(time.monotonic() - started, 2)
        return found | {"workers": len(scheduler), "deaths": scheduler.deaths, "seconds": seconds}


def run_study_on(
    study: StudySettings, out: Path, part: Part, options: ClusterOptions, progress: Progress
) -> dict[str, Any]:
    """Run what is not finished of a study on a cluster.

    Result: as of `run_study`, and ``cluster``: what `distribute` returns.
    """

    def first(runner: StudyRunner, cells: Sequence[Cell]) -> dict[str, Any]:
        return {"cluster": distribute(runner, cells, options, progress)}

    return run_study(study, out, part, progress, first=first)
