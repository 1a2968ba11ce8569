"""Ranks of ids in bounded memory: sorted in parts, the parts on disk, then merged."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from raggd.records import RaggdError
from raggd.retrieval.base import Rows

_PART = 250_000


class IdRanks:
    """Takes ids one by one and ranks them at the end; holds at most a part of them in memory."""

    def __init__(self, folder: Path, part: int = _PART) -> None:
        """Start with none.

        Args:
            folder: where parts are written for as long as they are needed.
            part: ids held in memory.
        """
        self._folder = folder
        self._size = part
        self._held: list[str] = []
        self._parts: list[IO[str]] = []
        self._count = 0

    def add(self, name: str) -> None:
        """Take the id of the next row.

        Args:
            name: the id.
        """
        self._held.append(name)
        self._count += 1
        if len(self._held) == self._size:
            self._spill()

    def ranks(self) -> Rows:
        """Rank all ids that were taken.

        Returns:
            Place of each row in the order of ids, shape (rows,).

        Raises:
            RaggdError: two rows have the same id.
        """
        ranks = np.empty(self._count, dtype=np.int64)
        parts: list[Iterator[tuple[str, int]]] = [self._sorted_held()]
        parts += [_read(part) for part in self._parts]
        previous, at = None, -1
        for rank, (name, row) in enumerate(heapq.merge(*parts)):
            if name == previous:
                raise RaggdError(
                    f"passages number {at + 1} and {row + 1} have the same id '{name}': ids "
                    "of a corpus must be unique. Rename or remove one."
                )
            ranks[row] = rank
            previous, at = name, row
        for part in self._parts:
            part.close()
        return ranks

    def _sorted_held(self) -> Iterator[tuple[str, int]]:
        held, first = self._held, self._count - len(self._held)
        return ((held[at], first + at) for at in sorted(range(len(held)), key=held.__getitem__))

    def _spill(self) -> None:
        part = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)  # noqa: SIM115
        for pair in self._sorted_held():
            part.write(json.dumps(pair, ensure_ascii=False) + "\n")
        part.seek(0)
        self._parts.append(part)
        self._held = []


def _read(part: IO[str]) -> Iterator[tuple[str, int]]:
    return (tuple(json.loads(line)) for line in part)
