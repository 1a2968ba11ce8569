"""The folder of a study: settings beside records; another study or writer is refused."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.files import read_json, write_json
from raggd.provenance import utc_now, versions
from raggd.records import RaggdError, RunRecord
from raggd.study.plan import all_cells
from raggd.study.settings import StudySettings

PLAN_FILE = "study.json"
LOCK_FILE = "study.lock"
_QUESTIONS = {
    "data": ("folder", "corpus"),
    "retrieval": ("top_k",),
    "target": ("demonstrations",),
    "evaluation": ("questions", "whole", "draws", "support"),
}
"""What decides which questions are asked with which evidence; a folder holds one such choice."""


def _choice(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": settings[section][name]
        for section, names in _QUESTIONS.items()
        for name in names
    }


def check_folder(study: StudySettings, out: Path) -> None:
    """Refuse a folder that holds a study of other questions.

    Backbones, retrievers, methods, benchmarks and seeds may be added to a study.

    Args:
        study: about to run.
        out: its folder.

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
    plan = {
        "settings": study.model_dump(),
        "cells": [asdict(cell) | {"path": cell.path} for cell in all_cells(study)],
    }
    if path.exists():
        known = read_json(path, what="study plan")
        if all(known.get(name) == value for name, value in plan.items()):
            return
    write_json(path, plan | {"versions": versions(), "created": utc_now()})


def read_record(path: Path) -> RunRecord:
    """Read the run record in a file.

    Args:
        path: the file.

    Returns:
        The record.

    Raises:
        RaggdError: it cannot be read, or is none.
    """
    try:
        return RunRecord.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise RaggdError(f"cannot read the record {path}: {error.strerror}.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one writer.

    The lock belongs to the open file, not to its existence: after a crash nothing is left to clean
    up.

    Args:
        folder: made if it is not there.

    Yields:
        Nothing.

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
            _leave_nothing_but_work(folder)


def _leave_nothing_but_work(folder: Path) -> None:
    # a study that was refused leaves no trace
    if {path.name for path in folder.iterdir()} <= {LOCK_FILE, PLAN_FILE}:
        for name in (LOCK_FILE, PLAN_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
