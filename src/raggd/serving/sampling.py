"""The next token of one row: the likeliest, or drawn at a temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row chooses its tokens.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the smallest set that holds this probability.
        seed: equal seeds draw equal tokens; None draws anew each time.
        top_logprobs: alternatives to report with each token; None reports no probabilities.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token with its log-probability, and the likeliest ones with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together hold `top_p`; at least one.

    Args:
        probabilities: (vocabulary,), summing to 1.
        top_p: in (0, 1].

    Returns:
        (vocabulary,), the others zero; not normalised.
    """
    ordered, at = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    ordered = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probabilities).scatter(0, at, ordered)


class Sampler:
    """Chooses the tokens of one row, one after another."""

    def __init__(self, sampling: Sampling) -> None:
        """Start the row's own random numbers.

        Args:
            sampling: how to choose.
        """
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: Tensor) -> Chosen:
        """Choose the next token.

        Args:
            logits: (vocabulary,), of any float type.

        Returns:
            The token; its log-probability is the model's own, whatever the temperature.
        """
        token = self._drawn(logits) if self._sampling.temperature > 0 else int(logits.argmax())
        wanted = self._sampling.top_logprobs
        if wanted is None:
            return Chosen(token)
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(wanted)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logprobs[token]), top)

    def _drawn(self, logits: Tensor) -> int:
        below = logits.float().cpu()
        # 0 for the likeliest, whatever the temperature; float32 knows no 1e-300
        below = (below - below.max()) / max(self._sampling.temperature, 1e-6)
        probabilities = nucleus(below.softmax(-1), self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
