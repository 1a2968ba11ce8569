"""Running a study: draw by draw, all methods of a draw before the next one, resumable anywhere.

A part file per draw and method is written whole (`evaluation.runner`); a cell's record is written
when all its draws are there. Nothing else is state, so a study that was killed continues with the
part that it was in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.files import read_json
from raggd.records import RaggdError
from raggd.study.check import check_cells
from raggd.study.folder import check_folder, write_plan
from raggd.study.lock import locked
from raggd.study.plan import Cell, Identities, Part, all_cells, finished_cells, unfinished_cells
from raggd.study.progress import Watch, measured_speed
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings


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
    """Run what is not finished of a study. Cells that cannot be computed are reported at the end.

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
        waiting = unfinished_cells(out, cells, runner.identities)
        check_cells(study, waiting)
        write_plan(study, out)
        if waiting:
            expected = _expected(runner, waiting)
            watch = Watch(progress, sum(expected.values()), expected)
            for unit in runner.units(waiting):
                runner.run_unit(unit, watch)
        _report_failures(runner, len(waiting))
    return {"cells": len(cells), "complete": len(cells), "now": len(waiting)}


def _report_failures(runner: StudyRunner, tried: int) -> None:
    if not runner.failed:
        return
    reasons: dict[str, list[str]] = {}
    for cell, reason in runner.failed.items():
        reasons.setdefault(reason, []).append(cell.path.removesuffix(".json"))
    listed = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in reasons.items())
    raise RaggdError(
        f"{len(runner.failed)} of {tried} cells could not be computed, the others are there. "
        f"{listed}"
    )


def status_of(study: StudySettings, out: Path, part: Part) -> dict[str, Any]:
    """Count what is there of a study, without loading a model.

    Args:
        study: the settings.
        out: its folder.
        part: the piece to count.

    Returns:
        ``cells``, how many are ``complete``, the ``questions`` that their records answer, the
        fewest of a complete cell, the same by backbone, and the ``parts`` (draws of a method) that
        are there, of ``parts_planned``: while a study runs, these grow first. ``hours_left`` comes
        from the times of those parts; None before there is one.
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
    return {**count(cells), **_draws(study, out, cells), "backbones": by_backbone}


def _draws(study: StudySettings, out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    per_cell = 1 if study.evaluation.support == "query" else study.evaluation.draws
    speed, seconds = measured_speed(out), 0.0
    there, planned = 0, 0
    for cell in cells:
        folder = out / cell.folder / "parts"
        found = sum(1 for _ in folder.glob(f"{cell.benchmark}-???-{cell.method}.json"))
        there, planned = there + found, planned + per_cell
        missing = per_cell - found
        seconds += missing * (speed.per_part(cell.backbone, cell.method) or 0.0)
    hours = round(seconds / 3600, 2) if speed.parts or there == planned else None
    return {"parts": there, "parts_planned": planned, "hours_left": hours}
