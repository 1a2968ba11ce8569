"""A study's folder: its lock, plan and records, and what is refused before anything is computed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.benchmarks import support_pool
from raggd.files import read_json, tensor_header, write_json
from raggd.methods.spec import BASE_FILE, FILES_OF, made_by
from raggd.provenance import utc_now, versions
from raggd.records import RaggdError, RunRecord
from raggd.report.grid import PLAN_FILE
from raggd.study.plan import Cell, all_cells
from raggd.study.settings import StudySettings

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
    """Count the questions that support sets of a benchmark are drawn from.

    Raises:
        RaggdError: there is no support pool, or it is smaller than a support set.
    """
    size, needed = len(support_pool(parts.source, benchmark)), parts.settings.target.demonstrations
    if size < needed:
        raise RaggdError(
            f"the support pool of {benchmark} holds {size} questions, fewer than "
            f"target.demonstrations = {needed}."
        )
    return size


def check_cells(study: StudySettings, cells: Sequence[Cell], *, pools: bool = True) -> None:
    """Refuse cells that cannot be computed, before any of them is.

    `pools` says whether their support sets are drawn from the data source.

    Raises:
        RaggdError: weights are missing or were trained for another base, or a support pool is
            missing or too small; all of a kind are named at once.
    """
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
    """Refuse a folder that holds a study of other questions.

    Backbones, retrievers, methods, benchmarks and seeds may be added to a study.

    Raises:
        RaggdError: the folder's study asks other questions, or its plan cannot be read.
    """
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
    """Read the run record in a file.

    Raises:
        RaggdError: it cannot be read, or is none.
    """
    try:
        return RunRecord.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RaggdError(f"cannot read the record {path}: {error}.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, for one writer.

    The lock belongs to the open file, not to its existence: after a crash nothing is left to clean
    up.

    Raises:
        RaggdError: another process holds it, or the folder cannot be written.
    """
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
