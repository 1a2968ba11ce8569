"""Do answers follow the examples? Form, content and exact string, contract by contract.

Every method answers the same questions under the same contracts, with the same three examples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raggd.backbone.load import Backbone
from raggd.data.contracts.base import Contract, Score
from raggd.data.contracts.families import LETTER_CHANGES, SETS
from raggd.data.contracts.lessons import Lesson, draw_lesson
from raggd.data.prepared import Prepared
from raggd.evaluation.statistics import bootstrap_interval, paired_bootstrap
from raggd.methods.answering import answer_rows, render
from raggd.methods.base import Method
from raggd.progress import Progress
from raggd.records import RaggdError
from raggd.settings import Settings

PARTS = ("form", "content", "exact")
EXAMPLES = 3
LONGEST = 96
"""Tokens that an answer may have, whatever the method: a whole sentence fits."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer under a contract.

    Attributes:
        id: of the question.
        wanted: the answer as wanted.
        answer: as written.
        refusable: whether the contract has a refusal.
        refuse: whether the refusal is wanted.
    """

    method: str
    contract: str
    family: str
    source: str
    id: str
    wanted: str
    answer: str
    score: Score
    refusable: bool
    refuse: bool


def contract_lessons(
    rows: Sequence[Prepared],
    contracts: Sequence[Contract],
    count: int,
    seed: int = 0,
    size: int = EXAMPLES,
) -> list[tuple[str, Lesson]]:
    """Draw what is asked: for every contract and source as many questions.

    Half of the questions under a contract with a refusal are to be refused, and one of its
    examples is.

    Args:
        rows: answered questions with evidence; those without are left out.
        contracts: what the answers are to be.
        count: questions per contract and source.
        seed: of the draws.
        size: examples of each.

    Raises:
        RaggdError: a source has no questions that a contract applies to.
    """
    pools: dict[str, list[Prepared]] = {}
    for row in rows:
        if row.passages:
            pools.setdefault(row.task, []).append(row)
    lessons = []
    for contract in contracts:
        for source, pool in sorted(pools.items()):
            draw = random.Random(f"evaluate {seed} {contract.name} {source}")
            for number in range(count):
                refuse = number % 2 == 0 if contract.refusal else None
                lesson = draw_lesson(contract, pool, draw, size=size, refusals=1, refuse=refuse)
                if lesson is None:
                    raise RaggdError(
                        f"'{source}' has too few questions for contract '{contract.name}': give "
                        "more questions, or another source."
                    )
                lessons.append((source, lesson))
    return lessons


def judge_method(
    backbone: Backbone,
    method: Method,
    lessons: Sequence[tuple[str, Lesson]],
    settings: Settings,
    progress: Progress,
) -> list[Judged]:
    """Answer every question with one method, adapted to its own examples; answers in order."""
    size, limit = settings.evaluation.batch, settings.backbone.context_tokens
    lengths = [sum(len(p.text) for p in lesson.asked.passages) for _, lesson in lessons]
    order = sorted(range(len(lessons)), key=lengths.__getitem__)
    judged: dict[int, Judged] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        part = [lessons[i] for i in batch]
        rows = [method.adapt([lesson.support])[0] for _, lesson in part]
        prompts = [
            render(
                backbone,
                row,
                lesson.asked.question,
                lesson.asked.passages,
                limit=limit,
                reserve=LONGEST,
            )
            for row, (_, lesson) in zip(rows, part, strict=True)
        ]
        answers, _ = answer_rows(backbone, rows, prompts, LONGEST)
        for i, (source, lesson), answer in zip(batch, part, answers, strict=True):
            judged[i] = _judged(method.name, source, lesson, answer)
        progress(f"contracts, {method.name}", len(judged), len(lessons))
    return [judged[i] for i in range(len(lessons))]


def _judged(method: str, source: str, lesson: Lesson, answer: str) -> Judged:
    contract, asked = lesson.contract, lesson.asked
    return Judged(
        method=method,
        contract=contract.name,
        family=contract.family,
        source=source,
        id=asked.id,
        wanted=asked.answer,
        answer=answer,
        score=contract.judge(answer, asked),
        refusable=bool(contract.refusal),
        refuse=asked.refused,
    )


def _means(answers: Sequence[Judged]) -> dict[str, float]:
    return {
        part: round(100 * float(np.mean([getattr(a.score, part) for a in answers])), 1)
        for part in PARTS
    }


def _interval(answers: Sequence[Judged], part: str) -> list[float]:
    values = [100 * getattr(a.score, part) for a in answers]
    interval = bootstrap_interval(values, groups=[a.contract for a in answers], macro=True)
    return [round(interval.mean, 1), round(interval.low, 1), round(interval.high, 1)]


def refusal_scores(refused: Sequence[bool], wanted: Sequence[bool]) -> dict[str, float]:
    """Score refusing as a decision: precision, recall, F1, and refusals of what was answerable.

    Returns percentages by name; ``wrongly`` is the share of answerable questions that were refused.
    """
    right = sum(a and b for a, b in zip(refused, wanted, strict=True))
    answerable = len(wanted) - sum(wanted)
    precision, recall = right / max(1, sum(refused)), right / max(1, sum(wanted))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    wrongly = (sum(refused) - right) / max(1, answerable)
    names = ("precision", "recall", "f1", "wrongly")
    shares = (precision, recall, f1, wrongly)
    return {name: round(100 * share, 1) for name, share in zip(names, shares, strict=True)}


def contract_result(judged: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """Summarise the answers of all methods to the same questions.

    Args:
        judged: answers by method, in the same order; the first method is compared with the rest.

    Returns:
        ``contracts`` (by name and method: form, content, exact in percent, n), ``macro`` (the mean
        over contracts with its 95 % interval), ``letters`` and ``rest`` (the same for contracts
        that change the answer's own letters, and the others), ``by_set`` (the same for known,
        new and unseen contracts), ``refusal`` and ``differences`` (first method minus each other,
        in points).
    """
    names = list(judged)
    contracts: dict[str, dict[str, Any]] = {}
    for method, answers in judged.items():
        for name in dict.fromkeys(a.contract for a in answers):
            own = [a for a in answers if a.contract == name]
            contracts.setdefault(name, {})[method] = {**_means(own), "n": len(own)}
    result: dict[str, Any] = {
        "contracts": contracts,
        "macro": {m: {p: _interval(a, p) for p in PARTS} for m, a in judged.items()},
        "refusal": {m: _refusal(a) for m, a in judged.items() if _refusable(a)},
    }
    for label, letters in (("letters", True), ("rest", False)):
        kept = {
            m: [a for a in v if (a.family in LETTER_CHANGES) == letters] for m, v in judged.items()
        }
        if all(kept.values()):
            result[label] = {m: _means(v) for m, v in kept.items()}
    for set_name, members in SETS.items():
        own_names = {c.name for c in members}
        kept = {m: [a for a in v if a.contract in own_names] for m, v in judged.items()}
        if all(kept.values()):
            result.setdefault("by_set", {})[set_name] = {
                m: {p: _interval(v, p) for p in PARTS} for m, v in kept.items()
            }
    result["differences"] = {
        f"{names[0]} - {other}": _difference(judged[names[0]], judged[other]) for other in names[1:]
    }
    return result


def _refusal(answers: Sequence[Judged]) -> dict[str, float]:
    asked = [a for a in answers if a.refusable]
    return refusal_scores([a.score.refused for a in asked], [a.refuse for a in asked])


def _refusable(answers: Sequence[Judged]) -> bool:
    return any(a.refusable for a in answers)


def _difference(first: Sequence[Judged], second: Sequence[Judged]) -> dict[str, list[float]]:
    found = {}
    for part in PARTS:
        difference = paired_bootstrap(
            [100 * getattr(a.score, part) for a in first],
            [100 * getattr(a.score, part) for a in second],
            groups=[a.contract for a in first],
            macro=True,
        )
        found[part] = [round(x, 1) for x in (difference.mean, difference.low, difference.high)]
    return found
