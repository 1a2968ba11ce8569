"""How sure a score is: bootstrap intervals and paired tests over questions (NumPy only).

A score is a mean over questions. Questions belong to benchmarks (`groups`), and may share a
support draw (`clusters`). The benchmarks are fixed, so questions are always resampled within
their benchmark; support draws are a random choice, so their spread counts as uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from raggd.evaluation.resampling import Array, bootstrap
from raggd.records import RaggdError


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval.

    One question alone says nothing about the spread: `low` and `high` are then infinite.
    """

    mean: float
    low: float
    high: float
    level: float = 0.95

    def scaled(self, factor: float) -> Interval:
        """Return the same in another unit, e.g. times 100 for percent; a p-value stays."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.level)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences ``a - b``, with its interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float
    level: float = 0.95

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def scaled(self, factor: float) -> Difference:
        """Return the same in another unit, e.g. times 100 for percent; a p-value stays."""
        return Difference(
            self.mean * factor, self.low * factor, self.high * factor, self.p_value, self.level
        )


def _scores(values: ArrayLike, name: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RaggdError(
            f"{name} must be a list of numbers, one per question ({error})."
        ) from error
    if array.ndim != 1 or not array.size:
        raise RaggdError(
            f"{name} must be a non-empty list of scores, one each; got shape {array.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise RaggdError(
            f"{name}[{bad[0]}] is {array[bad[0]]}: every question needs a finite score."
        )
    return array


def _table(scores: ArrayLike) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise RaggdError(
            "expected a table of finite scores, one row per question and one column per method; "
            f"got shape {table.shape}."
        )
    return table


def _check_options(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise RaggdError(f"level must lie between 0 and 1, e.g. 0.95; got {level}.")
    if resamples < 1:
        raise RaggdError(f"resamples must be at least 1, e.g. 10000; got {resamples}.")


def _limits(draws: Array | None, column: int, level: float) -> tuple[float, float]:
    if draws is None:
        return -math.inf, math.inf
    low, high = np.quantile(draws[:, column], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
    macro: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean score with its percentile bootstrap interval.

    Args:
        values: scores, shape (questions,).
        groups: the benchmark of each question; questions are resampled within it.
        clusters: the support draw of each question, nested in its benchmark, or a tuple of draws
            where its score is the mean over several; the draws' spread then counts. With fewer
            than about five draws per benchmark it is known only roughly.
        macro: average the benchmarks' means instead of all questions.
        level: share of repetitions of the experiment whose interval should hold the true mean.
        resamples: bootstrap samples.
        seed: of the random numbers; the same seed gives the same interval.

    Returns:
        The mean and its interval. It is infinite when one question is all there is (with `macro`:
        in some benchmark).

    >>> interval = bootstrap_interval([0, 1, 1, 0, 1, 1, 1, 0])
    >>> interval.mean, interval.low, interval.high
    (0.625, 0.25, 0.875)
    """
    scores = _scores(values, "values")
    return bootstrap_intervals(
        scores[:, None],
        groups=groups,
        clusters=clusters,
        macro=macro,
        level=level,
        resamples=resamples,
        seed=seed,
    )[0]


def bootstrap_intervals(
    scores: ArrayLike,
    *,
    over: int | None = None,
    groups: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
    macro: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """Average the scores of several methods, all on the same resamples.

    Args:
        scores: shape (questions, methods), finite.
        over: column whose mean every mean is divided by; None gives the means. A ratio says
            something only where that column's own interval lies on one side of zero.
        groups: as for `bootstrap_interval`.
        clusters: as for `bootstrap_interval`.
        macro: as for `bootstrap_interval`.
        level: of the intervals.
        resamples: bootstrap samples.
        seed: of the random numbers.

    Returns:
        One interval per column; without `over`, each is what `bootstrap_interval` gives for the
        column alone.
    """
    table = _table(scores)
    _check_options(level, resamples)
    resampled = partial(
        bootstrap, groups=groups, clusters=clusters, macro=macro, resamples=resamples, seed=seed
    )
    means, draws = resampled(table)
    if over is not None:
        # What a column is above its multiple of the reference is resampled as a column of its own,
        # as the paired test does: columns have their own effects of the draw, so the quotient of
        # two resampled means would not show how they move together.
        ratios = means / means[over]
        above = resampled(table - ratios * table[:, [over]])[1]
        if draws is not None and above is not None:
            draws = ratios + above / draws[:, [over]]
        means = ratios
    return [Interval(float(m), *_limits(draws, i, level), level) for i, m in enumerate(means)]


def _two_sided(draws: Array, scale: float) -> float:
    """Return twice the smaller share of resamples on one side of zero (zero counts on both)."""
    nothing = 1e-12 * scale  # sums that cancel leave rounding errors, not differences
    below = np.count_nonzero(draws <= nothing)
    above = np.count_nonzero(draws >= -nothing)
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(draws)))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
    macro: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same questions, as `paired_bootstraps` does.

    Args:
        a: scores of one method, shape (questions,).
        b: scores of the other on the same questions, in the same order.
        groups: the benchmark of each question; questions are resampled within it.
        clusters: the support draw of each question, nested in its benchmark.
        macro: average the benchmarks' differences instead of all questions.
        level: of the interval.
        resamples: bootstrap samples.
        seed: of the random numbers.

    Returns:
        The mean of ``a - b``, its interval and the two-sided p-value.

    Raises:
        RaggdError: the two lists are not of the same length, or hold no finite numbers.
    """
    first, second = _scores(a, "a"), _scores(b, "b")
    if len(first) != len(second):
        raise RaggdError(
            f"a paired comparison needs the same questions on both sides, got {len(first)} and "
            f"{len(second)} scores."
        )
    table = np.stack([first, second], axis=1)
    return paired_bootstraps(
        table,
        [(0, 1)],
        groups=groups,
        clusters=clusters,
        macro=macro,
        level=level,
        resamples=resamples,
        seed=seed,
    )[0]


def paired_bootstraps(
    scores: ArrayLike,
    pairs: Sequence[tuple[int, int]],
    *,
    groups: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
    macro: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """Compare many pairs of methods on the same questions and the same resamples.

    The p-value is the smallest ``1 - level`` at which the percentile interval touches zero, so it
    agrees with the interval; it is never below ``2 / (resamples + 1)``.

    Args:
        scores: shape (questions, methods), finite.
        pairs: columns (a, b) to compare; the difference is a minus b.
        groups: as for `bootstrap_interval`; so are the other arguments.
        clusters: the support draw of each question.
        macro: average the benchmarks' differences.
        level: of the intervals.
        resamples: bootstrap samples.
        seed: of the random numbers.

    Returns:
        One difference per pair; each is what `paired_bootstrap` gives for the pair alone.
    """
    table = _table(scores)
    _check_options(level, resamples)
    values = np.stack([table[:, a] - table[:, b] for a, b in pairs], axis=1)
    means, draws = bootstrap(values, groups, clusters, macro, resamples, seed)
    found = []
    for column, mean in enumerate(means):
        p_value = 1.0
        if draws is not None:
            p_value = _two_sided(draws[:, column], float(np.abs(values[:, column]).max()))
        found.append(Difference(float(mean), *_limits(draws, column, level), p_value, level))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons by Holm's step-down rule.

    Rejecting where the adjusted value is below alpha keeps the chance of any false alarm below
    alpha, whatever the dependence between the comparisons.

    Args:
        p_values: one per comparison.

    Returns:
        The adjusted values in the same order, each at least as large as before and at most 1.

    Raises:
        RaggdError: a value is not a probability.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    for index, value in enumerate(p_values):
        if not 0 <= value <= 1:
            raise RaggdError(f"p_values[{index}] is {value}: a p-value lies between 0 and 1.")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def questions_needed(
    effect: float, std_of_difference: float, *, level: float = 0.95, power: float = 0.8
) -> int:
    """Tell how many questions a paired comparison needs to see an effect.

    Normal approximation: ``n = ((z(1 - alpha/2) + z(power)) * std / effect) ** 2``, rounded up,
    with ``alpha = 1 - level``.

    Args:
        effect: the true mean difference, in the unit of the scores.
        std_of_difference: standard deviation of one question's difference, same unit.
        level: of the two-sided test.
        power: wanted chance that the difference comes out significant.

    Returns:
        The number of questions, at least 2.

    Raises:
        RaggdError: the effect is 0, the deviation negative, or level or power not in (0, 1).

    >>> questions_needed(0.02, 0.4)  # 2 points of EM; the methods differ on 16 % of the questions
    3140
    """
    if not math.isfinite(effect) or effect == 0:
        raise RaggdError(f"effect must be a number other than 0, got {effect}.")
    if not math.isfinite(std_of_difference) or std_of_difference < 0:
        raise RaggdError(f"std_of_difference must not be negative, got {std_of_difference}.")
    if not (0 < level < 1 and 0 < power < 1):
        raise RaggdError(f"level and power must lie between 0 and 1, got {level} and {power}.")
    quantile = NormalDist().inv_cdf
    z = quantile((1 + level) / 2) + quantile(power)
    return max(2, math.ceil((max(z, 0.0) * std_of_difference / effect) ** 2))
