"""A study's folder, and the one runner of its cells: tasks and methods stay while they are needed.

A folder has a lock, a plan, records, and a part file per draw and method, written whole
(`evaluation.runner`); a cell's record is written when all its draws are there. Nothing else is
state. What cannot be computed is refused before anything is. Whoever computes cells comes here:
`raggd study`, alone or for the workers of a cluster, `evaluate`, `demo`, `replay`.
"""

from __future__ import annotations

import fcntl
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from raggd.adaptation.base_adapter import load_base
from raggd.assembly import Assembly
from raggd.data.benchmarks import support_pool
from raggd.evaluation.flops import counted_costs
from raggd.evaluation.runner import CellRun, Task, task_of
from raggd.files import read_json, reason_of, tensor_header, write_json, write_text
from raggd.methods.base import Method
from raggd.methods.spec import BASE_FILE, FILES_OF, is_untrained, made_by
from raggd.progress import Progress
from raggd.provenance import utc_now, versions
from raggd.records import RaggdError, RunRecord
from raggd.report.grid import PLAN_FILE
from raggd.retrieval.evidence import holds_answer
from raggd.study.plan import Cell, Identities, StudySettings, all_cells, cell_size, draws_of

LOCK_FILE = "study.lock"
_QUESTIONS = {
    "data": ("folder", "corpus"),
    "retrieval": ("top_k",),
    "target": ("demonstrations",),
    "evaluation": ("questions", "whole", "draws", "support"),
}
"""What decides which questions are asked with which evidence; a folder holds one such choice."""


def check_folder(study: StudySettings, out: Path) -> None:
    """Refuse a folder that holds a study of other questions; names and seeds may be added."""
    path = out / PLAN_FILE
    if not path.exists():
        return
    known, settings = read_json(path, what="study plan"), study.model_dump()
    try:
        both = {
            f"{section}.{name}": (known["settings"][section][name], settings[section][name])
            for section, names in _QUESTIONS.items()
            for name in names
        }
    except (KeyError, TypeError) as error:
        raise RaggdError(f"{path} is not the plan of a study: choose another folder.") from error
    for name, (there, here) in both.items():
        if there != here:
            raise RaggdError(
                f"{out} holds another study: its {name} is {there!r}, this one's is {here!r}. "
                "Choose another folder by --out."
            )


def write_plan(study: StudySettings, out: Path) -> None:
    """Write ``study.json``: settings and cells. An equal plan is left as it is."""
    path = out / PLAN_FILE
    cells = [asdict(cell) | {"path": cell.path} for cell in all_cells(study)]
    plan = {"settings": study.model_dump(), "cells": cells}
    if path.exists():
        known = read_json(path, what="study plan")
        if all(known.get(name) == value for name, value in plan.items()):
            return
    write_json(path, plan | {"versions": versions(), "created": utc_now()})


def read_record(path: Path) -> RunRecord:
    """Read the run record in a file; anything else is refused."""
    try:
        return RunRecord.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RaggdError(f"cannot read the record {path}: {reason_of(error)}.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, for one writer; a second one is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise RaggdError(
            f"cannot write in {folder} ({error.strerror}): choose another folder by --out."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise RaggdError(
                f"another study is running in {folder} (process {stream.read().strip() or '?'}): "
                "wait for it, stop it, or choose another folder by --out."
            ) from error
        stream.truncate(0)
        with suppress(OSError):  # on a full disk nobody is told who holds it
            os.write(stream.fileno(), f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            own = {LOCK_FILE, PLAN_FILE}
            if {path.name for path in folder.iterdir()} <= own:  # a refused study leaves no trace
                for name in own:
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()


def weight_problems(folder: Path, method: str) -> Iterator[str]:
    """Say what is wrong with the weights of a method, a sentence each."""
    files, untrained = FILES_OF[method], is_untrained(folder)  # where W0 needs no file
    needed = [name for name in files if not (untrained and name == BASE_FILE)]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        made = [f"{name} (made by `{made_by(name)}`)" for name in missing]
        where = "for this backbone: none ships" if untrained else f"in {folder}"
        yield f"{method} needs {', '.join(made)} {where}"
    if missing or untrained:
        return
    made_for = {name: tensor_header(folder / name).get("base") for name in files}
    named = {name: base for name, base in made_for.items() if name != BASE_FILE and base}
    fingerprint = load_base(folder / BASE_FILE).fingerprint if named else ""
    for name, base in named.items():
        if base != fingerprint:
            yield (
                f"{method}: {folder / name} was trained for base adapter {base}, the one beside it "
                f"is {fingerprint}"
            )


def pool_size(parts: Assembly, benchmark: str) -> int:
    """Count the questions that support sets are drawn from; less than one set is refused."""
    size, needed = len(support_pool(parts.source, benchmark)), parts.settings.target.demonstrations
    if size < needed:
        raise RaggdError(
            f"the support pool of {benchmark} holds {size} questions, fewer than "
            f"target.demonstrations = {needed}: give it more, or leave the benchmark out."
        )
    return size


def check_cells(study: StudySettings, cells: Sequence[Cell], *, pools: bool = True) -> None:
    """Refuse cells that cannot be computed, before any is; `pools`: drawn from the source."""
    problems = list[str]()
    for backbone, method in dict.fromkeys(cell.pair for cell in cells):
        if FILES_OF.get(method):
            problems += weight_problems(Assembly(study.first(backbone)).weights, method)
    if problems:
        raise RaggdError(
            f"{'; '.join(problems)}. Train what is missing, name the right folder (adapter.weights;"
            " in a study [[backbones]] weights), or run the others alone, by --methods."
        )
    parts = Assembly(study.first())
    for name in dict.fromkeys(cell.benchmark for cell in cells if pools):
        try:
            pool_size(parts, name)
        except RaggdError as error:
            problems.append(str(error))
    if problems:
        raise RaggdError(" ".join(dict.fromkeys(problems)))


Turn = Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]  # waits until the model is free


def in_order(study: StudySettings, cells: Sequence[Cell]) -> list[tuple[int, Cell]]:
    """Return draws of cells, the first of all first: early parts are a small study of their own."""
    draws = draws_of(study, study.evaluation.draws)
    return [
        (draw, cell)
        for seed in study.seeds
        for draw in range(draws)
        for cell in cells
        if cell.seed == seed
    ]


class StudyRunner:
    """Runs a study; holds what cells share: tasks by retriever, one backbone and its methods.

    It may be given what is `loaded` already, methods of its `own` that are in no table with what
    makes them, `tasks` of no source, by benchmark, and a `turn`, which waits for the model.
    """

    def __init__(
        self,
        study: StudySettings,
        out: Path,
        progress: Progress,
        *,
        loaded: Assembly | None = None,
        own: Mapping[str, Callable[[Assembly], Method]] | None = None,
        tasks: Mapping[str, Task] | None = None,
        turn: Turn = operator.call,
    ) -> None:
        self.study = study
        self.out = out
        self.identities = Identities(study)
        self._progress = progress
        self._own = own or {}
        self._given = tasks or {}
        self._turn = turn
        self._tasks: dict[tuple[int, str, str], Task] = {}
        self._sources: dict[tuple[int, str], Assembly] = {}
        self._first = self._run = loaded or Assembly(study.first(), progress)
        self._methods: dict[str, Method] = {}

    def run(
        self,
        cells: Sequence[Cell] | None = None,
        *,
        first: Callable[[StudyRunner, list[Cell]], dict[str, Any]] | None = None,
        replace: bool = False,
        draws: int | None = None,
    ) -> dict[str, Any]:
        """Run what is not finished, of all cells or of some; those that fail are told at the end.

        `first` makes part files elsewhere (the workers of a cluster) and returns what to report;
        `replace` lets a study of other questions in the folder be replaced; `draws` are the first
        ones alone.
        """
        cells = all_cells(self.study) if cells is None else cells
        with locked(self.out):
            if not replace:
                check_folder(self.study, self.out)
            waiting = [cell for cell in cells if not self.identities.fits(self.out, cell)]
            check_cells(self.study, waiting, pools=not self._given)
            write_plan(self.study, self.out)
            told = first(self, waiting) if first else {}
            self.compute(waiting, draws)
        return {"cells": len(cells), "complete": len(cells), "now": len(waiting), **told}

    def _source(self, cell: Cell) -> Assembly:
        # parts that find evidence, made once for a retriever and a seed
        key = (cell.seed, cell.retriever)
        if key not in self._sources:
            backbone = self.study.backbones[0].name
            settings = self.study.run_settings(backbone, cell.retriever, cell.seed)
            self._sources[key] = self._first.derived(settings)
        return self._sources[key]

    def task(self, cell: Cell) -> Task:
        """Return questions, evidence and supports; the same for every backbone and method."""
        key = (cell.seed, cell.retriever, cell.benchmark)
        if cell.benchmark in self._given:
            return self._given[cell.benchmark]
        if key not in self._tasks:
            self._progress(f"evidence for {cell.benchmark} by {cell.retriever}", 0, None)
            self._tasks[key] = task_of(self._source(cell), cell.benchmark)
        return self._tasks[key]

    def cell_run(self, cell: Cell) -> CellRun:
        """Return the method of a cell on its task; part files lie in the study's folder.

        Backbone and methods stay loaded while they fit the next cell.
        """
        settings = self.study.run_settings(cell.backbone, cell.retriever, cell.seed)
        if self._run is self._first or self._run.settings != settings:
            self._methods = {}  # they hold the backbone, which goes before another one is loaded
            self._run = self._run.derived(settings)
        parts, name, folder = self._run, cell.method, self.out / cell.folder
        if name not in self._methods:
            make = self._own.get(name)
            self._methods[name] = make(parts) if make else parts.method(name)
        return CellRun(self.task(cell), self._methods[name], parts.backbone, settings, folder)

    def _size(self, cell: Cell) -> int:
        # before its task is built
        if cell.benchmark in self._given:
            return self._given[cell.benchmark].size
        return cell_size(self.study, self._source(cell), cell.benchmark)

    def compute(self, cells: Sequence[Cell], draws: int | None = None) -> None:
        """Compute cells, or their first `draws` alone; those that fail are named at the end."""
        failed: dict[Cell, str] = {}
        done, total = 0, sum(map(self._size, cells))

        def advance(label: str, questions: int) -> None:
            nonlocal done
            done += questions
            self._progress(label, done, total)

        for draw, cell in in_order(self.study, cells):
            last = len(self.task(cell).draws) - 1  # there may be fewer questions than draws
            if cell in failed or draw > last or (draws is not None and draw >= draws):
                continue
            label = f"{cell.backbone}, {cell.retriever}, {cell.benchmark}: {cell.method}"
            try:
                run = self.cell_run(cell)
                self._turn(partial(run.part, draw, partial(advance, label)))
                if draw == last:
                    self._write_record(cell, run)
            except RaggdError as error:
                failed[cell] = str(error)
        if failed:
            reasons: dict[str, list[str]] = {}
            for cell, reason in failed.items():
                reasons.setdefault(reason, []).append(cell.path.removesuffix(".json"))
            listed = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in reasons.items())
            raise RaggdError(
                f"{len(failed)} of {len(cells)} cells could not be computed, the others are there. "
                f"{listed}"
            )

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
