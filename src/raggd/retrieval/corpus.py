"""What a corpus holds, and what changed in it since it was last indexed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raggd.data.documents import (
    Skipped,
    SourceFile,
    corpus_hash,
    list_files,
    passages_in,
    read_passages,
    summary,
)
from raggd.files import file_hash
from raggd.records import Passage, RaggdError
from raggd.retrieval.base import Count
from raggd.retrieval.store import PassageStore, StoredFile, StoreWriter

_TICK_NS = 2_000_000_000
"""A file younger than this when it is read may change again without another time stamp."""
_TOLD_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a corpus as they are now; its `key`, the path, stands in its index's name."""

    files: tuple[SourceFile, ...]
    key: str
    skipped: tuple[Skipped, ...]


def look_at(corpus: Path) -> Listing:
    """Return what a file or folder holds now; no file is read."""
    skipped: list[Skipped] = []
    return Listing(tuple(list_files(corpus, skipped)), str(corpus.resolve()), tuple(skipped))


def passages_hash(path: Path) -> str:
    """Return the hash of all passages of a file or folder, which are read for it."""
    return corpus_hash(read_passages(path))


def _hash_of(file: SourceFile) -> str:
    try:
        return file_hash(file.path)
    except OSError:  # it cannot be opened
        return ""


def unchanged(listing: Listing, old: Sequence[StoredFile]) -> dict[str, StoredFile]:
    """Return what was stored of files with the same size and time, or bytes, as of now."""
    known = {file.name: file for file in old}
    same = {}
    for now in listing.files:
        before = known.get(now.name)
        if before is None or before.size != now.size:
            continue
        if "pip install" in before.skipped:  # perhaps what it needs is there by now
            continue
        # no time stamp tells that a file which could not be opened can be now
        settled = before.content and before.mtime_ns == now.mtime_ns != 0
        if settled or before.content == _hash_of(now):
            same[now.name] = replace(before, mtime_ns=_settled(now.mtime_ns))
    return same


def _settled(mtime_ns: int) -> int:
    return mtime_ns if time.time_ns() - mtime_ns > _TICK_NS else 0


def write_store(
    work: Path,
    listing: Listing,
    same: dict[str, StoredFile],
    old: PassageStore | None,
    count: Count,
) -> NDArray[np.bool_]:
    """Write the passages of a corpus into an empty folder; those of `same` files are copied.

    A file of a folder that cannot be read is left out, and its reason stored. Whether each row of
    `old` was copied is returned, shape (rows,); copied rows come first, in order.

    Raises:
        RaggdError: a single file cannot be read, no file can, or two passages share an id.
    """
    writer = StoreWriter(work, old)
    kept = np.zeros(len(old) if old else 0, dtype=bool)
    for file in same.values():
        kept[file.start : file.start + file.count] = True
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2)
    for start, end in edges.tolist():
        writer.copy(start, end)
    place = np.cumsum(kept) - 1
    stored = []
    for now in listing.files:
        if now.name in same:
            before = same[now.name]
            start = int(place[before.start]) if before.count else 0
            stored.append(replace(before, start=start))
        else:
            stored.append(_read(writer, listing, now, count))
    if not len(writer):
        left_out = [*listing.skipped, *skipped_in(stored)]
        raise RaggdError(f"nothing to index: {summary(left_out)}.")
    writer.finish(stored)
    return kept


def _read(writer: StoreWriter, listing: Listing, now: SourceFile, count: Count) -> StoredFile:
    start = len(writer)
    state = StoredFile(now.name, now.size, _settled(now.mtime_ns), _hash_of(now))
    lost: list[Skipped] = []
    passages = passages_in(now, lost, alone=len(listing.files) == 1)
    hashed, why = writer.add(_counted(passages, start, count)), "; ".join(s.reason for s in lost)
    if not (read := len(writer) - start):
        return replace(state, skipped=why)
    return replace(state, passages=hashed, start=start, count=read, partly=why)


def _counted(passages: Iterable[Passage], done: int, count: Count) -> Iterator[Passage]:
    for number, passage in enumerate(passages, start=done + 1):
        if number % _TOLD_EVERY == 0:
            count(number, None)
        yield passage


def skipped_in(files: Sequence[StoredFile]) -> list[Skipped]:
    """Return the files of a store that could not be read, or not whole, with their reasons."""
    told = [Skipped(f.name, f.skipped or f.partly, partly=not f.skipped) for f in files]
    return [each for each in told if each.reason]


@dataclass(frozen=True, slots=True)
class Changes:
    """How many files and passages came, changed and went since the index was last made.

    A passage is known by its id; it changed if its title or text did.
    """

    files_added: int = 0
    files_changed: int = 0
    files_removed: int = 0
    passages_added: int = 0
    passages_changed: int = 0
    passages_removed: int = 0

    def __str__(self) -> str:
        """Return one line for people."""
        counts = [f"{count} {name.partition('_')[2]}" for name, count in asdict(self).items()]
        return f"files: {', '.join(counts[:3])}; passages: {', '.join(counts[3:])}"


def changes_between(old: PassageStore | None, new: PassageStore, copied: int, same: int) -> Changes:
    """Return what changed since a store: first rows were `copied`, `same` files stayed."""
    before = {file.name for file in old.files} if old else set()
    now = {file.name for file in new.files}
    shared, changed = new.shared_with(old, copied) if old else (0, 0)
    return Changes(
        files_added=len(now - before),
        files_changed=len(now & before) - same,
        files_removed=len(before - now),
        passages_added=len(new) - copied - shared,
        passages_changed=changed,
        passages_removed=len(old) - copied - shared if old else 0,
    )
