"""What a stage of a training works with: parts, folders, questions with their evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from raggd.adaptation.targets import TargetStore, answered_prompt, draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import (
    HELD_OUT,
    known_benchmarks,
    scored_questions,
    support_pool,
    training_questions,
)
from raggd.data.prompts import Prompt
from raggd.data.questions import Prepared, PreparedRetriever, read_prepared, write_prepared
from raggd.evaluation.runner import support_sets
from raggd.records import Question, RaggdError
from raggd.retrieval import evidence
from raggd.retrieval.base import Retriever
from raggd.settings import Settings


@dataclass(frozen=True)
class Run:
    """A training under way."""

    parts: Assembly
    out: Path  # folder of the weights
    stores: tuple[Path, ...] = ()  # folders of targets
    # targets of the support pools instead, for controls: held-out tasks may be among them
    pool: bool = False

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self.parts.settings

    @cached_property
    def _prepared(self) -> PreparedRetriever | None:
        path = self.settings.data.prepared
        return PreparedRetriever(Path(path)) if path else None

    @property
    def retriever(self) -> Retriever:
        """What finds the evidence: the prepared file, where one is named."""
        return self._prepared or self.parts.retriever

    def noisy(self, noise: float) -> Retriever:
        """Return the retriever with some share of random passages, 0 to 1."""
        known = self._prepared
        if known is None:
            return self.parts.retriever_with(noise)
        return evidence.NoisyRetriever(
            known, noise, known.passages.__getitem__, len(known.passages)
        )

    def questions(self, name: str) -> list[Question]:
        """Return a task's training questions; those of its support pool, if `pool` is set."""
        if self._prepared is None:
            return (support_pool if self.pool else training_questions)(self.parts.source, name)
        if self.pool or name in HELD_OUT:
            raise RaggdError(f"a prepared file holds training questions, none of '{name}''s pool.")
        return self._prepared.questions(name)

    def rows(self) -> list[Prepared]:
        """Return the training questions with passages that hold an answer, and near ones."""
        own = self.settings
        if own.data.prepared:
            return read_prepared(Path(own.data.prepared))
        names = known_benchmarks([*own.base_training.benchmarks, *own.target.benchmarks])
        prepared = (evidence.prepare(self.questions(n), self.parts.retriever) for n in names)
        return list(chain.from_iterable(prepared))

    def answerable(
        self, name: str, told: Callable[[Question, evidence.Evidence], bool | None]
    ) -> list[Question]:
        """Return a task's questions without those of which it is told that nothing answers them.

        All of them, unless ``training.answerable_only`` is set.
        """
        questions = self.questions(name)
        if not self.settings.training.answerable_only:
            return questions
        pairs = zip(questions, self.evidence(questions), strict=True)
        return [question for question, found in pairs if told(question, found) is not False]

    def evidence(self, questions: Sequence[Question]) -> list[evidence.Evidence]:
        """Return the passages of each question."""
        return evidence.evidence_for(questions, self.retriever, self.settings.retrieval.top_k)

    def prompts(self, questions: Sequence[Question], limit: int) -> list[Prompt]:
        """Return answered prompts of at most `limit` tokens each."""
        found = evidence.demonstrations_of(questions, self.evidence(questions))
        tokenizer = self.parts.backbone.tokenizer
        return [answered_prompt(tokenizer, shown, limit) for shown in found]


def base_examples(run: Run) -> list[Prompt]:
    """Make an answered prompt of every training question of the base adapter's benchmarks."""
    prompts = []
    for name in known_benchmarks(run.settings.base_training.benchmarks):
        questions = run.answerable(name, evidence.is_answerable)
        prompts += run.prompts(questions, run.settings.training.max_tokens)
    return prompts


def target_store(run: Run) -> TargetStore:
    """Return the store of ``per_benchmark`` support sets of each target task, tasks in turn."""
    wanted, by_task, parts = run.settings.target, [], run.parts
    for name in known_benchmarks(wanted.benchmarks):
        drawn = draw_supports(
            run.questions(name), wanted.demonstrations, wanted.per_benchmark, wanted.seed
        )
        by_task.append(support_sets(name, drawn, run.retriever, run.settings.retrieval.top_k))
    in_turn = list(chain.from_iterable(zip(*by_task, strict=True)))
    return TargetStore(parts.backbone, parts.base, in_turn, wanted, run.stores[0])


def run_prepare(parts: Assembly, out: Path, split: str) -> dict[str, Any]:
    """Write the prepared file of the benchmarks that the settings name; return what it holds.

    The split is ``train`` (benchmarks held out of training are left out) or ``test``.
    """
    choose = training_questions if split == "train" else scored_questions
    rows: list[Prepared] = []
    for name in parts.settings.evaluation.benchmarks:
        parts.say(f"preparing {name}")
        rows += evidence.prepare(choose(parts.source, name), parts.retriever)
    write_prepared(out, rows)
    answerable = Counter(row.task for row in rows if row.passages)
    counts = {
        task: {"questions": count, "answerable": answerable[task]}
        for task, count in Counter(row.task for row in rows).items()
    }
    return {"file": str(out), "bytes": out.stat().st_size, "benchmarks": counts}
