"""Controls of RAG-GD: its weights and predictions, of other demonstrations or other passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raggd.adaptation.supports import draw_supports
from raggd.data.benchmarks import support_pool, tasks_in
from raggd.methods import predicted
from raggd.methods.base import Adapted, Item, Method
from raggd.methods.build import Parts
from raggd.records import Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import is_answerable, make_demonstrations

DRAWS = 8
"""Support sets of each other task that one is chosen from."""


@dataclass(frozen=True, slots=True)
class Control:
    """Predicts as RAG-GD does; what it is given is another matter (`Rearranges`).

    Attributes:
        inner: RAG-GD.
    """

    inner: Method

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Those of RAG-GD."""
        return self.inner.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict as RAG-GD does.

        Args:
            supports: sets of equal size.

        Returns:
            Base and update of each set.
        """
        return self.inner.adapt(supports)


def other_support(
    support: SupportSet, source: str, retriever: Retriever, k: int, seed: int
) -> SupportSet:
    """Choose a support set of another task, as large, by a hash of the given one.

    Args:
        support: the set to replace.
        source: ``hub`` or a folder in FlashRAG's layout.
        retriever: finds the passages.
        k: passages per demonstration.
        seed: of the draws.

    Returns:
        The other set; the same on every machine with the same data.

    Raises:
        RaggdError: the data hold no other task.
    """
    tasks = [task for task in tasks_in(source) if task != support.task]
    if not tasks:
        raise RaggdError(
            "method 'shuffled-support' needs demonstrations of another task than "
            f"'{support.task}', but {source} holds no other benchmark."
        )
    number = int(content_id("shuffled", support.id), 16)
    task, draw = tasks[number % len(tasks)], number // len(tasks) % DRAWS
    size = len(support.demonstrations)
    pool = support_pool(source, task)
    drawn = draw_supports(pool, size, DRAWS, seed, purpose="evaluation")[draw]
    return SupportSet(task, tuple(make_demonstrations(drawn, retriever, k)))


@dataclass(frozen=True, slots=True)
class ShuffledSupport(Control):
    """What RAG-GD makes of other demonstrations than the task's.

    Attributes:
        choose: gives the support set of another task, as `other_support` does, or another one.
        name: in records.
    """

    choose: Callable[[SupportSet], SupportSet]
    name: str = "shuffled-support"

    def arrange(self, items: Sequence[Item]) -> list[Item]:
        """Give every question the support set of another task.

        Args:
            items: the questions of one draw.

        Returns:
            The same questions with other support sets.
        """
        own = {item.support.id: item.support for item in items}
        others = {name: self.choose(support) for name, support in own.items()}
        return [replace(item, support=others[item.support.id]) for item in items]


def other_passages(items: Sequence[Item], number: int) -> tuple[Passage, ...]:
    """Find the passages of another question, the nearest one after it that can serve.

    They share none with the question's own, and hold none of its answers unless those of all other
    questions do: then the answers are so common (a "no") that holding them says nothing.

    Args:
        items: the questions of one draw.
        number: of the question.

    Returns:
        The passages.

    Raises:
        RaggdError: the draw has no such question.
    """
    own = items[number]
    known = {passage.id for passage in own.passages}
    others = (*items[number + 1 :], *items[:number])
    fresh = [o for o in others if known.isdisjoint(passage.id for passage in o.passages)]
    if fresh:
        silent = (o for o in fresh if not is_answerable(own.question, o.passages))
        return next(silent, fresh[0]).passages
    raise RaggdError(
        f"method 'irrelevant-passages' found no other question whose passages could stand in for "
        f"those of '{own.question.id}' among {len(items)}: raise evaluation.questions or lower "
        "evaluation.draws."
    )


@dataclass(frozen=True, slots=True)
class IrrelevantPassages(Control):
    """What is left of RAG-GD's gain when the evidence is of no use."""

    name = "irrelevant-passages"

    def arrange(self, items: Sequence[Item]) -> list[Item]:
        """Give every question the passages of another one; the demonstrations keep theirs.

        Args:
            items: the questions of one draw.

        Returns:
            The same questions with other passages.
        """
        return [replace(item, passages=other_passages(items, i)) for i, item in enumerate(items)]


def build_shuffled(parts: Parts, name: str) -> ShuffledSupport:
    """Return RAG-GD with the demonstrations of another task."""
    settings = parts.settings

    def choose(support: SupportSet) -> SupportSet:
        k, seed = settings.retrieval.top_k, settings.evaluation.seed
        return other_support(support, parts.source, parts.retriever, k, seed)

    return ShuffledSupport(predicted.build(parts, "rag-gd"), choose)


def build_irrelevant(parts: Parts, name: str) -> IrrelevantPassages:
    """Return RAG-GD with the passages of another question."""
    return IrrelevantPassages(predicted.build(parts, "rag-gd"))
