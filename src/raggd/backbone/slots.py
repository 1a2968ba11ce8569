"""Answers of several values: what stands around them is given, each is held to its passages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raggd.backbone.extractive import Extract, only
from raggd.backbone.load import Backbone
from raggd.data.prompts import answer_lead
from raggd.data.template import Several


class Slots:
    """An answer in the making: literal text (even parts) in turn with values (odd ones).

    A value may go on or end where the next literal begins with the same token, so several parts may
    be open at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        passages: Sequence[str],
        several: Several,
        whole: Sequence[str] = (),
    ) -> None:
        """Start with nothing written; `whole` are answers that may be given instead."""
        self._backbone, self._passages, self._several = backbone, passages, several
        self._next: dict[int, Extract] = {}  # parts that may begin, by number
        first = 0 if several.literals[0] else 1
        self._open = [(first, self._made(first))]
        if whole:
            self._open.append((2 * len(several.kinds), Extract(backbone, (), whole)))

    def _made(self, number: int) -> Extract:
        slot, value = divmod(number, 2)
        before = self._several.literals[slot]
        if value:
            lead = None if not before else " " if before.endswith(" ") else ""
            return Extract(self._backbone, *self._several.texts(slot, self._passages), lead=lead)
        if slot < len(self._several.kinds):
            before = before.removesuffix(" ")  # it belongs to the value's first token
        lead = "" if slot else answer_lead(self._backbone.tokenizer)
        return Extract(self._backbone, (), [before], lead=lead)

    def _behind(self, number: int) -> Extract | None:
        # the part behind another; None where the answer ends
        last = 2 * len(self._several.kinds)
        if number >= last or (number + 1 == last and not self._several.literals[-1]):
            return None
        if number + 1 not in self._next:
            self._next[number + 1] = self._made(number + 1)
        return self._next[number + 1]

    def allowed(self) -> set[int]:
        """Return the tokens that may come next; end tokens alone where there are none."""
        ids: set[int] = set()
        ends = False
        for number, part in self._open:
            more, done = part.going_on()
            ids |= more
            if done or not more:
                behind = self._behind(number)
                ids |= behind.going_on()[0] if behind else set()
                ends = ends or behind is None
        return ids | set(self._backbone.stops) if ends or not ids else ids

    def limit(self, logits: Tensor) -> Tensor:
        """Return logits (vocabulary,) with all that may not come next at minus infinity."""
        return only(logits, self.allowed())

    def push(self, token: int) -> None:
        """Go on with a token."""
        reached: list[tuple[int, Extract]] = []
        for number, part in self._open:
            more, done = part.going_on()
            behind = self._behind(number) if done or not more else None
            if behind is not None and token in behind.going_on()[0]:
                reached.append((number + 1, self._next.pop(number + 1)))
            if token in more:
                reached.append((number, part))
        for _, part in reached:
            part.push(token)
        self._open = reached
