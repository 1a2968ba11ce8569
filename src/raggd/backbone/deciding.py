"""How an answer begins, where more than the model decides it: refusing, and which of two labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Decision(Protocol):
    """Changes the first logits of one row."""

    def decide(self, logits: Tensor) -> Tensor:
        """Return first logits (vocabulary,) as decided; those given stay as they are."""
        ...


def decided(logits: Tensor, decisions: Sequence[Decision | None]) -> Tensor:
    """Return the first logits (rows, vocabulary) as each row's decision leaves them."""
    pairs = zip(logits, decisions, strict=True)
    return torch.stack([row if d is None else d.decide(row) for row, d in pairs])


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Mixes what the evidence says of two labels with the model's own view.

    The first label's chance is ``told + free * p`` where the model, between the two, gives it p.
    """

    first: int  # the token that the first label begins with
    second: int
    told: float  # chance by the evidence, times the weight of the evidence
    free: float  # weight that is left for the model's own view

    def decide(self, logits: Tensor) -> Tensor:
        """Return first logits (vocabulary,) in which the two labels' tokens have these chances."""
        pair = torch.tensor([self.first, self.second], device=logits.device)
        both = logits[pair].double()
        chance = self.told + self.free * float(both.softmax(0)[0])
        chance = min(max(chance, 1e-6), 1 - 1e-6)
        shares = torch.tensor([math.log(chance), math.log1p(-chance)], device=both.device)
        return logits.index_copy(0, pair, (both.logsumexp(0) + shares).to(logits.dtype))
