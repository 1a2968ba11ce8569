"""Index folders: whole or absent, described by a manifest, built beside their place.

While an index is made, everything lies in the folder ``.NAME.partial`` beside it, which one
process at a time may work in; a build that was stopped goes on from what it finds there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raggd.files import read_json, write_json
from raggd.records import RaggdError

FORMATS = {"bm25": 2, "dense": 1}
"""Version of the index folders that this code writes, by kind; it reads all up to it."""

MANIFEST = "index.json"
"""The file, written last, that makes a folder an index."""


def write_manifest(
    folder: Path, kind: str, passages: int, corpus_hash: str, **details: Any
) -> None:
    """Write ``index.json``, which makes a folder an index; to be called last.

    Args:
        folder: the index folder.
        kind: ``"bm25"`` or ``"dense"``.
        passages: size of the corpus.
        corpus_hash: hash of the corpus.
        **details: parameters and fingerprints of this kind of index.
    """
    manifest = {
        "format": FORMATS[kind],
        "kind": kind,
        "passages": passages,
        "corpus_hash": corpus_hash,
        **details,
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read and check ``index.json``.

    Args:
        folder: the index folder.
        kind: the kind that is expected; None accepts any.

    Returns:
        The manifest.

    Raises:
        RaggdError: the folder is not an index, or has another format version or kind.
    """
    if not (folder / MANIFEST).is_file():
        raise RaggdError(f"no index at {folder}: build one with `raggd index PATH`.")
    manifest = read_json(folder / MANIFEST, what="index description")
    if not isinstance(manifest, dict) or manifest.get("kind") not in FORMATS:
        raise RaggdError(f"{folder / MANIFEST} does not describe an index: build it again.")
    if kind is not None and manifest["kind"] != kind:
        raise RaggdError(
            f"the index at {folder} is a {manifest['kind']} index, expected {kind}: build "
            f"one with retrieval.retriever={kind}."
        )
    newest = FORMATS[manifest["kind"]]
    if manifest.get("format") not in range(1, newest + 1):
        raise RaggdError(
            f"the index at {folder} has format version {manifest.get('format')}, this raggd reads "
            f"up to version {newest}: build the index again with `raggd index PATH`."
        )
    return manifest


def check_replaceable(folder: Path) -> None:
    """Refuse to write an index over something that is not one.

    Args:
        folder: where an index is to be written.

    Raises:
        RaggdError: the path is a file, or a folder with other content than an index.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RaggdError(f"cannot write an index to {folder}: it is a file. Name a new folder.")
    if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise RaggdError(
            f"cannot write an index to {folder}: the folder holds other files, which would be "
            "lost. Name a new folder."
        )


@contextmanager
def building(folder: Path, resumable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the folder ``.NAME.partial`` to build in, and put it in place when the block succeeds.

    Only one process is in the block; others wait, and then find the finished index or go on with
    the partial one. On an exception the partial folder stays if there is something to go on
    from; what was at `folder` stays in any case.

    Args:
        folder: the index folder to write.
        resumable: whether a partial folder is worth keeping.

    Yields:
        The folder to write into.
    """
    check_replaceable(folder)
    work = folder.with_name(f".{folder.name}.partial")
    with write_errors(folder), _locked(work):
        try:
            yield work
            put_in_place(work, folder)
        except BaseException:
            if not resumable(work):
                shutil.rmtree(work, ignore_errors=True)
            raise


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    # A lock on the folder itself leaves no lock file behind and goes with its holder.
    while True:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if work.is_dir() and os.fstat(handle).st_ino == work.stat().st_ino:
                yield
                return
        finally:
            os.close(handle)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors while an index is written into one clear message.

    Args:
        folder: the index folder.

    Yields:
        Nothing.

    Raises:
        RaggdError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise RaggdError(
            f"cannot write the index {folder}: {reason}. What was there is unchanged; free space "
            "or choose another folder."
        ) from error


def put_in_place(finished: Path, folder: Path) -> None:
    """Rename a finished index folder to its place, moving an older index out of the way.

    Args:
        finished: the new folder, on the same file system.
        folder: its place.
    """
    if not folder.exists():
        finished.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        folder.rename(aside / "old")
        finished.rename(folder)
    except BaseException:
        if not folder.exists() and (aside / "old").exists():
            (aside / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
