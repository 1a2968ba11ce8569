"""From questions and a retriever to the prepared file that training reads."""

from __future__ import annotations

from collections.abc import Sequence

from raggd.data.answers import choose_answer, contains_answer
from raggd.data.prepared import Prepared
from raggd.records import Passage, Question
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for, holds_answer

DEPTH = 20
"""Passages looked at per question."""
PASSAGES = 3
NEAR = 2


def prepare(questions: Sequence[Question], retriever: Retriever) -> list[Prepared]:
    """Find for each question passages that hold an answer, and near ones that do not.

    Args:
        questions: with answers.
        retriever: finds the passages.

    Returns:
        One row per question, in order; one whose best passages hold no answer has no `passages`.
    """
    evidence = evidence_for(questions, retriever, DEPTH)
    return [_row(question, found) for question, found in zip(questions, evidence, strict=True)]


def _row(question: Question, found: tuple[Passage, ...]) -> Prepared:
    held = holds_answer(question, found)
    holders = [p for p in found if contains_answer(p.text, question.answers)]
    shown = list(found[:PASSAGES])
    if held is False:
        shown = []
    elif held and not any(p in holders for p in shown):
        shown[-1] = holders[0]
    others = (
        p for p in found if held is not None and not contains_answer(p.title, question.answers)
    )
    near = [p for p in others if p not in holders][:NEAR]
    return Prepared(
        id=question.id,
        task=question.task,
        question=question.text,
        answers=question.answers,
        gold=choose_answer(question.answers, shown),
        passages=tuple(shown),
        near=tuple(near),
    )
