"""The files of a corpus: which there are, what they are called, which cannot be read and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raggd.records import RaggdError


@dataclass(frozen=True, slots=True)
class SourceFile:
    r"""A file of a corpus.

    Attributes:
        path: where it lies.
        name: path relative to the corpus, with ``/``; bytes that are no text, and control
            characters, as ``\xNN``. Ids of passages begin with it.
        size: bytes.
        mtime_ns: when it was last changed, nanoseconds.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file (or link, or folder) that is no part of the corpus, and why."""

    file: str
    reason: str


def shown_name(path: Path) -> str:
    """Return a path as text that any terminal, file and prompt can hold."""
    text = os.fsencode(path.as_posix().replace("\\", r"\\")).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def files_under(folder: Path, skipped: list[Skipped]) -> Iterator[SourceFile]:
    """Walk a folder without hidden files and folders; links are followed, each folder once.

    Args:
        folder: the corpus.
        skipped: what is no file, or cannot be looked at, is appended.

    Yields:
        The files, in no particular order.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:  # links last: a folder is read under its own name where it has one
        here = folders.pop() if folders else links.pop(0)
        name = shown_name(here.relative_to(folder))
        try:
            state = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(name, f"cannot be opened ({error.strerror})"))
            continue
        if (state.st_dev, state.st_ino) in seen:
            skipped.append(Skipped(name, "a link to a folder that is read already"))
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if path.is_dir():  # False for links in a circle, where `entry.is_dir` raises
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield from _regular(path, shown_name(path.relative_to(folder)), skipped)


def _regular(path: Path, name: str, skipped: list[Skipped]) -> Iterator[SourceFile]:
    try:
        state = path.stat()
    except OSError as error:
        reason = "a broken link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        skipped.append(Skipped(name, reason))
        return
    if stat.S_ISREG(state.st_mode):
        yield SourceFile(path, name, state.st_size, state.st_mtime_ns)
    else:
        skipped.append(Skipped(name, "not a regular file"))


def source_file(path: Path) -> SourceFile:
    """Look at one file.

    Args:
        path: the file, which is its own corpus.

    Returns:
        The file; its name is the last part of the path.

    Raises:
        RaggdError: it is not there, or is no regular file.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise RaggdError(
            f"no corpus at {shown_name(path)} ({error.strerror}): give a file or a folder of files."
        ) from error
    if not stat.S_ISREG(state.st_mode):
        raise RaggdError(f"{shown_name(path)} is no regular file: give a file or a folder.")
    return SourceFile(path, shown_name(Path(path.name)), state.st_size, state.st_mtime_ns)
