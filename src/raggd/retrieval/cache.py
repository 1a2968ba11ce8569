"""What is kept in the cache folder: results of searches, for all methods alike, and indexes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raggd.files import CacheWarning, cache_folder, is_unwritable, reason_of
from raggd.records import Hit, RaggdError, content_id
from raggd.retrieval.base import check_search
from raggd.retrieval.folders import MANIFEST, read_manifest
from raggd.retrieval.store import StoredRetriever

_TABLE = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, retriever TEXT NOT NULL, k INTEGER NOT NULL, query TEXT NOT NULL,
    ids TEXT NOT NULL, scores BLOB NOT NULL
) WITHOUT ROWID
"""
_INSERT = "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT ids, scores FROM results WHERE key = ?"


class CachedRetriever:
    """A retriever that remembers results in an SQLite file, which processes may share.

    Results are keyed by the retriever's fingerprint (which covers its index), `k` and the query.
    Ids and scores are stored (as 64-bit floats, so they come back bitwise); passages are read from
    the index. Where the file cannot be written, every search is made.
    """

    def __init__(self, retriever: StoredRetriever, folder: Path) -> None:
        self._retriever, self.fingerprint = retriever, retriever.fingerprint
        self._path = folder / "retrieval.sqlite3"
        self._told = False

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return exactly what the retriever behind the cache returns."""
        check_search(queries, k)
        keys = [content_id(self.fingerprint, str(k), query, length=40) for query in queries]
        known = self._use(keys, [])
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in known}
        if missing:
            found = self._retriever.search(list(missing.values()), k)
            known |= zip(missing, map(_packed, found), strict=True)
            added = [(key, self.fingerprint, k, q, *known[key]) for key, q in missing.items()]
            self._use([], added)
        return [self._hits(*known[key]) for key in keys]

    def _hits(self, ids: str, scores: bytes) -> list[Hit]:
        found = self._retriever.store.passages(json.loads(ids))
        return list(map(Hit, found, np.frombuffer(scores, dtype="<f8").tolist()))

    def _use(
        self, keys: Sequence[str], added: Sequence[tuple[object, ...]]
    ) -> dict[str, tuple[str, bytes]]:
        # Note added rows, and return those of keys that are known. A connection per call: safe from
        # any thread and after a fork; opening takes microseconds.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=60)) as file, file:
                file.execute(_TABLE)
                if added:
                    file.executemany(_INSERT, added)
                read = {key: file.execute(_SELECT, (key,)).fetchone() for key in keys}
                return {key: row for key, row in read.items() if row is not None}
        except (sqlite3.Error, OSError) as error:
            if not is_unwritable(error):
                raise RaggdError(
                    f"cannot use the retrieval cache {self._path} ({error}): delete the file; it "
                    "is made again."
                ) from error
            if not self._told:
                warnings.warn(
                    f"results of searches are not kept in {self._path}: {reason_of(error)}.",
                    CacheWarning,
                    stacklevel=3,
                )
            self._told = True
            return {}


def _packed(hits: Sequence[Hit]) -> tuple[str, bytes]:
    scores = np.array([hit.score for hit in hits], dtype="<f8")
    return json.dumps([hit.passage.id for hit in hits]), scores.tobytes()


_REMADE = ("index", "unfinished index", "retrieval", "adapters", "tables", "pocket-choices")
"""Kinds of entries that are made again when they are needed, without a download."""
_AT_WORK = 3600
"""Seconds for which an index that is not finished may still be made by another process."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Something in the cache folder."""

    kind: str  # ``index``, ``unfinished index``, or the name of the folder that it lies in
    path: Path
    bytes: int
    last_used: float  # seconds since 1970; of what does not note it, when it was last written
    what: str


def list_cache() -> list[CacheEntry]:
    """Return all that is in the cache folder, the longest unused first."""
    entries = []
    for path in cache_folder().glob("*/*"):
        with suppress(FileNotFoundError):  # another process removed it, or a part of it
            entries.append(_entry(path.parent.name, path))
    return sorted(entries, key=lambda entry: entry.last_used)


def _entry(folder: str, path: Path) -> CacheEntry:
    files = [f.stat() for f in (path, *path.rglob("*")) if f.is_file()]
    size = sum(f.st_size for f in files)
    used = max((f.st_mtime for f in files), default=path.stat().st_mtime)
    if folder != "indexes":
        return CacheEntry(folder, path, size, used, path.name)
    try:
        manifest = read_manifest(path)
    except RaggdError:
        return CacheEntry("unfinished index", path, size, used, path.name.strip("."))
    kind, count, corpus = (manifest.get(name) for name in ("kind", "passages", "corpus"))
    what = f"{kind}, {count} passages of {corpus}"
    return CacheEntry("index", path, size, (path / MANIFEST).stat().st_mtime, what)


def prune_cache(
    older_than_days: float | None = None, max_bytes: int | None = None
) -> list[CacheEntry]:
    """Return what was deleted: unused for so long, or longest, until the rest is small enough."""
    entries = [entry for entry in list_cache() if entry.kind in _REMADE]
    held, now = sum(entry.bytes for entry in entries), time.time()
    gone: list[CacheEntry] = []
    for entry in entries:
        if entry.kind == "unfinished index" and now - entry.last_used < _AT_WORK:
            continue
        old = older_than_days is not None and now - entry.last_used > 86400 * older_than_days
        if old or (max_bytes is not None and held > max_bytes):
            try:
                with suppress(FileNotFoundError):  # another process was faster
                    shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()
            except OSError as error:
                raise RaggdError(
                    f"cannot delete {entry.path}: {error.strerror or error}. What was to go before "
                    f"it is deleted ({len(gone)} of the cache's entries)."
                ) from error
            held -= entry.bytes
            gone.append(entry)
    return gone
