"""What a stage of a training works with: parts, folders, questions with their evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from raggd.adaptation.targets import (
    Targets,
    TargetStore,
    answered_prompt,
    draw_supports,
    load_targets,
)
from raggd.assembly import Assembly
from raggd.data.benchmarks import (
    find_benchmark,
    known_benchmarks,
    scored_questions,
    support_pool,
    training_questions,
)
from raggd.data.prompts import Prompt
from raggd.data.questions import Prepared, PreparedRetriever, read_prepared, write_prepared
from raggd.evaluation.runner import support_sets
from raggd.progress import Progress, silent
from raggd.records import Question, RaggdError
from raggd.retrieval import evidence
from raggd.retrieval.base import Retriever
from raggd.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A training under way."""

    parts: Assembly
    out: Path  # folder of the weights
    stores: tuple[Path, ...] = ()  # folders of targets
    progress: Progress = silent  # told label, done and in all
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
        return (
            evidence.NoisyRetriever(known, noise, known.passage_at, len(known)) if noise else known
        )

    def questions(self, name: str) -> list[Question]:
        """Return a task's training questions; those of its support pool, if `pool` is set."""
        if self._prepared is None:
            return (support_pool if self.pool else training_questions)(self.parts.source, name)
        if self.pool or find_benchmark(name).held_out:
            raise RaggdError(f"a prepared file holds training questions, none of '{name}''s pool.")
        return self._prepared.questions(name)

    def rows(self) -> list[Prepared]:
        """Return the training questions with passages that hold an answer, and near ones."""
        if self.settings.data.prepared:
            return read_prepared(Path(self.settings.data.prepared))
        named = (*self.settings.base_training.benchmarks, *self.settings.target.benchmarks)
        names = known_benchmarks(list(dict.fromkeys(named)))
        return [
            row for n in names for row in evidence.prepare(self.questions(n), self.parts.retriever)
        ]

    def evidence(self, questions: Sequence[Question]) -> list[evidence.Evidence]:
        """Return the passages of each question."""
        return evidence.evidence_for(questions, self.retriever, self.settings.retrieval.top_k)

    def prompts(self, questions: Sequence[Question], limit: int) -> list[Prompt]:
        """Return answered prompts of at most `limit` tokens each."""
        found = evidence.make_demonstrations(
            questions, self.retriever, self.settings.retrieval.top_k
        )
        tokenizer = self.parts.backbone.tokenizer
        return [answered_prompt(tokenizer, shown, limit) for shown in found]

    def targets(self, steps: int = 0) -> Targets:
        """Load the first store's targets of K `steps`, or 0 for its own; held-out are refused."""
        targets = load_targets(self.stores[0], steps)
        held_out = [task for task in sorted(set(targets.tasks)) if find_benchmark(task).held_out]
        if held_out:
            raise RaggdError(
                f"{self.stores[0]} holds targets of {', '.join(held_out)}, which nothing may be "
                "trained on (paper section 5): make targets without `--pool`."
            )
        return targets


def base_examples(run: Run) -> list[Prompt]:
    """Make an answered prompt of every training question of the base adapter's benchmarks."""
    wanted, prompts = run.settings.training, []
    for name in known_benchmarks(run.settings.base_training.benchmarks):
        questions = run.questions(name)
        if wanted.answerable_only:
            pairs = zip(questions, run.evidence(questions), strict=True)
            questions = [q for q, passages in pairs if evidence.is_answerable(q, passages)]
        prompts += run.prompts(questions, wanted.max_tokens)
    return prompts


def in_turn(by_task: Sequence[Sequence[T]]) -> list[T]:
    """Return what was drawn for several tasks, tasks in turn, so that a part is balanced."""
    return [one for together in zip(*by_task, strict=True) for one in together]


def target_store(run: Run) -> TargetStore:
    """Return the store of ``per_benchmark`` support sets of each target task, tasks in turn."""
    wanted, by_task, parts = run.settings.target, [], run.parts
    for name in known_benchmarks(wanted.benchmarks):
        drawn = draw_supports(
            run.questions(name), wanted.demonstrations, wanted.per_benchmark, wanted.seed
        )
        by_task.append(support_sets(name, drawn, run.retriever, run.settings.retrieval.top_k))
    return TargetStore(parts.backbone, parts.base, in_turn(by_task), wanted, run.stores[0])


def lesson_pool(run: Run, name: str) -> list[Question]:
    """Return the training questions of a task that HyperTuning may ask."""
    questions = run.questions(name)
    if not run.settings.training.answerable_only:
        return questions
    held = map(evidence.holds_answer, questions, run.evidence(questions))
    return [q for q, holds in zip(questions, held, strict=True) if holds is not False]


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
    tasks = dict.fromkeys(row.task for row in rows)
    counts = {
        task: {
            "questions": sum(row.task == task for row in rows),
            "answerable": sum(row.task == task and bool(row.passages) for row in rows),
        }
        for task in tasks
    }
    return {"file": str(out), "bytes": out.stat().st_size, "benchmarks": counts}
