"""A study's folder, running what is not finished in it, counting, and repeating a record.

A folder has a lock, a plan and records; what cannot be computed is refused before anything is.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from raggd.assembly import Assembly
from raggd.backbone.load import differences
from raggd.data.benchmarks import support_pool
from raggd.files import read_json, reason_of, tensor_header, write_json
from raggd.methods.spec import BASE_FILE, FILES_OF, made_by
from raggd.progress import Progress
from raggd.provenance import utc_now, versions
from raggd.records import RaggdError, RunRecord
from raggd.report.grid import PLAN_FILE
from raggd.settings import Settings, changed
from raggd.study.plan import (
    Cell,
    Identities,
    Pair,
    Part,
    StudySettings,
    all_cells,
    cell_size,
    draws_of,
    study_of,
)
from raggd.study.runner import Options, StudyRunner, measured_speed

LOCK_FILE = "study.lock"
_QUESTIONS = {
    "data": ("folder", "corpus"),
    "retrieval": ("top_k",),
    "target": ("demonstrations",),
    "evaluation": ("questions", "whole", "draws", "support"),
}
"""What decides which questions are asked with which evidence; a folder holds one such choice."""


def weight_problems(folder: Path, method: str) -> Iterator[str]:
    """Say what is wrong with the weights of a method, a sentence each."""
    from raggd.adaptation.base_adapter import load_base

    files = FILES_OF[method]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        made = [f"{name} (made by `{made_by(name)}`)" for name in missing]
        yield f"{method} needs {', '.join(made)} in {folder}"
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
            f"target.demonstrations = {needed}."
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
            f"{'; '.join(problems)}. Train what is missing, name the right folder "
            "(adapter.weights; in a study [[backbones]] weights), or run the rest by --methods and "
            "--backbones."
        )
    parts = Assembly(study.first())
    for name in dict.fromkeys(cell.benchmark for cell in cells if pools):
        try:
            pool_size(parts, name)
        except RaggdError as error:
            problems.append(str(error))
    if problems:
        raise RaggdError(f"{' '.join(problems)} Add questions, or run the rest by --benchmarks.")


def _choice(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": settings[section][name]
        for section, names in _QUESTIONS.items()
        for name in names
    }


def check_folder(study: StudySettings, out: Path) -> None:
    """Refuse a folder that holds a study of other questions; names and seeds may be added."""
    path = out / PLAN_FILE
    if not path.exists():
        return
    known = read_json(path, what="study plan")
    try:
        there = _choice(known["settings"])
    except (KeyError, TypeError) as error:
        raise RaggdError(f"{path} is not the plan of a study: choose another folder.") from error
    for name, value in _choice(study.model_dump()).items():
        if there[name] != value:
            raise RaggdError(
                f"{out} holds another study: its {name} is {there[name]!r}, this one's is "
                f"{value!r}. Choose another folder by --out."
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
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        try:
            yield
        finally:
            own = {LOCK_FILE, PLAN_FILE}
            if {path.name for path in folder.iterdir()} <= own:  # a refused study leaves no trace
                for name in own:
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()


# Running what is not finished, counting, repeating.

First = Callable[[StudyRunner, list[Cell]], dict[str, Any]]  # makes part files elsewhere, first


def run_study(
    study: StudySettings,
    out: Path,
    part: Part,
    progress: Progress,
    *,
    first: First | None = None,
    replace: bool = False,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Run what is not finished of a study. Cells that cannot be computed are reported at the end.

    `first` makes part files elsewhere (the workers of a cluster) and returns what to report;
    `replace` lets a study of other questions in the folder be replaced.
    """
    part.check(study)
    cells = all_cells(study, part)
    with locked(out):
        if not replace:
            check_folder(study, out)
        runner = StudyRunner(study, out, progress, **options)
        waiting = [cell for cell in cells if not runner.identities.fits(out, cell)]
        check_cells(study, waiting, pools="tasks" not in options)
        write_plan(study, out)
        told = first(runner, waiting) if first else {}
        runner.run(waiting)
    return {"cells": len(cells), "complete": len(cells), "now": len(waiting), **told}


def status_of(study: StudySettings, out: Path, part: Part) -> dict[str, Any]:
    """Count cells, answers and parts that are there, and the hours left; no model is loaded."""
    part.check(study)
    cells, identities = all_cells(study, part), Identities(study)
    answered = {
        cell: len(read_json(out / cell.path, what="run record")["predictions"])
        for cell in cells
        if identities.fits(out, cell)
    }

    def count(chosen: Sequence[Cell]) -> dict[str, Any]:
        found = [answered[cell] for cell in chosen if cell in answered]
        return {"cells": len(chosen), "complete": len(found), "questions": sum(found)}

    parts, sizes = Assembly(study.first()), dict[str, int]()
    for name in dict.fromkeys(cell.benchmark for cell in cells):
        try:
            sizes[name] = cell_size(study, parts, name)
        except RaggdError:  # the data are not here: as many draws as the settings say
            sizes[name] = max(study.evaluation.questions, study.evaluation.draws)
    there, planned, waiting = 0, 0, Counter[Pair]()
    for cell in cells:
        size, folder = sizes[cell.benchmark], out / cell.folder / "parts"
        draws = draws_of(study, size)
        found = sum(1 for _ in folder.glob(f"{cell.benchmark}-???-{cell.method}.json"))
        there, planned = there + found, planned + draws
        waiting[cell.pair] += max(0, size - size * found // draws)
    seconds = measured_speed(out).left(waiting) if there < planned else 0.0
    names = dict.fromkeys(cell.backbone for cell in cells)
    return {
        **count(cells),
        "parts": there,
        "parts_planned": planned,
        "hours_left": None if seconds is None else round(seconds / 3600, 2),
        "backbones": {name: count([c for c in cells if c.backbone == name]) for name in names},
    }


# sections that answers depend on; the others are of trainings and of the server
_DECIDING = ("backbone", "data", "retrieval", "adapter", "target", "evaluation")
# settings that older records hold, with the value at which they changed nothing
_REMOVED = {
    ("retrieval", "url"): "",
    ("retrieval", "index_path"): "",
    ("retrieval", "ivf_from"): 1_000_000,
}


def _current(recorded: Mapping[str, Any]) -> dict[str, Any]:
    # settings of an older version: what is gone and changed nothing is left out
    return {
        section: {
            name: value
            for name, value in recorded.get(section, {}).items()
            if ((section, name), value) not in _REMOVED.items()
        }
        for section in _DECIDING
    }


def _study_of(record: RunRecord, source: Path) -> StudySettings:
    try:
        settings = Settings.model_validate(_current(record.settings))
    except ValidationError as error:
        raise RaggdError(
            f"the settings in {source} are not those of this version of raggd "
            f"({error.errors()[0]['msg']}): use the version that the record names."
        ) from error
    only = changed(settings, "evaluation", benchmarks=[record.benchmark])
    return study_of(only, [record.method])


def replay(record: RunRecord, source: Path, progress: Progress) -> dict[str, Any]:
    """Compute a record, of the file `source`, anew from its settings and compare answers."""
    study = _study_of(record, source)
    with tempfile.TemporaryDirectory() as scratch:
        run_study(study, Path(scratch), Part(), progress)
        again = read_record(Path(scratch) / all_cells(study)[0].path)
    now = {p.question_id: p.answer for p in again.predictions}
    different = [
        {"question": p.question_id, "record": p.answer, "now": now.get(p.question_id)}
        for p in record.predictions
        if now.get(p.question_id) != p.answer
    ]
    hashes = {
        name: (then, again.hashes[name])
        for name, then in sorted(record.hashes.items())
        if name in again.hashes and name != "cell"
    }
    return {
        "record": str(source),
        "questions": len(record.predictions),
        "same": len(record.predictions) - len(different),
        "different": different,
        "changed": [
            f"{name}: {then} in the record, {here} now"
            for name, (then, here) in hashes.items()
            # older records name the backbone's weights alone
            if (differences(then, here) if name == "backbone" else then != here)
        ],
    }
