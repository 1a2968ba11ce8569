"""From a benchmark to a task: which questions, with which evidence and which support sets."""

from __future__ import annotations

from collections.abc import Sequence

from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import (
    choose_by_hash,
    find_benchmark,
    find_file,
    scored_questions,
    support_pool,
)
from raggd.evaluation.runner import Item, Task
from raggd.records import Question, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for, make_demonstrations
from raggd.settings import EvaluationSettings


def support_sets(
    name: str, drawn: Sequence[Sequence[Question]], retriever: Retriever, k: int
) -> list[SupportSet]:
    """Return a support set of each draw's questions, with evidence found in one search."""
    flat = make_demonstrations([q for questions in drawn for q in questions], retriever, k)
    sets, at = [], 0
    for questions in drawn:
        sets.append(SupportSet(name, tuple(flat[at : at + len(questions)])))
        at += len(questions)
    return sets


def _deal(items: Sequence[Item], draws: int) -> tuple[tuple[Item, ...], ...]:
    return tuple(tuple(items[i] for i in range(d, len(items), draws)) for d in range(draws))


def _split(source: str, name: str) -> str:
    splits = find_benchmark(name, source).evaluation_splits
    return next((split for split in splits if find_file(source, name, split)), splits[0])


def build_task(
    name: str,
    source: str,
    retriever: Retriever,
    k: int,
    demonstrations: int,
    settings: EvaluationSettings,
) -> Task:
    """Choose questions, find their evidence, draw their supports. A pure function of its input.

    Args:
        name: the benchmark.
        source: ``hub`` or a folder in FlashRAG's layout.
        retriever: finds evidence for questions and demonstrations alike.
        k: passages per question.
        demonstrations: N, per support set.
        settings: number of questions, draws, seed, support per task or per query.

    Returns:
        The task.

    Raises:
        RaggdError: the benchmark has no questions to score or too small a support pool.
    """
    scored = scored_questions(source, name)
    wanted = 0 if name in settings.whole else settings.questions
    asked = choose_by_hash(scored, wanted or len(scored), settings.seed)
    if not asked:
        raise RaggdError(f"benchmark '{name}' has no questions to score in {source}.")
    per_query = settings.support == "query"
    draws = len(asked) if per_query else min(settings.draws, len(asked))
    pool = support_pool(source, name)
    drawn = draw_supports(pool, demonstrations, draws, settings.seed, purpose="evaluation")
    supports = support_sets(name, drawn, retriever, k)
    golds = make_demonstrations(asked, retriever, k)
    evidence = evidence_for(asked, retriever, k)
    items = [
        Item(question, passages, gold, supports[i % draws])
        for i, (question, passages, gold) in enumerate(zip(asked, evidence, golds, strict=True))
    ]
    dealt = (tuple(items),) if per_query else _deal(items, draws)
    return Task(name, _split(source, name), dealt, retriever.fingerprint)


def task_of(parts: Assembly, name: str) -> Task:
    """Return the task of one benchmark, from settings, data and retriever."""
    settings = parts.settings
    return build_task(
        name,
        parts.source,
        parts.retriever,
        settings.retrieval.top_k,
        settings.target.demonstrations,
        settings.evaluation,
    )
