"""One unit of a study at a time: tasks, backbone and methods stay loaded while they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggd.assembly import Assembly
from raggd.assembly import Progress as Teller
from raggd.evaluation.flops import counted_costs
from raggd.evaluation.runner import Task, make_record, run_part
from raggd.evaluation.tasks import task_of
from raggd.files import write_text
from raggd.methods.base import Method
from raggd.records import Prediction, RaggdError
from raggd.retrieval.evidence import holds_answer
from raggd.settings import Settings
from raggd.study.plan import Cell, Identities
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
        self.failed: dict[Cell, str] = {}

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
            self._progress.say(f"evidence for {benchmark} by {retriever}")
            self._tasks[key] = task_of(source, benchmark)
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
        last = unit.draw == len(task.draws) - 1
        for cell in unit.cells:
            if cell in self.failed:
                continue
            label = f"{unit.backbone}, {unit.retriever}, {unit.benchmark}: {cell.method}"
            try:
                part = self._part(cell, unit.draw, task, parts, watch, label)
                if last:
                    self.write_record(cell, task, parts)
            except RaggdError as error:  # one cell that cannot be computed does not stop the rest
                self.failed[cell] = str(error)
                watch.dropped(unit.backbone, cell.method)
                continue
            questions = len(task.draws[unit.draw])
            watch.part_done(unit.backbone, cell.method, questions, part.get("seconds"))

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
            predictions=with_evidence(record.predictions, task),
            cost={**record.cost, **counted},
            hashes={**record.hashes, "cell": self.identities.of(cell)},
        )
        write_text(self.out / cell.path, record.to_json() + "\n")


def with_evidence(predictions: Sequence[Prediction], task: Task) -> tuple[Prediction, ...]:
    """Note with each answer whether the evidence of its question holds one.

    Args:
        predictions: of the task's questions.
        task: gives their evidence.

    Returns:
        The predictions with `answerable` set; None for questions answered by yes or no.
    """
    items = {item.question.id: item for draw in task.draws for item in draw}
    held = {name: holds_answer(item.question, item.passages) for name, item in items.items()}
    return tuple(replace(p, answerable=held[p.question_id]) for p in predictions)
