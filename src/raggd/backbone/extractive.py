"""Answers held to the words of their passages, or to a few whole answers, token by token.

Where every example's value stands in its passages as it is written, three examples say that answers
are found there. A small model now and then makes one up that sounds alike; here it can only go on
with what a passage goes on with. Where they are options or labels, one of these is given whole; and
where evidence tells which of two, it is weighed with the model's view at the token that parts them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from raggd.backbone.load import Backbone
from raggd.data.prompts import answer_lead, answer_tokens, text_tokens
from raggd.data.template import Several
from raggd.data.text import UNSPACED, is_boundary

FIRST = 32  # characters of a word that decide its first token
LONGEST = 400  # characters that an answer may go on for
_START = re.compile(rf"\b(?=\w)|(?<!\S)(?![-*+#|>=~`:.,;–—/]+(?!\S))(?=\S)|(?=[{UNSPACED}])")
_BLOCK = re.compile(r"\n(?=\s*(?:\n|[-*+•|#>]|\d+[.)]\s|```))")
"""Between paragraphs, items and rows: no answer goes from one to the next."""


class Extract:
    """An answer in the making: where it may go on, and that it may end where a word ends."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        whole: Sequence[str] = (),
        chance: tuple[float, float] | None = None,
        lead: str | None = None,
    ) -> None:
        """Start with nothing written; `whole` are answers that may be given besides.

        `chance`: of the first of two by the evidence, and the weight left for the model's view.
        `lead`: what stands before a part of an answer; None for an answer's beginning.
        """
        self._lead = lead
        self._tokenizer, self._stops = backbone.tokenizer, tuple(backbone.stops)
        self._written: list[int] = []
        self._whole = [self._tokens(text) for text in whole]
        self._pair = [[*tokens, *self._stops[:1]] for tokens in self._whole[:2]]
        # labels that a tokenizer cannot tell apart have nothing to weigh
        self._chance = chance if self._pair[:1] != self._pair[1:] else None
        blocks = [block for text in texts for block in _BLOCK.split(text)]
        self._first = self._first_tokens([" ".join(block.split()) for block in blocks])
        self._open: list[tuple[str, list[int]]] = []

    def _tokens(self, text: str) -> list[int]:
        if self._lead is not None:
            return text_tokens(self._tokenizer, self._lead + text)
        return answer_tokens(self._tokenizer, text)[:-1]

    def _first_tokens(self, texts: Sequence[str]) -> dict[int, list[str]]:
        # by the first token, which the first word decides: what follows is encoded for one only
        words: defaultdict[str, list[str]] = defaultdict(list)
        for text in texts:
            for at in (found.start() for found in _START.finditer(text)):
                words[text[at : at + FIRST].split(" ")[0]].append(text[at : at + LONGEST])
        first: defaultdict[int, list[str]] = defaultdict(list)
        for word, found in words.items():
            for token in self._tokens(word)[:1]:
                first[token] += found
        return first

    def allowed(self) -> set[int]:
        """Return the tokens that may come next; end tokens alone where there are none."""
        ids, ends = self.going_on()
        return ids | set(self._stops) if ends or not ids else ids

    def going_on(self) -> tuple[set[int], bool]:
        """Return the tokens that go on with what is written, and whether it may end."""
        at = len(self._written)
        ids = {tokens[at] for tokens in self._whole if len(tokens) > at}
        ends = any(len(tokens) == at for tokens in self._whole)
        if not at:
            ids.update(self._first)
        for text, tokens in self._open:
            ids.update(tokens[at : at + 1])
            ends = ends or self._may_end(text, tokens[:at])
        return ids, ends

    def _may_end(self, text: str, tokens: list[int]) -> bool:
        written = self._tokenizer.decode(tokens).strip()
        return bool(written) and text.startswith(written) and is_boundary(text, len(written))

    def limit(self, logits: Tensor) -> Tensor:
        """Return logits (vocabulary,) with all that may not come next at minus infinity."""
        kept = torch.tensor(sorted(self.allowed()), device=logits.device)
        weighed = self._weighed(logits)
        return torch.full_like(weighed, -torch.inf).index_copy(0, kept, weighed[kept])

    def _weighed(self, logits: Tensor) -> Tensor:
        # where the two answers part, their tokens have the chances that evidence and model give
        at = len(self._written)
        if self._chance is None or any(t[:at] != self._written for t in self._pair):
            return logits
        first, second = (tokens[at] for tokens in self._pair)
        return logits if first == second else mixed(logits, first, second, *self._chance)

    def push(self, token: int) -> None:
        """Go on with a token."""
        at = len(self._written)
        if not at:
            self._open = [(text, self._tokens(text)) for text in self._first.get(token, ())]
        self._written.append(token)
        self._whole = [t for t in self._whole if t[at : at + 1] == [token]]
        self._open = [(text, t) for text, t in self._open if t[at : at + 1] == [token]]


class Slots(Extract):
    """An answer of several values: literal text (even parts) in turn with values (odd ones).

    A value may go on or end where the next literal begins with the same token, so several parts may
    be open at once. Answers that are given whole may be given instead.
    """

    def __init__(
        self,
        backbone: Backbone,
        passages: Sequence[str],
        several: Several,
        whole: Sequence[str] = (),
    ) -> None:
        super().__init__(backbone, (), whole)
        self._backbone, self._passages, self._several = backbone, passages, several
        self._next: dict[int, Extract] = {}  # parts that may begin, by number
        first = 0 if several.literals[0] else 1
        self._parts = [(first, self._made(first))]

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
        last = 2 * len(self._several.kinds) - (0 if self._several.literals[-1] else 1)
        if number == last:
            return None
        if number + 1 not in self._next:
            self._next[number + 1] = self._made(number + 1)
        return self._next[number + 1]

    def going_on(self) -> tuple[set[int], bool]:
        """Return the tokens that go on with what is written, and whether it may end."""
        ids, ends = super().going_on()
        for number, part in self._parts:
            more, done = part.going_on()
            ids |= more
            if done or not more:
                behind = self._behind(number)
                ids |= behind.going_on()[0] if behind else set()
                ends = ends or behind is None
        return ids, ends

    def push(self, token: int) -> None:
        """Go on with a token."""
        super().push(token)
        reached: list[tuple[int, Extract]] = []
        for number, part in self._parts:
            more, done = part.going_on()
            behind = self._behind(number) if done or not more else None
            if behind is not None and token in behind.going_on()[0]:
                reached.append((number + 1, self._next.pop(number + 1)))
            if token in more:
                reached.append((number, part))
        for _, part in reached:
            part.push(token)
        self._parts = reached


def mixed(logits: Tensor, first: int, second: int, told: float, free: float) -> Tensor:
    """Return logits (vocabulary,) in which the first token has a chance over the second.

    It is ``told + free * p``, where p is what the model gives it of the two; together they keep
    what they had.
    """
    pair = torch.tensor([first, second], device=logits.device)
    both = logits[pair].double()
    chance = min(max(told + free * float(both.softmax(0)[0]), 1e-6), 1 - 1e-6)
    shares = torch.tensor([math.log(chance), math.log1p(-chance)], device=both.device)
    return logits.index_copy(0, pair, (both.logsumexp(0) + shares).to(logits.dtype))
