"""How sure a score is: bootstrap intervals and paired tests over questions (NumPy only).

A score is a mean over questions. Questions belong to benchmarks (`groups`), and may share a
support draw (`clusters`). The benchmarks are fixed, so questions are always resampled within
their benchmark; support draws are a random choice, so their spread counts as uncertainty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from raggd.records import RaggdError

Array = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)
LEVEL = 0.95  # share of repetitions of an experiment whose interval should hold the true mean
SEEN = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(0.8)
"""Standard errors of a difference that is seen, two-sided, with a power of 80 %."""
_DRAWS_IN_MEMORY = 1 << 20  # indices drawn at once: 8 MiB, and as much for the values


def resampled_means(values: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Average samples of rows (n, columns), the same for all columns: (resamples, columns)."""
    means = np.empty((resamples, values.shape[1]))
    n = len(values)
    rows = max(1, _DRAWS_IN_MEMORY // n)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(n, size=(stop - start, n)) + n * np.arange(stop - start)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * (stop - start)).reshape(-1, n)
        means[start:stop] = times @ values / n
    return means


def _shares(labels: Sequence[object]) -> Array:
    # The part of each question that belongs to each support draw, shape (n, draws).
    given = [label if isinstance(label, tuple) else (label,) for label in labels]
    names = sorted({str(name) for together in given for name in together})
    number = {name: index for index, name in enumerate(names)}
    shares = np.zeros((len(given), len(names)))
    for row, together in zip(shares, given, strict=True):
        for name in together:
            row[number[str(name)]] += 1 / len(together)
    return shares


def clustered_means(
    values: Array, shares: Array, resamples: int, rng: np.random.Generator
) -> Array:
    """Resample the mean of questions that share support draws, shape (resamples, columns).

    `values` are (n, columns); `shares` is the part of each row that belongs to each cluster, (n,
    clusters), and rows sum to 1.

    Resampling clusters and then questions counts the noise within clusters twice. Here a score is
    the sum of its clusters' effects, by their shares, and of a residual, which are resampled apart.
    The effects get the variance that analysis of variance by the method of moments finds beyond
    that of the residuals, so that the spread is right with and without an effect of the draw, and
    where a question was answered with several draws.
    """
    n, clusters = shares.shape
    solution, _, rank, _ = np.linalg.lstsq(shares, values)
    if rank in (1, n):  # a single draw shows no spread of draws; single questions no residuals
        return resampled_means(values, resamples, rng)
    mean, fitted = values.mean(0), shares @ solution
    residuals = values - fitted
    within = np.square(residuals).sum(0) / (n - rank)
    explained = np.square(fitted - mean).sum(0) - (rank - 1) * within
    variance = np.maximum(0.0, explained) / np.square(shares - shares.mean(0)).sum()
    effects = shares.T @ (values - mean) / n  # what each cluster adds to the mean
    squares = np.square(effects).sum(0)
    wanted = variance * np.square(shares.mean(0)).sum()
    effects *= clusters * np.sqrt(
        np.divide(wanted, squares, out=np.zeros_like(wanted), where=squares > 0)
    )
    residuals *= math.sqrt(n / (n - rank))
    means = resampled_means(effects, resamples, rng)
    means += mean + resampled_means(residuals, resamples, rng)
    return means


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval, which is infinite for one question alone."""

    mean: float
    low: float
    high: float

    def limits(self, digits: int) -> list[float]:
        """Return mean, low and high, rounded, for a record."""
        return [round(x, digits) for x in (self.mean, self.low, self.high)]

    def scaled(self, factor: float) -> Self:
        """Return the same in another unit, e.g. times 100 for percent; a p-value stays."""
        mean, low, high = self.mean * factor, self.low * factor, self.high * factor
        return replace(self, mean=mean, low=low, high=high)

    def within(self, lowest: float, highest: float) -> Self:
        """Return it without what no score can be; effects and residuals, drawn apart, reach it."""
        if not math.isfinite(self.low):
            return self
        return replace(self, low=max(lowest, self.low), high=min(highest, self.high))


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """Mean of paired differences ``a - b``, with its interval and two-sided p-value."""

    p_value: float


Pair = tuple[str, str]  # (method, other): the difference is method minus other


def _limits(draws: Array | None, column: int) -> tuple[float, float]:
    if draws is None:
        return -math.inf, math.inf
    low, high = np.quantile(draws[:, column], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _two_sided(draws: Array | None, values: Array, column: int) -> float:
    # twice the smaller share of resamples on one side of zero (zero counts on both)
    if draws is None:
        return 1.0
    # sums that cancel leave rounding errors, not differences
    nothing = 1e-12 * float(np.abs(values[:, column]).max())
    below = np.count_nonzero(draws[:, column] <= nothing)
    above = np.count_nonzero(draws[:, column] >= -nothing)
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(draws)))


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of methods on common questions, and how these are resampled, alike for all methods.

    An interval is infinite when one question is all there is (with `macro`: in some group).

    >>> whole = Sample(("base",), np.array([[0.0], [1], [1], [0], [1], [1], [1], [0]]))
    >>> whole.intervals()["base"]
    Interval(mean=0.625, low=0.25, high=0.875)
    """

    methods: Sequence[str]
    values: Array  # (questions, methods)
    groups: Sequence[object] | None = None  # benchmark of each question, within which it is drawn
    # support draw of each question, nested in its benchmark, or a tuple of draws where its score is
    # the mean over several; their spread counts, known roughly below five draws per benchmark
    clusters: Sequence[object] | None = None
    macro: bool = False  # whether benchmarks' means are averaged, instead of all questions
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        shape, finite = self.values.shape, np.isfinite(self.values).all()
        if len(shape) != 2 or not self.values.size or not finite:
            raise RaggdError(
                "expected a table of finite scores, one row per question and one column per "
                f"method; got shape {shape}."
            )

    def column(self, method: str) -> Array:
        """Return a method's scores."""
        scores: Array = self.values[:, self.methods.index(method)]
        return scores

    def intervals(self, over: str = "") -> dict[str, Interval]:
        """Average the scores of each method, with the percentile bootstrap interval.

        With `over`, every mean is divided by that method's: a ratio says something only where that
        method's own interval lies on one side of zero.
        """
        means, draws = self._resampled(self.values)
        if over:
            # What a method is above its multiple of the reference is resampled as a column of its
            # own, as the paired test does: columns have their own effects of the draw, so the
            # quotient of two resampled means would not show how they move together.
            at = self.methods.index(over)
            ratios = means / means[at]
            above = self._resampled(self.values - ratios * self.values[:, [at]])[1]
            if draws is not None and above is not None:
                draws = ratios + above / draws[:, [at]]
            means = ratios
        numbered = enumerate(zip(self.methods, means, strict=True))
        return {m: Interval(float(mean), *_limits(draws, i)) for i, (m, mean) in numbered}

    def differences(self, pairs: Sequence[Pair]) -> dict[Pair, Difference]:
        """Compare pairs of methods.

        The p-value is the smallest ``1 - level`` at which the percentile interval touches zero, so
        it agrees with the interval; it is never below ``2 / (resamples + 1)``.
        """
        if not pairs:
            return {}
        values = np.stack([self.column(a) - self.column(b) for a, b in pairs], axis=1)
        means, draws = self._resampled(values)
        return {
            pair: Difference(float(mean), *_limits(draws, i), _two_sided(draws, values, i))
            for i, (pair, mean) in enumerate(zip(pairs, means, strict=True))
        }

    def _resampled(self, values: Array) -> tuple[Array, Array | None]:
        # means (columns,) and resampled ones (resamples, columns): None when a group is too small
        # to tell a spread
        names = [str(name) for name in self.groups or [""] * len(values)]
        if not self.macro:  # groups of one show no spread, which is not none: they are one group
            sizes_by_name = Counter(names)
            names = [name if sizes_by_name[name] > 1 else "" for name in names]
        group = np.unique(names, return_inverse=True)[1]
        sizes = np.bincount(group)
        weights = np.full(len(sizes), 1 / len(sizes)) if self.macro else sizes / len(values)
        means = np.stack([values[group == index].mean(0) for index in range(len(sizes))])
        mean: Array = weights @ means
        if len(values) < 2 or (self.macro and sizes.min() < 2):
            return mean, None
        rng = np.random.default_rng(self.seed)
        total = np.zeros((self.resamples, values.shape[1]))
        for index, weight in enumerate(weights):
            chosen = group == index
            if self.clusters is None:
                drawn = resampled_means(values[chosen], self.resamples, rng)
            else:
                shares = _shares([self.clusters[int(row)] for row in np.flatnonzero(chosen)])
                drawn = clustered_means(values[chosen], shares, self.resamples, rng)
            total += weight * drawn
        return mean, total


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p-values of several comparisons by Holm's step-down rule, in the same order.

    Rejecting where the adjusted value is below alpha keeps the chance of any false alarm below
    alpha, whatever the dependence between the comparisons.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, floor = dict(p_values), 0.0
    for rank, key in enumerate(sorted(adjusted, key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(adjusted) - rank) * p_values[key]))
        adjusted[key] = floor
    return adjusted


def questions_needed(effect: float, std_of_difference: float) -> int:
    """Return how many questions (at least 2) a paired comparison needs to see a mean difference.

    By the normal approximation. The standard deviation is of one question's difference, in the
    unit of the effect, which is not 0.

    >>> questions_needed(0.02, 0.4)  # 2 points of EM; the methods differ on 16 % of the questions
    3140
    """
    return max(2, math.ceil((SEEN * std_of_difference / effect) ** 2))
