"""A cell again from its record alone: the same answers, question by question."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raggd.assembly import Assembly
from raggd.assembly import Progress as Teller
from raggd.evaluation.runner import make_record, run_part
from raggd.evaluation.tasks import task_of
from raggd.records import RaggdError, RunRecord
from raggd.settings import Settings


def _settings_of(record: RunRecord, source: Path) -> Settings:
    try:
        return Settings.model_validate(record.settings)
    except ValidationError as error:
        raise RaggdError(
            f"the settings in {source} are not those of this version of raggd "
            f"({error.errors()[0]['msg']}): use the version that the record names."
        ) from error


def _changed_hashes(record: RunRecord, again: RunRecord) -> list[str]:
    names = sorted(set(record.hashes) & set(again.hashes))
    return [
        f"{name}: {record.hashes[name]} in the record, {again.hashes[name]} now"
        for name in names
        if record.hashes[name] != again.hashes[name]
    ]


def replay(record: RunRecord, source: Path, progress: Teller) -> dict[str, Any]:
    """Compute a record anew from its settings and compare.

    Args:
        record: to be repeated.
        source: its file, for messages.
        progress: told about it.

    Returns:
        ``questions``, how many answers are the ``same``, the ``different`` ones with both answers,
        and the ``changed`` hashes (data, index, weights, prompt) that would explain them.
    """
    settings = _settings_of(record, source)
    parts = Assembly(settings, progress)
    task = task_of(parts, record.benchmark)
    method = parts.method(record.method)
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(f"{record.benchmark}: {record.method}", done, task.size)

    with tempfile.TemporaryDirectory() as scratch:
        found = [
            run_part(task, draw, method, parts.backbone, settings, Path(scratch), tell)
            for draw in range(len(task.draws))
        ]
    again = make_record(found, task, method, parts.backbone, settings)
    now = {p.question_id: p.answer for p in again.predictions}
    different = [
        {"question": p.question_id, "record": p.answer, "now": now.get(p.question_id)}
        for p in record.predictions
        if now.get(p.question_id) != p.answer
    ]
    return {
        "record": str(source),
        "questions": len(record.predictions),
        "same": len(record.predictions) - len(different),
        "different": different,
        "changed": _changed_hashes(record, again),
    }
