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


def batch_of_step(lengths: Sequence[int], batch: int, seed: int, step: int) -> list[int]:
    """Return the examples of one step, counted from 0, epochs following one another."""
    per_epoch = len(epoch_batches(lengths, batch, seed, 0))
    return epoch_batches(lengths, batch, seed, step // per_epoch)[step % per_epoch]


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


def accumulated_batches(
    lengths: Sequence[int], settings: BatchSettings, step: int
) -> list[list[int]]:
    """Return the batches of example numbers that one optimizer step adds up, step from 0."""
    first = step * settings.accumulate
    return [
        batch_of_step(lengths, settings.batch, settings.seed, first + i)
        for i in range(settings.accumulate)
    ]
