"""`raggd study --cluster`: part files made by workers, before the ordinary run looks for them.

The driver writes every part file as it arrives and nothing else; records are written by the
ordinary run, which finds all parts there. So the driver may die at any time too: started again, it
hands out what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raggd.cluster.connect import connected
from raggd.cluster.crew import Crew, shares
from raggd.cluster.fleet import Fleet
from raggd.cluster.worker import PartDone, PartTask, StudyWorker, check_worker
from raggd.files import write_text
from raggd.progress import Progress
from raggd.records import RaggdError
from raggd.study.plan import Cell, Part
from raggd.study.run import run_study
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings


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
    runner: StudyRunner, cells: Sequence[Cell], crew: Crew, progress: Progress
) -> dict[str, Any]:
    """Let the workers of a cluster make what is missing of a study's part files.

    Args:
        runner: of the study, on the driver's machine.
        cells: to be computed.
        crew: cluster and number of workers.
        progress: told parts done and in all.

    Returns:
        ``workers``, ``parts`` that were asked for, ``computed`` and ``refused`` ones, and
        ``deaths`` of workers, and the ``seconds`` that the parts took once all workers stood.
    """
    study, out = runner.study, runner.out
    tasks = _tasks(runner, cells)
    found: dict[str, Any] = {
        "workers": 0,
        "parts": len(tasks),
        "computed": 0,
        "refused": 0,
        "deaths": 0,
    }
    if not tasks:
        return found
    own = {cell.path: runner.identities.of(cell) for cell in cells}
    for cell in cells:  # indexes and evidence are made once, here, before the workers look for them
        runner.task(cell.seed, cell.retriever, cell.benchmark)
    progress(f"connecting to cluster {crew.address}", 0, None)
    with connected(crew.address) as ray:
        share = shares(ray, crew)
        here = str(Path.cwd())
        actor = ray.remote(**share.reserved)(StudyWorker)
        fleet = Fleet[PartTask](ray, lambda: actor.remote(study, here, share.threads), share.count)
        progress(f"{share.count} workers are starting", 0, None)
        for told in fleet.ask_all("introduce", cells):
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
            progress(f"{label} ({share.count} workers)", done, len(tasks))

        try:
            fleet.run(tasks, deliver, _near)
        finally:
            fleet.stop()
        seconds = round(time.monotonic() - started, 2)
        return found | {"workers": share.count, "deaths": fleet.deaths, "seconds": seconds}


def run_study_on(
    study: StudySettings, out: Path, part: Part, crew: Crew, progress: Progress
) -> dict[str, Any]:
    """Run what is not finished of a study on a cluster.

    Args:
        study: the settings.
        out: folder for part files and records.
        part: the piece to run now.
        crew: cluster and number of workers.
        progress: told what is running.

    Returns:
        As `run_study`, and ``cluster``: what `distribute` returns.
    """

    def first(runner: StudyRunner, cells: Sequence[Cell]) -> dict[str, Any]:
        return {"cluster": distribute(runner, cells, crew, progress)}

    return run_study(study, out, part, progress, first=first)
