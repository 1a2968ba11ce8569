"""Passages on disk with random access, and what is known of the files that they come from.

A store is ``passages.jsonl`` (one per line), ``files.json`` (the files of the corpus
in order, each with its first row and number of rows) and arrays, all memory-mapped:

    offsets           where each line begins, shape (passages + 1,)
    rank              place of each row in the order of passage ids, shape (passages,)
    keys, key_rows    hashes of the ids, sorted, and the row of each
    content           hash of title and text of each row, shape (passages,)

Rows of a file lie together. Those of files that did not change since an earlier store come first,
in its order, so that what was computed for them can be carried over.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raggd.data.documents import corpus_hash
from raggd.files import read_json, write_json
from raggd.records import Passage, RaggdError, content_id
from raggd.retrieval.base import Rows

SORT_BYTES = 41
"""Memory that writing a store takes per passage at its end, when rows are sorted."""

_ID = json.JSONDecoder().raw_decode
_ID_AT = len('{"id":')  # where the id stands in every line


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a corpus as it was read: its state, its rows, or why it has none (`skipped`).

    `content` is the hash of its bytes, `passages` that of its passages. `mtime_ns` is 0 if it may
    have changed since without a trace.
    """

    name: str
    size: int = 0
    mtime_ns: int = 0
    content: str = ""
    passages: str = ""
    start: int = 0
    count: int = 0
    skipped: str = ""


def hash_of_files(files: Sequence[StoredFile]) -> str:
    """Return the hash of a corpus; of a single file, that of its passages in order."""
    hashes = [file.passages for file in files if file.count]
    return hashes[0] if len(hashes) == 1 else content_id(*hashes, length=32)


class StoreWriter:
    """Writes a store: rows copied from an earlier one first, then passages as they are read.

    About 60 bytes per passage are held in memory, and some ids.
    """

    def __init__(self, folder: Path) -> None:
        """Start an empty store in an existing folder."""
        self._folder = folder
        self._ids = _IdRanks(folder)
        self._keys, self._content, self._offsets = array("Q"), array("Q"), array("q", [0])
        self._stream = (folder / "passages.jsonl").open("wb")

    def __len__(self) -> int:
        return len(self._keys)

    def copy(self, old: PassageStore, start: int, count: int) -> None:
        """Append rows of an earlier store."""
        end = start + count
        self._keys.frombytes(old.row_keys[start:end].tobytes())
        self._content.frombytes(old.content[start:end].tobytes())
        moved = old.offsets[start + 1 : end + 1] + (self._offsets[-1] - old.offsets[start])
        self._offsets.frombytes(moved.tobytes())
        with (old.folder / "passages.jsonl").open("rb") as lines:
            lines.seek(int(old.offsets[start]))
            for line in islice(lines, count):
                self._stream.write(line)
                self._ids.add(_ID(line.decode(), _ID_AT)[0])

    def add(self, passages: Iterable[Passage]) -> str:
        """Append passages, none without id or words; return a hash of ids, titles and texts."""
        return corpus_hash(self._written(passages))

    def _written(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        # Pass the passages on as they are written, so that one reading also hashes them.
        for each in passages:
            passage = storable(each)
            if not passage.id or not (passage.text.strip() or passage.title.strip()):
                raise RaggdError(
                    f"passage number {len(self) + 1} (id '{passage.id}') has no id or no text: "
                    "every passage of a corpus needs both. Correct or remove it."
                )
            record = {"id": passage.id, "title": passage.title, "text": passage.text}
            if passage.source:
                record["source"] = passage.source
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            self._stream.write(line)
            self._ids.add(passage.id)
            self._keys.append(id_key(passage.id))
            self._content.append(id_key(f"{passage.title}\n{passage.text}"))
            self._offsets.append(self._offsets[-1] + len(line))
            yield passage

    def finish(self, files: Sequence[StoredFile]) -> None:
        """Sort the ids and write the arrays; `files` are those of the corpus, in its order.

        Raises:
            RaggdError: there are no passages, or two share an id.
        """
        self._stream.close()
        if not self._keys:
            raise RaggdError("the corpus holds no passages: an index needs at least one.")
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        arrays = {
            "rank": self._ranks(files),
            "offsets": np.frombuffer(self._offsets, dtype=np.int64),
            "content": np.frombuffer(self._content, dtype=np.uint64),
            "keys": keys[order],
            "key_rows": order,
        }
        for name, values in arrays.items():
            np.save(self._folder / f"{name}.npy", values, allow_pickle=False)
        write_json(self._folder / "files.json", [asdict(file) for file in files])

    def _ranks(self, files: Sequence[StoredFile]) -> Rows:
        try:
            return self._ids.ranks()
        except _SameIdError as error:
            name, first, second = error.args
            at = [f.name for row in (first, second) for f in files if 0 <= row - f.start < f.count]
            where = f" (in {' and '.join(dict.fromkeys(at))})" if any(at) else ""
            raise RaggdError(
                f"the passage id '{name}' occurs twice, as numbers {first + 1} and {second + 1}"
                f"{where}: ids must be unique in a corpus. Rename or remove one."
            ) from error


def storable(passage: Passage) -> Passage:
    """Return a passage that has a UTF-8 form: damaged corpora hold halves of surrogate pairs."""
    parts = (passage.id, passage.text, passage.title, passage.source)
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        return Passage(*(part.encode(errors="replace").decode() for part in parts))
    return passage


def id_key(name: str) -> int:
    """Return a 64-bit hash of a passage id, or of a text."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class PassageStore:
    """Random access to the passages of a store; its arrays are those of the module's docstring."""

    def __init__(self, folder: Path) -> None:
        """Map the files of a folder.

        Raises:
            ValueError: they do not belong together.
        """
        self._lines = np.memmap(folder / "passages.jsonl", dtype=np.uint8, mode="r")
        self._keys, self._key_rows = mapped(folder / "keys.npy"), mapped(folder / "key_rows.npy")
        self.folder = folder
        self.offsets, self.rank = mapped(folder / "offsets.npy"), mapped(folder / "rank.npy")
        self.content = mapped(folder / "content.npy")
        self.files = [
            StoredFile(**entry) for entry in read_json(folder / "files.json", what="list of files")
        ]
        if len(self._lines) != self.offsets[-1] or len(self.rank) + 1 != len(self.offsets):
            raise ValueError("passages.jsonl and its offsets do not belong together")

    def __len__(self) -> int:
        return len(self.rank)

    def __iter__(self) -> Iterator[Passage]:
        return (self.passage_at(position) for position in range(len(self)))

    @cached_property
    def row_keys(self) -> NDArray[np.uint64]:
        """Hash of the id of each row, shape (count,)."""
        keys = np.empty(len(self), dtype=np.uint64)
        keys[self._key_rows] = self._keys
        return keys

    @cached_property
    def _ends(self) -> Rows:
        return np.cumsum([file.count for file in self.files])

    def passage_at(self, position: int) -> Passage:
        """Return the passage at a position in the corpus."""
        at = int(np.searchsorted(self._ends, position, side="right"))
        file = self.files[at]
        return self.passage(file.start + position - (int(self._ends[at]) - file.count))

    def passage(self, row: int) -> Passage:
        """Return the passage of a row."""
        return Passage(**self._record(row))

    def rows(self, ids: Iterable[str]) -> list[int]:
        """Return the rows of passage ids, in their order; unknown ids are left out."""
        return [row for row in map(self._row, ids) if row is not None]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order.

        Raises:
            RaggdError: an id is not in the corpus.
        """
        found: list[Passage] = []
        for name in ids:
            row = self._row(name)
            if row is None:
                raise RaggdError(
                    f"no passage '{name}' in the index at {self.folder}: the ids belong to "
                    "another corpus."
                )
            found.append(self.passage(row))
        return found

    def _record(self, row: int) -> dict[str, str]:
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
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


def read_rows(folder: Path, start: int, end: int) -> Iterator[Passage]:
    """Stream rows `start` to `end` of a store, without mapping its passages into memory."""
    with (folder / "passages.jsonl").open("rb") as lines:
        lines.seek(int(mapped(folder / "offsets.npy")[start]))
        for line in islice(lines, end - start):
            yield Passage(**json.loads(line))


def mapped(path: Path) -> NDArray[Any]:
    """Return an array of a file, memory-mapped."""
    # As a plain array: slices of a memmap are several times dearer.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class _SameIdError(Exception):
    """Two rows have the same id: the id and the rows."""


class _IdRanks:
    # Ranks ids in bounded memory: sorted in parts, the parts on disk, then merged.

    def __init__(self, folder: Path, part: int = 250_000) -> None:
        self._folder, self._size, self._count = folder, part, 0
        self._held: list[str] = []
        self._parts: list[IO[str]] = []

    def add(self, name: str) -> None:
        self._held.append(name)
        self._count += 1
        if len(self._held) == self._size:
            part = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)  # noqa: SIM115
            part.writelines(f"{json.dumps(p, ensure_ascii=False)}\n" for p in self._sorted())
            part.seek(0)
            self._parts.append(part)
            self._held = []

    def _sorted(self) -> Iterator[tuple[str, int]]:
        held, first = self._held, self._count - len(self._held)
        return ((held[at], first + at) for at in sorted(range(len(held)), key=held.__getitem__))

    def ranks(self) -> Rows:
        # Place of each row in the order of ids, shape (rows,).
        ranks = np.empty(self._count, dtype=np.int64)
        spilled = [(tuple(json.loads(line)) for line in part) for part in self._parts]
        previous, at = None, -1
        for rank, (name, row) in enumerate(heapq.merge(self._sorted(), *spilled)):
            if name == previous:
                raise _SameIdError(name, at, row)
            ranks[row] = rank
            previous, at = name, row
        for part in self._parts:
            part.close()
        return ranks
