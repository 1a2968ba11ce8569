"""Running what is not finished of a study, counting what is there, and repeating a record."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from raggd.assembly import Assembly
from raggd.backbone.identity import differences
from raggd.files import read_json
from raggd.progress import Progress
from raggd.records import RaggdError, RunRecord
from raggd.settings import Settings, changed
from raggd.study.folder import check_cells, check_folder, locked, read_record, write_plan
from raggd.study.plan import (
    Cell,
    Identities,
    Pair,
    Part,
    all_cells,
    cell_size,
    draws_of,
)
from raggd.study.runner import Options, StudyRunner, measured_speed
from raggd.study.settings import StudySettings, study_of

First = Callable[[StudyRunner, list[Cell]], dict[str, Any]]
"""Makes part files elsewhere, before this process looks for them; returns what to report."""


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

    `first` makes part files elsewhere (the workers of a cluster); `replace` lets a study of other
    questions in the folder be replaced. Result: ``cells`` of the piece, how many are ``complete``,
    how many of them were made ``now``, and what `first` returned.
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
    """Count what is there of a study, or of a piece of it, without loading a model.

    ``cells``, how many are ``complete``, the ``questions`` that their records answer, the same by
    backbone, and the ``parts`` (draws of a method) that are there, of ``parts_planned``: while a
    study runs, these grow first. ``hours_left`` comes from the times of those parts; None before
    there is one.
    """
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


_DECIDING = ("backbone", "data", "retrieval", "adapter", "target", "evaluation")
"""Sections that answers depend on; the others are of trainings and of the server."""
_REMOVED = {
    ("retrieval", "url"): "",
    ("retrieval", "index_path"): "",
    ("retrieval", "ivf_from"): 1_000_000,
}
"""Settings that older records hold, with the value at which they changed nothing."""


def _current(recorded: Mapping[str, Any]) -> dict[str, Any]:
    # settings of an older version: what is gone and changed nothing is left out
    fields = {name: Settings.model_fields[name].annotation for name in _DECIDING}
    return {
        section: {
            name: value
            for name, value in recorded.get(section, {}).items()
            if name in getattr(fields[section], "model_fields", {})
            or _REMOVED.get((section, name), value) != value
            or (section, name) not in _REMOVED
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
    """Compute a record anew from its settings and compare; `source` is its file, for messages.

    ``questions``, how many answers are the ``same``, the ``different`` ones with both answers, and
    the ``changed`` hashes (data, index, weights, prompt) that would explain them.
    """
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
