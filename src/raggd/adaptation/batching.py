"""Which examples a training step sees: a pure function of seed and step; resuming is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

WINDOW = 16
"""Batches sorted by length together: padding shrinks, the order stays random."""


def epoch_batches(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut one shuffled epoch into batches of similar length.

    Args:
        lengths: length of each example.
        batch: examples per batch; a last incomplete batch is dropped unless it is the only one.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        Batches of example numbers.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch * WINDOW):
        window = sorted(order[start : start + batch * WINDOW], key=lambda i: lengths[i])
        batches += [
            [int(i) for i in window[at : at + batch]] for at in range(0, len(window), batch)
        ]
    whole = [b for b in batches if len(b) == batch] or batches
    return [whole[i] for i in generator.permutation(len(whole))]


class BatchOrder:
    """The examples of every step, epochs following one another; an epoch is shuffled once."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        """Shuffle nothing yet; arguments as of `epoch_batches`."""
        self._lengths, self._batch, self._seed = lengths, batch, seed
        self._per_epoch = max(1, len(lengths) // batch)
        self._epoch, self._batches = -1, [[0]]

    def __call__(self, step: int) -> list[int]:
        """Return the numbers of one step's examples, steps counted from 0."""
        epoch, at = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._lengths, self._batch, self._seed, epoch)
            self._epoch = epoch
        return self._batches[at]


class BatchSettings(Protocol):
    """What says which examples make up one optimizer step."""

    @property
    def batch(self) -> int:
        """Examples per batch."""

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""

    @property
    def seed(self) -> int:
        """Seed of the order."""
