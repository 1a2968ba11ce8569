"""Answers of several values: what stands around them is given, each is held to its passages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raggd.backbone.extractive import Extract, only
from raggd.backbone.load import Backbone
from raggd.data.prompts import answer_tokens
from raggd.data.rendering import text_tokens
from raggd.data.several import Several


class Slots:
    """An answer in the making: literal text in turn with values.

    A value may go on or end where the next literal begins with the same token, so several places
    may be open at once.
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
        self._literals = [self._tokens(number) for number in range(len(several.literals))]
        self._whole = Extract(backbone, (), whole) if whole else None
        self._literal: dict[tuple[int, int], None] = {}  # number of each, and tokens written
        self._values: list[tuple[int, Extract]] = []
        self._enter(0)

    def _tokens(self, number: int) -> list[int]:
        tokenizer, text = self._backbone.tokenizer, self._several.literals[number]
        if number < len(self._several.kinds):
            text = text.removesuffix(" ")  # it belongs to the value's first token
        if number:
            return text_tokens(tokenizer, text) if text else []
        return answer_tokens(tokenizer, text)[:-1] if text else []

    def _enter(self, number: int, written: int = 0) -> None:
        # a literal of which so many tokens are written
        if written < len(self._literals[number]):
            self._literal[number, written] = None
        elif number < len(self._several.kinds):
            before = self._several.literals[number]
            lead = None if not before else " " if before.endswith(" ") else ""
            texts, whole = self._several.texts(number, self._passages)
            self._values.append((number, Extract(self._backbone, texts, whole, lead=lead)))

    def allowed(self) -> set[int]:
        """Return the tokens that may come next; end tokens alone where there are none."""
        ids = {self._literals[number][at] for number, at in self._literal}
        ends = False
        for number, value in self._values:
            more, whole = value.going_on()
            ids |= more
            if whole or not more:
                behind = self._literals[number + 1]
                ids.update(behind[:1])
                ends = ends or not behind
        if self._whole is not None:
            more, whole = self._whole.going_on()
            ids |= more
            ends = ends or whole
        return ids | set(self._backbone.stops) if ends or not ids else ids

    def limit(self, logits: Tensor) -> Tensor:
        """Return logits (vocabulary,) with all that may not come next at minus infinity."""
        return only(logits, self.allowed())

    def push(self, token: int) -> None:
        """Go on with a token."""
        literals, values = list(self._literal), self._values
        self._literal, self._values = {}, []
        for number, at in literals:
            if self._literals[number][at] == token:
                self._enter(number, at + 1)
        for number, value in values:
            more, whole = value.going_on()
            if (whole or not more) and self._literals[number + 1][:1] == [token]:
                self._enter(number + 1, 1)
            if token in more:
                value.push(token)
                self._values.append((number, value))
        if self._whole is not None:
            self._whole = self._whole if token in self._whole.going_on()[0] else None
            if self._whole is not None:
                self._whole.push(token)
