"""Shuffled support: the update predicted from another task's demonstrations. A control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raggd.adaptation.supports import draw_supports
from raggd.data.benchmarks import support_pool, tasks_in
from raggd.methods.base import Item
from raggd.methods.control import Control
from raggd.records import RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import make_demonstrations

DRAWS = 8
"""Support sets of each other task that one is chosen from."""


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
