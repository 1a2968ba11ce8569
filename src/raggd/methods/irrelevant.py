"""Irrelevant passages: RAG-GD answers from the passages of another question. A control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raggd.methods.base import Item
from raggd.methods.control import Control
from raggd.records import Passage, RaggdError
from raggd.retrieval.evidence import is_answerable


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
