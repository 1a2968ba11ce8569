"""Resampling of means over questions that belong to benchmarks and share support draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raggd.records import RaggdError

Array = NDArray[np.float64]
_DRAWS_IN_MEMORY = 1 << 20
"""Indices drawn at once: 8 MiB of them, and as much for the values they select."""


def _check_length(labels: Sequence[object], name: str, n: int) -> None:
    if len(labels) != n:
        raise RaggdError(f"{name} has {len(labels)} labels for {n} questions: give one for each.")


def _members(labels: Sequence[object] | None, n: int) -> NDArray[np.intp]:
    # The index of each question's group among the sorted names, shape (n,).
    if labels is None:
        return np.zeros(n, dtype=np.intp)
    _check_length(labels, "groups", n)
    names = sorted({str(label) for label in labels})
    number = {label: index for index, label in enumerate(names)}
    return np.array([number[str(label)] for label in labels], dtype=np.intp)


def resampled_means(values: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Draw samples with replacement and average them; columns share their samples.

    Args:
        values: shape (n, columns).
        resamples: number of samples.
        rng: where chance comes from.

    Returns:
        Means, shape (resamples, columns).
    """
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
    """Resample the mean of questions that share support draws.

    Resampling clusters and then questions counts the noise within clusters twice. Here a score is
    the sum of its clusters' effects, by their shares, and of a residual, which are resampled apart.
    The effects get the variance that analysis of variance by the method of moments finds beyond
    that of the residuals, so that the spread is right with and without an effect of the draw, and
    where a question was answered with several draws.

    Args:
        values: shape (n, columns).
        shares: part of each row that belongs to each cluster, shape (n, clusters); rows sum to 1.
        resamples: number of samples.
        rng: where chance comes from.

    Returns:
        Means, shape (resamples, columns).
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


def bootstrap(
    values: Array,
    groups: Sequence[object] | None,
    clusters: Sequence[object] | None,
    macro: bool,
    resamples: int,
    seed: int,
) -> tuple[Array, Array | None]:
    """Average columns of scores and resample the averages, within groups.

    Args:
        values: shape (n, columns).
        groups: label of each row; rows are resampled within their group.
        clusters: label of each row, or a tuple of labels where several share it; nested in the
            groups.
        macro: average the groups' means instead of all rows.
        resamples: number of samples.
        seed: of the random numbers.

    Returns:
        Means, shape (columns,), and resampled means, shape (resamples, columns): None when a group
        is too small to tell a spread.
    """
    group = _members(groups, len(values))
    if clusters is not None:
        _check_length(clusters, "clusters", len(values))
    sizes = np.bincount(group)
    weights = np.full(len(sizes), 1 / len(sizes)) if macro else sizes / len(values)
    means = np.stack([values[group == index].mean(0) for index in range(len(sizes))])
    mean: Array = weights @ means
    if len(values) < 2 or (macro and sizes.min() < 2):
        return mean, None
    rng = np.random.default_rng(seed)
    total = np.zeros((resamples, values.shape[1]))
    for index, weight in enumerate(weights):
        chosen = group == index
        if clusters is None:
            drawn = resampled_means(values[chosen], resamples, rng)
        else:
            shares = _shares([clusters[int(row)] for row in np.flatnonzero(chosen)])
            drawn = clustered_means(values[chosen], shares, resamples, rng)
        total += weight * drawn
    return mean, total
