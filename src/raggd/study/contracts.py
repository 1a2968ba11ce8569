"""`raggd evaluate --contracts`: do answers follow three examples, on one's own machine?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.benchmarks import choose_by_hash, scored_questions, training_questions
from raggd.data.contracts.families import contract_set
from raggd.data.prepared import Prepared, prepared_id, read_prepared, write_prepared
from raggd.evaluation.contracts import contract_lessons, contract_result, judge_method
from raggd.files import write_json
from raggd.methods.spec import METHODS
from raggd.progress import Progress
from raggd.provenance import origin
from raggd.records import known_names
from raggd.retrieval.evidence import prepare

POOL = 400
"""Scored questions of each source that lessons are drawn from."""
USUAL = ("examples", "base-template", "base-examples", "base", "rag-gd-tuned", "vanilla-examples")
"""Methods that are compared where nobody names some."""


def run_prepare(parts: Assembly, out: Path, split: str) -> dict[str, Any]:
    """Write the prepared file of the benchmarks that the settings name.

    Args:
        parts: gives questions and retriever.
        out: the file.
        split: ``train`` (``examples`` learns from it; benchmarks held out of training are left
            out) or ``test`` (scored questions).

    Returns:
        ``file``, ``bytes`` and, by benchmark, how many questions have an answer in their passages.
    """
    choose = training_questions if split == "train" else scored_questions
    rows: list[Prepared] = []
    for name in parts.settings.evaluation.benchmarks:
        parts.say(f"preparing {name}")
        rows += prepare(choose(parts.source, name), parts.retriever)
    write_prepared(out, rows)
    tasks = dict.fromkeys(row.task for row in rows)
    counts = {
        task: {
            "questions": sum(row.task == task for row in rows),
            "answerable": sum(row.task == task and bool(row.passages) for row in rows),
        }
        for task in tasks
    }
    return {"file": str(out), "bytes": out.stat().st_size, "benchmarks": counts}


def _questions(parts: Assembly, prepared: Path | None) -> list[Prepared]:
    if prepared is not None:
        return read_prepared(prepared)
    rows: list[Prepared] = []
    for name in parts.settings.evaluation.benchmarks:
        chosen = choose_by_hash(scored_questions(parts.source, name), POOL, 0)
        rows += prepare(chosen, parts.retriever)
    return rows


def run_contracts(
    parts: Assembly,
    sets: Sequence[str],
    methods: Sequence[str],
    count: int,
    out: Path,
    progress: Progress,
    prepared: Path | None = None,
    shown: int = 3,
) -> dict[str, Any]:
    """Answer questions under contracts with several methods, and judge the answers.

    Args:
        parts: settings, data, backbone, weights.
        sets: of `contract_set`.
        methods: the first is compared with the others.
        count: questions per contract and source.
        out: folder for ``contracts-<sets>.json``, the result with every answer.
        progress: told what is done.
        prepared: file of the questions; None takes scored questions of the benchmarks.
        shown: examples of each contract.
    """
    started = time.monotonic()
    names = known_names("method", methods, METHODS)
    contracts = [contract for name in sets for contract in contract_set(name)]
    rows = _questions(parts, prepared)
    seed = parts.settings.evaluation.seed
    lessons = contract_lessons(rows, contracts, count, seed, shown)
    judged = {
        name: judge_method(parts.backbone, parts.method(name), lessons, parts.settings, progress)
        for name in names
    }
    result = contract_result(judged) | {
        "sets": list(sets),
        "examples": shown,
        "sources": sorted({source for source, _ in lessons}),
        "questions": len(lessons),
        "seconds": round(time.monotonic() - started, 1),
    }
    answers = {
        name: [[a.contract, a.source, a.id, a.wanted, a.answer] for a in found]
        for name, found in judged.items()
    }
    record = {
        **result,
        **origin(),
        "settings": parts.settings.model_dump(),
        "hashes": {name: dict(parts.method(name).hashes) for name in names},
        "data": prepared_id(rows),
        "answers": answers,
    }
    write_json(out / f"contracts-{'-'.join(sets)}.json", record)
    return result
