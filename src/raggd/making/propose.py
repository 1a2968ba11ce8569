"""Proposals: an answer from a passage, a question for it, and the round trip that it must survive.

The round trip asks the question as a user would: its passage must be among those that the retriever
finds, and the backbone with its base adapter must answer from them with that answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.answers import normalise_answer
from raggd.data.benchmarks import choose_by_hash
from raggd.making.clauses import clause_questions
from raggd.making.questions import STARTS, finished, is_grounded, question_prompt
from raggd.making.spans import Span, answer_spans
from raggd.methods.answering import answer_rows, render, shared_opening
from raggd.methods.base import Adapted
from raggd.records import Passage, Question
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for

Wording = Literal["model", "clause"]
_QUESTION_TOKENS = 28
_SPANS = 2
"""Answers tried per passage: more from one passage would make demonstrations alike."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question with its answer, not yet tried."""

    passage: Passage
    span: Span
    question: str
    wording: Wording


@dataclass(frozen=True, slots=True)
class Proposal:
    """A question with its answer that survived the round trip.

    Attributes:
        question: in the backbone's words or the passage's.
        answer: as it stands in the passage.
        passage: that holds it.
        wording: ``model`` or ``clause``.
        loss: of the answer after the question and the passages found, nats per token.
    """

    question: str
    answer: str
    passage: Passage
    wording: Wording
    loss: float


@dataclass(slots=True)
class Yield:
    """How far the drafts came."""

    passages: int = 0
    spans: int = 0
    drafts: int = 0
    grounded: int = 0
    retrieved: int = 0
    answered: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Maker:
    """What proposes and tries.

    Attributes:
        backbone: writes questions, and answers them with the base adapter.
        base: the shared interface.
        retriever: finds the passages.
        k: passages per question.
        limit: most tokens per prompt.
        max_tokens: most tokens per answer.
        batch: prompts per batch.
    """

    backbone: Backbone
    base: BaseAdapter
    retriever: Retriever
    k: int
    limit: int
    max_tokens: int
    batch: int

    def written(self, pairs: Sequence[tuple[Passage, Span]]) -> list[Draft]:
        """Let the backbone write questions.

        Args:
            pairs: passages with answers.

        Returns:
            One draft per answer and first word.
        """
        bare = Adapted()
        jobs = [(p, s, start) for p, s in pairs for start in STARTS[s.kind]]
        prompts = [question_prompt(self.backbone.tokenizer, *job) for job in jobs]
        drafts: list[Draft] = []
        for at in range(0, len(jobs), self.batch):
            part = prompts[at : at + self.batch]
            opening = shared_opening(self.backbone, bare, part)
            texts, _ = answer_rows(
                self.backbone, [bare] * len(part), part, _QUESTION_TOKENS, opening=opening
            )
            drafts += [
                Draft(p, s, finished(start, text), "model")
                for (p, s, start), text in zip(jobs[at:], texts, strict=False)
            ]
        return drafts

    def survivors(self, drafts: Sequence[Draft], counted: Yield) -> list[Proposal]:
        """Send drafts on the round trip.

        Args:
            drafts: in any order.
            counted: counts drafts, and those that are grounded, retrieved and answered.

        Returns:
            Those that come back with their answer.
        """
        counted.drafts += len(drafts)
        drafts = [d for d in drafts if is_grounded(d.question, d.passage, d.span)]
        counted.grounded += len(drafts)
        asked = [Question(f"draft-{i}", d.question, (d.span.text,)) for i, d in enumerate(drafts)]
        evidence = evidence_for(asked, self.retriever, self.k)
        tried = [
            (draft, shown)
            for draft, shown in zip(drafts, evidence, strict=True)
            if draft.passage.id in {p.id for p in shown}
        ]
        counted.retrieved += len(tried)
        adapted = Adapted(self.base)
        found: list[Proposal] = []
        for at in range(0, len(tried), self.batch):
            part = tried[at : at + self.batch]
            prompts = [
                render(
                    self.backbone,
                    adapted,
                    draft.question,
                    shown,
                    limit=self.limit,
                    reserve=self.max_tokens,
                )
                for draft, shown in part
            ]
            golds = [draft.span.text for draft, _ in part]
            rows = [adapted] * len(part)
            answers, losses = answer_rows(
                self.backbone, rows, prompts, self.max_tokens, golds=golds
            )
            assert losses is not None
            for (draft, _), answer, loss in zip(part, answers, losses.tolist(), strict=True):
                if normalise_answer(answer) == normalise_answer(draft.span.text):
                    text, wording = draft.question, draft.wording
                    found.append(Proposal(text, draft.span.text, draft.passage, wording, loss))
        counted.answered += len(found)
        return found


def best_per_passage(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Keep one proposal per passage: the one whose answer the model is surest of.

    Args:
        proposals: survivors.

    Returns:
        The best of each passage, in the order of the passages.
    """
    best: dict[str, Proposal] = {}
    for proposal in proposals:
        held = best.get(proposal.passage.id)
        if held is None or proposal.loss < held.loss:
            best[proposal.passage.id] = proposal
    return list(best.values())


def propose(
    maker: Maker, passages: Sequence[Passage], seed: int, counted: Yield, group: int = 8
) -> Iterator[Proposal]:
    """Propose questions with answers, passage group by passage group, until the reader stops.

    Args:
        maker: writes and tries.
        passages: in the order in which they are tried.
        seed: changes the answers that are tried.
        counted: counts on.
        group: passages per round.

    Yields:
        Proposals that survived the round trip, at most one per passage.
    """
    answers: set[str] = set()
    for at in range(0, len(passages), group):
        for proposal in best_per_passage(_round(maker, passages[at : at + group], seed, counted)):
            key = normalise_answer(proposal.answer)
            if key not in answers:  # three demonstrations with one answer would teach that answer
                answers.add(key)
                counted.kept += 1
                yield proposal


def _round(maker: Maker, passages: Sequence[Passage], seed: int, counted: Yield) -> list[Proposal]:
    # The backbone is slow at writing questions and bad at it: it words anew what has survived in
    # the passage's words, and tries where those lend themselves to no question.
    pairs = [
        (p, s)
        for p in passages
        for s in choose_by_hash(answer_spans(p), _SPANS, seed, key=lambda span: span.text)
    ]
    counted.passages += len(passages)
    counted.spans += len(pairs)
    drafts = [Draft(p, s, q, "clause") for p, s in pairs for q in clause_questions(p, s)]
    kept = maker.survivors(drafts, counted)
    stuck = {(d.passage.id, d.span.text) for d in drafts} - {(k.passage.id, k.answer) for k in kept}
    again = [(p, s) for p, s in pairs if (p.id, s.text) not in stuck]
    return kept + maker.survivors(maker.written(again), counted)
