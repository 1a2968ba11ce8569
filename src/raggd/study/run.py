"""Running what is not finished of a study, and counting what is there of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.files import read_json
from raggd.progress import Progress
from raggd.records import RaggdError
from raggd.study.check import check_cells
from raggd.study.folder import check_folder, locked, write_plan
from raggd.study.plan import (
    Cell,
    Identities,
    Part,
    all_cells,
    cell_size,
    draws_of,
    finished_cells,
    unfinished_cells,
)
from raggd.study.progress import measured_speed
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings

First = Callable[[StudyRunner, list[Cell]], dict[str, Any]]
"""Makes part files elsewhere, before this process looks for them; returns what to report."""


def run_study(
    study: StudySettings,
    out: Path,
    part: Part,
    progress: Progress,
    *,
    loaded: Assembly | None = None,
    first: First | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Run what is not finished of a study. Cells that cannot be computed are reported at the end.

    Args:
        study: the settings.
        out: folder for part files and records.
        part: the piece to run now.
        progress: told what is running, questions done and in all.
        loaded: parts that are there already.
        first: makes part files elsewhere (the workers of a cluster).
        replace: whether a study of other questions in the folder is replaced, not refused.

    Returns:
        ``cells`` of the piece, how many are ``complete``, how many of them were made ``now``, and
        what `first` returned.
    """
    part.check(study)
    cells = all_cells(study, part)
    with locked(out):
        if not replace:
            check_folder(study, out)
        runner = StudyRunner(study, out, progress, loaded=loaded)
        waiting = unfinished_cells(out, cells, runner.identities)
        check_cells(study, waiting)
        write_plan(study, out)
        told = first(runner, waiting) if first else {}
        runner.run(waiting)
        runner.refuse_failures(len(waiting))
    return {"cells": len(cells), "complete": len(cells), "now": len(waiting), **told}


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


def _sizes(study: StudySettings, cells: Sequence[Cell]) -> dict[str, int]:
    found = {}
    for cell in cells:
        parts = Assembly(study.run_settings(cell.backbone, cell.retriever, cell.seed))
        if cell.benchmark not in found:
            try:
                found[cell.benchmark] = cell_size(study, parts, cell.benchmark)
            except RaggdError:  # the data are not here: as many draws as the settings say
                found[cell.benchmark] = max(study.evaluation.questions, study.evaluation.draws)
    return found


def _draws(study: StudySettings, out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    speed, sizes, waiting = measured_speed(out), _sizes(study, cells), dict[Any, int]()
    there, planned = 0, 0
    for cell in cells:
        size, folder = sizes[cell.benchmark], out / cell.folder / "parts"
        draws = draws_of(study, size)
        found = sum(1 for _ in folder.glob(f"{cell.benchmark}-???-{cell.method}.json"))
        there, planned = there + found, planned + draws
        key = (cell.backbone, cell.method)
        waiting[key] = waiting.get(key, 0) + max(0, size - size * found // draws)
    seconds = speed.left(waiting) if there < planned else 0.0
    hours = None if seconds is None else round(seconds / 3600, 2)
    return {"parts": there, "parts_planned": planned, "hours_left": hours}
