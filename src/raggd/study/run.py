"""Running a study: draw by draw, all methods of a draw before the next one, resumable anywhere.

A part file per draw and method is written whole (`evaluation.runner`); a cell's record is written
when all its draws are there. Nothing else is state, so a study that was killed continues with the
part that it was in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggd.assembly import Assembly
from raggd.assembly import Progress as Teller
from raggd.evaluation.flops import counted_costs
from raggd.evaluation.runner import Task, make_record, run_part
from raggd.evaluation.tasks import build_task
from raggd.files import read_json, write_text
from raggd.methods.base import Method
from raggd.records import RaggdError, RunRecord
from raggd.settings import Settings
from raggd.study.check import check_weights
from raggd.study.folder import check_folder, write_plan
from raggd.study.lock import locked
from raggd.study.plan import Cell, Identities, Part, all_cells, finished_cells
from raggd.study.progress import Watch
from raggd.study.settings import StudySettings

if TYPE_CHECKING:
    from raggd.backbone.load import Backbone


@dataclass(frozen=True, slots=True)
class Unit:
    """What is done in one go: the methods of one run on one draw of one benchmark."""

    seed: int
    draw: int
    backbone: str
    retriever: str
    benchmark: str
    cells: tuple[Cell, ...]


class StudyRunner:
    """Holds what units share: tasks by retriever, one backbone and its methods at a time."""

    def __init__(self, study: StudySettings, out: Path, progress: Teller) -> None:
        """Load nothing yet.

        Args:
            study: the settings.
            out: the study's folder.
            progress: told about loading and indexing.
        """
        self.study = study
        self.out = out
        self.identities = Identities(study)
        self._progress = progress
        self._tasks: dict[tuple[int, str, str], Task] = {}
        self._sources: dict[tuple[int, str], Assembly] = {}
        self._backbone: tuple[str, Backbone] | None = None
        self._run: tuple[tuple[str, str, int], Assembly] | None = None
        self._methods: dict[str, Method] = {}

    def settings(self, backbone: str, retriever: str, seed: int) -> Settings:
        """Return the settings of one run of the study.

        Args:
            backbone: label.
            retriever: label.
            seed: of questions and draws.

        Returns:
            The settings.
        """
        return self.study.run_settings(backbone, retriever, seed)

    def task(self, seed: int, retriever: str, benchmark: str) -> Task:
        """Return questions, evidence and supports; the same for every backbone and method.

        Args:
            seed: of questions and draws.
            retriever: label.
            benchmark: name.

        Returns:
            The task, built once.
        """
        key = (seed, retriever, benchmark)
        if key not in self._tasks:
            source = self._sources.get((seed, retriever))
            if source is None:
                settings = self.settings(self.study.backbones[0].name, retriever, seed)
                source = self._sources[seed, retriever] = Assembly(settings, self._progress)
            settings = source.settings
            self._progress.say(f"evidence for {benchmark} by {retriever}")
            self._tasks[key] = build_task(
                benchmark,
                source.source,
                source.retriever,
                settings.retrieval.top_k,
                settings.target.demonstrations,
                settings.evaluation,
            )
        return self._tasks[key]

    def parts_of(self, backbone: str, retriever: str, seed: int) -> Assembly:
        """Return the loaded parts of a run; the backbone stays while its label stays.

        Args:
            backbone: label.
            retriever: label.
            seed: of questions and draws.

        Returns:
            The parts.
        """
        key = (backbone, retriever, seed)
        if self._run and self._run[0] == key:
            return self._run[1]
        self._run, self._methods = None, {}
        if self._backbone and self._backbone[0] != backbone:
            self._backbone = None  # let go of it before the next one is loaded
        known = self._backbone[1] if self._backbone else None
        parts = Assembly(self.settings(*key), self._progress, backbone=known)
        self._backbone = (backbone, parts.backbone)
        self._run = (key, parts)
        return parts

    def method(self, parts: Assembly, name: str) -> Method:
        """Return a method of the run that is loaded.

        Args:
            parts: from `parts_of`.
            name: of the method.

        Returns:
            The method, made once per run.
        """
        if name not in self._methods:
            self._methods[name] = parts.method(name)
        return self._methods[name]

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        """Put the work in order: draws first, so that early parts are a small study of their own.

        Args:
            cells: to compute.

        Returns:
            The units.
        """
        sampled = self.study.evaluation
        draws = 1 if sampled.support == "query" else sampled.draws
        runs: dict[tuple[int, str, str, str], list[Cell]] = {}
        for cell in cells:
            runs.setdefault((cell.seed, cell.backbone, cell.retriever, cell.benchmark), []).append(
                cell
            )
        return [
            Unit(seed, draw, backbone, retriever, benchmark, tuple(together))
            for wanted in self.study.seeds
            for draw in range(draws)
            for (seed, backbone, retriever, benchmark), together in runs.items()
            if seed == wanted
        ]

    def run_unit(self, unit: Unit, watch: Watch) -> None:
        """Answer one draw with every method of the unit; finished cells get their record.

        Args:
            unit: the work.
            watch: told about it.
        """
        task = self.task(unit.seed, unit.retriever, unit.benchmark)
        if unit.draw >= len(task.draws):  # fewer questions than draws
            return
        parts = self.parts_of(unit.backbone, unit.retriever, unit.seed)
        for cell in unit.cells:
            label = f"{unit.backbone}, {unit.retriever}, {unit.benchmark}: {cell.method}"
            part = self._part(cell, unit.draw, task, parts, watch, label)
            questions = len(task.draws[unit.draw])
            watch.part_done(unit.backbone, cell.method, questions, part.get("seconds"))
        if unit.draw == len(task.draws) - 1:
            for cell in unit.cells:
                self.write_record(cell, task, parts)

    def _part(
        self, cell: Cell, draw: int, task: Task, parts: Assembly, watch: Watch, label: str
    ) -> dict[str, Any]:
        return run_part(
            task,
            draw,
            self.method(parts, cell.method),
            parts.backbone,
            parts.settings,
            self.out / cell.folder,
            lambda count: watch.advance(label, count),
        )

    def write_record(self, cell: Cell, task: Task, parts: Assembly) -> None:
        """Join a cell's parts; one that is missing or no longer fits is computed here.

        Args:
            cell: whose draws are all there.
            task: what was answered.
            parts: of its run.
        """
        idle = Watch(lambda *_: None, 0, {})
        found = [self._part(cell, d, task, parts, idle, "") for d in range(len(task.draws))]
        method = self.method(parts, cell.method)
        record = make_record(found, task, method, parts.backbone, parts.settings)
        answers = {p.question_id: p.answer for p in record.predictions}
        counted = counted_costs(answers, task, method, parts.backbone, parts.settings)
        record = replace(
            record,
            cost={**record.cost, **counted},
            hashes={**record.hashes, "cell": self.identities.of(cell)},
        )
        write_text(self.out / cell.path, record.to_json() + "\n")

    def refer(self, cell: Cell) -> None:
        """Write the record of a cell whose answers do not depend on its retriever.

        Args:
            cell: one that is not computed; its source must have a record.
        """
        source = replace(cell, retriever=cell.source)
        record = read_record(self.out / source.path)
        hashes = {**record.hashes, "answers_of": source.path, "cell": self.identities.of(cell)}
        write_text(self.out / cell.path, replace(record, hashes=hashes).to_json() + "\n")


def read_record(path: Path) -> RunRecord:
    """Read a run record.

    Args:
        path: its file.

    Returns:
        The record.

    Raises:
        RaggdError: it cannot be read, or is none.
    """
    try:
        return RunRecord.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise RaggdError(f"cannot read the record {path}: {error.strerror}.") from error


def _expected(runner: StudyRunner, cells: Sequence[Cell]) -> dict[tuple[str, str], int]:
    # before a task is built, the settings tell how many questions it has at most
    sampled = runner.study.evaluation
    counts: dict[tuple[str, str], int] = {}
    for cell in cells:
        size = 0 if cell.benchmark in sampled.whole else sampled.questions
        size = size or runner.task(cell.seed, cell.retriever, cell.benchmark).size
        key = (cell.backbone, cell.method)
        counts[key] = counts.get(key, 0) + size
    return counts


def run_study(study: StudySettings, out: Path, part: Part, progress: Any) -> dict[str, int]:
    """Run what is not finished of a study.

    Args:
        study: the settings.
        out: folder for part files and records.
        part: the piece to run now.
        progress: the bar: told what is running, questions done and in all.

    Returns:
        ``cells`` of the piece, how many are ``complete``, and how many of them were made ``now``.
    """
    part.check(study)
    cells = all_cells(study, part)
    with locked(out):
        check_folder(study, out)
        runner = StudyRunner(study, out, progress)
        finished = finished_cells(out, cells, runner.identities)
        waiting = [cell for cell in cells if cell not in finished]
        sources = {replace(cell, retriever=cell.source) for cell in waiting}
        sources -= finished_cells(out, sources, runner.identities)
        computed = [cell for cell in all_cells(study) if cell in sources]
        check_weights(study, {(cell.backbone, cell.method) for cell in computed})
        write_plan(study, out)
        if computed:
            expected = _expected(runner, computed)
            watch = Watch(progress, sum(expected.values()), expected)
            for unit in runner.units(computed):
                runner.run_unit(unit, watch)
        for cell in waiting:
            if not cell.computed:
                runner.refer(cell)
    return {"cells": len(cells), "complete": len(cells), "now": len(waiting)}


def status_of(study: StudySettings, out: Path, part: Part) -> dict[str, Any]:
    """Count what is there of a study, without loading a model.

    Args:
        study: the settings.
        out: its folder.
        part: the piece to count.

    Returns:
        ``cells``, how many are ``complete``, the ``questions`` that their records answer, the
        fewest of a complete cell, and the same by backbone.
    """
    part.check(study)
    cells = all_cells(study, part)
    finished = finished_cells(out, cells, Identities(study))
    sizes = {
        cell: len(read_json(out / cell.path, what="run record")["predictions"]) for cell in finished
    }

    def count(chosen: Sequence[Cell]) -> dict[str, Any]:
        found = [sizes[cell] for cell in chosen if cell in sizes]
        return {
            "cells": len(chosen),
            "complete": len(found),
            "questions": sum(found),
            "fewest_questions": min(found, default=0),
        }

    by_backbone = {
        entry.name: count([c for c in cells if c.backbone == entry.name])
        for entry in study.backbones
        if any(c.backbone == entry.name for c in cells)
    }
    return {**count(cells), "backbones": by_backbone}
