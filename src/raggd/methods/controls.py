"""Controls of RAG-GD: other demonstrations, other passages, another scale, the task alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from raggd.adaptation.predictors.base import load_task_means
from raggd.adaptation.targets import draw_supports
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.benchmarks import support_pool, tasks_in
from raggd.methods import predicted
from raggd.methods.base import Adapted, Item, Method
from raggd.methods.spec import FILES_OF, Parts, weight_file, weights_hash
from raggd.records import Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import is_answerable, make_demonstrations

DRAWS = 8  # support sets of each other task that one is chosen from


@dataclass(frozen=True, slots=True)
class Control:
    """Predicts as `inner`, RAG-GD, does; what it is given is another matter (`Rearranges`)."""

    inner: Method

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Those of RAG-GD."""
        return self.inner.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict as RAG-GD does, for sets of equal size."""
        return self.inner.adapt(supports)


def other_support(
    support: SupportSet, source: str, retriever: Retriever, k: int, seed: int
) -> SupportSet:
    """Choose a support set of another task, as large, by a hash of the given one."""
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
    """What RAG-GD makes of other demonstrations than the task's, chosen as by `other_support`."""

    choose: Callable[[SupportSet], SupportSet]
    name: str = "shuffled-support"

    def arrange(self, items: Sequence[Item]) -> list[Item]:
        """Give every question the support set of another task."""
        own = {item.support.id: item.support for item in items}
        others = {name: self.choose(support) for name, support in own.items()}
        return [replace(item, support=others[item.support.id]) for item in items]


def other_passages(items: Sequence[Item], number: int) -> tuple[Passage, ...]:
    """Find the passages of another question of a draw, the nearest one after it that can serve.

    They share none with the question's own, and hold none of its answers unless those of all others
    do: then these are so common (a "no") that holding them says nothing.

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
        """Give every question the passages of another one; the demonstrations keep theirs."""
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


@dataclass(frozen=True, slots=True)
class TaskMean:
    """A control that knows the task, whose mean target it uses, but not the demonstrations."""

    base: BaseAdapter
    means: Mapping[str, Update]
    weights: str

    name = "task-mean"
    adapts = False

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter and hash of the means' file."""
        return {"base": self.base.fingerprint, "predictor": self.weights}

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Look up the task of each set, nothing else of it; one without targets is refused."""
        for support in supports:
            if support.task not in self.means:
                raise RaggdError(
                    f"task '{support.task}' has no mean update, only {', '.join(self.means)}: make "
                    "targets of it with `raggd targets --pool`, then `raggd train task-mean` with "
                    "both stores, or leave out method 'task-mean'."
                )
        return [Adapted(self.base, self.means[support.task]) for support in supports]


def build_task_mean(parts: Parts, name: str) -> TaskMean:
    """Return the control, made of the file of the means."""
    path = weight_file(parts.weights, FILES_OF[name][1])
    means = load_task_means(path, parts.base)
    there = {task: mean.to(parts.base.device) for task, mean in means.items()}
    return TaskMean(parts.base, there, weights_hash(path))
