"""Do answers follow the examples? Form, content and exact string, contract by contract.

Every method answers the same questions under the same contracts, with the same three examples.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raggd.assembly import Assembly
from raggd.data.benchmarks import choose_by_hash, scored_questions
from raggd.data.contracts.base import Asked, Contract, Lesson, Score, draw_lesson
from raggd.data.contracts.families import LETTER_CHANGES, REFUSING, SETS
from raggd.data.questions import Prepared, prepared_id, read_prepared
from raggd.evaluation.forms import PARTS, refusal_scores
from raggd.evaluation.runner import alike_batches
from raggd.evaluation.statistics import Sample
from raggd.files import write_json
from raggd.methods.answering import answer_rows, render
from raggd.methods.base import Method, refuse_control
from raggd.methods.spec import METHODS, can_run, is_untrained
from raggd.provenance import origin
from raggd.records import RaggdError, known_names
from raggd.retrieval.evidence import prepare

POOL = 400  # scored questions of each source that lessons are drawn from
USUAL = ("examples", "base-template", "base-examples", "base", "rag-gd-tuned", "vanilla-examples")
"""Methods that are compared where nobody names some, if their weights are there."""
LONGEST = 96  # tokens that an answer may have, whatever the method: a whole sentence fits


class Judged(NamedTuple):
    """One answer under a contract, to a question of a source."""

    source: str
    contract: Contract
    asked: Asked
    answer: str
    score: Score


def usual_methods(parts: Assembly) -> list[str]:
    """Return what is compared where nobody names methods; the first is what adapts by default."""
    if is_untrained(parts.weights):  # others would answer as these do
        return [parts.adapting, "vanilla-rag"]
    able = (name for name in USUAL if can_run(name, parts.weights))
    return list(dict.fromkeys([parts.adapting, *able]))


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
    prepared: Path | None = None,
    shown: int = 3,
) -> dict[str, Any]:
    """Answer `count` questions per contract and source with several methods, and judge the answers.

    The first method is compared with the others; questions are of a prepared file, else scored
    ones; `shown` examples stand for a contract. A record in the folder `out` has every answer.
    """
    started = time.monotonic()
    known = {**SETS, "refusals": REFUSING}
    chosen = known_names("set of contracts", sets, list(known))
    contracts = list(dict.fromkeys(contract for name in chosen for contract in known[name]))
    names = known_names("method", methods, METHODS)
    made = {name: parts.method(name) for name in names}
    for method in made.values():
        refuse_control(method)
    rows = _questions(parts, prepared)
    lessons = _lessons(rows, contracts, count, parts.settings.evaluation.seed, shown)
    judged = {name: _judge(parts, method, lessons) for name, method in made.items()}
    result = contract_result(judged) | {
        "sets": list(sets),
        "examples": shown,
        "sources": sorted({source for source, _ in lessons}),
        "questions": len(lessons),
        "seconds": round(time.monotonic() - started, 1),
    }
    answers = {
        name: [[a.contract.name, a.source, a.asked.id, a.asked.answer, a.answer] for a in found]
        for name, found in judged.items()
    }
    record = {
        **result,
        **origin(),
        "settings": parts.settings.model_dump(),
        "backbone": parts.backbone.fingerprint,
        "hashes": {name: dict(method.hashes) for name, method in made.items()},
        "data": prepared_id(rows),
        "answers": answers,
    }
    write_json(out / f"contracts-{'-'.join(sets)}.json", record)
    return result


def _lessons(
    rows: Sequence[Prepared], contracts: Sequence[Contract], count: int, seed: int, size: int
) -> list[tuple[str, Lesson]]:
    # Sources and lessons. Half of the questions under a contract with a refusal are to be refused,
    # and one of its examples is; questions without evidence are left out.
    pools: dict[str, list[Prepared]] = {}
    for row in rows:
        if row.passages:
            pools.setdefault(row.task, []).append(row)
    lessons = []
    for contract in contracts:
        for place, (source, pool) in enumerate(sorted(pools.items())):
            draw = random.Random(f"evaluate {seed} {contract.name} {source}")
            first = place if count % 2 else 0  # sources take turns
            for number in range(first, first + count):
                refuse = number % 2 == 0 if contract.refusal else None
                lesson = draw_lesson(contract, pool, draw, size=size, refusals=1, refuse=refuse)
                if lesson is None:
                    raise RaggdError(
                        f"'{source}' has too few questions for contract '{contract.name}': give "
                        "more questions, or another source."
                    )
                lessons.append((source, lesson))
    return lessons


def _judge(parts: Assembly, method: Method, lessons: Sequence[tuple[str, Lesson]]) -> list[Judged]:
    # in the order of the lessons, each adapted to its own examples
    backbone, limit = parts.backbone, parts.settings.backbone.context_tokens
    evidence = [lesson.asked.passages for _, lesson in lessons]
    judged: dict[int, Judged] = {}
    for batch in alike_batches(evidence, parts.settings.evaluation.batch):
        rows = [method.adapt([lessons[i][1].support])[0] for i in batch]
        asked = [lessons[i][1].asked for i in batch]
        prompts = [
            render(backbone, row, a.question, a.passages, limit=limit, reserve=LONGEST)
            for row, a in zip(rows, asked, strict=True)
        ]
        answers, _ = answer_rows(backbone, rows, prompts, LONGEST)
        for i, answer in zip(batch, answers, strict=True):
            source, lesson = lessons[i]
            score = lesson.contract.judge(answer, lesson.asked)
            judged[i] = Judged(source, lesson.contract, lesson.asked, answer, score)
        parts.progress(f"contracts, {method.name}", len(judged), len(lessons))
    return [judged[i] for i in range(len(lessons))]


def _means(answers: Sequence[Judged]) -> dict[str, float]:
    return {
        part: round(100 * float(np.mean([getattr(a.score, part) for a in answers])), 1)
        for part in PARTS
    }


def _sample(judged: Mapping[str, Sequence[Judged]], part: str) -> Sample:
    scores = 100 * np.array([[getattr(a.score, part) for a in own] for own in judged.values()]).T
    contracts = [a.contract.name for a in next(iter(judged.values()))]
    return Sample(list(judged), scores, contracts, macro=True)


def contract_result(judged: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """Summarise the answers of all methods to the same questions, in the same order.

    By contract; ``macro``, the mean over contracts, and its 95 % ``intervals``, also ``by_set``;
    ``letters`` and ``rest`` for contracts that change the answer's own letters, and the others;
    ``refusal``; ``differences`` (first method minus each other, in points).
    """
    first, *others = judged
    contracts: dict[str, dict[str, Any]] = {}
    for method, answers in judged.items():
        for name in dict.fromkeys(a.contract.name for a in answers):
            own = [a for a in answers if a.contract.name == name]
            contracts.setdefault(name, {})[method] = {**_means(own), "n": len(own)}

    def named(have: Callable[[Contract], object]) -> set[str]:
        return {a.contract.name for a in judged[first] if have(a.contract)}

    def kept(names: set[str]) -> dict[str, list[Judged]]:
        return {m: [a for a in v if a.contract.name in names] for m, v in judged.items()}

    def intervals(chosen: Mapping[str, Sequence[Judged]]) -> dict[str, dict[str, list[float]]]:
        found = {part: _sample(chosen, part).intervals() for part in PARTS}
        return {m: {part: own[m].limits(1) for part, own in found.items()} for m in chosen}

    whole = intervals(judged)
    result: dict[str, Any] = {
        "contracts": contracts,
        "macro": {m: {p: parts[p][0] for p in PARTS} for m, parts in whole.items()},
        "intervals": whole,
        "refusal": {
            m: refusal_scores([a.score.refused for a in asked], [a.score.wanted for a in asked])
            for m, asked in kept(named(lambda contract: contract.refusal)).items()
            if asked
        },
    }
    letters = named(lambda contract: contract.family in LETTER_CHANGES)
    for label, names in (("letters", letters), ("rest", set(contracts) - letters)):
        if all((chosen := kept(names)).values()):
            result[label] = {m: _means(v) for m, v in chosen.items()}
    for set_name, members in SETS.items():
        if all((chosen := kept({c.name for c in members})).values()):
            result.setdefault("by_set", {})[set_name] = intervals(chosen)
    pairs = [(first, other) for other in others]
    compared = {part: _sample(judged, part).differences(pairs) for part in PARTS}
    result["differences"] = {
        " - ".join(pair): {part: found[pair].limits(1) for part, found in compared.items()}
        for pair in pairs
    }
    return result
