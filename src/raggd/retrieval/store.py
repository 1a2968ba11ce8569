"""Passages on disk with random access.

A store is ``passages.jsonl`` (one passage per line, in corpus order) and four arrays of 64-bit
integers: ``offsets.npy`` (where each line begins), ``rank.npy`` (the place of each row in the order
of passage ids), ``keys.npy`` (hashes of the ids, sorted) and ``key_rows.npy`` (the row of each
hash). All are memory-mapped, so opening costs the same for a thousand passages and ten million.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raggd.data.documents import corpus_hash
from raggd.files import read_json, write_json
from raggd.records import Passage, RaggdError
from raggd.retrieval.sorting import IdRanks

STORED = "stored.json"
"""The file of a partial folder that says that its store is whole."""

SORT_BYTES = 33
"""Memory that writing a store takes per passage at its end, when rows are sorted."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What was written: the number of passages and the hash of their ids, titles and texts."""

    count: int
    corpus_hash: str


def write_store(passages: Iterable[Passage], folder: Path) -> StoreInfo:
    """Stream passages to a store; about 40 bytes per passage are held in memory, and some ids.

    Args:
        passages: the corpus; ids must be unique.
        folder: an existing folder.

    Returns:
        Count and content hash of the corpus (order included).

    Raises:
        RaggdError: the corpus is empty, a passage has no id or no words, or two share an id.
    """
    ids = IdRanks(folder)
    keys, offsets = array("Q"), array("q", [0])
    with (folder / "passages.jsonl").open("wb") as stream:
        digest = corpus_hash(_written(passages, stream, ids, keys, offsets))
    if not keys:
        raise RaggdError("the corpus holds no passages: an index needs at least one.")
    _save(folder, "rank", ids.ranks())
    _save(folder, "offsets", np.frombuffer(offsets, dtype=np.int64))
    hashes = np.frombuffer(keys, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    _save(folder, "keys", hashes[order])
    _save(folder, "key_rows", order)
    return StoreInfo(len(keys), digest)


def prepare_store(passages: Iterable[Passage], work: Path, known: str | None = None) -> StoreInfo:
    """Write the store of a build, unless the build was stopped after that.

    Args:
        passages: the corpus; not read if the store is there.
        work: folder of the build.
        known: hash of the corpus, if it is known; without it, the store is written anew.

    Returns:
        Count and content hash of the corpus.
    """
    done = work / STORED
    if done.is_file():
        info = StoreInfo(**read_json(done, what="state of the build"))
        if info.corpus_hash == known:
            return info
        done.unlink()
    info = write_store(passages, work)
    write_json(done, asdict(info))
    return info


def _save(folder: Path, name: str, values: NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _written(
    passages: Iterable[Passage],
    stream: IO[bytes],
    ids: IdRanks,
    keys: array[int],
    offsets: array[int],
) -> Iterator[Passage]:
    # Pass the corpus on as it is written, so that one reading also hashes it.
    for given in passages:
        passage = storable(given)
        if not passage.id or not (passage.text.strip() or passage.title.strip()):
            raise RaggdError(
                f"passage number {len(keys) + 1} (id '{passage.id}') has no id or no text: "
                "every passage of a corpus needs both. Correct or remove it."
            )
        record = {"id": passage.id, "title": passage.title, "text": passage.text}
        if passage.source:
            record["source"] = passage.source
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        stream.write(line)
        ids.add(passage.id)
        keys.append(id_key(passage.id))
        offsets.append(offsets[-1] + len(line))
        yield passage


def storable(passage: Passage) -> Passage:
    """Return a passage that has a UTF-8 form: damaged corpora hold halves of surrogate pairs."""
    parts = (passage.id, passage.text, passage.title, passage.source)
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        return Passage(*(part.encode(errors="replace").decode() for part in parts))
    return passage


def id_key(name: str) -> int:
    """Return a 64-bit hash of a passage id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class PassageStore:
    """Random access to the passages of a store.

    Attributes:
        rank: place of each row in the order of passage ids, shape (count,).
    """

    def __init__(self, folder: Path) -> None:
        self._lines = np.memmap(folder / "passages.jsonl", dtype=np.uint8, mode="r")
        self._offsets = _mapped(folder / "offsets.npy")
        self._keys = _mapped(folder / "keys.npy")
        self._key_rows = _mapped(folder / "key_rows.npy")
        self.rank = _mapped(folder / "rank.npy")
        self._folder = folder
        if len(self._lines) != self._offsets[-1] or len(self.rank) + 1 != len(self._offsets):
            raise ValueError("passages.jsonl and its offsets do not belong together")

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.rank)

    def passage(self, row: int) -> Passage:
        """Read one passage.

        Args:
            row: its row number.

        Returns:
            The passage.
        """
        return Passage(**self._record(row))

    def rows(self, ids: Iterable[str]) -> list[int]:
        """Find the rows of passage ids; unknown ids are left out.

        Args:
            ids: passage ids.

        Returns:
            Row numbers of the known ones, in the order of `ids`.
        """
        return [row for row in map(self._row, ids) if row is not None]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Look passages up by id.

        Args:
            ids: passage ids.

        Returns:
            The passages, in the order of `ids`.

        Raises:
            RaggdError: an id is not in the corpus.
        """
        found: list[Passage] = []
        for name in ids:
            row = self._row(name)
            if row is None:
                raise RaggdError(
                    f"no passage '{name}' in the index at {self._folder}: the ids belong to "
                    "another corpus."
                )
            found.append(self.passage(row))
        return found

    def _record(self, row: int) -> dict[str, str]:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        record: dict[str, str] = json.loads(self._lines[start:end].tobytes())
        return record

    def _row(self, name: str) -> int | None:
        try:
            key = np.uint64(id_key(name))
        except UnicodeEncodeError:
            return None
        place = int(np.searchsorted(self._keys, key))
        while place < len(self) and self._keys[place] == key:  # two ids may share a hash
            row = int(self._key_rows[place])
            if self._record(row)["id"] == name:
                return row
            place += 1
        return None

    def __iter__(self) -> Iterator[Passage]:
        """Iterate over the passages, in corpus order.

        Returns:
            The iterator; passages are read one at a time.
        """
        return (self.passage(row) for row in range(len(self)))


def read_passages_of(folder: Path, start: int, end: int) -> Iterator[Passage]:
    """Stream passages of a store in corpus order, without mapping its file into memory.

    Args:
        folder: the store.
        start: first row.
        end: row after the last.

    Yields:
        The passages.
    """
    with (folder / "passages.jsonl").open("rb") as lines:
        lines.seek(int(offsets_of(folder)[start]))
        yield from passages_in(islice(lines, end - start))


def read_lines_of(folder: Path, start: int, end: int) -> bytes:
    """Read passages of a store as they are stored, to be sent elsewhere.

    Args:
        folder: the store.
        start: first row.
        end: row after the last.

    Returns:
        Their lines, for `passages_in`.
    """
    offsets = offsets_of(folder)
    with (folder / "passages.jsonl").open("rb") as lines:
        lines.seek(int(offsets[start]))
        return lines.read(int(offsets[end] - offsets[start]))


def offsets_of(folder: Path) -> NDArray[np.int64]:
    """Map where the lines of a store begin.

    Args:
        folder: the store.

    Returns:
        The place of each passage, and the end, in bytes, shape (passages + 1,).
    """
    return _mapped(folder / "offsets.npy")


def passages_in(lines: Iterable[bytes]) -> Iterator[Passage]:
    """Read passages from lines of a store.

    Args:
        lines: of ``passages.jsonl``.

    Yields:
        The passages.
    """
    for line in lines:
        yield Passage(**json.loads(line))


def _mapped(path: Path) -> NDArray[Any]:
    # Plain arrays over the mapped file: slices of a memmap are several times dearer.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
