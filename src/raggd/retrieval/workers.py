"""What other processes can do of a build: its long part. The one that builds alone writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raggd.retrieval.base import Progress
from raggd.retrieval.memory import Budget

if TYPE_CHECKING:
    from raggd.retrieval.encoder import Encoder
    from raggd.retrieval.shards import VectorShards


class IndexWorkers(Protocol):
    """Processes, here or elsewhere, that sort words and encode passages."""

    def sort_ranges(
        self, folder: Path, passages: int, budget: Budget, progress: Progress | None, rows: int
    ) -> None:
        """Make all ranges of a store that are missing, as `raggd.retrieval.ranges` does.

        Args:
            folder: a folder with a store.
            passages: number of its passages.
            budget: what each worker may hold.
            progress: called with the passages done and all of them.
            rows: most passages of a range.
        """

    def encode_shards(
        self, shards: VectorShards, encoder: Encoder, progress: Progress | None
    ) -> None:
        """Make all shards of vectors that are missing.

        Args:
            shards: takes them.
            encoder: the encoder to use, by name and precision.
            progress: called with the passages done and all of them.
        """

    def speed(self, of: str) -> float:
        """Say how many times as fast they are as this process alone, for estimates.

        Args:
            of: ``bm25`` or ``dense``.

        Returns:
            The factor.
        """
