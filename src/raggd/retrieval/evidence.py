"""Evidence for questions: what every method is given, if wanted with noise; how good it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import floor

from raggd.data.answers import choose_answer, contains_answer, normalise_answer
from raggd.data.questions import OWN_TASK, Prepared
from raggd.records import Demonstration, Hit, Passage, Question, RaggdError, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.terms import bare_terms, keys_apart, term_keys, tokenize

Evidence = tuple[Passage, ...]  # the passages of one question, best first


def evidence_for(questions: Sequence[Question], retriever: Retriever, k: int) -> list[Evidence]:
    """Return the evidence of each question: at most `k` passages, best first (or none)."""
    found = retriever.search([question.text for question in questions], k)
    return [tuple(hit.passage for hit in hits) for hits in found]


def is_answerable(question: Question, passages: Sequence[Passage]) -> bool:
    """Return whether an answer stands in the text of a passage (a title alone is no evidence)."""
    return any(contains_answer(passage.text, question.answers) for passage in passages)


def holds_answer(question: Question, passages: Sequence[Passage]) -> bool | None:
    """Return what `is_answerable` does; None for a question that is answered by yes or no."""
    if {normalise_answer(answer) for answer in question.answers} <= {"yes", "no"}:
        return None
    return is_answerable(question, passages)


WINDOW, STEP = 25, 8  # words of a passage that stand close together; between two beginnings


def coverage(question: str, passages: Sequence[Passage]) -> float:
    """Return the largest share of a question's terms that stand close together in a passage.

    >>> coverage("the repair of pumps", [Passage("a", "Ann repairs the pump.", "Guide")])
    1.0
    """
    asked = {keys[0]: set(keys) for keys in map(_spelt, tokenize(question))}
    for joined, *parts in keys_apart(question):
        for part in asked.keys() & parts:
            asked[part].add(joined)
    held = [0]
    for passage in passages:
        words = f"{passage.title} {passage.text}".split()
        spelt = [{*chain(*map(_spelt, tokenize(w))), *(k[0] for k in keys_apart(w))} for w in words]
        for start in range(0, max(1, len(words) - WINDOW + STEP), STEP):
            near = set[int]().union(*spelt[start : start + WINDOW])
            held.append(sum(not keys.isdisjoint(near) for keys in asked.values()))
    return max(held) / max(1, len(asked))


@lru_cache(maxsize=20_000)
def _spelt(term: str) -> list[int]:
    # Its key, and those of what else it is written as.
    return list(map(int, term_keys([term, *bare_terms(term)])))


def demonstrations_of(
    questions: Sequence[Question], evidence: Sequence[Evidence]
) -> list[Demonstration]:
    """Return demonstrations, each with the alias that its passages hold; refuse unanswered ones."""
    return [
        Demonstration(q.id, q.text, passages, _shown_answer(q, passages))
        for q, passages in zip(questions, evidence, strict=True)
    ]


def _shown_answer(question: Question, passages: Sequence[Passage]) -> str:
    written = [answer.strip() for answer in question.answers if answer.strip()]
    if not written:
        raise RaggdError(
            f"question '{question.id}' ({question.text}) has no answer: a demonstration needs "
            "one. Add an answer or leave the question out."
        )
    if question.task == OWN_TASK:  # whoever writes several begins with the way to write it
        return written[0]
    return choose_answer(question.answers, passages)


def make_demonstrations(
    questions: Sequence[Question], retriever: Retriever, k: int
) -> list[Demonstration]:
    """Return a demonstration for each answered question, with at most `k` passages."""
    return demonstrations_of(questions, evidence_for(questions, retriever, k))


PREPARED_FROM, PREPARED, NEAR = 20, 3, 2
"""Passages of a prepared question: looked at, given, and near ones without an answer."""


def prepare(questions: Sequence[Question], retriever: Retriever) -> list[Prepared]:
    """Find for each answered question passages with an answer, if any, and near ones without."""
    prepared = []
    evidence = evidence_for(questions, retriever, PREPARED_FROM)
    for question, found in zip(questions, evidence, strict=True):
        answers, held = question.answers, holds_answer(question, found)
        holders = [p for p in found if contains_answer(p.text, answers)]
        shown = [] if held is False else list(found[:PREPARED])
        if held and not any(p in holders for p in shown):
            shown[-1] = holders[0]
        others = [p for p in found if p not in holders]
        near = [] if held is None else [p for p in others if not contains_answer(p.title, answers)]
        row = Prepared(
            id=question.id,
            task=question.task,
            question=question.text,
            answers=answers,
            gold=choose_answer(answers, shown),
            passages=tuple(shown),
            near=tuple(near[:NEAR]),
        )
        prepared.append(row)
    return prepared


def _number(*parts: str) -> int:
    return int(content_id(*parts, length=12), 16)


@dataclass(frozen=True, slots=True)
class NoisyRetriever:
    """A retriever some of whose hits are random passages; the same ones for every method.

    Which places and which passages is a hash of the query, so equal queries get equal noise. A
    share (0 to 1) that does not divide k is met on average: half of three passages is one or two.
    `at` gives the passage of a row number, of which there are `size`.
    """

    retriever: Retriever
    share: float
    at: Callable[[int], Passage]
    size: int

    @property
    def fingerprint(self) -> str:
        """Hash of the retriever and the share."""
        return content_id(self.retriever.fingerprint, "noise", repr(self.share))

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return hits, the share replaced while there are others; scores stay with their places."""
        found = self.retriever.search(queries, k)
        return [self._disturbed(q, hits) for q, hits in zip(queries, found, strict=True)]

    def _disturbed(self, query: str, hits: list[Hit]) -> list[Hit]:
        chance = _number("rounding", query) / 16**12
        count = floor(self.share * len(hits) + chance)
        places = sorted(range(len(hits)), key=lambda i: _number("place", str(i), query))[:count]
        taken = {hit.passage.id for hit in hits}
        result = list(hits)
        for place in places:
            rows = (_number("row", str(i), f"{query}\n{place}") for i in range(8 * self.size))
            others = (self.at(row % self.size) for row in rows)
            stranger = next((passage for passage in others if passage.id not in taken), None)
            if stranger is not None:
                taken.add(stranger.id)
                result[place] = Hit(stranger, hits[place].score)
        return result
