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
from raggd.study.plan import Cell, Identities, Pair, cell_size, draws_of
from raggd.study.settings import StudySettings

_PART = re.compile(r"^(?P<benchmark>.+)-(?P<draw>\d{3})-(?P<method>.+)\.json$")


def duration_text(seconds: float) -> str:
    """Return a duration in words.

    >>> [duration_text(value) for value in (8, 95, 4000, 90000)]
    ['8 s', '1 min 35 s', '1 h 6 min', '25 h 0 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
        """Return the seconds that waiting questions will take; None before any was measured.

        Of a method without a time it is the backbone's mean, else that of all.
        """
        if not self.spent:
            return None
        total = 0.0
        for pair, questions in waiting.items():
            near = [k for k in self.spent if k[0] == pair[0]] or list(self.spent)
            near = [pair] if pair in self.spent else near
            answered = sum(self.answered[k] for k in near)
            total += questions * sum(self.spent[k] for k in near) / answered
        return total


@dataclass
class Watch:
    """Counts what is done and tells the user, batch by batch."""

    show: Progress
    waiting: Counter[Pair]
    total: int = 0
    done: int = 0
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        self.total = self.waiting.total()

    def advance(self, label: str, questions: int) -> None:
        """Report questions that were answered or found answered."""
        self.done += questions
        left = self.speed.left(self.waiting)
        text = f"{label}, about {duration_text(left)} left" if left is not None else label
        self.show(text, self.done, self.total)

    def part_done(self, pair: Pair, questions: int, seconds: float | None) -> None:
        """File a finished part and the seconds that it took, where they are known."""
        self.waiting[pair] = max(0, self.waiting[pair] - questions)
        if seconds is not None:
            self.speed.add(pair, questions, seconds)


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


Own = Mapping[str, Callable[[Assembly], Method]]
"""Methods that are in no table, by name, and how each is made from the parts of a run."""
Turn = Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]
"""Does work that needs the model, when it is free."""


class Options(TypedDict, total=False):
    """What a run is given besides its study.

    `loaded` are parts of which runs keep what fits; `own` are further methods; `tasks` those that
    are in no data source, by the name of their benchmark; `turn` does what needs the model.
    """

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
    """Holds what units share: tasks by retriever, one backbone and its methods at a time.

    Attributes:
        failed: cells that could not be computed, with the reason.
    """

    def __init__(
        self, study: StudySettings, out: Path, progress: Progress, **options: Unpack[Options]
    ) -> None:
        """Load nothing yet."""
        self.study = study
        self.out = out
        self.identities = Identities(study)
        self.failed: dict[Cell, str] = {}
        self._progress = progress
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

    def expected(self, cells: Sequence[Cell]) -> Counter[Pair]:
        """Return the questions of cells by backbone and method, before tasks are built."""
        counts = Counter[Pair]()
        for cell in cells:
            parts, given = self.source(cell.retriever, cell.seed), self._given.get(cell.benchmark)
            size = given.size if given else cell_size(self.study, parts, cell.benchmark)
            counts[cell.pair] += size
        return counts

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
        """Compute cells, or their first `draws` alone; one that cannot be stops no other.

        Raises:
            RaggdError: there are cells that could not be computed: which, and why.
        """
        watch = Watch(self._progress, self.expected(cells))
        for unit in self.units(cells):
            if draws is None or unit.draw < draws:
                self.run_unit(unit, watch)
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

    def run_unit(self, unit: Unit, watch: Watch) -> None:
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
                part = self._turn(partial(run.part, draw, partial(watch.advance, label)))
                if draw == len(task.draws) - 1:
                    self._write_record(cell, run)
            except RaggdError as error:
                self.failed[cell] = str(error)
                del watch.waiting[cell.pair]  # some of its questions cannot be answered
                continue
            watch.part_done(cell.pair, len(task.draws[draw]), part.get("seconds"))

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
