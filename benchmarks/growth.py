"""How cost grows: with passages, tokens, demonstrations, steps, rows and rank; fitted exponents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Measured
from benchmarks.setting import BenchSetting
from raggd.adaptation.targets import encode_supports, sgd_updates, support_batch
from raggd.backbone.batch import last_states
from raggd.backbone.interface import attach
from raggd.core.low_rank import BaseAdapter, Update, factors_of
from raggd.evaluation.timing import Work, in_turn
from raggd.records import Demonstration, Passage, SupportSet

ABOUT = "growth: cost against passages, tokens, N, K, rows and rank, with fitted exponents"
PASSAGES, TOKENS, SIZE = 3, 100, 3
"""What stays the same while another thing grows."""
AXES: Mapping[str, Sequence[int]] = {
    "passages per question": (1, 2, 3, 5, 8),
    "tokens per passage": (25, 50, 100, 200),
    "demonstrations N": (1, 2, 3, 5, 8),
    "SGD steps K": (1, 2, 4),
    "rows of a batch": (1, 2, 4, 8, 16),
    "rank": (4, 8, 16, 32, 64),
}


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Fit cost = c * size^p by least squares of the logarithms, at two sizes or more.

    Returns:
        The exponent p, and the share of the variance that the fit explains.

    >>> fit_exponent([1, 2, 4], [3, 12, 48])
    (2.0, 1.0)
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    slope, start = np.polyfit(x, y, 1)
    left, spread = ((y - start - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    explained = 1 - left / spread if spread > 0 else 1.0
    return round(float(slope), 6), round(float(explained), 6)


class Material:
    """Support sets of any shape, of real words."""

    def __init__(self, setting: BenchSetting) -> None:
        """Collect the words of real passages."""
        self._tokenizer: Any = setting.backbone.tokenizer
        text = " ".join(
            p.text for s in setting.supports for d in s.demonstrations for p in d.passages
        )
        self._tokens = self._tokenizer.encode(text, add_special_tokens=False)
        self._shown = setting.supports[0].demonstrations[0]

    def support(
        self, *, size: int = SIZE, passages: int = PASSAGES, tokens: int = TOKENS
    ) -> SupportSet:
        """Make a support set of `size` demonstrations.

        Each has `passages` stretches of the real text, of about `tokens` each.
        """
        stream = cycle(self._tokens)
        shown = []
        for number in range(size):
            found = tuple(
                Passage(str(i), self._tokenizer.decode(list(islice(stream, tokens))))
                for i in range(passages)
            )
            question, answer = self._shown.question, self._shown.answer
            shown.append(Demonstration(str(number), question, found, answer))
        return SupportSet("growth", tuple(shown))


def _with_rank(base: BaseAdapter, rank: int) -> tuple[BaseAdapter, Update]:
    spec = replace(base.spec, rank=rank)
    generator = torch.Generator().manual_seed(0)

    def draw() -> dict[str, torch.Tensor]:
        return {n: 0.01 * torch.randn(s, generator=generator) for n, s in spec.shapes.items()}

    other = BaseAdapter(spec, factors_of(draw()), base.backbone)
    return other, Update(spec, factors_of(draw()), other.fingerprint)


def _encode(setting: BenchSetting, support: SupportSet) -> Work:
    limit = setting.parts.settings.backbone.context_tokens
    return lambda: encode_supports(setting.backbone, setting.base, [support], limit)


def _steps(setting: BenchSetting, support: SupportSet, steps: int) -> Work:
    limit = setting.parts.settings.backbone.context_tokens
    target = setting.parts.settings.target.model_copy(update={"steps": steps, "keep": []})
    batch = support_batch(setting.backbone, [support], limit)
    return lambda: sgd_updates(setting.backbone, setting.base, batch, 1, target)


def _read(setting: BenchSetting, support: SupportSet, rows: int, rank: int | None = None) -> Work:
    base, update = setting.base, setting.base.zero_update()
    if rank is not None:
        base, update = _with_rank(setting.base, rank)
    limit = setting.parts.settings.backbone.context_tokens
    one = SupportSet(support.task, support.demonstrations[:1])
    batch = support_batch(setting.backbone, [one] * rows, limit)
    updates = update.map(lambda t: t.expand(rows, *t.shape).contiguous())

    def work() -> None:
        with attach(setting.backbone, base, updates):
            last_states(setting.backbone, batch)

    return work


def works_of(setting: BenchSetting) -> dict[str, dict[int, Work]]:
    """Make the work of every point, by axis and size."""
    material = Material(setting)
    plain = material.support()
    makers: dict[str, Callable[[int], Work]] = {
        "passages per question": lambda n: _encode(setting, material.support(passages=n)),
        "tokens per passage": lambda n: _encode(setting, material.support(tokens=n)),
        "demonstrations N": lambda n: _encode(setting, material.support(size=n)),
        "SGD steps K": lambda n: _steps(setting, plain, n),
        "rows of a batch": lambda n: _read(setting, plain, n),
        "rank": lambda n: _read(setting, plain, 4, n),
    }
    return {axis: {size: makers[axis](size) for size in sizes} for axis, sizes in AXES.items()}


def run(setting: BenchSetting) -> Measured:
    """Time every axis: by axis the sizes, milliseconds of each round, and the fitted exponent."""
    found: dict[str, Any] = {}
    for axis, works in works_of(setting).items():
        setting.say(f"growth: {axis}")
        named = {str(size): work for size, work in works.items()}
        times = in_turn(named, setting.few, warm=axis != "SGD steps K")
        exponent, explained = fit_exponent(list(works), [median(ms) for ms in times.values()])
        found[axis] = {
            "sizes": list(works),
            "ms": list(times.values()),
            "exponent": exponent,
            "explained": explained,
        }
    fixed = {"passages": PASSAGES, "tokens_per_passage": TOKENS, "demonstrations": SIZE}
    return Measured(facts={"growth": found, "fixed": fixed})
