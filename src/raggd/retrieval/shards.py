"""The vectors of an index while they are made: shards in any order become one file.

Shards are appended to a file of the final shape: nothing is copied at the end, and its length tells
what is done. A shard that is ready before its turn waits beside it in a part file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from raggd.files import replacing
from raggd.retrieval.base import Progress
from raggd.retrieval.encoder import Encoder, Vectors
from raggd.retrieval.store import read_passages_of

EMBEDDINGS = "embeddings.npy"
"""The vectors of an index: 32-bit floats, shape (passages, width)."""

_PARTS = "vectors-*.npy"


def drop_shards(folder: Path) -> None:
    """Delete all vectors of a partial folder."""
    (folder / EMBEDDINGS).unlink(missing_ok=True)
    for file in folder.glob(_PARTS):
        file.unlink()


@contextmanager
def open_shards(folder: Path, count: int, width: int, shard: int) -> Iterator[VectorShards]:
    """Open the vectors of a build, going on from those that are there.

    Args:
        folder: of the build.
        count: number of passages.
        width: components of a vector.
        shard: passages per shard.

    Yields:
        What takes the shards.
    """
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(header, shape)
    size = len(header.getvalue())
    with (folder / EMBEDDINGS).open("ab") as stream:
        done = max(0, stream.tell() - size) // (4 * width * shard)
        stream.truncate(size + done * 4 * width * shard if done else 0)
        if not done:
            stream.write(header.getvalue())
        yield VectorShards(folder, stream, count, shard, done * shard)


class VectorShards:
    """Takes shards in any order.

    Attributes:
        folder: of the build, with the store of the passages.
        count: number of all passages.
    """

    def __init__(
        self, folder: Path, stream: io.BufferedWriter, count: int, shard: int, ready: int
    ) -> None:
        """Take an opened file.

        Args:
            folder: of the build.
            stream: the file, opened to append.
            count: number of passages.
            shard: passages per shard.
            ready: passages whose vectors are in the file.
        """
        self.folder = folder
        self.count = count
        self._stream = stream
        self._shard = shard
        self._ready = ready
        for file in folder.glob(_PARTS):
            if int(file.stem.partition("-")[2]) < ready:  # killed before it was deleted
                file.unlink()
        self._append_waiting()

    @property
    def done(self) -> int:
        """Passages whose vectors are there."""
        return self.count - sum(end - start for start, end in self.missing())

    def missing(self) -> list[tuple[int, int]]:
        """Return first row, and row after the last, of the shards that are missing, rising."""
        starts = range(self._ready, self.count, self._shard)
        return [
            (start, min(start + self._shard, self.count))
            for start in starts
            if not self._part(start).exists()
        ]

    def put(self, start: int, vectors: Vectors) -> None:
        """Take a shard.

        Args:
            start: its first row.
            vectors: of its passages, shape (passages, width).
        """
        if start != self._ready:
            with replacing(self._part(start)) as temporary, temporary.open("wb") as stream:
                np.save(stream, vectors.astype("<f4"), allow_pickle=False)
            return
        self._append(vectors)
        self._append_waiting()

    def _append(self, vectors: Vectors) -> None:
        self._stream.write(vectors.astype("<f4").tobytes())
        self._stream.flush()
        self._ready += len(vectors)

    def _append_waiting(self) -> None:
        while (part := self._part(self._ready)).exists():
            self._append(np.load(part, allow_pickle=False))
            part.unlink()

    def _part(self, start: int) -> Path:
        return self.folder / _PARTS.replace("*", f"{start:012d}")


def encode_shards(shards: VectorShards, encoder: Encoder, progress: Progress | None) -> None:
    """Make all shards that are missing, one after the other.

    Args:
        shards: takes them.
        encoder: makes the vectors.
        progress: called with passages encoded and all passages, after each batch.
    """
    if progress is not None and shards.done:
        progress(shards.done, shards.count)
    for start, end in shards.missing():
        batch = list(read_passages_of(shards.folder, start, end))
        told = _after(progress, shards.done, shards.count)
        shards.put(start, encoder.encode_passages(batch, told))
    if progress is not None:
        progress(shards.count, shards.count)


def _after(progress: Progress | None, done: int, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda more: progress(done + more, total)
