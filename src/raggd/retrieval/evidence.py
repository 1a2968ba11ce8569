"""Evidence for questions: the passages that every method is given, and how good they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raggd.data.answers import choose_answer, contains_answer, normalise_answer
from raggd.records import Demonstration, Passage, Question, RaggdError
from raggd.retrieval.base import Retriever

Evidence = tuple[Passage, ...]
"""The passages of one question, best first."""


def evidence_for(
    questions: Sequence[Question],
    retriever: Retriever,
    k: int,
    exclude: Sequence[Collection[str]] | None = None,
) -> list[Evidence]:
    """Return the evidence of each question: at most `k` passages, best first.

    It is empty where nothing matches. `exclude` holds, for each question, ids of passages that
    must not be used.
    """
    found = retriever.search([question.text for question in questions], k, exclude)
    return [tuple(hit.passage for hit in hits) for hits in found]


def is_answerable(question: Question, passages: Sequence[Passage]) -> bool:
    """Return whether an answer stands in the text of a passage (a title alone is no evidence)."""
    return any(contains_answer(passage.text, question.answers) for passage in passages)


def holds_answer(question: Question, passages: Sequence[Passage]) -> bool | None:
    """Return what `is_answerable` does; None for a question that is answered by yes or no."""
    if {normalise_answer(answer) for answer in question.answers} <= {"yes", "no"}:
        return None
    return is_answerable(question, passages)


def hit_rate(questions: Sequence[Question], evidence: Sequence[Sequence[Passage]]) -> float:
    """Return the share of the questions with an answer in one of their passages (title or text).

    Raises:
        RaggdError: there are no questions.
        ValueError: `evidence` is not as long as `questions`.
    """
    if not questions:
        raise RaggdError("cannot measure a hit rate without questions: give at least one.")
    if len(questions) != len(evidence):
        raise ValueError(f"{len(questions)} questions, but evidence for {len(evidence)}")
    held = sum(
        any(contains_answer(f"{p.title}\n{p.text}", question.answers) for p in passages)
        for question, passages in zip(questions, evidence, strict=True)
    )
    return held / len(questions)


def make_demonstrations(
    questions: Sequence[Question],
    retriever: Retriever,
    k: int,
    exclude: Sequence[Collection[str]] | None = None,
) -> list[Demonstration]:
    """Return a demonstration for each answered question, with at most `k` passages.

    Its answer is the alias that its passages hold.

    Raises:
        RaggdError: a question has no answer.
    """
    for question in questions:
        if not any(answer.strip() for answer in question.answers):
            raise RaggdError(
                f"question '{question.id}' ({question.text}) has no answer: a demonstration needs "
                "one. Add an answer or leave the question out."
            )
    evidence = evidence_for(questions, retriever, k, exclude)
    return [
        Demonstration(
            id=question.id,
            question=question.text,
            passages=passages,
            answer=choose_answer(question.answers, passages),
        )
        for question, passages in zip(questions, evidence, strict=True)
    ]
