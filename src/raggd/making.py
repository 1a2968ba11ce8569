"""`raggd demonstrations make`: questions and answers from one's own passages.

A drafted question must survive the round trip, as a user would ask it: its passage must be among
those that the retriever finds, and the backbone with its base adapter must answer it from them with
exactly the answer that stands there.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.answers import normalise_answer
from raggd.data.documents import read_passages
from raggd.data.drafts import Draft, drafts
from raggd.files import write_text
from raggd.methods.answering import answer_rows, render
from raggd.methods.base import Adapted
from raggd.progress import Progress, silent
from raggd.records import Passage, Question, RaggdError, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import Evidence, evidence_for

PASSAGES_PER_PROPOSAL = 200
"""Passages drafted from for one proposal, before the search is given up; most lend no sentence."""

Judge = Callable[[Draft], Draft | None]
"""Accepts a proposal, changes it, or refuses it (None)."""


class ReviewStoppedError(Exception):
    """The reviewer has seen enough: what was kept stays."""


@dataclass(slots=True)
class Yield:
    """How far the drafts came."""

    passages: int = 0
    drafts: int = 0
    retrieved: int = 0
    answered: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Maker:
    """What tries drafts: `k` passages per question, at most `limit` tokens per prompt."""

    backbone: Backbone
    base: BaseAdapter
    retriever: Retriever
    k: int
    limit: int
    max_tokens: int
    batch: int

    def retrieved(self, tried: Sequence[Draft]) -> list[tuple[Draft, Evidence]]:
        """Return the drafts whose passage the retriever finds, with all that it found."""
        asked = [Question(f"draft-{i}", d.question, (d.answer,)) for i, d in enumerate(tried)]
        found = evidence_for(asked, self.retriever, self.k)
        pairs = zip(tried, found, strict=True)
        return [(d, shown) for d, shown in pairs if d.passage.id in {p.id for p in shown}]

    def answered(self, tried: Sequence[tuple[Draft, Evidence]]) -> list[Draft]:
        """Return the drafts that the backbone answers right in one batch."""
        adapted = Adapted(self.base)
        sized = partial(render, self.backbone, adapted, limit=self.limit, reserve=self.max_tokens)
        prompts = [sized(draft.question, shown) for draft, shown in tried]
        rows = [adapted] * len(prompts)
        answers, _ = answer_rows(self.backbone, rows, prompts, self.max_tokens)
        return [
            draft
            for (draft, _), answer in zip(tried, answers, strict=True)
            if normalise_answer(answer) == normalise_answer(draft.answer)
        ]


def propose(
    maker: Maker, passages: Iterable[Passage], seed: int, counted: Yield
) -> Iterator[Draft]:
    """Yield drafts that survived the round trip, batch by batch, until the reader stops.

    At most one per passage, and no answer twice: three demonstrations with one answer would teach
    that answer. `seed` changes the sentences that are tried; `counted` counts on.
    """
    answers: set[str] = set()
    waiting: list[tuple[Draft, Evidence]] = []
    drafted = _drafted(passages, seed, counted)
    while group := list(islice(drafted, 4 * maker.batch)):
        found = maker.retrieved(group)
        counted.retrieved += len(found)
        waiting += [pair for pair in found if normalise_answer(pair[0].answer) not in answers]
        while len(waiting) >= maker.batch or (waiting and len(group) < 4 * maker.batch):
            part, waiting = waiting[: maker.batch], waiting[maker.batch :]
            kept = maker.answered(part)
            counted.answered += len(kept)
            for draft in kept:
                key = normalise_answer(draft.answer)
                if key not in answers:
                    answers.add(key)
                    counted.kept += 1
                    yield draft


def _drafted(passages: Iterable[Passage], seed: int, counted: Yield) -> Iterator[Draft]:
    for passage in passages:
        counted.passages += 1
        found = drafts(passage)
        counted.drafts += len(found)
        if found:
            yield min(found, key=lambda d: content_id(str(seed), d.question))


def maker_of(parts: Assembly, retriever: Retriever) -> Maker:
    """Return what tries drafts with loaded parts: settings, backbone, base adapter."""
    settings = parts.settings
    return Maker(
        backbone=parts.backbone,
        base=parts.base,
        retriever=retriever,
        k=settings.retrieval.top_k,
        limit=settings.backbone.context_tokens,
        max_tokens=settings.evaluation.max_answer_tokens,
        batch=settings.evaluation.batch,
    )


def choose_passages(passages: Iterable[Passage], most: int, seed: int) -> list[Passage]:
    """Return at most `most` passages of a stream, chosen by a hash of what they are."""
    return heapq.nsmallest(most, passages, key=lambda p: content_id(str(seed), p.id, p.text))


def as_line(proposal: Draft) -> dict[str, Any]:
    """Return a proposal as a line that ``--demonstrations`` reads, with what a reviewer needs."""
    return {
        "question": proposal.question,
        "answer": proposal.answer,
        "passage": asdict(proposal.passage),
    }


def edited(proposal: Draft, question: str, answer: str) -> Draft:
    """Return a proposal with a reviewer's words.

    Raises:
        RaggdError: one of them is empty.
    """
    if not question.strip() or not answer.strip():
        raise RaggdError("a demonstration needs a question and an answer: neither may be empty.")
    return replace(proposal, question=question.strip(), answer=answer.strip())


def _judged(found: Iterator[Draft], judge: Judge | None) -> Iterator[Draft]:
    for proposal in found:
        try:
            kept = judge(proposal) if judge else proposal
        except ReviewStoppedError:
            return
        if kept is not None:
            yield kept


def run_make(
    parts: Assembly,
    out: Path,
    count: int,
    seed: int,
    judge: Judge | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Propose demonstrations from the corpus and write those that are kept, after each one.

    A `judge` is a reviewer; without one all are kept that survived the round trip. What is returned
    is ``made``, ``out`` and ``yield``, the counts of `Yield`.

    Raises:
        RaggdError: no passage led to a demonstration.
    """
    most = PASSAGES_PER_PROPOSAL * count
    chosen = choose_passages(read_passages(parts.corpus), most, seed)
    counted = Yield()
    found = propose(maker_of(parts, parts.retriever), chosen, seed, counted)
    kept: list[Draft] = []
    for proposal in _judged(found, judge):
        kept.append(proposal)
        _write(out, kept)
        progress("demonstrations", len(kept), count)
        if len(kept) == count:
            break
    if not kept:
        raise RaggdError(
            f"none of {counted.passages} passages led to a demonstration that was kept "
            f"({counted.drafts} questions drafted, {counted.answered} answered right): write some "
            "by hand, or give a corpus with full sentences."
        )
    return {"made": len(kept), "out": str(out), "yield": asdict(counted)}


def _write(out: Path, kept: Sequence[Draft]) -> None:
    lines = (json.dumps(as_line(proposal), ensure_ascii=False) for proposal in kept)
    write_text(out, "".join(f"{line}\n" for line in lines))
