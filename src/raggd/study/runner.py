"""The one runner of cells: tasks, backbone and methods stay loaded while they are needed.

Whoever computes cells calls it: `raggd study`, alone or for the workers of a cluster, `evaluate`,
`demo`, `replay`. A part file per draw and method is written whole (`evaluation.runner`); a cell's
record is written when all its draws are there. Nothing else is state.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from raggd.assembly import Assembly
from raggd.evaluation.flops import counted_costs
from raggd.evaluation.runner import CellRun, Task, task_of
from raggd.files import read_json, write_text
from raggd.methods.base import Method
from raggd.progress import Progress
from raggd.records import RaggdError
from raggd.retrieval.evidence import holds_answer
from raggd.study.plan import Cell, Identities, Pair, StudySettings, cell_size, draws_of

_PART = re.compile(r"^(?P<benchmark>.+)-(?P<draw>\d{3})-(?P<method>.+)\.json$")


@dataclass
class Speed:
    """Seconds and questions of the parts that were answered, by backbone and method."""

    spent: dict[Pair, float] = field(default_factory=dict)
    answered: Counter[Pair] = field(default_factory=Counter)

    def add(self, pair: Pair, questions: int, seconds: float) -> None:
        """File what a part took, adaptation and loss included."""
        self.spent[pair] = self.spent.get(pair, 0.0) + seconds
        self.answered[pair] += questions

    def left(self, waiting: Mapping[Pair, int]) -> float | None:
        """Estimate the seconds of waiting questions, by method or backbone; None if unmeasured."""
        if not self.spent:
            return None
        total = 0.0
        for pair, questions in waiting.items():
            near = [k for k in self.spent if k[0] == pair[0]] or list(self.spent)
            near = [pair] if pair in self.spent else near
            answered = sum(self.answered[k] for k in near)
            total += questions * sum(self.spent[k] for k in near) / answered
        return total


def measured_speed(out: Path) -> Speed:
    """Return what the questions of a study took, from the part files in its folder."""
    speed = Speed()
    for path in sorted(out.glob("*/*/seed-*/parts/*.json")):
        found = _PART.match(path.name)
        part = read_json(path, what="part file") if found else {}
        if found and part.get("seconds") is not None:
            backbone = path.relative_to(out).parts[0]
            speed.add((backbone, found["method"]), len(part["predictions"]), part["seconds"])
    return speed


Own = Mapping[str, Callable[[Assembly], Method]]  # methods of no table, and how each is made
Turn = Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]  # waits until the model is free


class Options(TypedDict, total=False):
    """What a run is given besides its study: loaded parts, further methods, tasks of no source."""

    loaded: Assembly
    own: Own
    tasks: Mapping[str, Task]
    turn: Turn


@dataclass(frozen=True, slots=True)
class Unit:
    """What is done in one go: one draw, answered by the methods of one run and benchmark."""

    draw: int
    cells: tuple[Cell, ...]


class StudyRunner:
    """Holds what units share: tasks by retriever, one backbone and its methods at a time."""

    def __init__(
        self, study: StudySettings, out: Path, progress: Progress, **options: Unpack[Options]
    ) -> None:
        self.study = study
        self.out = out
        self.identities = Identities(study)
        self.failed: dict[Cell, str] = {}  # cells that could not be computed, with the reason
        self._progress = progress
        self._done = self._total = 0  # questions, of which the user is told
        self._own = options.get("own", {})
        self._given = options.get("tasks", {})
        self._turn: Turn = options.get("turn", operator.call)
        self._tasks: dict[tuple[int, str, str], Task] = {}
        self._sources: dict[tuple[int, str], Assembly] = {}
        self._first = options.get("loaded") or Assembly(study.first(), progress)
        self._run = self._first
        self._methods: dict[str, Method] = {}

    def source(self, retriever: str, seed: int) -> Assembly:
        """Return parts that find evidence, made once for a retriever and a seed."""
        if (seed, retriever) not in self._sources:
            settings = self.study.run_settings(self.study.backbones[0].name, retriever, seed)
            self._sources[seed, retriever] = self._first.derived(settings)
        return self._sources[seed, retriever]

    def task(self, seed: int, retriever: str, benchmark: str) -> Task:
        """Return questions, evidence and supports; the same for every backbone and method."""
        key = (seed, retriever, benchmark)
        if benchmark in self._given:
            return self._given[benchmark]
        if key not in self._tasks:
            self._progress(f"evidence for {benchmark} by {retriever}", 0, None)
            self._tasks[key] = task_of(self.source(retriever, seed), benchmark)
        return self._tasks[key]

    def parts_of(self, backbone: str, retriever: str, seed: int) -> Assembly:
        """Return the parts of a run; what is loaded stays while it fits the next run."""
        settings = self.study.run_settings(backbone, retriever, seed)
        if self._run is self._first or self._run.settings != settings:
            self._methods = {}  # they hold the backbone, which goes before another one is loaded
            self._run = self._run.derived(settings)
        return self._run

    def method(self, parts: Assembly, name: str) -> Method:
        """Return a method of the run that is loaded, made once."""
        if name not in self._methods:
            make = self._own.get(name)
            self._methods[name] = make(parts) if make else parts.method(name)
        return self._methods[name]

    def _size(self, cell: Cell) -> int:
        # before its task is built
        if cell.benchmark in self._given:
            return self._given[cell.benchmark].size
        return cell_size(self.study, self.source(cell.retriever, cell.seed), cell.benchmark)

    def units(self, cells: Sequence[Cell]) -> list[Unit]:
        """Return the work, draws first: early parts are a small study of their own."""
        runs: dict[tuple[int, str, str], list[Cell]] = {}
        for cell in cells:
            runs.setdefault((cell.seed, cell.folder, cell.benchmark), []).append(cell)
        return [
            Unit(draw, tuple(together))
            for wanted in self.study.seeds
            for draw in range(draws_of(self.study, self.study.evaluation.draws))
            for (seed, *_), together in runs.items()
            if seed == wanted
        ]

    def run(self, cells: Sequence[Cell], draws: int | None = None) -> None:
        """Compute cells, or their first `draws` alone; those that fail are named at the end."""
        self._done, self._total = 0, sum(map(self._size, cells))
        for unit in self.units(cells):
            if draws is None or unit.draw < draws:
                self.run_unit(unit)
        if not self.failed:
            return
        reasons: dict[str, list[str]] = {}
        for cell, reason in self.failed.items():
            reasons.setdefault(reason, []).append(cell.path.removesuffix(".json"))
        listed = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in reasons.items())
        raise RaggdError(
            f"{len(self.failed)} of {len(cells)} cells could not be computed, the others are "
            f"there. {listed}"
        )

    def run_unit(self, unit: Unit) -> None:
        """Answer one draw with every method of the unit; finished cells get their record."""
        first, draw = unit.cells[0], unit.draw
        task = self.task(first.seed, first.retriever, first.benchmark)
        if draw >= len(task.draws):  # fewer questions than draws
            return
        parts = self.parts_of(first.backbone, first.retriever, first.seed)
        for cell in unit.cells:
            if cell in self.failed:
                continue
            label = f"{cell.backbone}, {cell.retriever}, {cell.benchmark}: {cell.method}"
            try:
                run = self.cell_run(cell, task, parts)
                self._turn(partial(run.part, draw, partial(self._advance, label)))
                if draw == len(task.draws) - 1:
                    self._write_record(cell, run)
            except RaggdError as error:
                self.failed[cell] = str(error)

    def _advance(self, label: str, questions: int) -> None:
        self._done += questions
        self._progress(label, self._done, self._total)

    def cell_run(self, cell: Cell, task: Task, parts: Assembly) -> CellRun:
        """Return the method of a cell on its task; part files lie in the study's folder."""
        method, folder = self.method(parts, cell.method), self.out / cell.folder
        return CellRun(task, method, parts.backbone, parts.settings, folder)

    def _write_record(self, cell: Cell, run: CellRun) -> None:
        # a part that is missing or no longer fits is computed here
        found = [self._turn(partial(run.part, draw)) for draw in range(len(run.task.draws))]
        record = run.record(found)
        answers = {p.question_id: p.answer for p in record.predictions}
        counted = self._turn(partial(counted_costs, answers, run))
        own = {} if cell.benchmark in self._given else {"cell": self.identities.of(cell)}
        held = {i.question.id: holds_answer(i.question, i.passages) for i in run.task.items}
        noted = (replace(p, answerable=held[p.question_id]) for p in record.predictions)
        cost, hashes = {**record.cost, **counted}, {**record.hashes, **own}
        record = replace(record, predictions=tuple(noted), cost=cost, hashes=hashes)
        write_text(self.out / cell.path, record.to_json() + "\n")
