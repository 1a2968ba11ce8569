"""Passages on disk, written once, what is known of their files, and the retrievers that read them.

A store is ``passages.sqlite3``, ``rank.npy`` (the place of each row in the order of passage ids,
shape (passages,)) and ``files.json``: the files of the corpus in order, each with its first row and
number of rows.

Rows of a file lie together. Those of files that did not change since an earlier store come first,
in its order, so that what was computed for them can be carried over.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raggd.data.documents import corpus_hash
from raggd.files import read_json, write_json
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import FUSION, RetrievalWarning, Rows, check_search, fused

FILE = "passages.sqlite3"
_READING = threading.Lock()
# No journal: a store counts only once it is whole. The order of the columns is that of `Passage`.
_START = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE passages (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL, title TEXT NOT NULL,
    source TEXT NOT NULL, content INTEGER NOT NULL
);
BEGIN;
"""
_PASSAGE = "passages.id, passages.text, passages.title, passages.source"
_COPY = f"""
INSERT INTO passages SELECT row + ?, {_PASSAGE}, content FROM old.passages AS passages
WHERE row >= ? AND row < ? ORDER BY row
"""
_TWICE = "SELECT id, min(row), max(row) FROM passages GROUP BY id HAVING count(*) > 1 LIMIT 1"
_LAST = "SELECT max(row), page_size FROM passages, pragma_page_size"
_SHARED = """
SELECT count(*), coalesce(sum(now.content <> before.content), 0)
FROM passages AS now JOIN old.passages AS before USING (id) WHERE now.row >= ?
"""
# One parameter for any number of rows: a JSON list, whose order the result keeps.
_AT = f"""
SELECT {_PASSAGE} FROM json_each(?) AS wanted JOIN passages ON passages.row = wanted.value
ORDER BY wanted.key
"""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a corpus as it was read: its state, its rows, or why it has none (`skipped`).

    `partly` says what of it could not be read. `content` is the hash of its bytes, `passages` that
    of its passages. `mtime_ns` is 0 if it may have changed since without a trace.
    """

    name: str
    size: int = 0
    mtime_ns: int = 0
    content: str = ""
    passages: str = ""
    start: int = 0
    count: int = 0
    skipped: str = ""
    partly: str = ""


class StoreWriter:
    """Writes a store: rows copied from an earlier one first, then passages as they are read."""

    def __init__(self, folder: Path, old: PassageStore | None = None) -> None:
        self._folder, self._count = folder, 0
        self._file = sqlite3.connect(folder / FILE, isolation_level=None)
        if old:
            self._file.execute("ATTACH DATABASE ? AS old", (str(old.folder / FILE),))
        self._file.executescript(_START)

    def __len__(self) -> int:
        return self._count

    def copy(self, start: int, end: int) -> None:
        """Append rows of the earlier store."""
        self._file.execute(_COPY, (self._count - start, start, end))
        self._count += end - start

    def add(self, passages: Iterable[Passage]) -> str:
        """Append passages; return a hash of ids, titles and texts."""
        return corpus_hash(self._written(passages))

    def _written(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        # Pass the passages on as they are written, so that one reading also hashes them.
        for passage in passages:
            text = f"{passage.title}\n{passage.text}".encode()
            content = hashlib.blake2b(text, digest_size=8).digest()
            parts = (passage.id, passage.text, passage.title, passage.source)
            line = (self._count, *parts, int.from_bytes(content, "big", signed=True))
            self._file.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", line)
            self._count += 1
            yield passage

    def finish(self, files: Sequence[StoredFile]) -> None:
        """Sort the ids, all different, and rank the rows; `files` are in the corpus's order."""
        self._file.execute("CREATE INDEX by_id ON passages (id)")
        twice = self._file.execute(_TWICE).fetchone()
        if twice:
            raise RaggdError(_repeated(twice, files))
        rank = np.empty(self._count, dtype=np.int64)
        for place, (row,) in enumerate(self._file.execute("SELECT row FROM passages ORDER BY id")):
            rank[row] = place
        self._file.execute("COMMIT")
        self._file.close()
        np.save(self._folder / "rank.npy", rank, allow_pickle=False)
        write_json(self._folder / "files.json", [asdict(file) for file in files])


def _repeated(twice: tuple[str, int, int], files: Sequence[StoredFile]) -> str:
    name, first, second = twice
    at = [f.name for row in (first, second) for f in files if 0 <= row - f.start < f.count]
    where = f" (in {' and '.join(dict.fromkeys(at))})" if any(at) else ""
    return (
        f"the passage id '{name}' occurs twice, as numbers {first + 1} and {second + 1}"
        f"{where}: ids must be unique in a corpus. Rename or remove one."
    )


def _opened(folder: Path) -> sqlite3.Connection:
    # Immutable: it is written once, so nothing is locked. Threads take turns (`PassageStore`).
    address = f"{(folder / FILE).resolve(strict=True).as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(address, uri=True, check_same_thread=False)


class PassageStore:
    """Random access to the passages of a store; any thread may use it."""

    def __init__(self, folder: Path) -> None:
        """Open the files of a folder; a `ValueError` says what is damaged."""
        self.folder, self.rank = folder, mapped(folder / "rank.npy")
        files = read_json(folder / "files.json", what="list of files")
        self.files = [StoredFile(**entry) for entry in files]
        self._lock = threading.Lock()
        try:
            self._file = _opened(folder)  # it may be gone by now: another version took its place
            ((last, page),) = self._all(_LAST)
        except sqlite3.Error as error:
            raise ValueError(f"{FILE}: {error}") from error
        if last != len(self) - 1 or (folder / FILE).stat().st_size % page:
            raise ValueError(f"{FILE} is cut short, or does not belong to rank.npy")

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._file.execute(query, values).fetchall()

    def __len__(self) -> int:
        return len(self.rank)

    def __iter__(self) -> Iterator[Passage]:
        return (self.passage_at(position) for position in range(len(self)))

    @cached_property
    def _order(self) -> Rows:
        return np.concatenate([np.arange(f.start, f.start + f.count) for f in self.files])

    def passage_at(self, position: int) -> Passage:
        """Return the passage at a position in the corpus."""
        return self.at([int(self._order[position])])[0]

    def at(self, rows: Sequence[int]) -> list[Passage]:
        """Return the passages of rows, in their order."""
        return [Passage(*parts) for parts in self._all(_AT, json.dumps(rows))]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Return the passages with these ids, in their order; unknown ones are refused."""
        # As bytes: halves of surrogate pairs, which no id holds, match nothing.
        query = f"SELECT {_PASSAGE} FROM passages WHERE id = CAST(? AS TEXT)"
        found = []
        for name in ids:
            rows = self._all(query, name.encode(errors="surrogatepass"))
            if not rows:
                raise RaggdError(
                    f"no passage '{name}' in the index at {self.folder}: the ids belong to "
                    "another corpus."
                )
            found.append(Passage(*rows[0]))
        return found

    def content(self) -> NDArray[np.int64]:
        """Return a hash of title and text of each row, shape (passages,)."""
        numbers = self._all("SELECT content FROM passages ORDER BY row")
        return np.fromiter((number for (number,) in numbers), dtype=np.int64, count=len(self))

    def shared_with(self, old: PassageStore, first: int) -> tuple[int, int]:
        """Count the ids, from row `first`, of an older store, and those with another content."""
        with closing(_opened(self.folder)) as both:
            both.execute("ATTACH DATABASE ? AS old", (str(old.folder / FILE),))
            shared, changed = both.execute(_SHARED, (first,)).fetchone()
        return shared, changed


MANY = 20  # different queries with one and the same best passage, from which a retriever warns
DEPTH = 100  # passages that each retriever is asked for, at least


class StoredRetriever(ABC):
    """An opened index, which knows how many passages it searches; kinds differ in `_search`."""

    def __init__(self, store: PassageStore, fingerprint: str) -> None:
        self.store, self.fingerprint = store, fingerprint
        self._watching = len(store) > 1
        self._tops: dict[str, str] = {}  # the best passage of each query, while it is the same

    def __len__(self) -> int:
        return len(self.store)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return hits as `Retriever.search` describes them."""
        check_search(queries, k)
        if not (queries and k):
            return [[] for _ in queries]
        found = self._search(queries, k)
        if self._watching:
            self._watch(queries, found)
        return found

    def _watch(self, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> None:
        # Many different queries with the same best passage: so a tokenizer that does not fit the
        # corpus, or an encoder without its prefix, looks from outside. It is told once.
        best = zip(queries, found, strict=True)
        self._tops |= {query: hits[0].passage.id for query, hits in best if hits}
        alike = len(set(self._tops.values())) < 2
        self._watching = alike and len(self._tops) < MANY
        if alike and not self._watching:
            name = next(iter(self._tops.values()))
            warnings.warn(
                f"the best passage was '{name}' for all of {len(self._tops)} different queries: "
                "check that the corpus is in the language of the queries and holds more than one "
                "distinct text.",
                RetrievalWarning,
                stacklevel=3,
            )

    def _hits(self, rows: Rows, scores: NDArray[np.floating[Any]]) -> list[Hit]:
        return list(map(Hit, self.store.at(rows.tolist()), scores.tolist()))

    @abstractmethod
    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]: ...


class HybridRetriever(StoredRetriever):
    """Several retrievers of the same passages, fused by reciprocal ranks; ties go by passage id."""

    def __init__(self, parts: Sequence[StoredRetriever]) -> None:
        prints = (part.fingerprint for part in parts)
        super().__init__(parts[0].store, content_id("hybrid", f"{FUSION} {DEPTH}", *prints))
        self._parts, self._watching = parts, False  # the parts watch

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        lists = [part.search(queries, max(k, DEPTH)) for part in self._parts]
        return [fused(each)[:k] for each in zip(*lists, strict=True)]


def read_rows(folder: Path, start: int, end: int) -> Iterator[Passage]:
    """Stream rows `start` to `end` of a store."""
    query = f"SELECT {_PASSAGE} FROM passages WHERE row >= ? AND row < ? ORDER BY row"
    with closing(_opened(folder)) as file:
        for parts in file.execute(query, (start, end)):
            yield Passage(*parts)


def mapped(path: Path) -> NDArray[Any]:
    """Return an array of a file, memory-mapped."""
    # As a plain array: slices of a memmap are several times dearer. One at a time: NumPy reads
    # headers by `ast`, which older CPython 3.11 confuses between threads (its issue 106905).
    with _READING:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
