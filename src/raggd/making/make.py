"""`raggd demonstrations make`: questions and answers from one's own passages."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.documents import read_passages
from raggd.files import write_text
from raggd.making.drafts import Draft
from raggd.making.propose import Maker, Yield, propose
from raggd.progress import Progress, silent
from raggd.records import Passage, RaggdError, content_id
from raggd.retrieval.base import Retriever

PASSAGES_PER_PROPOSAL = 200
"""Passages drafted from for one proposal, before the search is given up; most lend no sentence."""

Judge = Callable[[Draft], Draft | None]
"""Accepts a proposal, changes it, or refuses it (None)."""


class ReviewStoppedError(Exception):
    """The reviewer has seen enough: what was kept stays."""


def maker_of(parts: Assembly, retriever: Retriever) -> Maker:
    """Make what proposes and tries from loaded parts.

    Args:
        parts: settings, backbone, base adapter.
        retriever: finds the passages.

    Returns:
        The maker.
    """
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
    """Choose passages pseudo-randomly by what they are, in one pass over any number of them.

    Args:
        passages: streamed.
        most: how many to keep.
        seed: another seed chooses others.

    Returns:
        At most `most` passages.
    """
    return heapq.nsmallest(most, passages, key=lambda p: content_id(str(seed), p.id, p.text))


def as_line(proposal: Draft) -> dict[str, Any]:
    """Return a proposal as a line that ``--demonstrations`` reads, with what a reviewer needs."""
    return {
        "question": proposal.question,
        "answer": proposal.answer,
        "passage": asdict(proposal.passage),
    }


def edited(proposal: Draft, question: str, answer: str) -> Draft:
    """Take a reviewer's words.

    Args:
        proposal: as shown.
        question: as corrected.
        answer: as corrected.

    Returns:
        The proposal with them.

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
    """Propose demonstrations from the corpus and write those that are kept.

    Args:
        parts: settings with the corpus; backbone, base adapter.
        out: JSON Lines file; written anew after each demonstration.
        count: demonstrations wanted.
        seed: chooses passages and answers.
        judge: a reviewer; None keeps all that survived the round trip.
        progress: told demonstrations kept and wanted.

    Returns:
        ``made``, ``out`` and ``yield``: passages, drafts, retrieved, answered, kept.

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
