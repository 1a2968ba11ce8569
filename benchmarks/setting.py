"""What all benches measure on: the same backbone, support sets and questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from raggd.adaptation.targets import draw_supports
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import (
    choose_by_hash,
    known_benchmarks,
    scored_questions,
    support_pool,
)
from raggd.data.prompts import Prompt
from raggd.evaluation.runner import support_sets
from raggd.methods.answering import render
from raggd.methods.base import Adapted, Method
from raggd.records import Passage, Question, SupportSet
from raggd.retrieval.evidence import evidence_for

LARGEST = 16
"""Rows of the largest batch."""


@dataclass(frozen=True)
class BenchSetting:
    """Loaded parts and real material of the first benchmark of the settings."""

    parts: Assembly
    rounds: int  # how often everything cheap is timed
    say: Callable[[str], None]  # told what is being measured

    @property
    def few(self) -> int:
        """How often what takes a minute is timed."""
        return max(1, (self.rounds + 1) // 2)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.parts.backbone

    @property
    def base(self) -> BaseAdapter:
        """W0."""
        return self.parts.base

    @property
    def limit(self) -> int:
        """Most tokens per demonstration."""
        return self.parts.settings.target.max_tokens

    @cached_property
    def benchmark(self) -> str:
        """The benchmark whose questions are used."""
        return known_benchmarks(self.parts.settings.evaluation.benchmarks)[0]

    @cached_property
    def rag_gd(self) -> Method:
        """The predicted method."""
        return self.parts.method("rag-gd")

    @cached_property
    def supports(self) -> list[SupportSet]:
        """A support set for each row of the largest batch."""
        settings = self.parts.settings
        pool = support_pool(self.parts.source, self.benchmark)
        size, seed = settings.target.demonstrations, settings.evaluation.seed
        drawn = draw_supports(pool, size, LARGEST, seed)
        top = settings.retrieval.top_k
        return support_sets(self.benchmark, drawn, self.parts.retriever, top)

    @cached_property
    def questions(self) -> list[tuple[Question, tuple[Passage, ...]]]:
        """A question with its evidence for each row; a small benchmark's are repeated."""
        settings = self.parts.settings
        scored = scored_questions(self.parts.source, self.benchmark)
        asked = choose_by_hash(scored, min(LARGEST, len(scored)), settings.evaluation.seed)
        evidence = evidence_for(asked, self.parts.retriever, settings.retrieval.top_k)
        pairs = list(zip(asked, map(tuple, evidence), strict=True))
        return [pairs[i % len(pairs)] for i in range(LARGEST)]

    def prompts(self, rows: Sequence[Adapted], reserve: int) -> list[Prompt]:
        """Render the first questions, one for each row, with `reserve` tokens for the answers."""
        limit = self.parts.settings.backbone.context_tokens
        return [
            render(self.backbone, row, asked.text, passages, limit=limit, reserve=reserve)
            for row, (asked, passages) in zip(rows, self.questions, strict=False)
        ]
