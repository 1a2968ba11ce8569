"""Index folders: whole or absent, described by a manifest, replaced in one step.

    NAME/index.json    the manifest: written last, it names the folder with the data
    NAME/data-3/       the data of one version of the index; never changed
    .NAME.partial/     the next version while it is made, by one process at a time

A reader maps the files of one version and keeps them, whatever takes its place; so an index can be
brought up to date under a running program. A build that was stopped goes on from what it finds; a
partial folder with nothing to go on from is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from raggd.files import read_json, reason_of, write_json
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
