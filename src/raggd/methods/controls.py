"""Controls of RAG-GD: other demonstrations, other passages, the task alone, one update for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from raggd.adaptation.predictors.base import check_predictor, load_task_means
from raggd.adaptation.targets import draw_supports
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.benchmarks import files_in, support_pool
from raggd.methods import predicted
from raggd.methods.base import Adapted, Item, Method
from raggd.methods.plain import Unadapted
from raggd.methods.spec import FILES_OF, Parts, weight_file, weights_hash
from raggd.records import Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import is_answerable, make_demonstrations

DRAWS = 8  # support sets of each other task that one is chosen from


@dataclass(frozen=True, slots=True)
class Control:
    """Predicts as `inner`, RAG-GD, does, from other evidence or demonstrations (`Rearranges`)."""

    name: str
    inner: Method
    exchange: Callable[[Sequence[Item]], list[Item]]  # of the questions of one draw

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Those of RAG-GD."""
        return self.inner.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict as RAG-GD does, for sets of equal size."""
        return self.inner.adapt(supports)

    def arrange(self, items: Sequence[Item]) -> list[Item]:
        """Replace what the control is about."""
        return self.exchange(items)


def other_support(
    support: SupportSet, source: str, retriever: Retriever, k: int, seed: int
) -> SupportSet:
    """Choose a support set of another task, as large, by a hash of the given one."""
    tasks = [task for task in files_in(source) if task != support.task]
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


def with_supports(items: Sequence[Item], choose: Callable[[SupportSet], SupportSet]) -> list[Item]:
    """Give every question another support set than its own, chosen once for each."""
    own = {item.support.id: item.support for item in items}
    others = {name: choose(support) for name, support in own.items()}
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


def with_other_passages(items: Sequence[Item]) -> list[Item]:
    """Give every question the passages of another one; the demonstrations keep theirs."""
    return [replace(item, passages=other_passages(items, i)) for i, item in enumerate(items)]


def build_shuffled(parts: Parts, name: str) -> Control:
    """Return RAG-GD with the demonstrations of another task."""
    k, seed = parts.settings.retrieval.top_k, parts.settings.evaluation.seed

    def choose(support: SupportSet) -> SupportSet:
        return other_support(support, parts.source, parts.retriever, k, seed)

    return Control(name, predicted.build(parts, "rag-gd"), partial(with_supports, choose=choose))


def build_irrelevant(parts: Parts, name: str) -> Control:
    """Return RAG-GD with the passages of another question: the evidence is of no use."""
    return Control(name, predicted.build(parts, "rag-gd"), with_other_passages)


def build_mean(parts: Parts, name: str) -> Unadapted:
    """Return W0 with the one update of the second of its files, whatever the demonstrations."""
    file = FILES_OF[name][1]
    predictor = parts.predictor(file)
    check_predictor(predictor, parts.base)
    update = predictor.predict(torch.zeros(1, 1, 1)).row(0)  # no states are looked at
    hashes = {"base": parts.base.fingerprint, "predictor": weights_hash(parts.weights / file)}
    return Unadapted(name, Adapted(parts.base, update), hashes)


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
