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


def _members(labels: Sequence[object] | None, name: str, n: int) -> NDArray[np.intp]:
    # The index of each question's label among the sorted labels, shape (n,).
    if labels is None:
        return np.zeros(n, dtype=np.intp)
    if len(labels) != n:
        raise RaggdError(f"{name} has {len(labels)} labels for {n} questions: give one for each.")
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


def clustered_means(
    values: Array, member: NDArray[np.intp], resamples: int, rng: np.random.Generator
) -> Array:
    """Resample the mean of questions that share support draws.

    Resampling clusters and then questions counts the noise within clusters twice. Here the mean is
    split into cluster effects and residuals, which are resampled apart; the effects are first
    shrunk by the share of their variance that the residuals do not explain (one-way analysis of
    variance), so that the spread is right with and without an effect of the draw.

    Args:
        values: shape (n, columns).
        member: index of the cluster of each row, shape (n,).
        resamples: number of samples.
        rng: where chance comes from.

    Returns:
        Means, shape (resamples, columns).
    """
    sizes = np.bincount(member)
    n, clusters = len(values), len(sizes)
    if clusters in (1, n):  # a single draw shows no spread of draws; single questions no residuals
        return resampled_means(values, resamples, rng)
    mean = values.mean(0)
    sums = np.zeros((clusters, values.shape[1]))
    np.add.at(sums, member, values)
    cluster_means = sums / sizes[:, None]
    residuals = values - cluster_means[member]
    within = np.square(residuals).sum(0) / (n - clusters)
    between = (sizes[:, None] * np.square(cluster_means - mean)).sum(0) / (clusters - 1)
    ratio = np.divide(within, between, out=np.ones_like(within), where=between > 0)
    share = np.maximum(0.0, 1 - ratio)
    effects = (sizes[:, None] * clusters / n) * (cluster_means - mean)
    effects *= np.sqrt(share * clusters / (clusters - 1))
    residuals *= math.sqrt(n / (n - clusters))
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
        clusters: label of each row, nested in the groups.
        macro: average the groups' means instead of all rows.
        resamples: number of samples.
        seed: of the random numbers.

    Returns:
        Means, shape (columns,), and resampled means, shape (resamples, columns): None when a group
        is too small to tell a spread.
    """
    group = _members(groups, "groups", len(values))
    cluster = _members(clusters, "clusters", len(values))
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
            inner = np.unique(cluster[chosen], return_inverse=True)[1]
            drawn = clustered_means(values[chosen], inner, resamples, rng)
        total += weight * drawn
    return mean, total
