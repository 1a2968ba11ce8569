"""What runs on a cluster: the draws of a study, the shards of the target store.

The driver alone writes: each part file or shard as it arrives. Records are written by the ordinary
run, which finds everything there. A driver that died, started again, hands out what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from raggd.adaptation.targets import TargetStore
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.cluster.workers import ClusterOptions, Worker, workers
from raggd.files import replacing, write_text
from raggd.progress import Progress, silent
from raggd.records import RaggdError
from raggd.settings import Settings
from raggd.study.plan import Cell, StudySettings
from raggd.study.run import StudyRunner, check_cells, in_order
from raggd.training.run import Run, target_store
from raggd.training.stages import run_stage

STORE = "the store of targets"


@dataclass(frozen=True)
class PartTask:
    """One method on one draw."""

    cell: Cell
    draw: int
    known: str = field(default="", repr=False)  # the text of its part file, kept while it fits

    @property
    def path(self) -> str:
        """Its part file, below the study's folder."""
        return self.cell.part(self.draw)


class StudyWorker(Worker[PartTask, str]):
    """Answers draws of a study."""

    def __init__(
        self, study: StudySettings, cells: Sequence[Cell], folder: str, threads: int
    ) -> None:
        super().__init__(folder, threads)
        self._cells, self._runner = cells, StudyRunner(study, self.scratch, silent)

    def identities(self) -> dict[str, str]:
        """Return the identity of each cell, by its path."""
        check_cells(self._runner.study, self._cells)
        return {cell.path: self._runner.identities.of(cell) for cell in self._cells}

    def result(self, task: PartTask) -> str:
        """Answer a draw with a method: its part file, empty where the benchmark has fewer draws."""
        if task.draw >= len(self._runner.task(task.cell).draws):
            return ""
        path = self.scratch / task.path
        if task.known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(task.known, encoding="utf-8")
        self._runner.cell_run(task.cell).part(task.draw)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return text


def _tasks(runner: StudyRunner, cells: Sequence[Cell]) -> list[PartTask]:
    # in the order of an ordinary run: draws first, all methods of a draw together
    found = []
    for draw, cell in in_order(runner.study, cells):
        task = PartTask(cell, draw)
        path = runner.out / task.path
        if path.is_file():
            task = replace(task, known=path.read_text(encoding="utf-8", errors="replace"))
        found.append(task)
    return found


def distribute(
    runner: StudyRunner, cells: Sequence[Cell], options: ClusterOptions, progress: Progress
) -> dict[str, Any]:
    """Let the workers of a cluster make what is missing of a study's part files.

    Of the ``cluster`` it tells ``workers``, ``parts`` that were asked for, ``computed`` and
    ``refused`` ones, and the ``seconds`` that the parts took once all workers stood.
    """
    tasks = _tasks(runner, cells)
    found: dict[str, Any] = {"workers": 0, "parts": len(tasks), "computed": 0, "refused": 0}
    if not tasks:
        return {"cluster": found}
    own = {cell.path: runner.identities.of(cell) for cell in cells}
    for cell in cells:  # indexes and evidence are made once, here, before the workers look for them
        runner.task(cell)

    def deliver(task: PartTask, result: str | RaggdError) -> None:
        if isinstance(result, RaggdError):  # the run at the end meets it again, and reports it
            found["refused"] += 1
        elif result and result != task.known:
            write_text(runner.out / task.path, result)
            found["computed"] += 1

    def label(task: PartTask) -> str:
        return f"{task.cell.backbone}, {task.cell.benchmark}: {task.cell.method}"

    with workers(options, progress, StudyWorker, runner.study, cells) as scheduler:
        scheduler.check(own)
        started = time.monotonic()
        scheduler.run(tasks, deliver, label, needs=lambda task: task.cell.backbone)
        found |= {"workers": len(scheduler), "seconds": round(time.monotonic() - started, 2)}
    return {"cluster": found}


def run_study_on(
    study: StudySettings,
    out: Path,
    progress: Progress,
    options: ClusterOptions,
    cells: Sequence[Cell] | None = None,
) -> dict[str, Any]:
    """Run what is not finished of a study on a cluster, or of some cells; see `distribute`."""
    first = partial(distribute, options=options, progress=progress)
    return StudyRunner(study, out, progress).run(cells, first=first)


class TargetWorker(Worker[int, bytes]):
    """Computes shards; draws the same support sets as the driver, from the same settings."""

    def __init__(self, settings: Settings, pool: bool, folder: str, threads: int) -> None:
        super().__init__(folder, threads)
        self._parts, self._pool, self._compiled = Assembly(settings), pool, ExitStack()

    @cached_property
    def _store(self) -> TargetStore:
        run = Run(self._parts, Path(), (self.scratch,), pool=self._pool)
        self._compiled.enter_context(compile_layers(self._parts.backbone))
        return target_store(run)

    def identities(self) -> dict[str, str]:
        """Return the identity of the store that it would make."""
        return {STORE: self._store.identity}

    def result(self, task: int) -> bytes:
        """Compute the shard that begins with this support set, and return the bytes of its file."""
        self._store.build(task)
        path = self._store.file(task)
        content = path.read_bytes()
        path.unlink()
        return content


def run_targets_on(run: Run, options: ClusterOptions) -> dict[str, Any]:
    """Compute the targets of the training tasks on a cluster; continues where it stopped."""
    store = target_store(run)
    store.open()

    def deliver(start: int, content: bytes | RaggdError) -> None:
        if isinstance(content, RaggdError):
            raise content
        with replacing(store.file(start)) as temporary:
            temporary.write_bytes(content)

    if tasks := store.missing():
        told, settings = run.parts.progress, run.settings
        with workers(options, told, TargetWorker, settings, run.pool) as scheduler:
            scheduler.check({STORE: store.identity})
            scheduler.run(tasks, deliver, lambda _: "targets")
    return run_stage("targets", run)
