"""A cell again from its record alone: the same answers, question by question."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raggd.backbone.identity import differences
from raggd.progress import Progress
from raggd.records import RaggdError, RunRecord
from raggd.settings import Settings
from raggd.study.check import check_cells
from raggd.study.folder import read_record
from raggd.study.plan import all_cells
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings, study_of

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
    only = settings.evaluation.model_copy(update={"benchmarks": [record.benchmark]})
    return study_of(settings.model_copy(update={"evaluation": only}), [record.method])


def _agree(name: str, recorded: str, now: str) -> bool:
    # older records name the backbone's weights alone
    return not differences(recorded, now) if name == "backbone" else recorded == now


def replay(record: RunRecord, source: Path, progress: Progress) -> dict[str, Any]:
    """Compute a record anew from its settings and compare.

    Args:
        record: to be repeated.
        source: its file, for messages.
        progress: told about it.

    Returns:
        ``questions``, how many answers are the ``same``, the ``different`` ones with both answers,
        and the ``changed`` hashes (data, index, weights, prompt) that would explain them.
    """
    study = _study_of(record, source)
    cells = all_cells(study)
    check_cells(study, cells)
    with tempfile.TemporaryDirectory() as scratch:
        runner = StudyRunner(study, Path(scratch), progress)
        runner.run(cells)
        runner.refuse_failures(len(cells))
        again = read_record(Path(scratch) / cells[0].path)
    now = {p.question_id: p.answer for p in again.predictions}
    different = [
        {"question": p.question_id, "record": p.answer, "now": now.get(p.question_id)}
        for p in record.predictions
        if now.get(p.question_id) != p.answer
    ]
    names = sorted((set(record.hashes) & set(again.hashes)) - {"cell"})
    return {
        "record": str(source),
        "questions": len(record.predictions),
        "same": len(record.predictions) - len(different),
        "different": different,
        "changed": [
            f"{name}: {record.hashes[name]} in the record, {again.hashes[name]} now"
            for name in names
            if not _agree(name, record.hashes[name], again.hashes[name])
        ],
    }
