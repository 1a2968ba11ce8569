"""Index folders: whole or absent, described by a manifest, replaced in one step.

    NAME/index.json    the manifest: written last, it names the folder with the data
    NAME/data-3/       the data of one version of the index; never changed
    .NAME.partial/     the next version while it is made, by one process at a time

A reader maps the files of one version and keeps them, whatever takes its place; so an index can be
brought up to date under a running program. A build that was stopped goes on from what it finds; a
partial folder with nothing to go on from is removed. Indexes that nobody names lie in the cache
folder, which is listed and pruned here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raggd.files import cache_folder, read_json, reason_of, write_json
from raggd.records import RaggdError

FORMATS = {"bm25": 4, "dense": 3}
"""Version of the index folders that this code writes and reads, by kind."""

MANIFEST = "index.json"  # the file that makes a folder an index
STATE = "state.json"
"""The file of a partial folder that makes it worth keeping: its passages are all there."""

_T = TypeVar("_T")


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Return ``index.json`` of an index of a kind (None: any) in the format that is read here."""
    path = folder / MANIFEST
    found = read_json(path, what="index description") if path.is_file() else {}
    named = found.get("kind") if isinstance(found, dict) else None
    if named not in FORMATS or kind not in {None, named} or found.get("format") != FORMATS[named]:
        raise RaggdError(
            f"no {kind or 'kind of'} index that this raggd reads is at {folder}: build one with "
            "`raggd index PATH`."
        )
    return dict(found)


def open_folder(folder: Path, kind: str, load: Callable[[Path, dict[str, Any]], _T]) -> _T:
    """Return what `load` makes of an index's data and manifest, also while it is replaced."""
    while True:
        manifest = read_manifest(folder, kind)
        try:
            found = load(folder / str(manifest["data"]), manifest)
        except (RaggdError, OSError, ValueError, KeyError, TypeError) as error:
            if read_manifest(folder, kind) != manifest:
                continue  # it was replaced in this moment
            if isinstance(error, RaggdError):  # it says what is wrong
                raise
            raise RaggdError(
                f"the index at {folder} is damaged ({error}): delete the folder and build it again."
            ) from error
        with suppress(OSError):
            os.utime(folder / MANIFEST)  # when it was last used, for `prune_cache`
        return found


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield ``.NAME.partial`` to build in, one process at a time; refuse to replace other files."""
    work = folder.with_name(f".{folder.name}.partial")
    try:
        unnamed = folder.exists() and not (folder / MANIFEST).is_file()
        if unnamed and not (folder.is_dir() and all(map(_is_version, folder.iterdir()))):
            raise RaggdError(
                f"cannot write an index to {folder}: it is a file, or holds other files, which "
                "would be lost. Name a new folder."
            )
        with _locked(work):
            yield work
    except (OSError, sqlite3.Error) as error:
        raise RaggdError(
            f"cannot write the index {folder}: {reason_of(error)}. What was there is unchanged; "
            "free space or choose another folder (that of the cache is RAGGD_CACHE)."
        ) from error


def _is_version(entry: Path) -> bool:
    # one of ours: other folders may be called so
    held = ("files.json", "passages.sqlite3")
    return entry.name.startswith("data-") and any((entry / name).is_file() for name in held)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    # A lock on the folder itself leaves no lock file behind and goes with its holder.
    while True:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_opened(work, handle):
                try:
                    yield
                finally:
                    if _is_opened(work, handle) and not (work / STATE).is_file():
                        shutil.rmtree(work, ignore_errors=True)
                return
        finally:
            os.close(handle)


def _is_opened(folder: Path, handle: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), folder.stat())
    return False


def clear(work: Path) -> None:
    """Drop what an earlier build of something else left in a partial folder."""
    for stale in work.iterdir():
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def publish(work: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Make a finished partial folder the current version of an index, and drop the one before."""
    (work / STATE).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (old.name.partition("-")[2] for old in folder.glob("data-*"))
    name = f"data-{max((int(n) for n in numbers if n.isdecimal()), default=0) + 1}"
    work.rename(folder / name)
    write_json(folder / MANIFEST, {"format": FORMATS[manifest["kind"]], **manifest, "data": name})
    for old in folder.iterdir():
        if old.name != name and _is_version(old):
            shutil.rmtree(old, ignore_errors=True)


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
