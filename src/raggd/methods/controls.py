"""Controls of RAG-GD: another task's demonstrations, or passages of other questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from raggd.adaptation.targets import draw_supports
from raggd.data.benchmarks import files_in, support_pool
from raggd.methods.base import Control, Item
from raggd.methods.predicted import build
from raggd.methods.spec import Parts
from raggd.records import Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.evidence import is_answerable, make_demonstrations

DRAWS = 8  # support sets of each other task that a control chooses one from


def other_support(support: SupportSet, parts: Parts) -> SupportSet:
    """Choose a support set of another task, as large, by a hash of the given one."""
    source, settings = parts.source, parts.settings
    tasks = [task for task in files_in(source) if task != support.task]
    if not tasks:
        raise RaggdError(
            "method 'shuffled-support' needs demonstrations of another task than "
            f"'{support.task}', but {source} holds no other benchmark."
        )
    number = int(content_id("shuffled", support.id), 16)
    task, draw = tasks[number % len(tasks)], number // len(tasks) % DRAWS
    pool, size = support_pool(source, task), len(support.demonstrations)
    sets = draw_supports(pool, size, DRAWS, settings.evaluation.seed, purpose="evaluation")
    shown = make_demonstrations(sets[draw], parts.retriever, settings.retrieval.top_k)
    return SupportSet(task, tuple(shown))


def with_supports(items: Sequence[Item], choose: Callable[[SupportSet], SupportSet]) -> list[Item]:
    """Give every question another support set than its own, chosen once for each."""
    own = {item.support.id: item.support for item in items}
    others = {name: choose(support) for name, support in own.items()}
    return [replace(item, support=others[item.support.id]) for item in items]


def other_passages(items: Sequence[Item], number: int) -> tuple[Passage, ...]:
    """Find the passages of the nearest question after it that shares none; refused without any."""
    own = items[number]
    known = {passage.id for passage in own.passages}
    others = (*items[number + 1 :], *items[:number])
    fresh = [o for o in others if known.isdisjoint(passage.id for passage in o.passages)]
    if fresh:
        # an answer that all of them hold is so common (a "no") that holding it says nothing
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


def build_control(parts: Parts, name: str) -> Control:
    """Return RAG-GD with another task's demonstrations, or passages of another question."""
    others = partial(with_supports, choose=partial(other_support, parts=parts))
    exchange = others if name == "shuffled-support" else with_other_passages
    return Control(name, build(parts, "rag-gd"), exchange)
